"""Config: the shape and the behaviour of a decoder. Frozen, no torch, and no family's name in it.

What only looks different between families (names, transposed or fused matrices, interleaved rotary pairs, Gemma's
`1 + weight`) is undone while loading, see families.py. What behaves differently is a field here, and a field exists
only because a supported family needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary positions: the first `dim` numbers of a head turn with the position; see rope.py for the formulas."""

    theta: float
    dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    n_ctx_trained: int = 0  # context before it was stretched
    gain: float = 1.0  # cos and sin are multiplied by it (yarn, longrope)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()  # longrope, one for each pair
    long_factor: tuple[float, ...] = ()

    def regime(self, n_seen: int) -> int:
        """Which set of frequencies a text of this length is computed with; a cache is valid within one only."""
        if self.kind == "dynamic":
            return max(n_seen, self.n_ctx_trained)
        return int(n_seen > self.n_ctx_trained) if self.kind == "longrope" else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What may differ from layer to layer."""

    rope: Rope | None = None  # None: no rotary positions here
    window: int | None = None  # key j is visible to query i iff 0 <= i - j < window; None: all earlier keys
    scale: float = 1.0  # scores are q.k times this


NORMS = ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything the decoder needs to know. Sizes are counts; `n_ctx` is in tokens."""

    n_vocab: int
    n_ctx: int
    d_model: int
    n_head: int
    n_kv_head: int
    d_head: int
    d_ff: int
    layers: tuple[Layer, ...] = field(repr=False)

    # the stream's start and its end
    learned_positions: bool = False
    d_embed: int | None = None  # an embedding narrower or wider than the stream, projected in and out (opt-350m)
    embed_scale: float = 1.0  # rounded to the working dtype before it multiplies (Gemma)
    tied: bool = False  # the head is the embedding
    head_bias: bool = False
    final_norm: bool = True
    final_softcap: float | None = None  # logits become cap * tanh(logits / cap)
    logit_scale: float = 1.0

    # norms: what attention reads, what it writes, what the MLP reads, what it writes
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_weight: bool = True
    norm_bias: bool = False
    norms: tuple[str, ...] = ("attn_norm", "mlp_norm")
    parallel: bool = False  # attention and MLP read the same stream; without an mlp_norm of its own, the same norm too
    post_norm: bool = False  # the two norms take the sum, x = norm(x + write): no running sum (opt-350m)
    residual_scale: float = 1.0  # multiplies every write (Granite)

    # attention
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "each_head", "all_heads"] | None = None  # one gain for all heads, one each, or across
    qk_norm_bias: bool = False
    clip_qkv: float | None = None
    attn_softcap: float | None = None

    # MLP
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "quick_gelu"] = "gelu_tanh"
    gated: bool = False  # down(act(gate x) * up x) instead of down(act(up x))
    mlp_bias: bool = False

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def embed_width(self) -> int:
        """Width of the embedding and of what the head reads."""
        return self.d_embed or self.d_model

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by its name in model.py, in the order of the forward pass; a tied head is left out.

        A test holds this equal to the decoder itself, so that counting needs no torch.
        """
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (self.n_vocab, self.embed_width)}
        if self.learned_positions:
            shapes["pos_embed.weight"] = (self.n_ctx, self.d_model)
        if self.d_embed:
            shapes["embed_in.weight"] = (self.d_model, self.d_embed)
        for i in range(self.n_layer):
            shapes |= {f"blocks.{i}.{name}": shape for name, shape in self._block()}
        if self.final_norm:
            shapes |= dict(self._norm("final_norm", self.d_model))
        if self.d_embed:
            shapes["embed_out.weight"] = (self.d_embed, self.d_model)
        if not self.tied:
            shapes["head.weight"] = (self.n_vocab, self.embed_width)
        if self.head_bias:
            shapes["head.bias"] = (self.n_vocab,)
        return shapes

    def _block(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        d, d_q, d_kv = self.d_model, self.n_head * self.d_head, self.n_kv_head * self.d_head
        for name in NORMS[:2]:
            if name in self.norms:
                yield from self._norm(name, d)
        for name, rows in (("q", d_q), ("k", d_kv), ("v", d_kv)):
            yield from _linear(f"attn.{name}", rows, d, self.qkv_bias)
        if self.qk_norm:
            for name, heads in (("q_norm", self.n_head), ("k_norm", self.n_kv_head)):
                yield f"attn.{name}.weight", self.qk_norm_shape(heads)
                if self.qk_norm_bias:
                    yield f"attn.{name}.bias", self.qk_norm_shape(heads)
        yield from _linear("attn.out", d, d_q, self.out_bias)
        for name in NORMS[2:]:
            if name in self.norms:
                yield from self._norm(name, d)
        if self.gated:
            yield from _linear("mlp.gate", self.d_ff, d, self.mlp_bias)
        yield from _linear("mlp.up", self.d_ff, d, self.mlp_bias)
        yield from _linear("mlp.down", d, self.d_ff, self.mlp_bias)

    def qk_norm_shape(self, n_head: int) -> tuple[int, ...]:
        """Shape of the gain that norms the queries or keys of this many heads."""
        if self.qk_norm == "head":
            return (self.d_head,)
        return (n_head, self.d_head) if self.qk_norm == "each_head" else (n_head * self.d_head,)

    def _norm(self, name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.norm_weight:
            yield f"{name}.weight", (width,)
        if self.norm_bias:
            yield f"{name}.bias", (width,)

    def n_params(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def kv_bytes(self, n_tokens: int, bytes_per_element: int) -> int:
        """Memory of the cache at a context of `n_tokens`, in bytes, for one row of the batch."""
        rows = sum(min(n_tokens, layer.window or n_tokens) for layer in self.layers)
        return 2 * rows * self.n_kv_head * self.d_head * bytes_per_element


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
