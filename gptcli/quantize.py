"""Fewer bits for each weight: int8 with a scale a row, int4 with a scale and a middle for each 32 weights.

What is rounded are the matrices of the layers and the scores' own, which one token reads as a whole; the embedding,
of which it reads a row, stays as it is. int4 keeps the scores, and what its kernel has no form for, in 8 bits.

A rounded checkpoint is kept in the user's cache, because rounding takes longer than loading: as safetensors, by a key
made of the weights' contents, so that copies share it and nothing that changed is taken for what it was. What is kept
can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gptcli.config import Config
from gptcli.errors import UsageError
from gptcli.linear import GROUP, Int4, Int8, Linear
from gptcli.model import Decoder, Head
from gptcli.user_cache import digest_of, in_use, is_ours, user_cache, written

if TYPE_CHECKING:
    from gptcli.layout import Layout

Bits = Literal["int8", "int4"]
KINDS: tuple[Bits, ...] = ("int8", "int4")
FORMAT = "4"  # of the kept files
SOURCES = ("linear.py", "quantize.py", "fixes.py", "families.py", "layout.py", "checkpoint.py")  # what decides on them


class RoundedHead(nn.Module):
    """The scores' matrix in 8 bits; the embedding that it may share its numbers with stays whole."""

    def __init__(self, matrix: Int8) -> None:
        super().__init__()
        self.matrix, self.weight, self.bias = matrix, None, None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return cast(Tensor, self.matrix(x))


def quantize(decoder: Decoder, bits: Bits) -> None:
    """Rounds the matrices in place, one at a time. Raises UsageError where the device has no kernel."""
    check_kernel(bits, decoder.embed.weight.device)
    for name in _matrices(decoder):
        round_matrix(decoder, name, bits)
    round_head(decoder)


def check_kernel(bits: Bits, device: torch.device) -> None:
    """Raises UsageError where the device has no kernel for it."""
    if bits == "int4" and device.type != "cpu":
        raise UsageError("4 bits run on the CPU only", hint="use --quantize int8, or --device cpu")


def size(config: Config, bits: Bits, dtype: torch.dtype) -> int:
    """Bytes that a rounded model takes, with its largest matrix as it is before that is rounded."""
    total = largest = 0
    for name, shape in config.shapes().items():
        n, rounded = math.prod(shape), name.startswith("blocks.") and len(shape) == 2 and name.endswith(".weight")
        if rounded and bits == "int4" and Int4.fits(*shape):
            total += n // 2 + n // GROUP * 4
        else:
            total += n if rounded or name == "head.weight" else n * dtype.itemsize
        largest = max(largest, n * dtype.itemsize)
    return total + largest + (config.n_vocab * config.embed_width if config.tied else 0)


@torch.no_grad()
def round_matrix(decoder: Decoder, name: str, bits: Bits) -> None:
    """Rounds what has this name, if it is a matrix of the layers. Nothing keeps it as it was: it is free at once."""
    linear = decoder.get_submodule(name)
    if name.startswith("blocks.") and isinstance(linear, nn.Linear):
        form = Int4 if bits == "int4" and Int4.fits(*linear.weight.shape) else Int8
        decoder.set_submodule(name, form.of(linear.weight.detach(), linear.bias))


@torch.no_grad()
def round_head(decoder: Decoder) -> None:
    """Rounds the scores' matrix, to 8 bits."""
    head = decoder.head
    weight = decoder.embed.weight if head.weight is None else head.weight
    decoder.set_submodule("head", RoundedHead(Int8.of(weight.detach(), head.bias)))


@torch.no_grad()
def whole(decoder: Decoder) -> None:
    """The rounded numbers as ordinary matrices again, for what reads weights one by one, such as the x-ray."""
    dtype = decoder.embed.weight.dtype
    for name in [name for name, part in decoder.named_modules() if isinstance(part, (Int8, Int4))]:
        part = decoder.get_submodule(name)
        if name.startswith("blocks.") and isinstance(part, (Int8, Int4)):
            weight = part.whole().to(dtype)
            linear = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear._parameters |= {"weight": nn.Parameter(weight, requires_grad=False), "bias": part.bias}
            decoder.set_submodule(name, linear)
    rounded: nn.Module = decoder.head
    if isinstance(rounded, RoundedHead):
        matrix = rounded.matrix
        with torch.device("meta"):
            head = Head(replace(decoder.config, tied=False, head_bias=matrix.bias is not None))
        head.weight = nn.Parameter(matrix.whole().to(dtype), requires_grad=False)
        head.bias = matrix.bias
        decoder.set_submodule("head", head)


