"""The x-ray as JSON: one object, or one line for each token. Names and units as in docs/trace-format.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from gptcli.records_xray import Book, Cells, Scan
from gptcli.tables import Table


def whole(scan: Scan, views: tuple[str, ...] = (), *, between: bool = False) -> dict[str, Any]:
    """Everything in one object."""
    frames = list(lines(scan, views, between=between))
    answer = {key: value for key, value in frames[0].items() if key != "type"}
    answer["tokens"] = [{k: v for k, v in f.items() if k != "type"} for f in frames if f["type"] == "token"]
    for frame in frames[1:]:
        if frame["type"] not in ("token", "done"):
            answer[frame.pop("type")] = frame
    return answer


def lines(scan: Scan, views: tuple[str, ...] = (), *, between: bool = False) -> Iterator[dict[str, Any]]:
    """meta, then a line for each token, then one for each view that was asked for, the check, done.

    between: with the rows between attention and MLP, where the scan holds them.
    """
    names = ("model", "family", "fingerprint", "version", "n_layer", "n_head", "n_kv_head", "d_model", "parallel")
    meta = {name: getattr(scan, name) for name in names}
    meta |= {"adapter": scan.adapter, "rounding": scan.rounding, "edits": list(scan.edits), "seed": scan.seed}
    meta |= {"n_prompt": scan.n_prompt, "rows": list(scan.cells.rows)}
    yield {"type": "meta", **meta}
    for i, id in enumerate(scan.ids):
        frame: dict[str, Any] = {"type": "token", "position": i, **piece(scan, id), "given": i < scan.n_prompt}
        if i < scan.n_positions:
            depth = scan.depth_at(i)
            frame |= {"answer": piece(scan, scan.answers[i]), "rival": piece(scan, scan.rivals[i])}
            frame["decided"] = scan.cells.rows[depth] if depth < len(scan.cells.rows) else None
            frame["rows"] = list(_rows(scan, scan.cells, i))
            if between and scan.between and i in scan.between.positions:
                frame["between"] = list(_rows(scan, scan.between, i))
        yield frame
    for view in views:
        yield {"type": view, **_view(scan, view)}
    yield {"type": "check", **dataclasses.asdict(scan.check)}
    yield {"type": "done", "tokens": len(scan.ids)}


def difference(a: Scan, b: Scan) -> dict[str, Any]:
    """Two traces side by side, in one object."""
    head, *tokens = difference_lines(a, b)
    found = {key: value for key, value in head.items() if key != "type"}
    return found | {"tokens": [{k: v for k, v in frame.items() if k != "type"} for frame in tokens]}


def difference_lines(a: Scan, b: Scan) -> Iterator[dict[str, Any]]:
    """meta, then a line for each token, as far as both texts hold the same ones."""
    meta: dict[str, Any] = {"type": "meta", "model": a.model, "fingerprint": a.fingerprint}
    for name, scan in (("a", a), ("b", b)):
        own = {"edits": list(scan.edits), "n_prompt": scan.n_prompt, "n_tokens": len(scan.ids)}
        meta[name] = own | {"check": dataclasses.asdict(scan.check)}
    same = a.n_same(b)
    yield meta | {"n_same": same}
    for i in range(min(same, a.n_positions, b.n_positions)):
        frame: dict[str, Any] = {"type": "token", "position": i, **piece(a, a.ids[i])}
        for name, scan in (("a", a), ("b", b)):
            depth, rows = scan.depth_at(i), scan.cells.rows
            decided = rows[depth] if depth < len(rows) else None
            logprob = scan.cells.logprob.number(-1, i)
            frame[name] = {"answer": piece(scan, scan.answers[i]), "logprob": logprob, "decided": decided}
        other = [
            name for r, name in enumerate(a.cells.rows) if a.cells.ids.whole(r, i, 0) != b.cells.ids.whole(r, i, 0)
        ]
        yield frame | {"rows_differ": other}


def piece(scan: Scan, id: int) -> dict[str, Any]:
    """A token: id, text for reading, bytes for certainty."""
    raw = scan.pieces.get(id, b"")
    found: dict[str, Any] = {"id": id, "text": raw.decode("utf-8", "replace"), "bytes": list(raw)}
    return found | ({"name": scan.special[id]} if id in scan.special else {})


def _rows(scan: Scan, cells: Cells, position: int) -> Iterator[dict[str, Any]]:
    j = cells.positions.index(position)
    for r, name in enumerate(cells.rows):
        best = zip(cells.ids.ids(r, j), cells.logprobs.row(r, j), strict=True)
        yield {
            "row": name,
            "top": [{**piece(scan, id), "logprob": logprob} for id, logprob in best],
            "entropy": cells.entropy.number(r, j),
            "kl": cells.kl.number(r, j),
            "rank": cells.rank.whole(r, j),
            "logprob": cells.logprob.number(r, j),
        }


def _view(scan: Scan, view: str) -> dict[str, Any]:
    if view == "ledger":
        return {"positions": [[_book(scan, book, i) for book in scan.books] for i in range(scan.n_positions)]}
    if view == "norms":
        return _record(scan.lengths)
    found = getattr(scan, view)
    return {} if found is None else _record(found)


def _book(scan: Scan, book: Book, i: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "position": i,
        "target": piece(scan, scan.answers[i]),
        "against": piece(scan, scan.rivals[i]) if book.against_rival else None,
        "over_mean": book.over_mean,
        "parts": {name: book.parts.number(n, i) for n, name in enumerate(book.names)},
        "constant": book.const.number(i),
        "sum": book.total.number(i),
        "logit": book.logit.number(i),
        "error": book.total.number(i) - book.logit.number(i),
    }
    if book.capped:
        found["capped"] = book.capped.number(i)
    if book.heads:
        layers, heads = range(scan.n_layer), range(scan.n_head)
        found["heads"] = [[book.heads.number(layer, h, i) for h in heads] for layer in layers]
        if book.head_bias:
            found["head_bias"] = [book.head_bias.number(layer, i) for layer in layers]
        found["sources"] = [[_sources(book, layer, h, i) for h in heads] for layer in layers]
    return found


def _sources(book: Book, layer: int, head: int, i: int) -> list[dict[str, Any]]:
    """Where a head's part came from: the largest shares, and at position None what is left. They add up to it."""
    if not (book.heads and book.source_positions and book.source_parts):
        return []
    at, parts = book.source_positions.ids(layer, head, i), book.source_parts.row(layer, head, i)
    found = [(j, part) for j, part in zip(at, parts, strict=True) if j <= i and part]
    rest = book.heads.number(layer, head, i) - sum(part for _, part in found)
    return [{"position": j, "value": part} for j, part in [*found, (None, rest)]]


def _record(record: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if isinstance(value, Table):
        return value.nested()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _record(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
