"""Strings that we did not write, made harmless: a vocabulary, a file name, a message can hold any byte, ESC too."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, TypeVar

# C0 but newline and tab, DEL, C1; line and paragraph separators; soft hyphen, zero-width and bidi controls, BOM, tags;
# lone surrogates (which is how undecodable bytes of a file name arrive); U+FFFE and U+FFFF, which XML does not allow.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f\ud800-\udfff]"
)


def safe(text: str) -> str:
    """The text with everything that could steer a terminal written out: ESC becomes \\x1b, U+202E becomes \\u202e."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_line(value: object) -> str:
    """JSON on one line that steers no terminal: what would is spelled \\uXXXX, which means the same.

    NaN and infinity, which JSON does not have, become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_numbers(value), ensure_ascii=False)
    return _UNSAFE.sub(_spell, text)  # outside of strings there is nothing of the kind


def _spell(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else json.dumps(match[0])[1:-1]


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


T = TypeVar("T")


def harmless(record: T) -> T:
    """A record that was read from a file, with all its strings made so: those of records and tuples inside too."""
    if isinstance(record, str):
        return one_line(record)  # type: ignore[return-value]
    if isinstance(record, tuple):
        return tuple(map(harmless, record))  # type: ignore[return-value]
    if isinstance(record, dict):
        return {key: harmless(value) for key, value in record.items()}  # type: ignore[return-value]
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = (f.name for f in dataclasses.fields(record) if f.init)
        return dataclasses.replace(record, **{name: harmless(getattr(record, name)) for name in fields})
    return record


def one_line(text: str) -> str:
    """The same for a message: on one line."""
    return safe(text).replace("\n", "\\n").replace("\t", "\\t")
