"""The trace: everything that a text adds to the residual stream on its way up, layer by layer.

The stream is a running sum, so its addends are recorded and every state is their sum, taken in the decoder's own order
and dtype: the last one is bit for bit what the decoder hands to its final norm. Names are TransformerLens's:

    embed ─┬─> resid_pre[0] ──(+ attn_out[0])──> resid_mid[0] ──(+ mlp_out[0])──> resid_post[0] = resid_pre[1] ...

    L layers   T positions   C width   H heads   K kv heads   D head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from gptcli.attention import Cut, pattern
from gptcli.checkpoint import Checkpoint, load
from gptcli.errors import Unsupported
from gptcli.generation import prepare, start
from gptcli.model import Block, Decoder, Tape

Part = Literal["attn", "mlp"]


@runtime_checkable
class Editor(Tape, Protocol):
    """A tape that changes what passes, and says where."""

    def replaced(self, layer: int, T: int) -> Tensor:
        """Which heads' outputs are put there, and not what the heads gathered. [H, T], bool."""

    def overwritten(self, layer: int, T: int) -> Tensor:
        """Where the attention's whole write is put there, and not the sum of its heads. [T], bool."""

    def cut(self, layer: int, T: int, S: int, first: int = 0) -> Cut | None:
        """The looks that are taken away, of T tokens from position `first` on at the S keys that end with theirs."""


