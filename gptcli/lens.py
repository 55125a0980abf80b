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

from gptcli.errors import Unsupported
from gptcli.linear import linear
from gptcli.model import Decoder, Head
from gptcli.trace import Trace

# How far our reading may be from the decoder's own logits, in units of the largest: its own rounding.
BOUNDS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 1e-2}
SLICE = 4096  # tokens whose rows of the head are held in float32 at once, where the head is not
WIDE = (torch.float32, torch.float64)
CHUNK = 1 << 22  # scores held at once: 16 MB in float32


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
    """The end of a decoder, for `scores`: the decoder itself, or a twin with its small parts in float32.

    capped=False leaves out the soft cap on the logits.
    """
    narrow = decoder.embed.weight.dtype not in WIDE
    if capped and not narrow:
        return decoder
    end = copy.copy(decoder)
    end._modules = dict(decoder._modules)
    if not capped:
        end.config = replace(decoder.config, final_softcap=None)
    for name in ("final_norm", "embed_out") if narrow else ():
        if (module := decoder._modules.get(name)) is not None:
            end._modules[name] = copy.deepcopy(module).float()
    return end


def in_slices(end: Decoder, n: int, *, room: Tensor | None = None) -> Iterator[Decoder]:
    """Decoders whose readouts are this one's for n tokens each, side by side, in float32 or wider; for nothing else.

    A few vectors times a matrix larger than the processor's cache take two thirds of the time in pieces that fit it,
    and of a matrix in bfloat16 only a piece at a time is held in float32: in `room`, [n, width], where that is given.
    Then each decoder is good until the next one comes.
    """
    weight, bias = head_of(end), end.head.bias
    for a in range(0, len(weight), n):
        part = copy.copy(end)
        part._modules = dict(end._modules)
        head = _Slice(end.config)
        head._parameters.clear()
        rows = weight[a : a + n]
        head.__dict__["weight"] = _wide(rows) if room is None else room[: len(rows)].copy_(rows)
        head.__dict__["bias"] = None if bias is None else _wide(bias[a : a + n])
        part._modules["head"] = head
        yield part


