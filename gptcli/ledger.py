"""The ledger: a logit as the sum of what every part of the model wrote (direct logit attribution), exact.

The final norm divides by one number, s, which is kept as it was; then a score is linear in the last state, and the
last state is the sum of the embedding and all writes. So with w the token's row of the head, or how far that is from
another's or from the mean of all,

    u = gain * w        d = u / s  (RMSNorm)     d = (u - mean u) / s  (LayerNorm)
    logit = sum over parts of part . d  +  shift . w  +  the head's own bias

exactly, up to rounding; the sum is compared with the model's logit each time. (Elhage et al. 2021.)

    L layers   T positions   C width   H heads   D head dim   N parts
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.attention import divisor, shared, wide
from gptcli.errors import Unsupported
from gptcli.lens import CHUNK, SLICE, end_of, head_of, room_for, scores
from gptcli.model import Attention, Block, Decoder, Norm
from gptcli.trace import Trace

TINY = 1e-30  # where nothing is added up, nothing is off
Logits = tuple[Tensor, Tensor | None]  # [W, T]: before a cap, and after it where there is one


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Of each position's score: what every part put in. Rows: embedding, position, attention and MLP of each layer."""

    names: tuple[str, ...]  # "token", "position", "L0 attn", "L0 mlp", ... "rounding"
    parts: Tensor  # [N, T]
    const: Tensor  # what no part put in: the final norm's shift and the head's bias, [T]
    logit: Tensor  # the model's own, [T]; with a soft cap: before it
    capped: Tensor | None  # and after it, where there is one
    direction: Tensor  # d, [T, C]
    size: Tensor  # of the logits that were subtracted, without sign, [T]: what bounds how exact the difference can be

    @property
    def total(self) -> Tensor:
        """Parts and constant, [T]."""
        return self.parts.sum(0) + self.const

    @property
    def error(self) -> Tensor:
        """Sum minus the model's own, [T]."""
        return self.total - self.logit

    @property
    def relative_error(self) -> float:
        """The worst error in units of all that was added up or subtracted."""
        return float((self.error.abs() / (self.parts.abs().sum(0) + self.const.abs() + self.size)).max())


def refusal(decoder: Decoder) -> str:
    """Why this model has no ledger; empty where it has one."""
    return "each block's norm takes the sum, so the stream is no running sum" if decoder.config.post_norm else ""


@torch.inference_mode()
def ledger(
    trace: Trace,
    target: Tensor,
    against: Tensor | None = None,
    *,
    over_mean: bool = False,
    own: Logits | None = None,
) -> Ledger:
    """Of the score of `target` at each position, [T] ids; with `against`, of how far it is ahead of that token.

    over_mean: of how far it is above the mean of all tokens' scores. own: the model's scores of these tokens, the
    target's first, by `logits`, where they are known; then the mean, if it is over that.

    Raises Unsupported for a model whose stream is no running sum, and ValueError for `against` with `over_mean`.
    """
    decoder = trace.decoder
    if over_mean and against is not None:
        raise ValueError("a lead over one token and over the mean of all are two things")
    if reason := refusal(decoder):
        raise Unsupported(f"there is no ledger of this model: {reason}")
    x = wide(trace.states[-1])
    d, const = direction(decoder, x, target, against, over_mean=over_mean)
    embed = wide(trace.embed)
    position = wide(decoder.pos_embed.weight[: len(x)]) if decoder.pos_embed else None
    names, parts = ["token"], [_along(embed - position if position is not None else embed, d)]
    if position is not None:
        names.append("position")
        parts.append(_along(position, d))
    summed = embed.clone()
    for i, (attn, mlp) in enumerate(zip(trace.attn_out, trace.mlp_out, strict=True)):
        attn, mlp = wide(attn), wide(mlp)
        names += [f"L{i} attn", f"L{i} mlp"]
        parts += [_along(attn, d), _along(mlp, d)]
        summed += attn + mlp
    if trace.embed.dtype not in (torch.float32, torch.float64):  # the stream was rounded at every addition
        names.append("rounding")
        parts.append(_along(x - summed, d))
    ids = [target] if against is None else [target, against]
    raw, capped = own or logits(decoder, trace.states[-1], torch.stack(ids), mean=over_mean)
    rows = slice(len(ids) + over_mean)
    return Ledger(
        names=tuple(names),
        parts=torch.stack(parts),
        const=const,
        logit=_lead(raw[rows]),
        capped=None if capped is None else _lead(capped[rows]),
        direction=d,
        size=raw[rows].abs().sum(0),
    )


def direction(
    decoder: Decoder, x: Tensor, target: Tensor, against: Tensor | None, *, over_mean: bool = False
) -> tuple[Tensor, Tensor]:
    """d and const such that the score, before any cap, is x . d + const. x: [T, C]; ids: [T]. Returns [T, C], [T]."""
    w, bias = unembedding(decoder, target)
    if against is not None or over_mean:
        other, other_bias = unembedding(decoder, against)
        w, bias = w - other, bias - other_bias
    d, const = through_norm(decoder.final_norm, x, w)
    return d, const + bias