class Trace:
    """A tape that keeps what it sees of one text, computed at once or token by token, and changes nothing.

    `edits`, another tape, may change what passes; then what is really used is what is kept. Without `heads` there is no
    q, k, v, z or pattern, and half the memory.
    """

    def __init__(
        self, decoder: Decoder, *, edits: Tape | None = None, ids: Sequence[int] = (), heads: bool = True
    ) -> None:
        self.decoder, self.config, self.edits, self._keeps_heads = decoder, decoder.config, edits, heads
        self._editor = edits if isinstance(edits, Editor) else None
        self.ids = tuple(ids)  # the tokens at the positions, where they are known
        self._kept: dict[tuple[str, int], list[Tensor]] = {}  # (field, layer) -> one tensor for each pass
        self._joined: dict[str, Tensor] = {}

    # --- the three places of a pass ----------------------------------------------------------------------------------

    def start(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError(f"a trace is of one text, not of a batch of {x.shape[0]}")
        self._joined.clear()
        if self.edits:
            x = self.edits.start(x)
        self._keep("embed", 0, x[0])
        return x

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        T = q.shape[2]
        if layer == 0 and begins_anew(T, k.shape[2], self.config.layers[0].window):
            self._kept = {("embed", 0): self._kept["embed", 0][-1:]}  # the text so far is computed again: forget it
        if self.edits:
            z = self.edits.heads(layer, q, k, v, mask, z)
        if not self._keeps_heads:
            return z
        self._keep("q", layer, q[0])
        self._keep("k", layer, k[0, :, -T:].clone())  # of the visible keys the new ones; a cache moves its rows
        self._keep("v", layer, v[0, :, -T:].clone())
        self._keep("z", layer, z[0])
        return z

    def write(self, layer: int, part: Part, x: Tensor) -> Tensor:
        if self.edits:
            x = self.edits.write(layer, part, x)
        self._keep(f"{part}_out", layer, x[0])
        return x

    def _keep(self, field: str, layer: int, x: Tensor) -> None:
        self._kept.setdefault((field, layer), []).append(x)

    # --- what was added ----------------------------------------------------------------------------------------------

    @property
    def embed(self) -> Tensor:
        """The stream before the first block: token and position, scaled. [T, C]."""
        return torch.cat(self._kept["embed", 0])

    @property
    def attn_out(self) -> Tensor:
        """What each layer's attention adds, after output norms and multipliers. [L, T, C]."""
        return self._all("attn_out")

    @property
    def mlp_out(self) -> Tensor:
        """What each layer's MLP adds. [L, T, C]."""
        return self._all("mlp_out")

    @property
    def q(self) -> Tensor:
        """Queries as they meet the keys, turned by their position. [L, H, T, D]."""
        return self._all("q")

    @property
    def k(self) -> Tensor:
        """Keys, [L, K, T, D]; heads h with the same h // (H / K) share one."""
        return self._all("k")

    @property
    def v(self) -> Tensor:
        """Values, [L, K, T, D]."""
        return self._all("v")

    @property
    def z(self) -> Tensor:
        """What each head gathered, before the output matrix. [L, H, T, D]."""
        return self._all("z")

    def _all(self, field: str) -> Tensor:
        if field not in self._joined:
            self._check_keeps(field)
            layers = range(self.config.n_layer)
            joined = torch.stack([torch.cat(self._kept[field, i], -2) for i in layers])
            for i in layers:
                self._kept[field, i] = [joined[i]]  # so that nothing is held twice
            self._joined[field] = joined
        return self._joined[field]

    def replaced(self, layer: int) -> Tensor:
        """Which heads' outputs an edit has put there, instead of what they gathered. [H, T], bool, on the CPU."""
        if self._editor:
            return self._editor.replaced(layer, self.n_positions)
        return torch.zeros(self.config.n_head, self.n_positions, dtype=torch.bool)

    def overwritten(self, layer: int) -> Tensor:
        """Where an edit has put the attention's whole write, so that no head wrote. [T], bool, on the CPU."""
        if self._editor:
            return self._editor.overwritten(layer, self.n_positions)
        return torch.zeros(self.n_positions, dtype=torch.bool)

    def _check_keeps(self, field: str) -> None:
        if field in ("q", "k", "v", "z") and not self._keeps_heads:
            raise Unsupported("this trace was made without the heads: it has no q, k, v, z or pattern")

    @property
    def n_positions(self) -> int:
        return sum(len(x) for x in self._kept["embed", 0])

    # --- the states --------------------------------------------------------------------------------------------------

    @property
    def resid_pre(self) -> Tensor:
        """The stream that enters each block. [L, T, C]."""
        return self.states[:-1]

    @property
    def resid_mid(self) -> Tensor:
        """The stream between attention and MLP. [L, T, C]. Raises Unsupported for parallel blocks, which have none."""
        if self.config.parallel:
            raise Unsupported("in this model attention and MLP add at the same time: there is no state between them")
        if "mid" not in self._joined:
            self._joined["mid"] = torch.stack([self.mid_of(i) for i in range(self.config.n_layer)])
        return self._joined["mid"]

    @torch.inference_mode()
    def mid_of(self, layer: int) -> Tensor:
        """The same of one layer. [T, C]."""
        x = self.resid_pre[layer] + self.attn_out[layer]
        block = self.decoder.blocks[layer]
        assert isinstance(block, Block)
        return block.attn_norm(x) if self.config.post_norm and block.attn_norm else x

    @property
    def resid_post(self) -> Tensor:
        """The stream after each block. [L, T, C]."""
        return self.states[1:]

    @property
    def states(self) -> Tensor:
        """The embedding, then the stream after each block. [L + 1, T, C]."""
        self._sum_up()
        return self._joined["states"]

    @torch.inference_mode()
    def _sum_up(self) -> None:
        if "states" in self._joined:
            return
        x = self.embed
        states = x.new_empty(self.config.n_layer + 1, *x.shape)
        states[0] = x
        for i, (block, attn, mlp) in enumerate(zip(self.decoder.blocks, self.attn_out, self.mlp_out, strict=True)):
            assert isinstance(block, Block)
            mid = x + attn
            if self.config.post_norm and block.attn_norm and block.mlp_norm:
                mid = block.attn_norm(mid)
                x = block.mlp_norm(mid + mlp)
            else:
                x = mid + mlp
            states[i + 1] = x
        self._joined["states"] = states

    @property
    def pattern(self) -> Tensor:
        """How much of each position (last axis) each head looked at. [L, H, T, T], float32; one layer: `pattern_of`."""
        return torch.stack([self.pattern_of(i) for i in range(self.config.n_layer)])

    def pattern_of(self, layer: int) -> Tensor:
        """The same of one layer, rebuilt from queries and keys. [H, T, T], float32."""
        self._check_keeps("q")
        q, k = (torch.cat(self._kept[field, layer], -2) for field in ("q", "k"))
        without = self._editor.cut(layer, q.shape[1], k.shape[1]) if self._editor else None
        return pattern(q, k, self.config.layers[layer], self.config.attn_softcap, without)


def begins_anew(T: int, S: int, window: int | None) -> bool:
    """Whether a pass of T tokens whose queries see at most S keys has no text before it."""
    return S == T and window != 1


def xray(model: Checkpoint | Path | str, text: str | Sequence[int] = "", *, edits: Tape | None = None) -> Trace:
    """The trace of a text: `trace.resid_pre`, `attn_out`, `mlp_out`, `pattern` ... are tensors.

    `.numpy()` converts them; those of a model in bfloat16, which numpy does not know, `.float().numpy()`.

    model: a checkpoint, or what `load` takes. text: as for `generate`; token ids are taken as they are. edits: a tape
    that changes what passes, as whatif.Edits does.

    Raises what `load` raises, and UsageError for a text that does not fit the context, or an empty one with a model
    that has no start token.
    """
    checkpoint = model if isinstance(model, Checkpoint) else load(str(model))
    prompt = prepare(checkpoint, text, max_tokens=0)
    trace = Trace(checkpoint.decoder, edits=edits, ids=prompt.ids)
    start(checkpoint, prompt, max_tokens=0, tape=trace)
    return trace
