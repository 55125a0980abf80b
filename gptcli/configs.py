"""config.json of each family -> Config: what it says, and what the family takes for granted when it says nothing.

Defaults are those of the family's own class in transformers, which is what a missing key means.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from gptcli.config import NORMS, Config, Layer, Rope
from gptcli.config_json import Reader, rotary_dim
from gptcli.errors import BadCheckpoint

ALL_BIASES: dict[str, Any] = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
GPT_ACT = "activation_function"  # what GPT-2's descendants and OPT call it


def _sizes(c: Reader, *, wider: int = 0, kv: int | None = None, d_head: int | None = None) -> dict[str, Any]:
    """What every family has. `wider`: default width of the MLP in widths of the stream; 0: config.json must say it."""
    d_model = c.integer("hidden_size")
    n_head, n_kv_head = c.heads(kv)
    return {
        "n_vocab": c.integer("vocab_size"),
        "n_ctx": c.integer("max_position_embeddings"),
        "d_model": d_model,
        "n_head": n_head,
        "n_kv_head": n_kv_head,
        "d_head": c.d_head(d_model, n_head, d_head),
        "d_ff": c.integer("intermediate_size", wider * d_model) if wider else c.integer("intermediate_size"),
    }


def _gpt(c: Reader, sizes: dict[str, Any], layers: Sequence[Layer], **traits: Any) -> Config:
    """GPT-2's descendants: LayerNorm with bias and a plain MLP with bias."""
    traits = {"norm_eps": c.number("norm_eps", 1e-5), "norm_bias": True, "mlp_bias": True} | traits
    return Config(**sizes, layers=tuple(layers), **traits)


def gpt2(c: Reader) -> Config:
    sizes, n_layer = _sizes(c, wider=4), c.n_layer()
    c.only("add_cross_attention", False, "cross-attention needs an encoder")
    scale = sizes["d_head"] ** -0.5 if c.flag("scale_attn_weights", True) else 1.0
    deeper = c.flag("scale_attn_by_inverse_layer_idx", False)
    layers = [Layer(scale=scale / (i + 1) if deeper else scale) for i in range(n_layer)]
    return _gpt(c, sizes, layers, learned_positions=True, act=c.act("gelu_new", GPT_ACT), **ALL_BIASES)


def gpt_bigcode(c: Reader) -> Config:
    c.only("add_cross_attention", False, "cross-attention needs an encoder")
    sizes = _sizes(c, wider=4, kv=1 if c.flag("multi_query", True) else None)
    scale = sizes["d_head"] ** -0.5 if c.flag("scale_attn_weights", True) else 1.0
    layers = [Layer(scale=scale)] * c.n_layer()
    return _gpt(c, sizes, layers, learned_positions=True, act=c.act("gelu_pytorch_tanh", GPT_ACT), **ALL_BIASES)


def gpt_neo(c: Reader) -> Config:
    """GPT-3's alternating dense and banded layers. Scores are not divided by sqrt(d) in this family."""
    sizes, n_layer, window = _sizes(c, wider=4), c.n_layer(), c.integer("window_size", 256)
    types, kinds = c.get("attention_types"), c.get("attention_layers")
    if types is not None or kinds is None:
        kinds = _expand([[["global", "local"], 12]] if types is None else types, n_layer + 1)
    if not isinstance(kinds, list) or len(kinds) != n_layer or any(kind not in ("global", "local") for kind in kinds):
        raise BadCheckpoint(f"{c.where}: 'attention_types' must say global or local for each of {n_layer} layers")
    layers = [Layer(window=window if kind == "local" else None) for kind in kinds]
    return _gpt(c, sizes, layers, learned_positions=True, act=c.act("gelu_new", GPT_ACT), out_bias=True)


def _expand(types: Any, most: int) -> list[Any]:
    """[[["global", "local"], 6]] -> twelve entries, or the first `most`; anything else -> none, which nothing takes."""
    try:
        every = (kind for kinds, times in types for _ in range(min(int(times), 10_000)) for kind in kinds)
        return list(islice(every, most))
    except (TypeError, ValueError):
        return []


