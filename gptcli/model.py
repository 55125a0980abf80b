"""The decoder: every GPT-type family runs on this one page.

A text is a row of token ids. Each id becomes a vector; the vectors, one for each position, are the residual stream.
Each block reads the stream and adds to it twice: attention moves information between positions, the MLP works on each
position alone. The last vector is compared with the vector of every token, which gives one score each: the logits.

    B batch     T new tokens   S tokens seen   C width (d_model)
    H heads     K kv heads     D head dim      F mlp dim     V vocabulary     L layers
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.attend import attend, attend_apart, attend_blocks, attend_each, visible
from gptcli.cache import Cache, Keys
from gptcli.config import Config, Rope
from gptcli.linear import Linear, compiling, few_rows, linear, stored
from gptcli.rope import angles, apply_rotary
from gptcli.rows import RowKeys, Rows

Angles = dict[Rope, tuple[Tensor, Tensor]]  # cos and sin of the positions in use, each [positions, dim]
LARGE = 2**26  # parameters from which a model is large, see `linear`


class Tape(Protocol):
    """Watches a forward pass at its three places. What a place hands back is what is really used."""

    def start(self, x: Tensor) -> Tensor:
        """The stream before the first block, [B, T, C]."""

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        """What the heads of a layer read and gather: q, z [B, H, T, D]; k, v [B, K, S, D].

        mask: [T, S] or [B, 1, 1, S], bool, True where a key is seen; None where plain causal order says it all.
        """

    def write(self, layer: int, part: Literal["attn", "mlp"], x: Tensor) -> Tensor:
        """What a layer's attention or MLP is about to add to the stream, [B, T, C]."""


class Norm(nn.Module):
    """LayerNorm, or RMSNorm without centring; statistics in float32 whatever the dtype."""

    def __init__(self, config: Config, *shape: int, bias: bool | None = None) -> None:
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        self.weight = nn.Parameter(torch.ones(shape)) if config.norm_weight else None
        self.bias = nn.Parameter(torch.zeros(shape)) if (config.norm_bias if bias is None else bias) else None

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight, self.bias
        if compiling():
            return self._written_out(x)
        if self.kind == "layer" and (w is None or w.ndim == 1):
            return F.layer_norm(x, x.shape[-1:], w, b, self.eps)
        if self.kind == "layer":
            y = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        elif x.dtype == torch.float32 and w is not None and w.ndim == 1:
            return F.rms_norm(x, x.shape[-1:], w, self.eps)
        else:
            y = x.float()
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        if w is not None:  # the dtype of the gain decides: Llama rounds before it multiplies, Gemma (float32) after
            y = y.to(w.dtype) * w
        return (y if b is None else y + b).to(x.dtype)

    def _written_out(self, x: Tensor) -> Tensor:
        """The same for the compiler, which would take the sums of one row by another formula than those of a few."""
        y = stored(x)  # how many numbers are added side by side depends on the dtype of what is read
        if self.kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        y = y if self.weight is None else y * self.weight.float()
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class Attention(nn.Module):
    """Each position looks back, decides how much of each earlier position it needs, and gathers that."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.config, self.layer, self.index = config, config.layers[index], index
        C, H, K, D = config.d_model, config.n_head, config.n_kv_head, config.d_head
        self.q = Linear(C, H * D, bias=config.qkv_bias)
        self.k = Linear(C, K * D, bias=config.qkv_bias)
        self.v = Linear(C, K * D, bias=config.qkv_bias)
        if config.qk_norm:
            self.q_norm = Norm(config, *config.qk_norm_shape(H), bias=config.qk_norm_bias)
            self.k_norm = Norm(config, *config.qk_norm_shape(K), bias=config.qk_norm_bias)
        self.out = Linear(H * D, C, bias=config.out_bias)
        self.in_blocks = False  # whether a step of training that is compiled attends by `attend_blocks` (train.py)

    def forward(self, x: Tensor, rotary: Angles, keys: Keys | RowKeys | None, tape: Tape | None) -> Tensor:
        c, layer, (B, T, _) = self.config, self.layer, x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)  # [B, T, H*D], [B, T, K*D]
        if c.clip_qkv:
            q, k, v = (t.clamp(-c.clip_qkv, c.clip_qkv) for t in (q, k, v))
        if c.qk_norm == "all_heads":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.view(B, T, -1, c.d_head) for t in (q, k, v))
        if c.qk_norm in ("head", "each_head"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, T, D], [B, K, T, D]
        if layer.rope:
            cos, sin = rotary[layer.rope]
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        if keys:
            k, v = keys.append(k, v)  # [B, K, S, D]
        if keys and keys.runs:
            mask, z = None, attend_apart(q, k, v, keys.runs, layer.scale, c.attn_softcap)
        elif few_rows(x) and B == 1:  # k and v may be lists there
            mask, z = None, attend_each(q, k, v, layer.window, layer.scale, c.attn_softcap)
        elif self.in_blocks and torch.compiler.is_compiling():
            mask, z = None, attend_blocks(q, k, v, layer.window, layer.scale, c.attn_softcap)
        else:
            mask = visible(T, k.shape[2], layer.window, x.device, keys.lengths if keys else None)
            if T == 1 and layer.window and layer.window < k.shape[2]:  # a short run's cache hands over all
                seen = slice(-layer.window, None)
                z = attend(q, k[:, :, seen], v[:, :, seen], None, layer.scale, c.attn_softcap)
            else:
                z = attend(q, k, v, mask, layer.scale, c.attn_softcap)  # [B, H, T, D]
        if tape:
            z = tape.heads(self.index, q, k, v, mask, z)
        return self.out(z.transpose(1, 2).reshape(B, T, -1))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class MLP(nn.Module):
    """Works on each position alone: widen, bend, narrow; gated ones multiply by a second, bent widening."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        C, F_ = config.d_model, config.d_ff
        self.act = ACTIVATIONS[config.act]
        self.gate = Linear(C, F_, bias=config.mlp_bias) if config.gated else None
        self.up = Linear(C, F_, bias=config.mlp_bias)
        self.down = Linear(F_, C, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)  # [B, T, F]
        return self.down(self.act(self.gate(x)) * up if self.gate else self.act(up))


