"""Whether a text is computed among others as it is alone, to the last bit: then no choice of it can be doubtful.

A product of matrices adds up each of its sums in one order, the same for two rows and for fifty; what is computed for
each row by itself is the same anyhow; and attention is made of products (attend.py). So it should be, and so it is with
the libraries that torch calls on the processors it was tried on. But they promise nothing, so it is tried here, on
this machine, with this model's own shapes, before any text depends on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.attend import PLAIN, attend_plain
from gptcli.cache import Cache
from gptcli.checkpoint import Checkpoint
from gptcli.linear import GROUP, Int4, Int8, Linear, linear
from gptcli.model import Decoder, Head
from gptcli.rows import Rows

SEEN = (1, 7, 16, 33, 100, 257, 640)  # keys that one token's attention is tried with, of up to FEW_TEXTS
FEW_TEXTS = 4
LENGTHS = (2, 2, 9)  # of texts that the whole decoder is tried with


@torch.inference_mode()
def alike(checkpoint: Checkpoint, n_rows: int) -> bool:
    """Whether up to n_rows texts in one pass get the very numbers that `generate` gives each.

    It takes up to a third of a second, so what was found is kept with the checkpoint.
    """
    if checkpoint.device.type != "cpu" or n_rows < 2 or checkpoint.one_token():
        return False
    return checkpoint.once(f"alike {n_rows}", lambda: _tried(checkpoint, n_rows))


def _tried(checkpoint: Checkpoint, n_rows: int) -> bool:
    decoder, generator = checkpoint.decoder, torch.Generator().manual_seed(0)
    counts = sorted({1, 2, 3, n_rows // 2, n_rows - 1} - {0})
    return (
        all(_product_alike(weight, decoder.large, n_rows, counts, generator) for weight in _matrices(decoder))
        and all(_rounded_alike(module, n_rows, counts, generator) for module in _rounded(decoder))
        and all(_attention_alike(decoder, min(n_rows, FEW_TEXTS), seen, generator) for seen in SEEN)
        and _texts_alike(checkpoint)
    )


def _matrices(decoder: Decoder) -> list[Tensor]:
    """One of each shape that is multiplied."""
    found = [module.weight for module in decoder.modules() if isinstance(module, Linear)]
    if isinstance(decoder.head, Head):
        found.append(decoder.embed.weight if decoder.head.weight is None else decoder.head.weight)
    return list({weight.shape: weight for weight in found}.values())


def _rounded(decoder: Decoder) -> list[Int8 | Int4]:
    """One of each shape that is rounded to a few bits."""
    found = [module for module in decoder.modules() if isinstance(module, Int8 | Int4)]
    return list({(type(module), module.weight.shape): module for module in found}.values())


def _rounded_alike(module: Int8 | Int4, n: int, counts: list[int], generator: torch.Generator) -> bool:
    """The same of a rounded matrix, as it is: its kernel takes one row after the other."""
    width = module.weight.shape[1] if isinstance(module, Int8) else module.scale.shape[0] * GROUP
    x = torch.randn(n, width, generator=generator)
    every = module(x)
    return all(torch.equal(module(x[:m]), every[:m]) for m in counts)


def _product_alike(weight: Tensor, large: bool, n: int, counts: list[int], generator: torch.Generator) -> bool:
    """Whether the first rows of a product are the same for any number of rows.

    Tried with a matrix of this shape and vectors whose sums are 0, but for rounding: what is left is nothing but
    rounding, and another order of adding shows in half precision too.
    """
    N, K = weight.shape
    order = torch.randperm(K // 2, generator=generator)
    half = torch.randn(min(N, 512), K // 2, generator=generator)
    matrix = F.pad(torch.cat((half, -half[:, order]), 1), (0, K % 2)).to(weight.dtype)
    matrix = matrix.repeat(-(-N // len(half)), 1)[:N]
    rows = torch.randn(n, K // 2, generator=generator)
    x = F.pad(torch.cat((rows, rows[:, order]), 1), (0, K % 2)).to(weight.dtype)
    every = linear(x, matrix, large=large)
    return all(torch.equal(linear(x[:m], matrix, large=large), every[:m]) for m in counts)


def _attention_alike(decoder: Decoder, n: int, seen: int, generator: torch.Generator) -> bool:
    """Whether one token's attention is the same for one text and for many that look back on as many keys."""
    c = decoder.config
    shape = n, c.n_kv_head, seen + 3, c.d_head
    k, v = (torch.randn(shape, generator=generator)[:, :, 1:-2] for _ in range(2))  # as they lie between others
    q = torch.randn(n, c.n_kv_head, c.n_head // c.n_kv_head, c.d_head, generator=generator)
    every = attend_plain(q, k, v, 1.0, None)
    rows = [slice(i, i + 1) for i in (0, n - 1)]
    alone = [attend_plain(q[row].clone(), k[row].clone(), v[row].clone(), 1.0, None) for row in rows]
    return all(torch.equal(every[row], each) for row, each in zip(rows, alone, strict=True))


def _texts_alike(checkpoint: Checkpoint) -> bool:
    """Whether texts of different lengths get from the whole decoder, each with one more token, what they get alone."""
    decoder, config = checkpoint.decoder, checkpoint.config
    windows = {layer.window for layer in config.layers if layer.window and layer.window < min(config.n_ctx, PLAIN)}
    lengths = [n for n in (*LENGTHS, *(window + i for window in sorted(windows) for i in (-1, 1))) if n < config.n_ctx]
    rows, alone = Rows(config, len(lengths), dtype=checkpoint.dtype, apart=True), list[Tensor]()
    for row, n in enumerate(lengths):
        cache = Cache(config, n + 1, dtype=checkpoint.dtype)
        decoder.stream((torch.arange(n) * 7 + row)[None] % config.n_vocab, cache)
        rows.join(row, cache)
        alone.append(decoder.readout(decoder.stream(torch.tensor([[1]]), cache))[0])
    last = torch.ones(len(lengths), 1, dtype=torch.long)
    return torch.equal(decoder.readout(decoder.stream(last, rows))[:, 0], torch.cat(alone))
