"""The lens: what the model would say if it stopped at a layer. One function makes scores of vectors, the decoder's own.

Scores are read in float32 or wider whatever the weights' dtype: bfloat16 scores tie. They are read in chunks of
positions, of which only a few numbers a cell are kept.

    R rows (states)   T positions   C width   V vocabulary   W watched tokens
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gptcli.model import Decoder
from gptcli.trace import Trace

# How far our reading may be from the decoder's own logits, in units of the largest: its own rounding.
BOUNDS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 1e-2}
CHUNK = 1 << 23  # scores held at once: 32 MB in float32


@dataclass(frozen=True, kw_only=True)
class Lens:
    """What each state at each position says of the next token. Natural logarithms; entropy and KL in nats."""

    ids: Tensor  # the likeliest tokens, best first, [R, T, top]
    logprobs: Tensor  # theirs, [R, T, top]
    entropy: Tensor  # [R, T]
    kl: Tensor  # KL(final || this one): what stopping here would cost, [R, T]
    rank: Tensor  # of the watched tokens: 1 + how many score higher, [R, T, W]
    watched: Tensor  # log-probability of the watched tokens, [R, T, W]


def end_of(decoder: Decoder, *, capped: bool = True) -> Decoder:
    """A decoder whose `readout` is this one's, in float32; the decoder itself where it is that already.

    capped=False leaves out the soft cap on the logits. Only the readout may be used.
    """
    if capped and decoder.embed.weight.dtype in (torch.float32, torch.float64):
        return decoder
    end = copy.copy(decoder)
    end._modules = dict(decoder._modules)
    if not capped:
        end.config = replace(decoder.config, final_softcap=None)
    if decoder.embed.weight.dtype not in (torch.float32, torch.float64):
        for name in ("final_norm", "embed_out", "head") + (("embed",) if decoder.head.weight is None else ()):
            if (module := decoder._modules.get(name)) is not None:
                end._modules[name] = copy.deepcopy(module).float()
    return end


def scores(end: Decoder, x: Tensor) -> Tensor:
    """Vectors of the stream as scores of all tokens, by a decoder from `end_of`. [..., C] -> [..., V]."""
    dtype = end.embed.weight.dtype if end.head.weight is None else end.head.weight.dtype
    return end.readout(x.to(dtype))


def log_probs(z: Tensor) -> Tensor:
    """Scores as natural log-probabilities, [..., V]. Sums by halves: of 32,000 tokens `log_softmax` is off by 4e-5."""
    z = z - z.amax(-1, keepdim=True)
    return z - z.exp().sum(-1, keepdim=True).log()


@torch.inference_mode()
def read(
    decoder: Decoder,
    rows: Tensor,
    *,
    final: Tensor | None = None,
    watch: Tensor | None = None,
    top: int = 5,
    size: int | None = None,
) -> Lens:
    """Reads states off. rows: [R, T, C]; final: the last state, [T, C], if it is not the last of the rows.

    watch: ids to follow, [T, W]. size: ids from here on are padding: not listed, but part of the softmax as in the
    model's own.
    """
    end = end_of(decoder)
    R, T, _ = rows.shape
    watch = torch.empty(T, 0, dtype=torch.long, device=rows.device) if watch is None else watch
    step = max(1, CHUNK // (decoder.config.n_vocab * R))
    found = [
        _read_chunk(
            end, rows[:, t : t + step], None if final is None else final[t : t + step], watch[t : t + step], top, size
        )
        for t in range(0, T, step)
    ]
    parts = [torch.cat(columns, 1) for columns in zip(*found, strict=True)]
    return Lens(
        **dict(zip(("ids", "logprobs", "entropy", "kl", "rank", "watched"), (p.cpu() for p in parts), strict=True))
    )


def _read_chunk(
    end: Decoder, rows: Tensor, final: Tensor | None, watch: Tensor, top: int, size: int | None
) -> tuple[Tensor, ...]:
    z = scores(end, rows)  # [R, P, V]
    z -= z.amax(-1, keepdim=True)
    e = z.exp()
    total = e.sum(-1)  # [R, P]; by halves: a product of matrices would add in a row, and lose three digits
    log_total = total.log()
    if final is None:
        p = e[-1] / total[-1, :, None]
    else:
        last = log_probs(scores(end, final))
        p = last.exp()
    entropy = log_total - torch.mul(e, z, out=e).sum(-1) / total
    # KL = sum p (ln p - ln q) = (ln total_q - sum p z_q) - (the same of p itself), so that of the last row it is 0
    cross = log_total - torch.mul(z, p, out=e).sum(-1)
    own = cross[-1] if final is None else -(p * last).sum(-1)
    kl = (cross - own).clamp(min=0)
    best = z[..., :size].topk(min(top, z[..., :size].shape[-1]), -1)
    watched = z.gather(-1, watch.expand(len(z), -1, -1))  # [R, P, W]
    higher = [torch.gt(z, watched[..., w : w + 1], out=e).sum(-1).long() for w in range(watch.shape[1])]
    rank = 1 + torch.stack(higher, -1) if higher else watched.long()
    return best.indices, best.values - log_total[..., None], entropy, kl, rank, watched - log_total[..., None]


@torch.inference_mode()
def disagreement(decoder: Decoder, seen: Tensor, true: Tensor) -> float:
    """How far the lens of one state is from the decoder's own logits, in units of the largest. Both [T, C]."""
    end, worst, largest = end_of(decoder), 0.0, 0.0
    for a, b in zip(*(_in_chunks(x, decoder) for x in (seen, true)), strict=True):
        theirs = decoder.readout(b).float()
        worst = max(worst, float((scores(end, a) - theirs).abs().max()))
        largest = max(largest, float(theirs.abs().max()))
    return worst / largest if largest else worst


def _in_chunks(x: Tensor, decoder: Decoder) -> Iterator[Tensor]:
    yield from torch.split(x, max(1, CHUNK // decoder.config.n_vocab))


def depth(best: Tensor, answer: Tensor) -> Tensor:
    """The first row from which on every row's best token is the answer. best: [R, T]; answer: [T]. Returns [T].

    R where even the last row's is another.
    """
    right = (best == answer).flip(0).long().cumprod(0)  # how far down from the top the answer stands
    return best.shape[0] - right.sum(0)


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Lengths of vectors, and how the writes lie to what they are added to (cosine; below 0 they take away)."""

    states: Tensor  # [L + 1, T]
    attn: Tensor  # [L, T]
    mlp: Tensor  # [L, T]
    attn_cos: Tensor  # [L, T]
    mlp_cos: Tensor  # [L, T]


@torch.inference_mode()
def norms(trace: Trace) -> Norms:
    """Of every state and write, in float32."""
    states, attn, mlp = (x.float() for x in (trace.states, trace.attn_out, trace.mlp_out))
    mid = states[:-1] if trace.config.parallel else trace.resid_mid.float()
    return Norms(
        states=states.norm(dim=-1).cpu(),
        attn=attn.norm(dim=-1).cpu(),
        mlp=mlp.norm(dim=-1).cpu(),
        attn_cos=torch.cosine_similarity(attn, states[:-1], -1).cpu(),
        mlp_cos=torch.cosine_similarity(mlp, mid, -1).cpu(),
    )
