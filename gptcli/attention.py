"""Attention as it was: which position each head looked at, rebuilt from the queries and keys that were recorded.

T positions   H heads   K kv heads   D head dim
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.config import Layer
from gptcli.model import Attention, Block, Norm


@dataclass(frozen=True)
class Cut:
    """Looks that are taken away, [H, T, S], bool."""

    forbidden: Tensor  # before the softmax: the others share what they took
    muted: Tensor  # after it: the others keep what they had, and the row sums to less than 1

    def last(self) -> Cut:
        """Of the last query alone, [H, 1, S]."""
        return Cut(self.forbidden[:, -1:], self.muted[:, -1:])

    def any(self) -> Tensor:
        """Whose looks change at all, [H, T]."""
        return (self.forbidden | self.muted).any(-1)


@torch.inference_mode()
def pattern(q: Tensor, k: Tensor, layer: Layer, softcap: float | None, cut: Cut | None = None) -> Tensor:
    """What is visible, looked at by a whole text. q: [H, T, D]; k: [K, T, D]. Returns [H, T, T], rows sum to 1.

    cut: looks that were taken away, [H, T, T].
    """
    return looks(q, shared(k, q.shape[0]), seen(q.shape[1], layer.window, q.device), layer.scale, softcap, cut)


@torch.inference_mode()
def looks(q: Tensor, k: Tensor, sees: Tensor, scale: float, softcap: float | None, cut: Cut | None = None) -> Tensor:
    """softmax(scale q.k) over the keys that each query sees; nothing, where it sees none. Returns [H, T, S].

    Computed in float32 or wider, whatever the dtype of the model. q: [H, T, D]; k: [H, S, D]; sees: [..., T, S], bool.
    """
    if cut is not None:
        sees = sees & ~cut.forbidden.to(sees.device)
    q, k = (t if t.dtype == torch.float64 else t.float() for t in (q, k))
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~sees, float("-inf")).softmax(-1).masked_fill(~sees.any(-1, keepdim=True), 0)
    return weights if cut is None else weights.masked_fill(cut.muted.to(sees.device), 0)


def shared(k: Tensor, n_head: int) -> Tensor:
    """Keys or values once for each head: H / K neighbours read the same. [K, T, D] -> [H, T, D]."""
    return k.repeat_interleave(n_head // k.shape[0], 0)


@torch.inference_mode()
def look_lengths(block: Block, v: Tensor) -> Tensor:
    """How long the vector is that a head would add if it looked at one position alone. v: [K, T, D]. Returns [H, T].

    With a norm behind the output matrix: but for the one number that this divides all by. (Kobayashi et al. 2020.)
    """
    attention = block.attn
    assert isinstance(attention, Attention)
    v = wide(shared(v, block.config.n_head))  # [H, T, D]
    columns = gained(block.attn_out_norm, wide(attention.out.weight).T)  # [H*D, C]
    columns = columns.view(len(v), v.shape[2], -1)  # [H, D, C]
    gram = columns @ columns.transpose(1, 2)  # [H, D, D]: [H, T, C] would be large
    return ((v @ gram) * v).sum(-1).clamp(min=0).sqrt()


def seen(T: int, window: int | None, device: torch.device | str = "cpu") -> Tensor:
    """Whether query i sees key j: 0 <= i - j < window. [T, T], bool."""
    position = torch.arange(T, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < (window or T))


def sink_share(pattern: Tensor) -> Tensor:
    """What each head puts on position 0, mean over the queries after it. [H, T, T] -> [H]; 0 for a single position."""
    return pattern[:, 1:, 0].mean(1) if pattern.shape[1] > 1 else pattern.new_zeros(pattern.shape[0])


def role_scores(pattern: Tensor, first: int, n: int) -> dict[str, Tensor]:
    """What each head does on n tokens said twice in a row, the first of them at position `first`. [H, T, T] -> [H].

    Means over the second time of what is put on: previous, the token before; duplicate, the same token's first time;
    induction, what followed it then. sink: what goes to position 0. (Olsson et al. 2022, Elhage et al. 2021.)
    """
    again = torch.arange(first + n, first + 2 * n, device=pattern.device)  # positions of the second time
    return {
        "previous": pattern[:, again, again - 1].mean(1),
        "duplicate": pattern[:, again, again - n].mean(1),
        "induction": pattern[:, again, again - n + 1].mean(1),
        "sink": sink_share(pattern),
    }


def gained(norm: Norm | None, x: Tensor) -> Tensor:
    """What a norm makes of a part of what it reads, but for the one number that it divides all by. [..., C]."""
    if norm is None:
        return x
    x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    return x if norm.weight is None else x * wide(norm.weight)


def divisor(norm: Norm, x: Tensor) -> Tensor:
    """That number: the spread of what the norm reads, or its root mean square. [..., C] -> [..., 1]."""
    square = x.var(-1, unbiased=False, keepdim=True) if norm.kind == "layer" else x.square().mean(-1, keepdim=True)
    return (square + norm.eps).sqrt()


def wide(x: Tensor) -> Tensor:
    """In float32, or as it is if that is wider."""
    return x if x.dtype == torch.float64 else x.float()
