"""Trace files: a safetensors file whose tensors are the tables of a scan, and whose metadata is the rest, as JSON.

Written and read without torch, so that a saved x-ray opens as fast as Python does. docs/trace-format.md has the fields.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
from pathlib import Path
from typing import Any

from gptcli import records_xray as records
from gptcli.disk import whole
from gptcli.errors import BadCheckpoint, GptcliError, NotFound, UsageError
from gptcli.headers import read_header
from gptcli.records_xray import SCHEMA, Scan, Walk
from gptcli.strict_json import parse_json
from gptcli.tables import KINDS, Table

FORMAT = "gptcli x-ray"
KINDS_OF_BOOKS = ((True, False), (False, False), (False, True))  # against the rival, over the mean of all
_CLASSES = {
    kind.__name__: kind for kind in vars(records).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)
}


def save(scan: Scan, path: Path | str) -> None:
    """Writes the whole file or nothing, through a link to where it leads. Raises GptcliError, UsageError."""
    path, tables = Path(os.path.realpath(path)), dict[str, Table]()
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not an ordinary file", hint="choose another place for the trace")
    value = _plain(scan, "", tables)
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "schema": SCHEMA, "scan": json.dumps(value, allow_nan=False)}
    }
    offset = 0
    for name, table in tables.items():
        end = offset + len(table.data)
        header[name] = {"dtype": table.kind, "shape": list(table.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with whole(path) as beside, beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for table in tables.values():
                file.write(table.data)
    except OSError as error:
        raise GptcliError(f"cannot save {path}: {error.strerror}") from None


def load(path: Path | str) -> Scan:
    """Reads a trace; its tables stay on the disk till they are used. Raises NotFound, BadCheckpoint, UsageError."""
    path = Path(path)
    if not path.exists():
        raise NotFound(f"no trace {path}", hint="gptcli xray TEXT --save run.xray makes one")
    try:
        tensors, metadata = read_header(path)
    except BadCheckpoint as error:  # whose hint is about weights
        raise BadCheckpoint(error.message, hint="make it again: gptcli xray TEXT --save run.xray") from None
    if metadata.get("format") != FORMAT:
        raise BadCheckpoint(f"{path.name} is not an x-ray: its metadata does not say {FORMAT!r}")
    if metadata.get("schema") != SCHEMA:
        raise UsageError(
            f"{path.name} is a trace of schema {metadata.get('schema')!r}, and this gptcli reads {SCHEMA!r}",
            hint="make it again: gptcli xray TEXT --save run.xray",
        )
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    tables = {}
    for name, info in tensors.items():
        if info.dtype not in KINDS:
            raise BadCheckpoint(f"{path.name}: {name!r} has the dtype {info.dtype}")
        tables[name] = Table(info.dtype, tuple(info.shape), data[info.offset : info.offset + info.nbytes])
    try:
        scan = _record(parse_json(metadata["scan"].encode(), f"the scan in {path.name}"), tables)
        if not isinstance(scan, Scan):
            raise ValueError("the record is not a scan")
        _check_shapes(scan)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadCheckpoint(f"{path.name} is malformed: {error}") from None
    return scan


def _plain(value: Any, name: str, tables: dict[str, Table]) -> Any:
    """Records as JSON objects that name their kind; tables go to `tables` and leave their name."""
    if isinstance(value, Table):
        tables[name] = value
        return {"kind": "table", "name": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _plain(getattr(value, f.name), f"{name}.{f.name}".strip("."), tables)
            for f in dataclasses.fields(value)
        }
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_plain(item, f"{name}.{i}", tables) for i, item in enumerate(value)]
    if isinstance(value, dict):  # of ids
        return {"kind": "ids", **{str(i): x.hex() if isinstance(x, bytes) else x for i, x in value.items()}}
    return value


def _record(value: Any, tables: dict[str, Table]) -> Any:
    if isinstance(value, list):
        return tuple(_record(item, tables) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.pop("kind")
    if kind == "table":
        return tables[value["name"]]
    if kind == "ids":
        return {int(i): x for i, x in value.items()}
    made = _CLASSES[kind](**{key: _record(item, tables) for key, item in value.items()})
    if isinstance(made, Scan):
        return dataclasses.replace(made, pieces={i: bytes.fromhex(x) for i, x in made.pieces.items()})  # type: ignore[arg-type]
    return made


def _check_shapes(scan: Scan) -> None:
    """That every table is as large as the views take it to be. Raises ValueError."""
    L, R, T, H = scan.n_layer, scan.n_layer + 1, scan.n_positions, scan.n_head
    if not (0 < scan.n_prompt <= len(scan.ids) and scan.n_prompt + max(0, scan.n_answer - 1) == T):
        raise ValueError(f"{len(scan.ids)} tokens, {scan.n_prompt} of them the prompt, do not give {T} positions")
    expected: dict[str, tuple[Table | None, tuple[int, ...]]] = {"vectors": (scan.vectors, (2, T, -1))}
    for name, cells in (("cells", scan.cells), ("between", scan.between)):
        if cells:
            n, p = len(cells.rows), len(cells.positions)
            if (name == "cells" and (n, p) != (R, T)) or not all(0 <= i < T for i in cells.positions):
                raise ValueError(f"{name} has {n} rows at {p} positions")
            expected |= {f"{name}.{f}": (getattr(cells, f), (n, p, -1)) for f in ("ids", "logprobs")}
            expected |= {f"{name}.{f}": (getattr(cells, f), (n, p)) for f in ("entropy", "kl", "rank", "logprob")}
    for f in ("states", "attn", "mlp", "attn_cos", "mlp_cos"):
        expected[f"lengths.{f}"] = (getattr(scan.lengths, f), (R if f == "states" else L, T))
    kinds = [(book.against_rival, book.over_mean) for book in scan.books]  # traces of before have two
    if kinds not in ([], *([*KINDS_OF_BOOKS][:n] for n in (2, 3))):
        raise ValueError("its ledgers are not those of a lead, of a logit and of its distance from the mean")
    for i, book in enumerate(scan.books):
        for f in ("const", "total", "logit", "capped"):
            expected[f"books.{i}.{f}"] = (getattr(book, f), (T,))
        expected |= {
            f"books.{i}.parts": (book.parts, (len(book.names), T)),
            f"books.{i}.heads": (book.heads, (L, H, T)),
        }
        expected[f"books.{i}.head_bias"] = (book.head_bias, (L, T))
        for f in ("source_positions", "source_parts"):
            expected[f"books.{i}.{f}"] = (getattr(book, f), (L, H, T, -1))
    if scan.attention:
        expected |= {"patterns": (scan.attention.patterns, (L, H, T, T)), "sink": (scan.attention.sink, (L, H))}
        expected["lengths"] = (scan.attention.lengths, (L, H, T))
    if scan.flow:
        flow = scan.flow
        expected |= {"flow.shares": (flow.shares, (L, T, T)), "flow.rollout": (flow.rollout, (L, T, T))}
        expected["flow.bias"] = (flow.bias, (L, T))
        if None in (flow.shares, flow.rollout, flow.bias) or not 0 <= flow.error <= 1:
            raise ValueError("its flow is not whole")
    for name, (table, shape) in expected.items():
        if table is not None and not (
            len(table.shape) == len(shape) and all(n in (-1, m) for n, m in zip(shape, table.shape, strict=True))
        ):
            raise ValueError(f"{name} has the shape {list(table.shape)}")
    if scan.walk:
        _check_walk(scan.walk, T)
    if scan.neurons and not (0 <= scan.neurons.layer < L and 0 <= scan.neurons.position < T):
        raise ValueError(f"its neurons are of L{scan.neurons.layer}, position {scan.neurons.position}")
    if len(scan.rivals) != T or len(scan.depth) != T or not math.isfinite(scan.check.lens):
        raise ValueError("its lists are not as long as the text")
    known = scan.pieces.keys()
    ids = {*scan.ids, *scan.answers, *scan.rivals}
    if not ids <= known:
        raise ValueError(f"token {min(ids - known)} has no text")


def _check_walk(walk: Walk, n: int) -> None:
    """That a walk is of this text, and its stops hang from one another. Raises ValueError."""
    deepest = 0
    for stop in walk.stops:
        if not (0 <= stop.depth <= deepest and 0 <= stop.position < n):
            raise ValueError(f"a stop of its walk is at depth {stop.depth}, position {stop.position}")
        deepest = stop.depth + 1
    if not (0 <= walk.position < n and len(walk.words) == n and len(walk.places) in (0, n)):
        raise ValueError(f"its walk is of {len(walk.words)} words, from position {walk.position}")