def kept(layout: Layout, dtype: torch.dtype, bits: Bits) -> Path:
    """Where the rounded checkpoint of these files is kept, by their contents; it need not exist."""
    machine = torch.__version__, torch.backends.cpu.get_cpu_capability()  # they decide how int4 is packed
    layers = layout.config.layers  # which the config leaves out of its repr
    of = (FORMAT, bits, dtype, *machine, layout.family, layout.config, layers)
    digest = hashlib.sha256(repr(of).encode())
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    for file in sorted({placement.tensor.file for placement in layout.placements}):
        digest.update(digest_of(file).encode())
    return user_cache("quantized") / f"{digest.hexdigest()[:32]}.safetensors"


def keep(decoder: Decoder, file: Path) -> None:
    """Writes the rounded decoder, whole or not at all; a full disk or a foreign folder is no reason to fail."""
    try:
        with written(file) as made:
            save_file({name: tensor.detach().contiguous() for name, tensor in _tensors(decoder)}, made)
    except (OSError, SafetensorError):
        pass


def restore(decoder: Decoder, file: Path, dtype: torch.dtype) -> bool:
    """Fills a decoder that was built on the meta device from what `keep` wrote; False if that is not all there."""
    if not is_ours(file):
        return False
    try:
        with safe_open(in_use(file), framework="pt", backend="pread") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        for name in _matrices(decoder):
            linear = cast(nn.Linear, decoder.get_submodule(name))
            bias = linear.bias is not None
            decoder.set_submodule(name, _read(found, name, linear.weight.shape, dtype if bias else None))
        c = decoder.config
        head = _read(found, "head.matrix", (c.n_vocab, c.embed_width), dtype if c.head_bias else None)
        decoder.set_submodule("head", RoundedHead(cast(Int8, head)))
        for name, parameter in list(decoder.named_parameters()):
            if parameter.is_meta:
                path, _, leaf = name.rpartition(".")
                kinds = (dtype, torch.float32)  # the gains of some families are float32 in any model
                if found[name].shape != parameter.shape or found[name].dtype not in kinds:
                    return False
                setattr(decoder.get_submodule(path), leaf, nn.Parameter(found.pop(name), requires_grad=False))
    except (OSError, SafetensorError, KeyError, ValueError):
        return False
    return not found


def _matrices(decoder: Decoder) -> list[str]:
    """The names of the layers' matrices; the matrices themselves would be kept in memory by such a list."""
    named = decoder.named_modules()
    return [name for name, part in named if name.startswith("blocks.") and isinstance(part, nn.Linear)]


def _read(found: dict[str, Tensor], name: str, shape: Sequence[int], bias: torch.dtype | None) -> Int8 | Int4:
    """A rounded matrix out of what was kept; bias: in which dtype it has one. Raises KeyError, or ValueError where
    it does not fit: its kernels read what they are told is there."""
    weight, scale, (rows, columns) = found.pop(f"{name}.weight"), found.pop(f"{name}.scale"), shape
    in_8 = [(torch.int8, (rows, columns)), (torch.float32, (rows,))]
    in_4 = [(torch.uint8, (rows, columns // 2)), (torch.bfloat16, (columns // GROUP, rows, 2))]
    kinds, added = [(t.dtype, tuple(t.shape)) for t in (weight, scale)], found.pop(f"{name}.bias", None)
    if kinds not in (in_8, in_4) or not scale.isfinite().all():
        raise ValueError(name)
    if (added is None) != (bias is None) or (added is not None and (added.dtype, *added.shape) != (bias, rows)):
        raise ValueError(name)
    return (Int8 if kinds == in_8 else Int4)(weight, scale, added)


def _tensors(decoder: Decoder) -> Iterable[tuple[str, Tensor]]:
    yield from decoder.named_parameters()
    yield from decoder.named_buffers()
