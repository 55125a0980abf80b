"""The prompt, from where people have it: an argument, a file, a pipe, or a pipe and an argument."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gptcli.errors import NotFound, UsageError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "0": "\0"}


def read_prompt(
    argument: str | None,
    option: str | None = None,
    file: str | None = None,
    *,
    stdin_last: bool = False,
    keep_newline: bool = False,
    escape: bool = False,
) -> str:
    """The whole prompt: piped text or the file first, then the argument, joined by a newline; "" where there is none.

    Exactly one trailing newline of a pipe or file is dropped, nothing else is stripped.
    """
    given, piped = _sources(argument, option, file, keep_newline=keep_newline, escape=escape)
    parts = [given, piped] if stdin_last else [piped, given]
    return "\n".join(part for part in parts if part)


def read_cases(
    argument: str | None, option: str | None = None, file: str | None = None, *, escape: bool = False
) -> list[str]:
    """Prompts that are answered in turn: one in each line of a pipe or file that is not empty, then the argument."""
    given, piped = _sources(argument, option, file, keep_newline=False, escape=escape)
    found = [line for line in (*re.split(r"\r?\n", piped), given or "") if line.strip()]
    if not found:
        raise UsageError(
            "there are examples, and no case to answer", hint="give one as the prompt, or one a line in a pipe"
        )
    return found


def _sources(
    argument: str | None, option: str | None, file: str | None, *, keep_newline: bool, escape: bool
) -> tuple[str | None, str]:
    """(the argument, what came through a pipe or from a file)."""
    if argument is not None and option is not None:
        raise UsageError("the prompt is given twice, as an argument and with --prompt", hint="leave one out")
    given = argument if option is None else option
    from_pipe = "-" in (given, file)
    if given == "-" and file not in (None, "-"):
        raise UsageError("the text is to come from standard input and from --file", hint="leave one out")
    if given == "-":
        given = None
    if given is not None:
        _check_utf8(given)
        given = _unescape(given) if escape else given
    if file is not None and file != "-":
        piped = _read_file(file)
    elif from_pipe or not (sys.stdin is None or sys.stdin.isatty()):
        piped = _read_stdin()
    else:
        piped = ""
    if not keep_newline:
        piped = piped.removesuffix("\n").removesuffix("\r") if piped.endswith("\r\n") else piped.removesuffix("\n")
    return given, piped


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="give the prompt as an argument")
    try:
        return _decode(sys.stdin.buffer.read(), "standard input")
    except OSError as error:
        raise UsageError(f"cannot read standard input: {error.strerror}") from None


def _read_file(name: str) -> str:
    try:
        return _decode(Path(name).read_bytes(), name)
    except FileNotFoundError:
        raise NotFound(f"no such file: {name}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            hint="convert it first, for example with iconv -f latin1 -t utf-8",
        ) from None


def _check_utf8(text: str) -> None:
    """Undecodable bytes of an argument arrive as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise UsageError(f"the prompt is not UTF-8: byte 0x{byte:02x} at character {error.start}") from None


def _unescape(text: str) -> str:
    """\\n, \\t, \\r, \\0, \\\\, \\xNN, \\uNNNN as C and JSON have them, \\UNNNNNNNN too; any other backslash stays."""

    def meaning(match: re.Match[str]) -> str:
        code = match[1]
        if code and int(code[1:], 16) > sys.maxunicode:
            raise UsageError(f"\\{code} is not a character: the last is \\U0010FFFF")
        return chr(int(code[1:], 16)) if code else _ESCAPES[match[2]]

    result = re.sub(r"\\(?:(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|([ntr0\\\"']))", meaning, text)
    try:  # two halves make a character, as in JSON
        return result.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        half = next(c for c in result if 0xD800 <= ord(c) < 0xE000)
        raise UsageError(f"the prompt holds half a character, U+{ord(half):04X}") from None
