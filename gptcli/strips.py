"""The strip: how each layer already stood to the token that was just written, read off the pass that wrote it.

Only the newest position is kept, as the running sum that the decoder itself computes; all its layers are read with one
matrix product. That is 2 (L + 1) C V operations a token, about six times a pass of a 135M model with 49,152 tokens.

    R = L + 1 rows   C width   V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.errors import CheckFailed
from gptcli.lens import BOUNDS, end_of, head_of, in_slices, scores
from gptcli.linear import held_back
from gptcli.model import Block, Decoder, Tape
from gptcli.records_xray import Strip
from gptcli.trace import Part

SLICE, WIDE_SLICE = 768, 4096  # tokens read at once: 768 rows of 576 numbers are 1.8 MB; oneDNN cuts them itself


class Strips:
    """A tape that remembers the newest position of the last pass. `edits` may change what passes.

    size: ids from here on are padding: in the softmax, but never the best, nor counted in a rank.
    """

    def __init__(self, decoder: Decoder, *, edits: Tape | None = None, size: int | None = None) -> None:
        self._decoder, self._edits, self._size = decoder, edits, size
        self.only_states = edits is None
        n_vocab, on_cpu = decoder.config.n_vocab, decoder.embed.weight.device.type == "cpu"
        self._n = (WIDE_SLICE if held_back("cpu") else SLICE) if on_cpu else n_vocab
        self._slices = list(in_slices(end_of(decoder), self._n))
        shape, dtype = (decoder.config.n_layer + 1, n_vocab), head_of(self._slices[0]).dtype
        # kept from token to token, because fresh memory is slow
        self._z = torch.empty(shape, device=decoder.embed.weight.device, dtype=dtype)
        self._e = torch.empty_like(self._z)
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

    @torch.inference_mode()
    def read(self, id: int, logprob: float) -> Strip:
        """How each row stands to a token, whose log-probability the model said to be `logprob`.

        Raises CheckFailed when the last row says otherwise.
        """
        z, states = self._z, self.states  # [R, V], [R, C]
        for i, part in enumerate(self._slices):
            z[:, i * self._n : (i + 1) * self._n] = scores(part, states)
        own = z[:, id].clone()
        most = z.amax(-1)
        best = most if self._size in (None, z.shape[1]) else z[:, : self._size].amax(-1)
        rank = 1 + int((z[-1, : self._size] > own[-1]).sum())
        z -= most[:, None]
        e = torch.exp(z, out=self._e)
        total = e.sum(-1)
        p = e[-1] / total[-1]
        cross = total.log() - torch.mul(z, p, out=e).sum(-1)  # as in lens.read: sums by halves, 0 for the last row
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
            rank=rank,
            error=error,
        )
