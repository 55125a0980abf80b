"""Runs the real program as a person or a script would: in a pipe, or in a pseudo-terminal."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "gptcli"]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what a developer has set for his own use."""
    settings = ("GPTCLI_", "HF_", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLORTERM", "XDG_", "COLUMNS", "LINES")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "TERM": "xterm-256color"}
    return {**clean, "OMP_NUM_THREADS": "1", **(more or {})}


def gptcli(
    *arguments: str | bytes | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """One run in pipes; `stdin` is piped in, and ends."""
    options = {"input": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120} | options
    return subprocess.run([*PROGRAM, *arguments], env=environment(env), **options)


def inside(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """(exit code, output, errors) of one command line in this process: importing torch anew takes a second or two."""
    from gptcli.cli import run

    streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (stdin, b"", b"")]
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        code = run([str(argument) for argument in arguments])
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    for stream in streams[1:]:
        stream.flush()
    out, errors = (stream.buffer.getvalue() for stream in streams[1:])  # type: ignore[attr-defined]
    return code, out, errors


def quick(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The same as `gptcli`, but in this process: for what does not depend on being a program of its own."""
    code, out, errors = inside(*arguments, stdin=stdin)
    return subprocess.CompletedProcess([str(argument) for argument in arguments], code, out, errors)


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on standard error, and its hint; anything else there fails the test."""
    lines = done.stderr.decode().splitlines()
    assert lines and lines[0].startswith("gptcli: error: "), done.stderr
    assert len(lines) <= 2 and all(line.startswith("hint: ") for line in lines[1:]), done.stderr
    assert b"Traceback" not in done.stderr and done.stdout == b""
    return "\n".join(lines)


def in_terminal(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    when: Callable[[bytes], bytes | None] = lambda seen: None,
    size: tuple[int, int] = (24, 100),
    timeout: float = 60.0,
) -> tuple[bytes, int]:
    """(everything the terminal was sent, exit code). `when` may answer what was seen so far with keys to press once."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the program as a signal

    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(env),
        start_new_session=True, preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(slave)
    seen, pressed, deadline = b"", False, time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # how a pseudo-terminal says that the other end has gone
                    raise
                break
            if not data:
                break
            seen += data
            if not pressed and (keys := when(seen)) is not None:
                os.write(master, keys)
                pressed = True
        return seen, process.wait(timeout=max(0.1, deadline - time.monotonic()))
    finally:
        process.kill()
        os.close(master)
