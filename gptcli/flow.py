"""Flow: of which tokens each vector is made, layer after layer, and how much of each.

Attention turns the vector x of a position into r = x + a, and a is a sum: of what each head took from each position
it looked at, through the output matrix. Each of these parts is close to r or is not:

    closeness(part) = |r| - |r - part|, at least LEAST      |.| the sum of the numbers without sign

Position j's share in r is the closeness of what was taken from j, one's own vector x with what was taken from oneself;
shares add up to 1. What values have for a bias is taken with them; the output matrix's own, and the shift of a norm
behind it, come from no position and have no share. The MLP works on each position alone and moves nothing. So the
shares of all layers, multiplied, say how much of each token is in a vector. (ALTI: Ferrando et al. 2022, arXiv
2203.04212; there r is normed next, here it is not, as most families norm what a part reads and not what is added.)

Rollout does the same with the looks alone: half of a vector is taken to stay, the other half to come from where the
heads look on average. (Abnar & Zuidema 2020.) It knows nothing of what is taken, and leans to the first tokens.

    T positions   t queries at a time   S keys   C width   H heads   D head dim
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli import proof
from gptcli.attention import divisor, gained, shared, wide
from gptcli.config import Config
from gptcli.errors import UsageError
from gptcli.ledger import TINY
from gptcli.lens import CHUNK
from gptcli.model import Attention
from gptcli.neurons import block_of
from gptcli.trace import Trace

LEAST = 1e-5  # closeness of what was looked at, however far it is
MOST = 1 << 25  # numbers


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Shares of each token (last axis) in the vector of each position after each layer; rows sum to 1."""

    shares: Tensor  # [L, T, T]
    rollout: Tensor  # [L, T, T]
    bias: Tensor  # closeness of what comes from no position, as a share of all closeness, [L, T]
    error: float  # how far parts and bias are from what attention wrote, relative to all that is added up: the worst


@torch.inference_mode()
def flow(trace: Trace) -> Flow:
    """Through all layers, from the tokens' own vectors up.

    Raises UsageError for a text too long to keep that of, and CheckFailed where the parts do not add up to what
    attention wrote.
    """
    c, T = trace.config, trace.n_positions
    check_length(c, T)
    whole = torch.eye(T, device=trace.states.device)
    rolled, shares, rollout, biases, error = whole, [], [], [], 0.0
    for i in range(c.n_layer):
        found = contributions(trace, i)
        proof.parts_error(found.relative_error, i, trace.embed.dtype)
        error = max(error, found.relative_error)
        whole = found.shares.float() @ whole
        rolled = (trace.pattern_of(i).float().mean(0) + torch.eye(T, device=rolled.device)) / 2 @ rolled
        rolled = rolled / rolled.sum(-1, keepdim=True)
        shares.append(whole)
        rollout.append(rolled)
        biases.append(found.bias.float())
    return Flow(shares=torch.stack(shares), rollout=torch.stack(rollout), bias=torch.stack(biases), error=error)


def check_length(config: Config, n: int) -> None:
    """Raises UsageError for a text of so many tokens that their shares are too many to keep."""
    if (found := 2 * config.n_layer * n * n) > MOST:
        hint = "a shorter text, or fewer tokens"
        raise UsageError(f"{found:,} shares of tokens in vectors are too many to keep", hint=hint)


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """One layer's."""

    shares: Tensor  # of each position in what each is after attention, [T, T]
    bias: Tensor  # [T]
    relative_error: float


@torch.inference_mode()
def contributions(trace: Trace, layer: int) -> Contributions:
    """What one layer's attention makes of each vector."""
    T, x, a = trace.n_positions, wide(trace.states[layer]), wide(trace.attn_out[layer])
    shares, biases = x.new_zeros(T, T), x.new_zeros(T)
    worst = x.new_zeros(())
    for at, parts, looked, bias in _parts(trace, layer):
        own, S = torch.arange(at.start, at.stop), parts.shape[1]
        off = (parts.sum(1) + bias - a[at]).abs().sum(-1)
        size = parts.abs().sum((1, 2)) + bias.abs().sum(-1) + a[at].abs().sum(-1)
        worst = torch.maximum(worst, (off / size.clamp(min=TINY)).max())
        parts[own - at.start, own] += x[at]
        looked[own - at.start, own] = True
        r = x[at] + a[at]
        close = _closeness(r[:, None], parts).clamp(min=LEAST) * looked
        shares[at, :S] = close / close.sum(-1, keepdim=True)
        more = _closeness(r, bias).clamp(min=0)
        biases[at] = more / (more + close.sum(-1))
    return Contributions(shares=shares, bias=biases, relative_error=float(worst))


def _closeness(r: Tensor, part: Tensor) -> Tensor:
    return r.abs().sum(-1) - (r - part).abs().sum(-1)


def _parts(trace: Trace, layer: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some queries, what they took from each position, [t, S, C], which they looked at, [t, S], and the bias, [t, C].

    The norm behind the output matrix, where a family has one, divides by what it divided by.
    """
    c, block, pattern = trace.config, block_of(trace.decoder, layer), trace.pattern_of(layer)
    attention, norm = block.attn, block.attn_out_norm
    assert isinstance(attention, Attention)
    z, v = wide(trace.z[layer]), wide(shared(trace.v[layer], c.n_head))  # [H, T, D]
    weight, shift = wide(attention.out.weight), attention.out.bias
    raw = z.transpose(0, 1).reshape(z.shape[1], -1) @ weight.T  # [T, C]
    bias = torch.zeros_like(raw) if shift is None else wide(shift).expand_as(raw)
    scale = raw.new_full((len(raw), 1), c.residual_scale)
    scale = scale if norm is None else scale / divisor(norm, raw + bias)
    bias = gained(norm, bias) * scale
    if norm and norm.bias is not None:
        bias = bias + wide(norm.bias) * c.residual_scale
    # what each head would add if it looked at one position alone, [T, H, C]
    whole = torch.einsum("hsd,chd->shc", v, weight.view(c.d_model, c.n_head, c.d_head))
    whole, start, T = gained(norm, whole), 0, len(raw)
    while start < T:
        # as many more queries n as n * (start + n) vectors may be
        n = int((math.sqrt(start * start + 4 * CHUNK / c.d_model) - start) / 2)
        at = slice(start, min(T, start + max(1, n)))
        looks = pattern[:, at, : at.stop].to(v.dtype)
        taken = (looks.permute(2, 1, 0) @ whole[: at.stop]).transpose(0, 1)  # [t, S, C]
        yield at, taken * scale[at, None], looks.amax(0) > 0, bias[at]
        start = at.stop
