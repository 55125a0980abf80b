"""Rotary positions: the frequencies of each kind, and the turn itself.

Every family is stored half-split (number i of a head turns with number i + dim/2); families that pair neighbours are
reordered while loading. Formulas: RoFormer (arXiv 2104.09864), NTK and YaRN (2309.00071), LongRoPE (2402.13753),
Llama 3.1's smoothing as published with its weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptcli.config import Rope


def frequencies(rope: Rope, regime: int = 0) -> Tensor:
    """Radians per token of each pair, float32, [dim/2]. `regime`: see Rope; where text length matters."""
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    freq = 1.0 / rope.theta**exponent
    match rope.kind:
        case "default":
            return freq
        case "linear":
            return freq / rope.factor
        case "dynamic":  # the base grows with the text, so that the slowest pair still fits
            stretch = rope.factor * regime / rope.n_ctx_trained - (rope.factor - 1)
            return 1.0 / (rope.theta * stretch ** (rope.dim / (rope.dim - 2))) ** exponent
        case "llama3":  # slow pairs are stretched, fast ones kept, those between blended
            turns = rope.n_ctx_trained * freq / (2 * math.pi)  # turns within the trained context
            keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            keep = keep.clamp(0, 1)
            return (1 - keep) * freq / rope.factor + keep * freq
        case "yarn":

            def pair_with(turns: float) -> float:  # which pair makes so many turns within the trained context
                return rope.dim * math.log(rope.n_ctx_trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

            low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
            if rope.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, rope.dim - 1)
            ramp = (torch.arange(rope.dim // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)
            ramp = ramp.clamp(0, 1)
            return freq / rope.factor * ramp + freq * (1 - ramp)
        case "longrope":
            factors = rope.long_factor if regime else rope.short_factor
            return freq / torch.tensor(factors, dtype=torch.float32)


def angles(rope: Rope, n: int, regime: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin of positions 0..n-1, each [n, dim]; computed in float32, then cast."""
    position = torch.arange(n, dtype=torch.float32, device=device)
    angle = position[:, None] * frequencies(rope, regime).to(device)  # [n, dim/2]
    cos, sin = angle.cos() * rope.gain, angle.sin() * rope.gain
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first `dim` numbers of each head. x: [B, H, T, D]; cos, sin: [T, dim]."""
    dim = cos.shape[-1]
    part = x if dim == x.shape[-1] else x[..., :dim]
    turned = torch.addcmul(part * cos, part.roll(dim // 2, -1), sin)
    return turned if dim == x.shape[-1] else torch.cat((turned, x[..., dim:]), -1)
