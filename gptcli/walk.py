"""The walk: an answer's lead over its rival, followed back through the layers to the words that it came from.

A logit is a sum of what the parts wrote (ledger.py). What a head took from a position is linear in the state there once
the looks are kept as they were, and what an MLP wrote is linear in what it read once its gates are: gate * up, and the
same for gelu(x) = (gelu(x) / x) * x. With each norm's statistics kept too, every write is (what it read) . d + const
for some direction d, so the sum can be opened again and again, down to the embeddings, and stays exact. Opened
everywhere at once, it is one number for each word: what it gives through all ways together.

How the looks and the gates came to be as they were is not asked. (Elhage et al. 2021; Ali et al. 2022 for the kept
norms and looks; Achtibat et al. 2024 for the gates.)

    T positions   S keys seen   C width   H heads   K kv heads   D head dim
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.attention import looks, shared, wide
from gptcli.errors import CheckFailed, Unsupported
from gptcli.ledger import direction, head_directions, logits, refusal, through_norm
from gptcli.lens import BOUNDS, WIDE
from gptcli.model import MLP, Attention, Block, Norm
from gptcli.neurons import block_of, hidden, mlp_reads_through
from gptcli.records_xray import Stop, Walk
from gptcli.trace import Trace

MOST_STOPS = 16
TINY = 1e-30
DEEPER = 2.0  # a stop further down is named before one that carries up to so many times its share of the flow
BOUND = 1e-4  # of all that is added up, as the ledger's
ROUNDINGS = 5  # of what an MLP's unit writes: gate, its activation, up, the product, the sum; at a sink one unit is all


@dataclass(frozen=True, kw_only=True)
class _State:
    """The stream at a position before a layer's attention, or between it and the MLP, and a direction. d: [C]."""

    layer: int
    middle: bool
    position: int
    d: Tensor


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One addend of a state, along the state's direction."""

    name: str  # as in `Stop`
    position: int
    value: float
    opens: tuple[int, int | None, Tensor] | None = None  # layer, head (None: MLP), and the direction of its write
    rounded: float = 0.0  # in 16 bits: the size of the numbers that it is the sum of, and that were rounded one by one


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """What a state is the sum of, along its direction."""

    largest: list[_Part]
    total: float
    size: float  # without signs
    n_parts: int  # that are not 0


@torch.inference_mode()
def walk(trace: Trace, position: int, target: int, rival: int | None = None) -> Walk:
    """From the score of `target` at a position, or how far it is ahead of `rival`, back to the words.

    Raises Unsupported where the stream is no running sum, and CheckFailed where the sums contradict the model.
    """
    if reason := refusal(trace.decoder):
        raise Unsupported(f"there is no way back through this model: {reason}")
    x = trace.states[-1][position][None]
    ids = torch.tensor([[target]] if rival is None else [[target], [rival]], device=x.device)
    raw, _ = logits(trace.decoder, x, ids)
    d, shift = direction(trace.decoder, wide(x), ids[0], None if rival is None else ids[1])
    score, const = float(raw[0] if rival is None else raw[0] - raw[1]), float(shift)
    tree = _Tree(trace)
    flow = _Flow(trace)
    words, places = flow.to_the_words(position, d[0])
    root = _State(layer=trace.config.n_layer, middle=False, position=position, d=d[0])
    stops = tree.grown(root, score, const)
    dtype = trace.embed.dtype
    bound = BOUND if dtype in WIDE else max(BOUNDS[dtype], ROUNDINGS * torch.finfo(dtype).eps / 2)
    error, constant, rounding = _worse(flow.error, tree.error), flow.constant + const, flow.rounding
    if dtype in WIDE:  # whose rounding is nothing to be named: it is the error
        ways = [*words.tolist(), *places.tolist(), constant]
        error, rounding = _worse(error, abs(sum(ways) - score) / max(sum(map(abs, ways)), TINY)), 0.0
    if not error <= bound:
        raise CheckFailed(
            "the walk does not hold, so it is not shown: the ways do not add up to the logit "
            f"(relative error {error:.1e})",
            hint=f"the bound in {str(dtype).removeprefix('torch.')} is {bound:.0e}; a look or a gate was misread",
        )
    return Walk(
        position=position, target=target, rival=rival, score=score, stops=tuple(stops), words=tuple(words.tolist()),
        places=tuple(places.tolist()) if trace.decoder.pos_embed else (), constant=constant,
        rounding=rounding, error=error, bound=bound,
    )  # fmt: skip


