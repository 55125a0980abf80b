"""Which numbers moved: two checkpoints of one shape beside each other, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoint import load_layout, stored_parts
from gptcli.config import Config
from gptcli.errors import NotFound, UsageError
from gptcli.layout import Layout, look
from gptcli.lora import CONFIG, apply
from gptcli.model import Decoder
from gptcli.model_choice import adapter_folder
from gptcli.records import Difference, Moved


def compare(before: str, after: str) -> Difference:
    """How far every parameter of `before` is from its place in `after`, in float32, whatever they are stored as.

    `after` may be an adapter: then it is `before` with the adapter in it. One parameter of each is held at a
    time, but for adapters. Raises UsageError if the two are not of one shape.
    """
    first = look(before)
    if (adapter := _adapter(after)) is not None:
        checkpoint = load_layout(first, device="cpu", dtype="float32")
        apply(checkpoint, adapter)
        pairs = _beside(first, dict(checkpoint.decoder.named_parameters()))
        return _difference(before, after, first.config, pairs)
    second = look(after)
    mine, theirs = first.config.shapes(), second.config.shapes()
    if first.family != second.family:
        raise UsageError(f"{before} is a {first.family} and {after} a {second.family}: nothing to compare")
    for name in {**mine, **theirs}:
        if mine.get(name) != theirs.get(name):
            raise UsageError(
                f"{name} has shape {_shape(mine.get(name))} in {before} and {_shape(theirs.get(name))} in {after}",
                hint="only checkpoints of one shape can be compared",
            )
    return _difference(before, after, first.config, _two(first, second))


def _adapter(name: str) -> Path | None:
    """The folder of the adapter that is meant, if one is; a model that lies here under that name comes first."""
    if Path(name).exists() and not (Path(name) / CONFIG).is_file():
        return None
    try:
        return adapter_folder(name)
    except NotFound:
        return None


def difference(before: str, after: str, first: Decoder, second: Decoder) -> Difference:
    """The same of two decoders in memory, of one shape; the names are for the eye."""
    now = dict(second.named_parameters())
    pairs = ((name, p.detach(), now[name].detach()) for name, p in first.named_parameters())
    return _difference(before, after, first.config, pairs)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _two(first: Layout, second: Layout) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Both read in their own order: what one has read waits until the other has it too."""
    waiting: dict[tuple[str, int | None], Tensor] = {}
    theirs = stored_parts(second)
    for part, tensor in stored_parts(first):
        key = (part.name, part.row)
        while key not in waiting:
            other, found = next(theirs)
            waiting[other.name, other.row] = found
        yield part.name, tensor, waiting.pop(key)


def _beside(layout: Layout, now: dict[str, torch.nn.Parameter]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for part, tensor in stored_parts(layout):
        after = now[part.name].detach()
        yield part.name, tensor, after if part.row is None else after[part.row]


def _difference(before: str, after: str, config: Config, pairs: Iterator[tuple[str, Tensor, Tensor]]) -> Difference:
    shapes = config.shapes()
    sums: dict[str, tuple[int, float, float, float]] = {}
    for name, a, b in pairs:
        change = b.float() - a.float()
        n, square, squared_change, largest = sums.get(name, (0, 0.0, 0.0, 0.0))
        sums[name] = (
            n + int(torch.count_nonzero(change)),
            square + float(a.double().square().sum()),
            squared_change + float(change.double().square().sum()),
            max(largest, float(change.abs().max())),
        )
    moved = []
    for name, shape in shapes.items():
        n, square, squared_change, largest = sums[name]
        size = math.prod(shape)
        moved.append(
            Moved(
                name=name,
                shape=shape,
                n_changed=n,
                relative=math.sqrt(squared_change / square) if square else math.inf if squared_change else 0.0,
                rms_before=math.sqrt(square / size),
                rms_change=math.sqrt(squared_change / size),
                largest=largest,
            )
        )
    return Difference(before=before, after=after, n_params=config.n_params(), moved=tuple(moved))
