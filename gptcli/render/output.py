"""Standard output and standard error, as they really are: closed, full, a pipe, a terminal."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

from gptcli.errors import GptcliError
from gptcli.render.safe import json_line, safe


class ClosedPipe(Exception):
    """Whoever read our output has left; the program ends quietly, as SIGPIPE would have it."""


class Output:
    """Standard output as bytes, flushed chunk by chunk."""

    def __init__(self, stream: TextIO | None = None) -> None:
        found: TextIO | None = sys.stdout if stream is None else stream
        if found is None:
            raise GptcliError("standard output is closed", hint="results are written there; open it or redirect it")
        self._stream = found
        self.is_terminal = found.isatty()
        self.at_line_start = True

    def write(self, text: str) -> None:
        """Writes and flushes. Raises ClosedPipe, or GptcliError when the disk is full."""
        if not text:
            return
        try:
            self._stream.buffer.write(text.encode("utf-8", "replace"))
            self._stream.buffer.flush()
        except OSError as error:
            silence()
            if error.errno == errno.EPIPE:
                raise ClosedPipe from None
            raise GptcliError(f"cannot write to standard output: {error.strerror}") from None
        self.at_line_start = text.endswith("\n")

    def line(self, text: str = "") -> None:
        """Writes the text and ends the line."""
        self.write(text + "\n")

    def json(self, value: object) -> None:
        """Writes one line of JSON."""
        self.line(json_line(value))


def silence() -> None:
    """Standard output leads nowhere from here on, so that Python's flush at exit cannot fail a second time."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def say(text: str, *, end: str = "\n") -> None:
    """A line on standard error, made safe; lost without a word where nobody can hear it.

    At a terminal it is broken between words, where the terminal would break them in the middle; but not where it names
    a command, which is to be copied in one piece.
    """
    text, columns = safe(text), _columns()
    names_command = "gptcli " in text.removeprefix("gptcli: ")
    if columns and len(text) > columns and not names_command and "\n" not in text:  # a traceback stays as it is
        from textwrap import fill  # here: few messages are that long

        text = fill(text, columns, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    tell(text + end)


def _columns() -> int:
    """How wide the terminal is that standard error leads to; 0 where it leads to none, or that is not known."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns if hears() else 0
    except (OSError, ValueError):
        return 0


def tell(text: str) -> None:
    """Our own text, colours and all, on standard error."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


def hears() -> bool:
    """Whether standard error is a terminal, so that progress may be shown there."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
