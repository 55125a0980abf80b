"""JSON of strangers, read strictly, and the small files that hold it: every surprise is one line, none a crash.

Only the standard library, so that looking at a model costs nothing.
"""

from __future__ import annotations

import gc
import json
import math
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from gptcli.errors import BadCheckpoint, GptcliError, NotFound

CONFIG_LIMIT = 16 << 20  # bytes of a config-like file
DEEPEST = 100  # brackets within brackets, where values are walked; json itself stops at about 1,000


def read_json(path: Path, *, limit: int = CONFIG_LIMIT) -> Any:
    """The value in a file: UTF-8, no duplicate keys, no NaN, no huge numbers, no abyss. Raises BadCheckpoint."""
    return parse_json(read_bytes(path, limit=limit), path.name)


def read_object(path: Path, *, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The same, which must be an object."""
    value = read_json(path, limit=limit)
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path.name} must hold a JSON object")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """JSON of a stranger; `where` is how messages call it."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadCheckpoint(f"{where} begins with a byte order mark", hint="save it as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from None
    if not text.strip():
        raise BadCheckpoint(f"{where} is empty")
    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": no_constant}
    try:
        with no_garbage_collection():
            value = json.loads(text, parse_int=_bounded_int, parse_float=_finite, **hooks)
        if len(data) <= CONFIG_LIMIT // 16:  # larger ones are vocabularies and headers, which nobody walks
            _check_depth(value)
    except json.JSONDecodeError as error:
        raise BadCheckpoint(f"{where} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadCheckpoint(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise BadCheckpoint(f"{where}: {error}") from None
    return value


def _check_depth(value: Any) -> None:
    """Raises RecursionError beyond DEEPEST, one level of the value at a time."""
    level, depth = [value], 0
    while level := [child for v in level for child in _inside(v) if type(child) in (dict, list)]:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if type(value) is dict else value if type(value) is list else ()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: an object none of whose keys is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Half the time of reading a large vocabulary would go into looking for cycles, which it cannot have."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def no_constant(name: str) -> NoReturn:
    """For json.loads: NaN, Infinity and -Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not a JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def read_bytes(path: Path, *, limit: int) -> bytes:
    """All of a small file, which must be a regular one: a pipe would never end."""
    with os_errors(path.name):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadCheckpoint(f"{path.name} is not a regular file")
        if found.st_size > limit:
            raise BadCheckpoint(f"{path.name} has {found.st_size:,} bytes, more than the {limit:,} it may have")
        data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise lfs_pointer(path.name, len(data))
    return data


def lfs_pointer(name: str, size: int) -> BadCheckpoint:
    return BadCheckpoint(f"{name} is a git-lfs pointer of {size} bytes, not the file", hint="run: git lfs pull")


@contextmanager
def os_errors(name: str) -> Iterator[None]:
    """Whatever the file system raises becomes one clear line."""
    try:
        yield
    except GptcliError:
        raise
    except FileNotFoundError:
        raise NotFound(f"no such file: {name}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GptcliError(f"cannot read {name[:200]}: {reason}") from None
