"""The strip: how each layer already stood to the token that was just written, read off the pass that wrote it.

Only the newest position is kept, as the running sum that the decoder itself computes; all its layers are read with one
matrix product. That is 2 (L + 1) C V operations a token, about six times a pass of a 135M model with 49,152 tokens.

    R = L + 1 rows   C width   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gptcli.errors import CheckFailed
from gptcli.lens import BOUNDS, end_of, head_of, in_slices, scores
from gptcli.linear import held_back
from gptcli.model import Block, Decoder, Tape
from gptcli.records_xray import Strip
from gptcli.trace import Part

SLICE = 768  # tokens whose scores are computed at once: 768 rows of 576 numbers are 1.8 MB; oneDNN cuts them itself
MANY = 1 << 16  # tokens whose scores are held at once
PARTS = 16  # of these, which are added up on their own
FULL = 16  # rows: as many as a register has room for


class Strips:
    """A tape that remembers the newest position of the last pass. `edits` may change what passes.

    size: ids from here on are padding: in the softmax, but never the best, nor counted in a rank.
    """

    def __init__(self, decoder: Decoder, *, edits: Tape | None = None, size: int | None = None) -> None:
        self._decoder, self._edits, self._size = decoder, edits, size
        self.only_states = edits is None
        on_cpu = decoder.embed.weight.device.type == "cpu"
        self._swapped = on_cpu and held_back("cpu")  # whether each of our rows is a column of the product
        n = SLICE if on_cpu and not self._swapped else MANY
        slices = list(in_slices(end_of(decoder), n))
        self._groups = [slices[i : i + MANY // n] for i in range(0, len(slices), MANY // n)]
        self._z: dict[int, Tensor] = {}  # of the groups, kept from token to token: fresh memory is slow
        self._e: dict[int, Tensor] = {}
        self._rows: list[Tensor] = []  # [C] each
        self._x = torch.empty(0)

    def saw(self, states: Tensor) -> None:
        """The same of a compiled pass, which has no places to be watched at. [R, C]."""
        self._rows = list(states)

    def start(self, x: Tensor) -> Tensor:
        if self._edits:
            x = self._edits.start(x)
        self._x = x[0, -1]
        self._rows = [self._x]
        return x

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        return self._edits.heads(layer, q, k, v, mask, z) if self._edits else z

    def write(self, layer: int, part: Part, x: Tensor) -> Tensor:
        if self._edits:
            x = self._edits.write(layer, part, x)
        self._x = self._x + x[0, -1]
        if self._decoder.config.post_norm:
            block = self._decoder.blocks[layer]
            assert isinstance(block, Block)
            norm = block.attn_norm if part == "attn" else block.mlp_norm
            self._x = norm(self._x) if norm else self._x
        if part == "mlp":
            self._rows.append(self._x)
        return x

    @property
    def states(self) -> Tensor:
        """The embedding, then the state after each block, of the newest position. [R, C]."""
        return torch.stack(self._rows)

    def _scores(self, states: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of all tokens, MANY at a time, and room for as many numbers, laid out alike. [R, C] -> [R, MANY] twice."""
        for i, group in enumerate(self._groups):
            z = scores(group[0], states)
            if len(group) > 1:
                if i not in self._z:
                    self._z[i] = z.new_empty(len(z), sum(len(head_of(part)) for part in group))
                for part, room in zip(group, torch.split(self._z[i], z.shape[1], 1), strict=True):
                    room.copy_(z if part is group[0] else scores(part, states))
                z = self._z[i]
            if i not in self._e:
                self._e[i] = torch.empty_like(z)
            yield z, self._e[i]

    @torch.inference_mode()
    def read(self, id: int, logprob: float) -> Strip:
        """How each row stands to a token, whose log-probability the model said to be `logprob`.

        Raises CheckFailed when the last row says otherwise.
        """
        states, start, found, last = self.states, 0, list[Tensor](), list[Tensor]()
        n, size = len(states), self._decoder.config.n_vocab if self._size is None else self._size
        if self._swapped:
            states = torch.cat((states, states[-1:].expand(-n % FULL, -1)))
        own = least = states.new_full((len(states),), float("-inf"), dtype=head_of(self._groups[0][0]).dtype)
        for z, e in self._scores(states):  # what these are needed for is done while they are in the cache
            most, listed = z.amax(-1), z[:, : max(0, size - start)]
            best = most if listed.shape == z.shape else listed.amax(-1) if listed.shape[1] else least
            last.append(listed[n - 1].clone())
            if start <= id < start + z.shape[1]:
                own = z[:, id - start].clone()
            start += z.shape[1]
            z -= most[:, None]
            torch.exp(z, out=e)
            total = _sums(e)
            z *= e[n - 1]
            found.append(torch.stack((most, best, total, _sums(z))))
        mosts, bests, totals, crosses = torch.stack(found, 1)[..., :n].double()  # [groups, R] each
        own, most, best = own[:n].double(), mosts.amax(0), bests.amax(0)
        weights = (mosts - most).exp()
        total = (totals * weights).sum(0)
        # KL = (ln total - sum p z) - (the same of the last row), so that of the last row it is 0
        shares = weights[:, -1:] / total[-1]
        cross = total.log() - (shares * (crosses + totals[:, -1:] * (mosts - most))).sum(0)
        own_logprob = own - most - total.log()
        error = abs(float(own_logprob[-1]) - logprob) / max(1.0, float(most[-1].abs()))
        if not error <= 2 * BOUNDS[self._decoder.embed.weight.dtype]:
            raise CheckFailed(
                "the x-ray does not hold, so it is not shown: its last layer gives the written token another "
                f"probability than the model did (off by {error:.1e} of the largest logit)",
                hint="what was recorded is not what was added, or the final norm, the head or its cap was misread",
            )
        return Strip(
            logprobs=tuple(own_logprob.tolist()),
            kl=tuple((cross - cross[-1]).clamp(min=0).tolist()),
            stands=tuple((own >= best).tolist()),
            rank=1 + sum(int((z > own[-1]).sum()) for z in last),
            error=error,
        )


def _sums(x: Tensor) -> Tensor:
    """Of each row, [R, n]. Where rows lie across the memory, in parts: so each thread adds what it wrote."""
    if x.is_contiguous() or x.shape[1] % PARTS:
        return x.sum(-1)
    return x.mT.reshape(PARTS, -1, len(x)).sum(1).sum(0)