def unembedding(decoder: Decoder, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a token's logit is, before any cap, of the normed state: row w and bias. [T] -> [T, C], [T].

    ids: None for the mean of all tokens, padding too, as one. Returns [1, C], [1] then.
    """
    c, head = decoder.config, decoder.head
    w, bias = (
        None if rows is None else (_mean(rows) if ids is None else wide(rows[ids])) * c.logit_scale
        for rows in (head_of(decoder), head.bias)
    )
    assert w is not None
    if decoder.embed_out:
        w = w @ wide(decoder.embed_out.weight)
    return w, torch.zeros_like(w[:, 0]) if bias is None else bias


def _mean(x: Tensor) -> Tensor:
    """Of all rows, a slice in float32 at a time. [V, ...] -> [1, ...]."""
    return torch.stack([wide(part).sum(0) for part in torch.split(x, SLICE)]).sum(0, keepdim=True) / len(x)


def through_norm(norm: Norm | None, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """d and const such that norm(x) . w = x . d + const, by the norm's statistics at x. x, w: [T, C]."""
    if norm is None:
        return w, torch.zeros_like(w[:, 0])
    u = w if norm.weight is None else w * wide(norm.weight)
    u = u - u.mean(-1, keepdim=True) if norm.kind == "layer" else u
    return u / divisor(norm, x), torch.zeros_like(w[:, 0]) if norm.bias is None else w @ wide(norm.bias)


@dataclass(frozen=True, kw_only=True)
class HeadLedger:
    """One layer's attention, head by head, and each head by the position it took from."""

    heads: Tensor  # [H, T]; 0 where an edit put the whole write there
    bias: Tensor  # of the output matrix and the norm behind it, or what an edit put there, [T]
    sources: Tensor  # [H, T, T], the last axis the source; sums to `heads`, but 0 for a head that an edit set
    relative_error: float  # of heads and bias against the attention's own row: the worst, in units of what is added up


@torch.inference_mode()
def head_ledger(trace: Trace, layer: int, direction: Tensor) -> HeadLedger:
    """Splits what one layer's attention put in. direction: a ledger's, [T, C]."""
    c, z, v = trace.config, wide(trace.z[layer]), wide(trace.v[layer])
    write = wide(trace.attn_out[layer]) * direction  # [T, C]
    block = trace.decoder.blocks[layer]
    assert isinstance(block, Block)
    g, bias = head_directions(block, z, direction * c.residual_scale)
    weights = trace.pattern_of(layer).to(z.dtype)
    gains = torch.einsum("htd,hsd->hts", g, shared(v, c.n_head))  # what a whole look at source s would put in
    overwritten, replaced = (x.to(z.device) for x in (trace.overwritten(layer), trace.replaced(layer)))
    heads = (z * g).sum(-1).masked_fill(overwritten, 0)
    bias = torch.where(overwritten, write.sum(-1), bias)
    error = (heads.sum(0) + bias - write.sum(-1)).abs()
    size = heads.abs().sum(0) + bias.abs() + write.abs().sum(-1)  # in 16 bits its numbers were rounded one by one
    return HeadLedger(
        heads=heads,
        bias=bias,
        sources=(weights * gains).masked_fill((overwritten | replaced)[..., None], 0),
        relative_error=float((error / size.clamp(min=TINY)).max()),
    )


def head_directions(block: Block, z: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """g and bias such that the attention's write . d = sum over heads z . g + bias. z: [H, T, D]; g the same."""
    H, T, _ = z.shape
    attention = block.attn
    assert isinstance(attention, Attention)
    weight, shift = wide(attention.out.weight), attention.out.bias
    bias = torch.zeros_like(d[:, 0])
    if block.attn_out_norm:
        raw = z.transpose(0, 1).reshape(T, -1) @ weight.T
        d, bias = through_norm(block.attn_out_norm, raw if shift is None else raw + wide(shift), d)
    g = (d @ weight).view(T, H, -1).transpose(0, 1)
    return g, bias if shift is None else bias + d @ wide(shift)


def _lead(scores: Tensor) -> Tensor:
    """[1 or 2, T] -> [T]"""
    return scores[0] if len(scores) == 1 else scores[0] - scores[1]


def _along(x: Tensor, d: Tensor) -> Tensor:
    return (x * d).sum(-1)


@torch.inference_mode()
def logits(decoder: Decoder, x: Tensor, ids: Tensor, *, mean: bool = False) -> Logits:
    """The model's own scores of some tokens, before and after its cap. x: [T, C]; ids: [W, T]. Returns [W, T] each.

    mean: in one more row, the mean of all tokens' scores.
    """
    ends = [end_of(decoder, capped=False)] + ([end_of(decoder)] if decoder.config.final_softcap is not None else [])
    step, found = max(1, CHUNK // 4 // decoder.config.n_vocab), []
    room = room_for(ends[0])
    for end in ends:
        rows = []
        for t in range(0, len(x), step):
            z = scores(end, x[t : t + step], room=room)
            some = z.gather(1, ids.T[t : t + step])
            rows.append(torch.cat((some, z.mean(1, keepdim=True)), 1) if mean else some)
        found.append(torch.cat(rows).T)
    return found[0], found[1] if len(found) > 1 else None