class Block(nn.Module):
    """One decoder layer: two reads of the stream and two writes to it."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        norm = {name: Norm(config, config.d_model) for name in config.norms}
        self.attn_norm, self.attn_out_norm = norm.get("attn_norm"), norm.get("attn_out_norm")
        self.attn = Attention(config, index)
        self.mlp_norm, self.mlp_out_norm = norm.get("mlp_norm"), norm.get("mlp_out_norm")
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Angles, keys: Keys | RowKeys | None, tape: Tape | None) -> Tensor:
        c, attn_norm, mlp_norm = self.config, self.attn_norm, self.mlp_norm
        if c.post_norm and attn_norm and mlp_norm:  # the norm takes the sum
            x = attn_norm(x + self._write("attn", self.attn(x, rotary, keys, tape), None, tape))
            return mlp_norm(x + self._write("mlp", self.mlp(x), None, tape))
        read = attn_norm(x) if attn_norm else x
        attn = self._write("attn", self.attn(read, rotary, keys, tape), self.attn_out_norm, tape)
        if c.parallel:
            read = mlp_norm(x) if mlp_norm else read
            return x + attn + self._write("mlp", self.mlp(read), self.mlp_out_norm, tape)
        x = x + attn
        read = mlp_norm(x) if mlp_norm else x
        return x + self._write("mlp", self.mlp(read), self.mlp_out_norm, tape)

    def _write(self, part: Literal["attn", "mlp"], x: Tensor, norm: Norm | None, tape: Tape | None) -> Tensor:
        """What is really added: after the norm on the output and the residual multiplier, where a family has them."""
        if norm:
            x = norm(x)
        if self.config.residual_scale != 1.0:
            x = x * self.config.residual_scale
        return tape.write(self.index, part, x) if tape else x


class Decoder(nn.Module):
    """Token ids in, scores for the next token out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.ropes = tuple(dict.fromkeys(layer.rope for layer in config.layers if layer.rope))
        self.embed = _table(config.n_vocab, config.embed_width)
        self.pos_embed = _table(config.n_ctx, config.d_model) if config.learned_positions else None
        self.embed_in = Linear(config.embed_width, config.d_model, bias=False) if config.d_embed else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.final_norm = Norm(config, config.d_model) if config.final_norm else None
        self.embed_out = Linear(config.d_model, config.embed_width, bias=False) if config.d_embed else None
        self.head = Head(config)
        self.large = config.n_params() >= LARGE
        for module in self.modules():
            if isinstance(module, Linear | Head):
                module.large = self.large

    def forward(self, ids: Tensor, cache: Cache | Rows | None = None, tape: Tape | None = None) -> Tensor:
        """Logits for every position, [B, T, V]. ids: [B, T], int64; with a cache they follow what it has seen."""
        return self.readout(self.stream(ids, cache, tape))

    def stream(self, ids: Tensor, cache: Cache | Rows | None = None, tape: Tape | None = None) -> Tensor:
        """The residual stream after the last block, before the final norm. [B, T] -> [B, T, C].

        Raises ValueError for more tokens than the cache was made for, or when it has outgrown its frequencies.
        """
        T = ids.shape[1]
        start = cache.n_seen if cache else 0
        if cache and (start + T > cache.capacity or cache.outgrown(start + T)):
            raise ValueError(f"a cache for {cache.capacity} tokens that has seen {start} cannot take {T} more")
        where = cache.where(T) if cache else slice(0, T)
        x = self.embed_tokens(ids, self.pos_embed.weight[where] if self.pos_embed else None)
        if tape:
            x = tape.start(x)
        rotary = self.rotary(where, start + T, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, cache.layers[i] if cache else None, tape)
        if cache:
            cache.advance(T)
        return x

    def embed_tokens(self, ids: Tensor, position: Tensor | None, *, wide: bool = False) -> Tensor:
        """The vectors of the tokens, and of their places, [T, C], in families that learn these. [B, T] -> [B, T, C].

        wide: in float32, whatever the weights are in, as the compiled passes have the stream.
        """
        x = self.embed(ids)
        if wide:
            x = x.float()
        if self.config.embed_scale != 1.0:
            x = x * _rounded(self.config.embed_scale, self.embed.weight.dtype)
        if self.embed_in:
            x = self.embed_in(x)
        return x if position is None else x + position

    def rotary(self, where: slice | Tensor, stop: int, cache: Cache | Rows | None) -> Angles:
        """Cos and sin of each kind of rotary positions at these places, the last before `stop`; [B, 1] of rows."""
        return {rope: self._angles(rope, where, stop, cache) for rope in self.ropes}

    def regimes(self, n_seen: int) -> tuple[int, ...]:
        """Which rotary frequencies a text of this many tokens is computed with: in some families that depends on it."""
        return tuple(rope.regime(n_seen) for rope in self.ropes)

    def readout(self, x: Tensor) -> Tensor:
        """Vectors of the stream to scores: final norm, head, scale and cap. [..., C] -> [..., V]."""
        c = self.config
        if self.final_norm:
            x = self.final_norm(x)
        if self.embed_out:
            x = self.embed_out(x)
        logits = self.head(x, self.embed.weight)
        if c.logit_scale != 1.0:
            logits = logits * c.logit_scale
        return logits if c.final_softcap is None else c.final_softcap * torch.tanh(logits / c.final_softcap)

    def _angles(
        self, rope: Rope, where: slice | Tensor, stop: int, cache: Cache | Rows | None
    ) -> tuple[Tensor, Tensor]:
        regime, device, dtype = rope.regime(stop), self.embed.weight.device, self.embed.weight.dtype
        if cache is None:
            return angles(rope, stop, regime, device, dtype)
        if (rope, regime) not in cache.angles:
            cache.angles[rope, regime] = angles(rope, cache.capacity, regime, device, dtype)
        cos, sin = cache.angles[rope, regime]
        cos, sin = cos[where], sin[where]
        return (cos, sin) if isinstance(where, slice) else (cos[:, None], sin[:, None])  # [B, 1, 1, dim]


@cache
def _rounded(value: float, dtype: torch.dtype) -> float:
    """The number as that dtype has it; a number and no tensor, so that a compiled pass can write it down."""
    return float(torch.tensor(value, dtype=dtype))


def _table(rows: int, width: int) -> nn.Embedding:
    """A table of vectors, not filled: on the meta device filling it would import torch's compiler, two seconds."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Head(nn.Module):
    """The unembedding: a matrix of its own unless the embedding serves for it, and a bias if the family has one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.large = False
        self.weight = None if config.tied else nn.Parameter(torch.empty(config.n_vocab, config.embed_width))
        self.bias = nn.Parameter(torch.zeros(config.n_vocab)) if config.head_bias else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return linear(x, embedding if self.weight is None else self.weight, self.bias, large=self.large)
