"""Tiny random checkpoints of every family, made by transformers, in all the spellings that are met in the wild.

The weights are far from their initial values, or half of what can be wrong would not show: norm gains around 1 hide a
missing `1 +`, biases of 0 hide a missing bias, and windows longer than the text hide a missing window.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Edit = Callable[[dict[str, Any]], None]
N_CTX = 64
BASE = {
    "vocab_size": tiny.N_VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": N_CTX, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GATED = {**BASE, "intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": False}
GPT = {"vocab_size": tiny.N_VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": N_CTX, "bos_token_id": 0,
       "eos_token_id": 0}  # fmt: skip
NEO = {k: v for k, v in BASE.items() if k not in ("num_hidden_layers", "num_attention_heads")} | {
    "num_layers": 4, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 2]],
}  # fmt: skip
SLIDES = ["sliding_attention", "full_attention"] * 2
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 4.0, 6.0, 9.0]}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One tiny checkpoint: a transformers config, and how its files are respelled after transformers wrote them."""

    name: str
    family: str
    values: dict[str, Any]
    config_json: tuple[Edit, ...] = ()
    tensors: tuple[Edit, ...] = ()
    shard: str | None = None
    dtype: torch.dtype = torch.float32
    stateful: bool = False  # the reference remembers the longest text it saw

    def __str__(self) -> str:
        return self.name


# --- spellings -------------------------------------------------------------------------------------------------------


def old_rope(values: dict[str, Any]) -> None:
    """transformers 4: rope_theta beside rope_scaling, whose kind is called `type`."""
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        values["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type", "default")
    values["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    values["torch_dtype"] = values.pop("dtype", "float32")


def old_neox(values: dict[str, Any]) -> None:
    rope = values.pop("rope_parameters")
    values |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


def old_gemma3(values: dict[str, Any]) -> None:
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope["full_attention"]["rope_theta"], "sliding_window_pattern": 2}
    values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    full = rope["full_attention"]
    if full["rope_type"] != "default":
        values["rope_scaling"] = {"rope_type": full["rope_type"], "factor": full["factor"]}
    values.pop("layer_types")


def wrapped(values: dict[str, Any]) -> None:
    """A multimodal wrapper's config.json."""
    text = dict(values)
    values.clear()
    values |= {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}


def without(*keys: str) -> Edit:
    def edit(values: dict[str, Any]) -> None:
        for key in keys:
            values.pop(key, None)

    return edit