def gpt_neox(c: Reader) -> Config:
    sizes, bias = _sizes(c), c.flag("attention_bias", True)
    layer = Layer(rope=c.rope(sizes["d_head"], share=0.25), scale=sizes["d_head"] ** -0.5)
    layers, parallel = [layer] * c.n_layer(), c.flag("use_parallel_residual", True)
    sizes["n_ctx"] = _reach(sizes["n_ctx"], layer.rope)
    return _gpt(c, sizes, layers, parallel=parallel, act=c.act("gelu"), qkv_bias=bias, out_bias=bias)


def gptj(c: Reader) -> Config:
    sizes = _sizes(c, wider=4)
    c.only("scale_attn_weights", True, "this family always divides scores by sqrt(d)")
    rope = Rope(theta=10000.0, dim=rotary_dim(c.where, sizes["d_head"], c.integer("rotary_dim", 64)))
    layers = [Layer(rope=rope, scale=sizes["d_head"] ** -0.5)] * c.n_layer()
    traits: dict[str, Any] = {"norms": ("attn_norm",), "parallel": True, "head_bias": True}
    return _gpt(c, sizes, layers, act=c.act("gelu_new", GPT_ACT), **traits)


def opt(c: Reader) -> Config:
    sizes = _sizes(c)
    c.only("learned_embeddings", True, "this family's positions are learned")  # Galactica's files say so
    c.only("norm_eps", 1e-5, "this family's is 1e-5")
    before, bias = c.flag("do_layer_norm_before", True), c.flag("enable_bias", True)
    affine = c.flag("layer_norm_elementwise_affine", True)
    d_embed = c.integer("word_embed_proj_dim", sizes["d_model"])
    return _gpt(
        c,
        sizes,
        [Layer(scale=sizes["d_head"] ** -0.5)] * c.n_layer(),
        learned_positions=True,
        d_embed=d_embed if d_embed != sizes["d_model"] else None,
        norm_weight=affine,
        norm_bias=affine,
        post_norm=not before,
        final_norm=before and not c.flag("_remove_final_layer_norm", False),
        act=c.act("relu", GPT_ACT),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )


def _llama(
    c: Reader,
    *,
    kv: int | None = None,
    d_head: int | None = None,
    share: float | None = None,
    theta: float = 10000.0,
    eps: float = 1e-6,
    act: str | None = None,
    scale: float | None = None,
    windows: Sequence[int | None] = (),
    has_rope: Sequence[object] = (),
    **traits: Any,
) -> Config:
    """Llama, and by a value or two all that came after it. `has_rope`: which layers have rotary positions."""
    sizes, n_layer = _sizes(c, kv=kv, d_head=d_head), c.n_layer()
    rope = c.rope(sizes["d_head"], share=share, theta=theta)
    scale = sizes["d_head"] ** -0.5 if scale is None else scale
    layers = [
        Layer(rope=rope if roped else None, window=window, scale=scale)
        for roped, window in zip(has_rope or [True] * n_layer, windows or [None] * n_layer, strict=True)
    ]
    sizes["n_ctx"] = _reach(sizes["n_ctx"], rope)
    return _gated(c, sizes, layers, eps=eps, act=act or c.act("silu"), **traits)


def _gated(c: Reader, sizes: dict[str, Any], layers: Sequence[Layer], *, eps: float, **traits: Any) -> Config:
    """RMSNorm and a gated MLP, unless the traits say otherwise."""
    bias = c.flag("attention_bias", False)
    common = {"norm": "rms", "norm_eps": c.number("norm_eps", eps), "gated": True, "qkv_bias": bias, "out_bias": bias}
    return Config(**sizes, layers=tuple(layers), **(common | traits))


def _reach(n_ctx: int, rope: Rope | None) -> int:
    """Stretched positions reach beyond max_position_embeddings where that is the trained length."""
    if rope and rope.kind in ("linear", "dynamic"):
        return int(n_ctx * rope.factor)
    return max(n_ctx, int(rope.n_ctx_trained * rope.factor)) if rope and rope.kind == "yarn" else n_ctx