class _Flow:
    """All ways at once: the direction of the answer carried down through every layer, at all positions together."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.constant = 0.0  # what no word gives
        self.rounding = 0.0  # what the model's own arithmetic lost or won on the way
        self.error = 0.0  # worst of a layer's, relative to what it adds up

    def to_the_words(self, position: int, d: Tensor) -> tuple[Tensor, Tensor]:
        """What each token's vector gives, and that of its place. d: the answer's direction, [C]. Returns [T], [T]."""
        trace, c = self._trace, self._trace.config
        down = d.new_zeros(trace.n_positions, c.d_model)
        down[position] = d
        value = _along(trace.states[-1], down)
        for i in reversed(range(c.n_layer)):
            x = wide(trace.states[i])
            mlp, const = through_mlp(block_of(trace.decoder, i), x if c.parallel else wide(trace.mid_of(i)), down)
            attn, more = self._attention(i, x, down if c.parallel else down + mlp)
            above, down = down, down + mlp + attn
            below, const = _along(x, down), const + more
            lost = float(value.sum() - below.sum() - const.sum())
            size = _size(trace.states[i + 1], above)  # what was rounded were its numbers, and those of the writes
            if trace.embed.dtype not in WIDE:
                size += _size(trace.attn_out[i], above) + _size(trace.mlp_out[i], above)
            self.error = _worse(self.error, abs(lost) / max(size, TINY))
            self.rounding, self.constant, value = self.rounding + lost, self.constant + float(const.sum()), below
        place = _places(trace, slice(None))
        return _along(trace.embed - place, down), _along(place, down)

    def _attention(self, layer: int, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The direction in which what is read matters, and what no position gives. x, d: [T, C]. [T, C], [T]."""
        trace, c = self._trace, self._trace.config
        block, z = block_of(trace.decoder, layer), wide(trace.z[layer])
        g, const = head_directions(block, z, d * c.residual_scale)  # [H, T, D]
        taken = trace.pattern_of(layer).to(g.dtype).transpose(1, 2) @ g  # by source: [H, T, D]
        taken = taken.view(c.n_kv_head, -1, *taken.shape[1:]).sum(1)  # heads that share values: [K, T, D]
        read, shift = through_values(block, x, taken)
        return read, const + shift


