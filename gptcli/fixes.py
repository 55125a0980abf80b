"""How families spell the same matrix differently, and how that is undone. Each fix carries its history.

A fix turns the stored tensor into ours (`load`), back again (`save`), and says which shape ours has (`shape`). None of
this imports torch: tensors come and go as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.config import Config

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fix:
    """Undoes one spelling while loading and restores it while saving."""

    why: str  # what is undone, for people
    load: Callable[[Tensor, Config], Tensor]
    save: Callable[[Tensor, Config], Tensor]
    shape: Callable[[Shape], Shape] = lambda shape: shape


def _transpose(t: Tensor, config: Config) -> Tensor:
    """GPT-2's code called its linear layer Conv1D and kept the weight as (in, out); biases are not concerned."""
    return t.T.contiguous() if t.ndim == 2 else t


def _plus_one(t: Tensor, config: Config) -> Tensor:
    """Gemma stores its norm gains as the distance from 1, and adds the 1 in float32: so the gain stays float32."""
    return t.float() + 1


def _minus_one(t: Tensor, config: Config) -> Tensor:
    return t - 1


def _in_float32(t: Tensor, config: Config) -> Tensor:
    """OLMo 2 multiplies its norm gains before it rounds, so they stay float32."""
    return t.float()


def _same(t: Tensor, config: Config) -> Tensor:
    return t


def _ungroup_heads(t: Tensor, config: Config) -> Tensor:
    """Megatron, and so GPT-NeoX, stores q, k, v head by head: rows (H, 3, D) instead of (3, H, D).

    GPT-BigCode does so too unless all heads share one key: then its rows are plain q, k, v.
    """
    if config.n_kv_head != config.n_head:
        return t
    return t.reshape(config.n_head, 3, config.d_head, -1).transpose(0, 1).reshape(t.shape)


def _group_heads(t: Tensor, config: Config) -> Tensor:
    if config.n_kv_head != config.n_head:
        return t
    return t.reshape(3, config.n_head, config.d_head, -1).transpose(0, 1).reshape(t.shape)


def _halves(t: Tensor, config: Config) -> Tensor:
    """GPT-J turns neighbours (2i, 2i+1) of a head; with rows reordered the pairs are (i, i + dim/2) as everywhere else.

    Scores do not change: queries and keys are reordered alike.
    """
    rope = config.layers[0].rope
    assert rope is not None
    heads = t.reshape(-1, config.d_head, t.shape[-1])
    turned = heads[:, : rope.dim].reshape(heads.shape[0], rope.dim // 2, 2, -1).transpose(1, 2)
    return _beside(heads, turned, rope.dim).reshape(t.shape)


def _neighbours(t: Tensor, config: Config) -> Tensor:
    rope = config.layers[0].rope
    assert rope is not None
    heads = t.reshape(-1, config.d_head, t.shape[-1])
    turned = heads[:, : rope.dim].reshape(heads.shape[0], 2, rope.dim // 2, -1).transpose(1, 2)
    return _beside(heads, turned, rope.dim).reshape(t.shape)


def _beside(heads: Tensor, turned: Tensor, dim: int) -> Tensor:
    result = heads.clone()
    result[:, :dim] = turned.reshape(heads.shape[0], dim, -1)
    return result


def _drop_two(t: Tensor, config: Config) -> Tensor:
    """fairseq, and so OPT, counts positions from padding_idx + 1 = 2; the first two rows are never read."""
    return t[2:]


def _add_two(t: Tensor, config: Config) -> Tensor:
    full = t.new_zeros(t.shape[0] + 2, t.shape[1])
    full[2:] = t
    return full


CONV1D = Fix("transposed", _transpose, _transpose, lambda shape: shape[::-1])
PLUS_ONE = Fix("gains stored minus 1", _plus_one, _minus_one)
IN_FLOAT32 = Fix("gains used in float32", _in_float32, _same)
GROUPED_HEADS = Fix("q, k, v head by head", _ungroup_heads, _group_heads)
NEIGHBOUR_PAIRS = Fix("rotary pairs are neighbours", _halves, _neighbours)
OFFSET_TWO = Fix("positions count from 2", _drop_two, _add_two, lambda shape: (shape[0] - 2, *shape[1:]))