def llama(c: Reader) -> Config:
    return _llama(c, mlp_bias=c.flag("mlp_bias", False))


def mistral(c: Reader) -> Config:
    window = None if c.null("sliding_window") else c.integer("sliding_window", 4096)
    n_layer = c.n_layer()
    return _llama(c, kv=8, windows=c.windows(n_layer, window, [True] * n_layer))


def _qwen_windows(c: Reader) -> list[int | None]:
    n_layer, first = c.n_layer(), c.integer("max_window_layers", 28, low=0)
    window = None if c.null("sliding_window") else c.integer("sliding_window", 4096)
    if not c.flag("use_sliding_window", False):
        window = None
    return c.windows(n_layer, window, [i >= first for i in range(n_layer)])


def qwen2(c: Reader) -> Config:
    return _llama(c, kv=32, windows=_qwen_windows(c), qkv_bias=True, out_bias=False)


def qwen3(c: Reader) -> Config:
    return _llama(c, kv=32, d_head=128, windows=_qwen_windows(c), qk_norm="head")


def smollm3(c: Reader) -> Config:
    """Every fourth layer has no positions at all."""
    n_layer, every = c.n_layer(), c.integer("no_rope_layer_interval", 4)
    has_rope = c.values("no_rope_layers", n_layer, int) or [int((i + 1) % every != 0) for i in range(n_layer)]
    c.ignore("max_window_layers")
    window = c.integer("sliding_window", None)
    slides = [c.flag("use_sliding_window", False) and not roped for roped in has_rope]
    windows = c.windows(n_layer, window, slides)
    return _llama(c, kv=4, theta=2e6, has_rope=has_rope, windows=windows, mlp_bias=c.flag("mlp_bias", False))


def granite(c: Reader) -> Config:
    return _llama(
        c,
        mlp_bias=c.flag("mlp_bias", False),
        scale=c.number("attention_multiplier", 1.0),
        embed_scale=c.number("embedding_multiplier", 1.0),
        residual_scale=c.number("residual_multiplier", 1.0),
        logit_scale=1.0 / c.number("logits_scaling", 1.0),
    )


def olmo(c: Reader) -> Config:
    c.only("norm_eps", 1e-5, "this family's is 1e-5")
    return _llama(c, eps=1e-5, norm="layer", norm_weight=False, clip_qkv=c.number("clip_qkv", None))


def olmo2(c: Reader) -> Config:
    return _llama(c, eps=1e-5, norms=("attn_out_norm", "mlp_out_norm"), qk_norm="all_heads")


def stablelm(c: Reader) -> Config:
    parallel, bias = c.flag("use_parallel_residual", False), c.flag("use_qkv_bias", False)
    norms = ("attn_norm",) if parallel else ("attn_norm", "mlp_norm")
    traits: dict[str, Any] = {
        "norm": "layer",
        "norm_bias": True,
        "norms": norms,
        "parallel": parallel,
        "qkv_bias": bias,
        "out_bias": False,
    }
    return _llama(
        c, kv=32, share=0.25, eps=1e-5, qk_norm="each_head" if c.flag("qk_layernorm", False) else None, **traits
    )


def phi(c: Reader) -> Config:
    normed = c.flag("qk_layernorm", False)
    traits: dict[str, Any] = {
        "norm": "layer",
        "norm_bias": True,
        "norms": ("attn_norm",),
        "parallel": True,
        "gated": False,
        "head_bias": True,
    }
    qk_norm: dict[str, Any] = {"qk_norm": "head" if normed else None, "qk_norm_bias": normed}
    return _llama(c, share=0.5, eps=1e-5, act=c.act("gelu_new"), **ALL_BIASES, **traits, **qk_norm)