class _Tree:
    """The largest ways one by one: what carries most of the flow is opened first."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.error = 0.0  # worst of a part's value against the sum it opens into, relative to what is added up

    def grown(self, root: _State, value: float, const: float) -> list[Stop]:
        """The stops in the order in which they are drawn, each with its depth. value: the root's, const included."""
        children: dict[int, list[int]] = {}  # of a stop, by number; -1: the root's
        parts: list[_Part] = []
        totals = {-1: value}
        counts: dict[int, int] = {}
        waiting: list[tuple[float, int, _Part, int]] = []  # minus its share of the flow, order, part, its parent
        order = itertools.count()

        def open_up(number: int, state: _State, const: float, flow: float) -> None:
            found = self._sum(state, const)
            total, size = found.total, max(found.size, TINY)
            own = parts[number].rounded if number >= 0 else 0.0
            all_that = max(size, abs(totals[number]), self._rounded(state), own)
            self.error = _worse(self.error, abs(total - totals[number]) / all_that)
            counts[number] = found.n_parts
            for part in found.largest:
                share = DEEPER * flow * abs(part.value) / size
                heapq.heappush(waiting, (-share, next(order), part, number))

        open_up(-1, root, const, 1.0)
        while waiting and len(parts) < MOST_STOPS:
            share, _, part, parent = heapq.heappop(waiting)
            number = len(parts)
            parts.append(part)
            children.setdefault(parent, []).append(number)
            totals[number] = part.value
            if part.opens:
                open_up(number, *self._opened(part), -share)
        return [*self._drawn(-1, 0, parts, children, totals, counts)]

    def _drawn(
        self, parent: int, depth: int, parts: list[_Part], children: dict[int, list[int]], totals: dict[int, float],
        counts: dict[int, int],
    ) -> list[Stop]:  # fmt: skip
        stops, shown = list[Stop](), sorted(children.get(parent, []), key=lambda n: -abs(parts[n].value))
        for n in shown:
            part = parts[n]
            stops.append(Stop(depth=depth, name=part.name, position=part.position, value=part.value, n_parts=1))
            stops += self._drawn(n, depth + 1, parts, children, totals, counts)
        rest = counts.get(parent, 0) - len(shown)
        if shown and rest:
            value = totals[parent] - sum(parts[n].value for n in shown)
            at = parts[shown[0]].position
            stops.append(Stop(depth=depth, name="others", position=at, value=value, n_parts=rest))
        return stops

    def _sum(self, state: _State, const: float) -> _Sum:
        """Everything that was added up to a state, along its direction; a head by the positions it took from."""
        trace, c, at, d = self._trace, self._trace.config, state.position, state.d
        place = _places(trace, at)
        parts = [_Part(name="word", position=at, value=float((wide(trace.embed[at]) - place) @ d))]
        parts.append(_Part(name="place", position=at, value=float(place @ d)))
        taken: list[tuple[Tensor, Tensor, Tensor]] = []  # of each layer: looks, directions, values
        for i in range(state.layer + state.middle):
            g, bias = head_directions(
                block_of(trace.decoder, i), wide(trace.z[i][:, at : at + 1]), d[None] * c.residual_scale
            )
            const += float(bias)
            look, g = self._look(i, at), g[:, 0]  # [H, S], [H, D]
            values = torch.einsum("hd,hsd->hs", g, shared(wide(trace.v[i]), c.n_head)[:, : at + 1])
            taken.append((look, g, look * values))
            if i < state.layer:
                value, own = float(wide(trace.mlp_out[i][at]) @ d), self._size(trace.mlp_out[i][at], d)
                parts.append(_Part(name=f"L{i} mlp", position=at, value=value, opens=(i, None, d), rounded=own))
        parts.append(_Part(name="constant", position=at, value=const))
        parts = [part for part in parts if part.value]
        total, size, n = sum(p.value for p in parts), sum(abs(p.value) for p in parts), len(parts)
        if taken:
            every = torch.stack([values for _, _, values in taken])  # [L, H, S]
            total, size, n = total + float(every.sum()), size + float(every.abs().sum()), n + int((every != 0).sum())
            for index in every.abs().flatten().topk(min(MOST_STOPS, every.numel())).indices.tolist():
                i, h, j = index // every[0].numel(), index // every.shape[2] % every.shape[1], index % every.shape[2]
                look, g, values = taken[i]
                if value := float(values[h, j]):
                    read = look[h, j] * g[h]
                    own = self._size(shared(trace.v[i], c.n_head)[h, j], read)
                    parts.append(_Part(name=f"L{i}H{h}", position=j, value=value, opens=(i, h, read), rounded=own))
        parts.sort(key=lambda part: -abs(part.value))
        return _Sum(largest=parts[:MOST_STOPS], total=total, size=size, n_parts=n)

    def _rounded(self, state: _State) -> float:
        """Of a model in 16 bits the size of what was rounded there, number by number: its sum may be small, and is."""
        trace = self._trace
        x = trace.mid_of(state.layer) if state.middle else trace.states[state.layer]
        return self._size(x[state.position], state.d)

    def _size(self, x: Tensor, d: Tensor) -> float:
        return 0.0 if self._trace.embed.dtype in WIDE else _size(x, d)

    def _look(self, layer: int, at: int) -> Tensor:
        """How much each head took from each position up to this one. [H, S]."""
        trace, its = self._trace, self._trace.config.layers[layer]
        keys = shared(trace.k[layer], trace.config.n_head)[:, : at + 1]
        back = at - torch.arange(at + 1, device=keys.device)
        sees = (back < (its.window or at + 1))[None]
        return looks(trace.q[layer][:, at : at + 1], keys, sees, its.scale, trace.config.attn_softcap)[:, 0].to(
            wide(keys).dtype
        )

    def _opened(self, part: _Part) -> tuple[_State, float]:
        """The state that a part read, the direction in which it matters there, and what it would write of nothing."""
        assert part.opens
        trace, c, at = self._trace, self._trace.config, slice(part.position, part.position + 1)
        layer, head, d = part.opens
        block, x = block_of(trace.decoder, layer), wide(trace.states[layer][at])
        if head is None:
            middle = not c.parallel
            read, const = through_mlp(block, wide(trace.mid_of(layer)[at]) if middle else x, d[None])
        else:
            middle = False
            taken = d.new_zeros(c.n_kv_head, 1, c.d_head)
            taken[head // (c.n_head // c.n_kv_head), 0] = d
            read, const = through_values(block, x, taken)
        return _State(layer=layer, middle=middle, position=part.position, d=read[0]), float(const)


def through_values(block: Block, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """For d along the values, [K, T, D], directions and constants such that values . d = x . direction + constant.

    x: what enters the block, [T, C]. Returns [T, C], [T].
    """
    attention = block.attn
    assert isinstance(attention, Attention)
    d = d.transpose(0, 1).reshape(len(x), -1)  # [T, K*D]
    weight, bias = wide(attention.v.weight), attention.v.bias
    if clip := block.config.clip_qkv:
        v = normed(block.attn_norm, x) @ weight.T + (0 if bias is None else wide(bias))
        d = d * (v.clamp(-clip, clip) / v.where(v != 0, torch.ones_like(v)))
    const = torch.zeros_like(x[:, 0]) if bias is None else d @ wide(bias)
    read, shift = through_norm(block.attn_norm, x, d @ weight)
    return read, const + shift


def through_mlp(block: Block, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and constants such that what the MLP writes . d = x . direction + constant, its gates kept.

    x: the stream that it reads, [T, C]; d: [T, C]. Returns [T, C], [T].
    """
    c, mlp = block.config, block.mlp
    assert isinstance(mlp, MLP)
    read, up, bent = hidden(block, x)
    bent, up = wide(bent), wide(up)
    gate = bent if mlp.gate else bent / up.where(up != 0, torch.ones_like(up))
    d = d * c.residual_scale
    const = torch.zeros_like(d[:, 0])
    if block.mlp_out_norm:
        d, const = through_norm(block.mlp_out_norm, wide(mlp(read)), d)
    for layer, factor in ((mlp.down, None), (mlp.up, gate)):
        d = d if factor is None else d * factor
        const = const if layer.bias is None else const + d @ wide(layer.bias)
        d = d @ wide(layer.weight)
    d, shift = through_norm(mlp_reads_through(block), x, d)
    return d, const + shift


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """What a norm makes of a state, in float32 or wider."""
    if norm is None:
        return x
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    x = x if norm.weight is None else x * wide(norm.weight)
    return x if norm.bias is None else x + wide(norm.bias)


def _along(x: Tensor, d: Tensor) -> Tensor:
    return (wide(x) * d).sum(-1)


def _size(x: Tensor, d: Tensor) -> float:
    """Of x . d, without signs."""
    return float((wide(x) * d).abs().sum())


def _worse(a: float, b: float) -> float:
    """The larger error; not a number, once one is."""
    return b if not b <= a else a


def _places(trace: Trace, at: int | slice) -> Tensor:
    """The learned vectors of positions, [C] or [T, C]; zeros where there are none."""
    table = trace.decoder.pos_embed
    return torch.zeros_like(wide(trace.embed[at])) if table is None else wide(table.weight[: trace.n_positions][at])