def renamed(old: str, new: str) -> Edit:
    def edit(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return edit


def old_masks(tensors: dict[str, Any]) -> None:
    """The causal masks that early versions saved with the weights."""
    for name in [name for name in tensors if name.endswith("ln_1.weight")]:
        stem = name.removesuffix("ln_1.weight")
        tensors[stem + "attn.bias"] = torch.ones(1, 1, N_CTX, N_CTX, dtype=torch.uint8).tril()
        tensors[stem + "attn.masked_bias"] = torch.tensor(-1e9)


def frequencies(tensors: dict[str, Any]) -> None:
    """What old Llama files hold beside the weights."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def upright(tensors: dict[str, Any]) -> None:
    """GPT-2 as nanoGPT and others export it: matrices turned round already."""
    for name in tensors:
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensors[name] = tensors[name].T.contiguous()


def tower(tensors: dict[str, Any]) -> None:
    tensors["vision_tower.patch.weight"] = torch.ones(2, 2)


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


# --- the zoo ---------------------------------------------------------------------------------------------------------

LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA = {**GATED, "head_dim": 16, "tie_word_embeddings": True}
GEMMA2 = {**GEMMA, "sliding_window": 8, "query_pre_attn_scalar": 24}
GEMMA3 = {**GEMMA2, "layer_types": SLIDES, "rope_parameters": GEMMA3_ROPE}
OPT = {**BASE, "ffn_dim": 48}
NEOX = {**BASE, "intermediate_size": 48, "tie_word_embeddings": False}

ZOO = [
    Kind("gpt2", "gpt2", GPT),
    Kind("gpt2-no-prefix-old-masks", "gpt2", GPT, tensors=(renamed("transformer.", ""), old_masks)),
    Kind("gpt2-upright", "gpt2", GPT, tensors=(upright,)),
    Kind("gpt2-untied-sharded", "gpt2", {**GPT, "tie_word_embeddings": False, "n_inner": 40}, shard="20KB"),
    Kind("gpt2-scales", "gpt2", {**GPT, "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    Kind("gpt2-compiled", "gpt2", GPT, tensors=(renamed("", "_orig_mod."),)),
    Kind("gpt_neo", "gpt_neo", NEO),
    Kind("gpt_neo-no-prefix", "gpt_neo", NEO, (without("attention_layers"),), (renamed("transformer.", ""), old_masks)),
    Kind("gpt_neo-layers-only", "gpt_neo", NEO, (without("attention_types"),)),
    Kind("gpt_neox", "gpt_neox", NEOX),
    Kind("gpt_neox-old", "gpt_neox", NEOX, (old_neox,), (renamed("lm_head", "embed_out"),)),
    Kind("gpt_neox-serial", "gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False},
         tensors=(renamed("gpt_neox.", ""),)),
    Kind("llama", "llama", GATED),
    Kind("llama-old-tied", "llama", {**GATED, "tie_word_embeddings": True}, (old_rope,), (frequencies,)),
    Kind("llama-biases", "llama", {**GATED, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    Kind("llama-mha-sharded", "llama", {**GATED, "num_key_value_heads": None}, (old_rope,), shard="30KB"),
    Kind("llama-linear", "llama", {**GATED, **rope("linear", factor=4.0)}),
    Kind("llama-linear-old", "llama", {**GATED, **rope("linear", factor=4.0)}, (old_rope,)),
    Kind("llama-dynamic", "llama", {**GATED, "max_position_embeddings": 16, **rope("dynamic", factor=4.0)},
         stateful=True),
    Kind("llama-dynamic-old", "llama", {**GATED, "max_position_embeddings": 16, **rope("dynamic", factor=4.0)},
         (old_rope,), stateful=True),
    Kind("llama-llama3", "llama", {**GATED, **LLAMA3}),
    Kind("llama-llama3-old", "llama", {**GATED, **LLAMA3}, (old_rope,)),
    Kind("llama-yarn", "llama", {**GATED, **YARN}),
    Kind("llama-yarn-old", "llama", {**GATED, **YARN}, (old_rope,)),
    Kind("llama-yarn-more", "llama", {**GATED, **rope("yarn", factor=4.0, original_max_position_embeddings=16,
         beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.4, truncate=False)}),
    Kind("llama-yarn-gain", "llama", {**GATED, **rope("yarn", factor=4.0, original_max_position_embeddings=16,
         attention_factor=1.3)}),
    Kind("mistral", "mistral", {**GATED, "sliding_window": 8}),
    Kind("mistral-no-window", "mistral", {**GATED, "sliding_window": None}, (old_rope,)),
    Kind("ministral", "ministral", {**GATED, "sliding_window": 8, "layer_types": SLIDES, "head_dim": 16,
         **rope("default")}),
    Kind("qwen2", "qwen2", GATED),
    Kind("qwen2-slides-old", "qwen2", {**GATED, "use_sliding_window": True, "sliding_window": 8,
         "max_window_layers": 2, "tie_word_embeddings": True}, (old_rope, without("layer_types"))),
    Kind("qwen3", "qwen3", {**GATED, "head_dim": 16}),
    Kind("qwen3-slides", "qwen3", {**GATED, "head_dim": 16, "use_sliding_window": True, "sliding_window": 8,
         "max_window_layers": 1, "attention_bias": True, **YARN}),
    Kind("opt", "opt", OPT),
    Kind("opt-no-prefix", "opt", {**OPT, "activation_function": "gelu"}, tensors=(renamed("model.decoder.", ""),)),
    Kind("opt-350m", "opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    Kind("opt-galactica", "opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    Kind("gptj", "gptj", {**GPT, "rotary_dim": 4, "tie_word_embeddings": False}),
    Kind("gptj-whole-head", "gptj", {**GPT, "rotary_dim": 8, "n_inner": 40, "tie_word_embeddings": False}),
    Kind("gemma", "gemma", GEMMA),
    Kind("gemma-first-release", "gemma", {**GEMMA, "hidden_act": "gelu_pytorch_tanh"},
         (old_rope, lambda c: c.update(hidden_act="gelu"))),
    Kind("gemma2", "gemma2", GEMMA2),
    Kind("gemma2-capped-hard", "gemma2", {**GEMMA2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
         (old_rope, without("layer_types"))),
    Kind("gemma3", "gemma3_text", GEMMA3),
    Kind("gemma3-old", "gemma3_text", {**GEMMA3, "layer_types": SLIDES}, (old_gemma3,)),
    Kind("gemma3-wrapper", "gemma3_text", GEMMA3, (wrapped,), (renamed("model.", "language_model.model."), tower)),
    Kind("gemma3-wrapper-new", "gemma3_text", GEMMA3, (wrapped,), (renamed("model.", "model.language_model."), tower)),
    Kind("phi", "phi", {**BASE, "intermediate_size": 48, "tie_word_embeddings": False}),
    Kind("phi-qk-norm-old", "phi", {**BASE, "intermediate_size": 48, "qk_layernorm": True,
         "tie_word_embeddings": False}, (old_rope,)),
    Kind("phi3", "phi3", {**GATED, "sliding_window": 8}),
    Kind("phi3-longrope", "phi3", {**GATED, "rope_parameters": LONG, "original_max_position_embeddings": 16}),
    Kind("phi3-longrope-old-partial", "phi3", {**GATED, "original_max_position_embeddings": 16, "head_dim": 16,
         "num_attention_heads": 2, "rope_parameters": {**LONG, "partial_rotary_factor": 0.5}}, (old_rope,)),
    Kind("smollm3", "smollm3", {**GATED, "tie_word_embeddings": True}),
    Kind("smollm3-every-2", "smollm3", {**GATED, "no_rope_layer_interval": 2}, (without("no_rope_layers"),)),
    Kind("olmo", "olmo", {**GATED, "clip_qkv": 0.6}),
    Kind("olmo2", "olmo2", GATED),
    Kind("stablelm", "stablelm", GATED),
    Kind("stablelm-2", "stablelm", {**GATED, "use_qkv_bias": True, "qk_layernorm": True}, (old_rope,)),
    Kind("stablelm-parallel", "stablelm", {**GATED, "use_parallel_residual": True}),
    Kind("granite", "granite", {**GATED, "attention_multiplier": 0.2, "embedding_multiplier": 3.0,
         "residual_multiplier": 0.4, "logits_scaling": 2.5}),
    Kind("gpt_bigcode", "gpt_bigcode", GPT),
    Kind("gpt_bigcode-mha", "gpt_bigcode", {**GPT, "multi_query": False}, tensors=(renamed("transformer.", ""),)),
    Kind("starcoder2", "starcoder2", {**GATED, "sliding_window": 8, "tie_word_embeddings": True}),
    Kind("starcoder2-no-bias", "starcoder2", {**GATED, "use_bias": False, "sliding_window": None}, (old_rope,)),
]  # fmt: skip


def bare(tensors: dict[str, Any]) -> None:
    """Names without the prefix that transformers puts before them."""
    for prefix in ("transformer.", "gpt_neox.", "model.decoder.", "model."):
        renamed(prefix, "")(tensors)


def old_spelling(values: dict[str, Any]) -> None:
    """config.json as transformers 4 wrote it, whatever the family."""
    rope = values.get("rope_parameters")
    if rope and values["model_type"] == "gpt_neox":
        old_neox(values)
    elif rope and "full_attention" in rope:
        old_gemma3(values)
    elif rope and "rope_theta" in rope:
        old_rope(values)
    values.setdefault("torch_dtype", values.pop("dtype", "float32"))


def in_all_spellings() -> list[Kind]:
    """The first kind of each family: in the old spelling without prefix; and sharded, with the other kind of head."""
    first = dict[str, Kind]()
    for kind in ZOO:
        first.setdefault(kind.family, kind)
    kinds = []
    for family, kind in first.items():
        tied = not kind.values.get("tie_word_embeddings", True)
        kinds.append(replace(kind, name=f"{family}:old-bare", config_json=(old_spelling,), tensors=(bare,)))
        values = {**kind.values, "tie_word_embeddings": tied}
        kinds.append(
            replace(kind, name=f"{family}:{'tied' if tied else 'untied'}-sharded", values=values, shard="30KB")
        )
    return kinds


ZOO += in_all_spellings()

# --- making them -----------------------------------------------------------------------------------------------------


def reference(kind: Kind) -> Any:
    """transformers' model with random weights, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind.family, **copy.deepcopy(kind.values))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    g = torch.Generator().manual_seed(sum(map(ord, kind.name)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
            elif p.ndim == 1:  # norm gains, some of them negative
                p.copy_(torch.rand(p.shape, generator=g) * 2.2 - 0.3)
            elif "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.7)
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (1.2 / p.shape[-1] ** 0.5))
    return model.eval()


@cache
def built(kind_name: str, root: Path) -> tuple[Path, Any]:
    """(folder, reference model) of one kind, its files respelled."""
    kind = next(kind for kind in ZOO if kind.name == kind_name)
    model, folder = reference(kind), root / kind.name
    model.save_pretrained(folder, **({"max_shard_size": kind.shard} if kind.shard else {}))
    tiny.write_tokenizer(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if kind.tensors:
        file = folder / "model.safetensors"
        tensors: dict[str, Any] = load_file(file)
        for edit in kind.tensors:
            edit(tensors)
        save_file(tensors, file)
    if kind.config_json:
        values = json.loads((folder / "config.json").read_text())
        for edit in kind.config_json:
            edit(values)
        (folder / "config.json").write_text(json.dumps(values))
    return folder, model


@torch.inference_mode()
def their_logits(kind: Kind, model: Any, ids: list[int]) -> Tensor:
    """The reference's logits for every position, [T, V], all computed at once."""
    if kind.stateful:
        model = copy.deepcopy(model)
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()