def phi3(c: Reader) -> Config:
    """Its trained context stands beside the rotary values, or is 4096, whatever these say themselves."""
    c.assume("original_max_position_embeddings", 4096)
    for key in ("full_attn_mod", "interpolate_factor"):  # in Phi-4-mini's files
        c.only(key, 1, "only 1, which changes nothing, is understood")
    return _llama(c, share=1.0, eps=1e-5, windows=[c.integer("sliding_window", None)] * c.n_layer())


def starcoder2(c: Reader) -> Config:
    for key, value in (("mlp_type", "default"), ("norm_type", "layer_norm"), ("scale_attn_weights", True)):
        c.only(key, value, f"only {str(value).lower()!r} is supported")
    windows, bias = [c.integer("sliding_window", None)] * c.n_layer(), c.flag("use_bias", True)
    biases: dict[str, Any] = dict.fromkeys(ALL_BIASES, bias)
    traits: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated": False}
    return _llama(c, kv=2, eps=1e-5, act=c.act("gelu_pytorch_tanh"), windows=windows, **traits, **biases)


def _gemma_traits(c: Reader) -> dict[str, Any]:
    c.only("use_bidirectional_attention", False, "only causal attention is supported")
    return {"embed_scale": c.integer("hidden_size") ** 0.5}


def gemma(c: Reader) -> Config:
    """The first release wrote hidden_act "gelu" and meant the tanh form."""
    c.ignore("hidden_activation")
    act = "gelu_tanh" if c.get("hidden_act") in (None, "gelu") else c.act("gelu_pytorch_tanh")
    return _llama(c, kv=16, d_head=256, **_gemma_traits(c) | {"act": act})


def gemma2(c: Reader) -> Config:
    n_layer, window = c.n_layer(), c.integer("sliding_window", 4096)
    c.only("sliding_window_size", window, f"'sliding_window' is {window}, and counts")
    c.ignore("hidden_act")
    return _llama(
        c,
        kv=4,
        d_head=256,
        windows=c.windows(n_layer, window, [i % 2 == 0 for i in range(n_layer)]),
        scale=c.number("query_pre_attn_scalar", 256.0) ** -0.5,
        norms=NORMS,
        attn_softcap=None if c.null("attn_logit_softcapping") else c.number("attn_logit_softcapping", 50.0),
        final_softcap=None if c.null("final_logit_softcapping") else c.number("final_logit_softcapping", 30.0),
        **_gemma_traits(c) | {"act": c.act("gelu_pytorch_tanh", "hidden_activation")},
    )


def gemma3(c: Reader) -> Config:
    """Two rotary bases: a short one for sliding layers, a long and often stretched one for the others."""
    for key, value in (("num_attention_heads", 8), ("vocab_size", 262_208), ("max_position_embeddings", 131_072)):
        c.assume(key, value)  # the 4B and larger files leave them out
    sizes, n_layer = _sizes(c, kv=4, d_head=256), c.n_layer()
    every, window = c.integer("sliding_window_pattern", 6), c.integer("sliding_window", 4096)
    windows = c.windows(n_layer, window, [(i + 1) % every != 0 for i in range(n_layer)])
    far = c.rope(sizes["d_head"], theta=1e6, kind="full_attention")
    near = Rope(theta=c.number("rope_local_base_freq", 10000.0), dim=sizes["d_head"])
    if "sliding_attention" in (c.get("rope_parameters") or {}):
        near = c.rope(sizes["d_head"], theta=near.theta, kind="sliding_attention")
    scale = c.number("query_pre_attn_scalar", 256.0) ** -0.5
    layers = [Layer(rope=near if window else far, window=window, scale=scale) for window in windows]
    c.ignore("hidden_act")
    c.only("attn_logit_softcapping", None, "this family's scores have no cap")
    return _gated(
        c,
        sizes,
        layers,
        eps=1e-6,
        norms=NORMS,
        qk_norm="head",
        final_softcap=c.number("final_logit_softcapping", None),
        **_gemma_traits(c) | {"act": c.act("gelu_pytorch_tanh", "hidden_activation")},
    )
