"""What if: the same text with a part of the model switched off or exchanged, at the same places the x-ray watches.

A head is cut at the input of the output matrix, so that the matrix's bias stays: exactly its own write is missing. An
MLP, an attention or a layer loses its whole write, biases included. Off is zero, or the part's mean over the prompt
without position 0, which is the milder one: zero is a value that the model may never have met.

A look from one token back to another is forbidden before the softmax, and what it took is shared out among the others;
or it is set to 0 after it, and the others keep what they had. These are two questions, with two answers.

    B batch   L layers   T positions   C width   H heads   D head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gptcli.attention import Cut, seen, shared, wide
from gptcli.attention import looks as looks_at
from gptcli.checkpoint import Checkpoint
from gptcli.divergence import js, kl, total_variation
from gptcli.errors import Unsupported
from gptcli.ledger import Ledger, head_directions, ledger, refusal
from gptcli.lens import end_of, log_probs, scores
from gptcli.model import Block, Decoder
from gptcli.places import Look, Place
from gptcli.trace import Part, Trace, begins_anew

TOKENS = 2048  # positions that a sweep sends through at once


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What another trace has at a place, to be put at a position. Both positions counted from 0."""

    place: Place
    position: int
    other: Trace
    other_position: int


class Edits:
    """A tape that switches parts off, or puts others in their place, in every pass it is given to."""

    def __init__(
        self,
        decoder: Decoder,
        ablate: Sequence[Place] = (),
        exchanges: Sequence[Exchange] = (),
        *,
        looks: Sequence[Look] = (),
        means: Trace | None = None,
    ) -> None:
        """looks: positions counted from 0. means: of which trace the means are taken; None sets to zero.

        Raises Unsupported for a layer's exchange where the stream is no running sum.
        """
        self._config, self._looks = decoder.config, tuple(looks)
        self._ablate, self._exchanges, self._means = tuple(ablate), tuple(exchanges), means
        self._first = self._n = 0  # of the positions in the pass
        self._x: Tensor | None = None  # the stream so far, where a whole state is to be exchanged
        self._keeps = any(e.place.part == "layer" for e in exchanges)
        if self._keeps and decoder.config.post_norm:
            raise Unsupported(f"a layer of this model cannot be exchanged: {refusal(decoder)}")
        self._windows = [layer.window for layer in decoder.config.layers]

    def start(self, x: Tensor) -> Tensor:
        self._first, self._n = self._first + self._n, x.shape[1]
        self._x = x if self._keeps else None
        return x

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        if layer == 0 and begins_anew(q.shape[2], k.shape[2], self._windows[0]):
            self._first = 0
        z = self._without_looks(layer, q, k, v, mask, z)
        heads = [place.head for place in self._ablate if place.layer == layer and place.part == "head"]
        exchanges = self._here(layer, "head")
        if heads or exchanges:
            z = z.clone()
        for head in heads:
            z[:, head] = 0 if self._means is None else mean(self._means.z[layer, head])
        for e in exchanges:
            z[:, e.place.head, e.position - self._first] = e.other.z[layer, e.place.head, e.other_position]
        return z

    def cut(self, layer: int, T: int, S: int, first: int = 0) -> Cut | None:
        """The looks of a layer that are taken away, of T tokens from position `first` on at the S keys that end with
        theirs; None if there are none."""
        looks = [look for look in self._looks if look.place.layer == layer]
        if not looks:
            return None
        found = Cut(*torch.zeros(2, self._config.n_head, T, S, dtype=torch.bool))
        for look in looks:
            mask = found.muted if look.after else found.forbidden
            key = look.source - (first + T - S)
            if key not in range(S):  # behind the window, or not there yet
                continue
            heads = look.place.head if look.place.part == "head" else slice(None)
            if look.position is None:  # all that come after; a token may always look at itself
                mask[heads, max(0, look.source + 1 - first) :, key] = True
            elif look.position - first in range(T):
                mask[heads, look.position - first, key] = True
        return found

    def replaced(self, layer: int, T: int) -> Tensor:
        """Whose output was put there, and not gathered from the tokens it looked at: [H, T], bool."""
        found = torch.zeros(self._config.n_head, T, dtype=torch.bool)
        for place in self._ablate:
            if place.layer == layer and place.part == "head":
                found[place.head] = True
        for e in self._exchanges:
            if e.place.layer == layer and e.place.part == "head" and e.position < T:
                found[e.place.head, e.position] = True
        return found

    def overwritten(self, layer: int, T: int) -> Tensor:
        """Where the attention's whole write was put there, and is no sum of what the heads wrote: [T], bool."""
        found = torch.zeros(T, dtype=torch.bool)
        if any(place.layer == layer and place.part in ("attn", "layer") for place in self._ablate):
            found[:] = True
        for e in self._exchanges:
            if e.place.layer == layer and e.place.part == "attn" and e.position < T:
                found[e.position] = True
        return found

    def _without_looks(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        T, S = q.shape[2], k.shape[2]
        cut = self.cut(layer, T, S, self._first)
        if cut is None or not (changed := cut.any().to(z.device)).any():
            return z
        c, its = self._config, self._config.layers[layer]
        sees = seen(S, None, z.device)[-T:] if mask is None else mask
        weights = looks_at(q[0], shared(k[0], c.n_head), sees, its.scale, c.attn_softcap, cut)
        new = (weights @ shared(v[0], c.n_head).to(weights.dtype)).to(z.dtype)
        return torch.where(changed[None, :, :, None], new, z)

    def write(self, layer: int, part: Part, x: Tensor) -> Tensor:
        if any(place.layer == layer and place.part in (part, "layer") for place in self._ablate):
            x = torch.zeros_like(x) if self._means is None else mean(_writes(self._means, part)[layer]).expand_as(x)
        for e in self._here(layer, part):
            x = x.clone()
            x[:, e.position - self._first] = _writes(e.other, part)[layer, e.other_position]
        if self._x is not None:
            for e in self._here(layer, "layer") if part == "mlp" else ():
                at = e.position - self._first
                x = x.clone()  # what is missing to the other's state
                x[:, at] = e.other.states[layer + 1, e.other_position] - self._x[:, at]
            self._x = self._x + x
        return x

    def _here(self, layer: int, part: str) -> list[Exchange]:
        """The exchanges of this part whose position is in the pass."""
        inside = range(self._first, self._first + self._n)
        return [e for e in self._exchanges if e.place.layer == layer and e.place.part == part and e.position in inside]


def mean(x: Tensor) -> Tensor:
    """Over positions, without position 0, which is like no other; of one position it is that. [T, ...] -> [...]."""
    return x[1:].mean(0) if len(x) > 1 else x[0]


def _writes(trace: Trace, part: Part) -> Tensor:
    return trace.attn_out if part == "attn" else trace.mlp_out


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an edit does to the prediction at one position. Natural logarithms; KL in nats."""

    logprob: tuple[float, float]  # of the target, before and after
    rank: tuple[int, int]
    best: tuple[int, int]
    kl: float  # KL(before || after)
    js: float  # Jensen-Shannon divergence, 0 to ln 2
    moved: float  # share of the probability that is elsewhere now: the total variation, 0 to 1
    lead: tuple[float, float]  # the target's logit minus the rival's, before any cap
    direct: float | None  # what the parts themselves put into the lead, taken away; None where no ledger says


@torch.inference_mode()
def effect(
    checkpoint: Checkpoint, before: Trace, after: Trace, target: int, rival: int, direct: float | None = None
) -> Effect:
    """Compares the last position of two traces of one text."""
    decoder, size = checkpoint.decoder, checkpoint.n_tokens
    x = torch.stack([before.states[-1, -1], after.states[-1, -1]])
    logits = scores(end_of(decoder), x).cpu()
    p = log_probs(logits)
    raw = scores(end_of(decoder, capped=False), x)
    lead = (raw[:, target] - raw[:, rival]).tolist()
    best = logits[:, :size].argmax(-1).tolist()
    rank = (1 + (logits[:, :size] > logits[:, target, None]).sum(-1)).tolist()
    return Effect(
        logprob=(float(p[0, target]), float(p[1, target])),
        rank=(rank[0], rank[1]),
        best=(best[0], best[1]),
        kl=max(0.0, float(kl(p[0], p[1]))),
        js=max(0.0, float(js(p[0], p[1]))),
        moved=min(1.0, float(total_variation(p[0], p[1]))),
        lead=(lead[0], lead[1]),
        direct=direct,
    )


@torch.inference_mode()
def direct_effect(
    trace: Trace,
    places: Sequence[Place],
    target: int,
    rival: int,
    *,
    to_mean: bool,
    n_prompt: int | None = None,
    looks: Sequence[Look] = (),
) -> float | None:
    """How the lead of `target` over `rival` at the last position changes if only these parts' own writes change.

    None for a model without a ledger. n_prompt: the positions that the mean is taken over. looks: positions counted
    from 0; those of parts that are switched off change no more.
    """
    if refusal(trace.decoder):
        return None
    d = _last_direction(trace, target, rival)
    total = 0.0
    for place in covering(places):
        if place.part == "head":
            z = wide(trace.z[place.layer])
            g, _ = _last_head_directions(trace, place.layer, d)
            new = mean(z[place.head, :n_prompt]) if to_mean else torch.zeros_like(z[place.head, -1])
            total += float((new - z[place.head, -1]) @ g[place.head])
        else:
            parts: tuple[Part, ...] = ("attn", "mlp") if place.part == "layer" else (place.part,)
            for part in parts:
                x = wide(_writes(trace, part)[place.layer])
                total += float(((mean(x[:n_prompt]) if to_mean else torch.zeros_like(x[-1])) - x[-1]) @ d)
    return total + sum(_direct_of_looks(trace, i, places, looks, d) for i in range(trace.config.n_layer))


def _direct_of_looks(trace: Trace, layer: int, places: Sequence[Place], looks: Sequence[Look], d: Tensor) -> float:
    """What the heads of a layer that are left write otherwise at the last position without these looks."""
    cut = Edits(trace.decoder, looks=looks).cut(layer, trace.n_positions, trace.n_positions)
    if cut is None:
        return 0.0
    off = [p for p in places if p.layer == layer and p.part != "mlp"]
    if any(p.part != "head" for p in off):
        return 0.0
    c, its, cut = trace.config, trace.config.layers[layer], cut.last()
    k, v = (shared(t[layer], c.n_head) for t in (trace.k, trace.v))
    sees = seen(trace.n_positions, its.window, trace.embed.device)[-1:]
    weights = looks_at(trace.q[layer][:, -1:], k, sees, its.scale, c.attn_softcap, cut)  # [H, 1, S]
    change = (weights @ v.to(weights.dtype))[:, 0] - wide(trace.z[layer])[:, -1]  # [H, D]
    changed = cut.any()[:, 0].to(change.device)
    changed[[p.head for p in off]] = False
    g, _ = _last_head_directions(trace, layer, d)
    return float(((change * g).sum(-1) * changed).sum())


def covering(places: Sequence[Place]) -> list[Place]:
    """The places without those inside others: L3 holds L3.attn, which holds L3H0."""
    layers = {p.layer for p in places if p.part == "layer"}
    attentions = {p.layer for p in places if p.part == "attn"}
    return [
        p for p in dict.fromkeys(places)
        if not (p.part != "layer" and p.layer in layers) and not (p.part == "head" and p.layer in attentions)
    ]  # fmt: skip


def _last_direction(trace: Trace, target: int, rival: int) -> Tensor:
    """d of the last position, [C]."""
    T, device = trace.n_positions, trace.embed.device
    book: Ledger = ledger(trace, torch.full((T,), target, device=device), torch.full((T,), rival, device=device))
    return book.direction[-1]


def _last_head_directions(trace: Trace, layer: int, d: Tensor) -> tuple[Tensor, Tensor]:
    """g of the last position, [H, D], and the bias."""
    block = trace.decoder.blocks[layer]
    assert isinstance(block, Block)
    g, bias = head_directions(block, wide(trace.z[layer])[:, -1:], d[None] * trace.config.residual_scale)
    return g[:, 0], bias


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every head, or every MLP, switched off by itself. Rows are layers; MLPs have one column."""

    logprob: Tensor  # change of the target's log-probability, [L, H]
    lead: Tensor  # change of its lead over the rival: the total effect, [L, H]
    direct: Tensor | None  # the direct one, [L, H]
    best: Tensor  # the best token then, [L, H]


@torch.inference_mode()
def sweep(
    checkpoint: Checkpoint, trace: Trace, what: Literal["heads", "mlps"], target: int, rival: int, *, to_mean: bool
) -> Sweep:
    """Effects at the last position of a trace of a prompt, whose `ids` are known."""
    c, decoder = trace.config, trace.decoder
    places = [
        Place(layer=i, part="head", head=h) if what == "heads" else Place(layer=i, part="mlp")
        for i in range(c.n_layer)
        for h in range(c.n_head if what == "heads" else 1)
    ]
    ids = torch.tensor([trace.ids], device=trace.embed.device)
    step = max(1, TOKENS // ids.shape[1])
    capped, raw = end_of(decoder), end_of(decoder, capped=False)
    logprobs, leads, best = [], [], []
    states = [trace.states[-1, -1:]]
    for i in range(0, len(places), step):
        group = places[i : i + step]
        tape = _Each(group, trace if to_mean else None)
        states.append(decoder.stream(ids.expand(len(group), -1), None, tape)[:, -1])
    for x in states:
        logits = scores(capped, x)
        logprobs.append(log_probs(logits)[:, target])
        best.append(logits[:, : checkpoint.n_tokens].argmax(-1))
        z = scores(raw, x)
        leads.append(z[:, target] - z[:, rival])
    shape = (c.n_layer, -1)
    direct = None
    if not refusal(decoder):
        direct = _direct_of_all(trace, what, target, rival, to_mean=to_mean).view(shape).cpu()
    logprob, lead = (torch.cat(x[1:]) - x[0] for x in (logprobs, leads))
    return Sweep(
        logprob=logprob.view(shape).cpu(), lead=lead.view(shape).cpu(), direct=direct,
        best=torch.cat(best[1:]).view(shape).cpu(),
    )  # fmt: skip


def _direct_of_all(trace: Trace, what: str, target: int, rival: int, *, to_mean: bool) -> Tensor:
    d, found = _last_direction(trace, target, rival), []
    for i in range(trace.config.n_layer):
        if what == "mlps":
            x = wide(trace.mlp_out[i])
            found.append((((mean(x) if to_mean else 0) - x[-1]) @ d)[None])
        else:
            z = wide(trace.z[i])  # [H, T, D]
            new = mean(z.transpose(0, 1)) if to_mean else torch.zeros_like(z[:, -1])
            found.append(((new - z[:, -1]) * _last_head_directions(trace, i, d)[0]).sum(-1))
    return torch.cat(found)


class _Each:
    """Row b of the batch is without part b."""

    def __init__(self, places: Sequence[Place], means: Trace | None) -> None:
        self._places, self._means = places, means

    def start(self, x: Tensor) -> Tensor:
        return x

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        rows = [b for b, place in enumerate(self._places) if place.layer == layer and place.part == "head"]
        z = z.clone() if rows else z
        for b in rows:
            head = self._places[b].head
            z[b, head] = 0 if self._means is None else mean(self._means.z[layer, head])
        return z

    def write(self, layer: int, part: Part, x: Tensor) -> Tensor:
        rows = [b for b, place in enumerate(self._places) if place.layer == layer and place.part == part]
        x = x.clone() if rows else x
        for b in rows:
            x[b] = 0 if self._means is None else mean(_writes(self._means, part)[layer])
        return x