class _Slice(Head):
    """A part of a head, whose scores lie in memory as the product leaves them."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        assert self.weight is not None
        return linear(x, self.weight, self.bias, as_made=True)


def head_of(decoder: Decoder) -> Tensor:
    """The matrix that makes scores, [V, width]: the embedding, where it serves for that too.

    Raises Unsupported where it is rounded, and has its numbers in another form.
    """
    if not isinstance(decoder.head, Head):
        raise Unsupported(
            "the matrix that makes scores is rounded, and the x-ray reads it row by row",
            hint="load the model whole, or make it so: gptcli.quantize.whole(checkpoint.decoder)",
        )
    return decoder.embed.weight if decoder.head.weight is None else decoder.head.weight


def room_for(end: Decoder) -> Tensor | None:
    """Where `scores` may hold a slice of the head in float32, [SLICE, width]; None where it needs none.

    For who calls it again and again: what is asked for anew each time is not always given back to be used again, and
    the memory grows, some times by a gigabyte.
    """
    weight = head_of(end)
    return None if weight.dtype in WIDE else weight.new_empty(SLICE, weight.shape[1], dtype=torch.float32)


def scores(end: Decoder, x: Tensor, out: Tensor | None = None, *, room: Tensor | None = None) -> Tensor:
    """Vectors of the stream as scores of all tokens, by what `end_of` gives: float32 or wider. [..., C] -> [..., V]."""
    x = x.to(end.embed.weight.dtype) if end.embed.weight.dtype in WIDE else _wide(x)
    weight = head_of(end)
    if out is None and (isinstance(end.head, _Slice) or (weight.dtype in WIDE and len(weight) <= SLICE)):
        return end.readout(x)
    z = x.new_empty(*x.shape[:-1], len(weight)) if out is None else out
    room = room_for(end) if room is None else room
    for i, part in enumerate(in_slices(end, SLICE, room=room)):
        z[..., i * SLICE : (i + 1) * SLICE] = part.readout(x)
    return z


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in WIDE else x.float()


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

    watch: ids to follow, [T, W]. size: ids from here on are padding: neither listed nor counted in a rank, but part of
    the softmax as in the model's own.
    """
    end = end_of(decoder)
    R, T, _ = rows.shape
    watch = torch.empty(T, 0, dtype=torch.long, device=rows.device) if watch is None else watch
    V = decoder.config.n_vocab
    step = min(T, max(1, CHUNK // (V * (R + 1))))  # the final row's probabilities are one more
    # two buffers for all chunks, and one for the head's slices: see `room_for`
    room = room_for(end)
    buffers = [rows.new_empty(R * step * V, dtype=WIDE[rows.dtype == torch.float64]) for _ in range(2)]
    wholes = list[Tensor]()  # asked for at the first chunk: small things kept between large ones scatter the memory
    for t in range(0, T, step):
        part = rows[:, t : t + step]
        z, e = (buffer[: R * part.shape[1] * V].view(R, -1, V) for buffer in buffers)
        last = None if final is None else final[t : t + step]
        found = _read_chunk(end, part, last, watch[t : t + step], top, size, z, e, room)
        wholes = wholes or [x.new_empty(R, T, *x.shape[2:]) for x in found]
        for whole, x in zip(wholes, found, strict=True):
            whole[:, t : t + step] = x
    return Lens(
        **dict(zip(("ids", "logprobs", "entropy", "kl", "rank", "watched"), (x.cpu() for x in wholes), strict=True))
    )


def _read_chunk(
    end: Decoder,
    rows: Tensor,
    final: Tensor | None,
    watch: Tensor,
    top: int,
    size: int | None,
    z: Tensor,
    e: Tensor,
    room: Tensor | None,
) -> tuple[Tensor, ...]:
    """z, e: room for scores, [R, P, V]."""
    scores(end, rows, z, room=room)
    z -= z.amax(-1, keepdim=True)
    torch.exp(z, out=e)
    total = e.sum(-1)  # [R, P]; by halves: a product of matrices would add in a row, and lose three digits
    log_total = total.log()
    if final is None:
        p = e[-1] / total[-1, :, None]
    else:
        last = log_probs(scores(end, final, room=room))
        p = last.exp()
    entropy = log_total - torch.mul(e, z, out=e).sum(-1) / total
    # KL = sum p (ln p - ln q) = (ln total_q - sum p z_q) - (the same of p itself), so that of the last row it is 0
    cross = log_total - torch.mul(z, p, out=e).sum(-1)
    own = cross[-1] if final is None else -(p * last).sum(-1)
    kl = (cross - own).clamp(min=0)
    watched = z.gather(-1, watch.expand(len(z), -1, -1))  # [R, P, W]
    listed = z[..., :size]
    best = listed.topk(min(top, listed.shape[-1]), -1)
    above = e[..., :size]
    higher = [torch.gt(listed, watched[..., w : w + 1], out=above).sum(-1).long() for w in range(watch.shape[1])]
    rank = 1 + torch.stack(higher, -1) if higher else watched.long()
    return best.indices, best.values - log_total[..., None], entropy, kl, rank, watched - log_total[..., None]


@torch.inference_mode()
def disagreement(decoder: Decoder, seen: Tensor, true: Tensor) -> float:
    """How far the lens of one state is from the decoder's own logits, in units of the largest. Both [T, C]."""
    end, chunks = end_of(decoder), [*zip(*(_in_chunks(x, decoder) for x in (seen, true)), strict=True)]
    room = room_for(end)
    found = seen.new_empty(2, len(chunks), dtype=torch.float32)  # how far apart, how large
    for i, (a, b) in enumerate(chunks):
        theirs = decoder.readout(b).float()
        found[0, i] = (scores(end, a, room=room) - theirs).abs().max()
        found[1, i] = theirs.abs().max()
    worst, largest = (float(x) for x in found.amax(1))  # Python's max would lose a NaN
    return worst / largest if largest else worst


def _in_chunks(x: Tensor, decoder: Decoder) -> Iterator[Tensor]:
    yield from torch.split(x, max(1, CHUNK // 4 // decoder.config.n_vocab))


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
    found = trace.states.new_empty(5, trace.config.n_layer, trace.states.shape[1], dtype=torch.float32)  # see `read`
    for i in range(trace.config.n_layer):  # layer by layer: float32 copies of all would be as large as a small model
        attn, mlp, pre = (x.float() for x in (trace.attn_out[i], trace.mlp_out[i], trace.states[i]))
        mid = pre if trace.config.parallel else trace.mid_of(i).float()
        for row, x in zip(found, (pre, attn, mlp), strict=False):
            row[i] = x.norm(dim=-1)
        for row, (x, onto) in zip(found[3:], ((attn, pre), (mlp, mid)), strict=True):
            row[i] = torch.cosine_similarity(x, onto, -1)
    states, attn, mlp, attn_cos, mlp_cos = found.cpu()
    last = trace.states[-1].float().norm(dim=-1).cpu()
    return Norms(states=torch.cat((states, last[None])), attn=attn, mlp=mlp, attn_cos=attn_cos, mlp_cos=mlp_cos)
