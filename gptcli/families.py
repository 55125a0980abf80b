"""The families of decoders, as data: how each spells its tensors and its config.json.

A family is a table of names (theirs -> ours), the fixes that undo its spelling, and one function that reads its
config.json (configs.py). In a name the first `*` stands for the layer and a second one for the head; a tuple of targets
splits a fused matrix by rows. Nothing else in the program knows a family: a clone costs one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gptcli import configs
from gptcli.config import Config
from gptcli.config_json import Reader
from gptcli.fixes import CONV1D, GROUPED_HEADS, IN_FLOAT32, NEIGHBOUR_PAIRS, OFFSET_TWO, PLUS_ONE, Fix

Names = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family spells what all of them do."""

    read: Callable[[Reader], Config]
    names: Names
    prefix: str = "model."  # what transformers puts before every name but the head's
    fixes: Mapping[str, Fix] = field(default_factory=dict)  # by their name
    models: str = ""  # members people know

    def fixes_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Fix]:
        """The fixes that these files need: exports of GPT-2 exist whose matrices were turned round already.

        attn.c_proj is square and cannot tell, so the shape of c_attn or of the MLP decides for all four.
        """
        for stem, tall in (("h.0.attn.c_attn", 3), ("h.0.mlp.c_fc", 1)):
            rows, columns = (*shapes.get(f"{stem}.weight", ()), 0, 0)[:2]
            if rows > columns > 0 and CONV1D in self.fixes.values() and rows >= tall * columns:
                return {name: fix for name, fix in self.fixes.items() if fix is not CONV1D}
        return self.fixes


# --- names, theirs -> ours -------------------------------------------------------------------------------------------

QKV = ("blocks.*.attn.q", "blocks.*.attn.k", "blocks.*.attn.v")

_GPT2: Names = {
    "wte": "embed",
    "wpe": "pos_embed",
    "h.*.ln_1": "blocks.*.attn_norm",
    "h.*.attn.c_attn": QKV,
    "h.*.attn.c_proj": "blocks.*.attn.out",
    "h.*.ln_2": "blocks.*.mlp_norm",
    "h.*.mlp.c_fc": "blocks.*.mlp.up",
    "h.*.mlp.c_proj": "blocks.*.mlp.down",
    "ln_f": "final_norm",
    "lm_head": "head",
}
_GPT_NEO: Names = {name: ours for name, ours in _GPT2.items() if not name.startswith("h.*.attn.")} | {
    "h.*.attn.attention.q_proj": "blocks.*.attn.q",
    "h.*.attn.attention.k_proj": "blocks.*.attn.k",
    "h.*.attn.attention.v_proj": "blocks.*.attn.v",
    "h.*.attn.attention.out_proj": "blocks.*.attn.out",
}
_GPT_NEOX: Names = {
    "embed_in": "embed",
    "layers.*.input_layernorm": "blocks.*.attn_norm",
    "layers.*.attention.query_key_value": QKV,
    "layers.*.attention.dense": "blocks.*.attn.out",
    "layers.*.post_attention_layernorm": "blocks.*.mlp_norm",
    "layers.*.mlp.dense_h_to_4h": "blocks.*.mlp.up",
    "layers.*.mlp.dense_4h_to_h": "blocks.*.mlp.down",
    "final_layer_norm": "final_norm",
    "embed_out": "head",
    "lm_head": "head",  # what transformers 5 writes
}
_GPTJ: Names = {
    "wte": "embed",
    "h.*.ln_1": "blocks.*.attn_norm",
    "h.*.attn.q_proj": "blocks.*.attn.q",
    "h.*.attn.k_proj": "blocks.*.attn.k",
    "h.*.attn.v_proj": "blocks.*.attn.v",
    "h.*.attn.out_proj": "blocks.*.attn.out",
    "h.*.mlp.fc_in": "blocks.*.mlp.up",
    "h.*.mlp.fc_out": "blocks.*.mlp.down",
    "ln_f": "final_norm",
    "lm_head": "head",
}
_OPT: Names = {
    "embed_tokens": "embed",
    "embed_positions": "pos_embed",
    "project_in": "embed_in",
    "layers.*.self_attn_layer_norm": "blocks.*.attn_norm",
    "layers.*.self_attn.q_proj": "blocks.*.attn.q",
    "layers.*.self_attn.k_proj": "blocks.*.attn.k",
    "layers.*.self_attn.v_proj": "blocks.*.attn.v",
    "layers.*.self_attn.out_proj": "blocks.*.attn.out",
    "layers.*.final_layer_norm": "blocks.*.mlp_norm",
    "layers.*.fc1": "blocks.*.mlp.up",
    "layers.*.fc2": "blocks.*.mlp.down",
    "final_layer_norm": "final_norm",
    "project_out": "embed_out",
    "lm_head": "head",
}
_LLAMA: Names = {
    "embed_tokens": "embed",
    "layers.*.input_layernorm": "blocks.*.attn_norm",
    "layers.*.self_attn.q_proj": "blocks.*.attn.q",
    "layers.*.self_attn.k_proj": "blocks.*.attn.k",
    "layers.*.self_attn.v_proj": "blocks.*.attn.v",
    "layers.*.self_attn.o_proj": "blocks.*.attn.out",
    "layers.*.post_attention_layernorm": "blocks.*.mlp_norm",
    "layers.*.mlp.gate_proj": "blocks.*.mlp.gate",
    "layers.*.mlp.up_proj": "blocks.*.mlp.up",
    "layers.*.mlp.down_proj": "blocks.*.mlp.down",
    "norm": "final_norm",
    "lm_head": "head",
}
_QK_NORM: Names = {
    "layers.*.self_attn.q_norm": "blocks.*.attn.q_norm",
    "layers.*.self_attn.k_norm": "blocks.*.attn.k_norm",
}
_OUT_NORMS: Names = {
    "layers.*.post_attention_layernorm": "blocks.*.attn_out_norm",
    "layers.*.pre_feedforward_layernorm": "blocks.*.mlp_norm",
    "layers.*.post_feedforward_layernorm": "blocks.*.mlp_out_norm",
}
_STABLELM: Names = {
    "layers.*.self_attn.q_layernorm.norms.*": "blocks.*.attn.q_norm",
    "layers.*.self_attn.k_layernorm.norms.*": "blocks.*.attn.k_norm",
}
_PHI: Names = {
    "layers.*.self_attn.dense": "blocks.*.attn.out",
    "layers.*.self_attn.q_layernorm": "blocks.*.attn.q_norm",
    "layers.*.self_attn.k_layernorm": "blocks.*.attn.k_norm",
    "layers.*.mlp.fc1": "blocks.*.mlp.up",
    "layers.*.mlp.fc2": "blocks.*.mlp.down",
    "final_layernorm": "final_norm",
}
_PHI3: Names = {
    "layers.*.self_attn.qkv_proj": QKV,
    "layers.*.mlp.gate_up_proj": ("blocks.*.mlp.gate", "blocks.*.mlp.up"),
}
_STARCODER2: Names = {"layers.*.mlp.c_fc": "blocks.*.mlp.up", "layers.*.mlp.c_proj": "blocks.*.mlp.down"}


def _but(names: Names, other: Names) -> Names:
    """The same table, but for what another one spells differently."""
    theirs = [target if isinstance(target, tuple) else (target,) for target in other.values()]
    taken = {target for targets in theirs for target in targets}
    return {name: target for name, target in names.items() if target not in taken} | other


def _all_norms(names: Names, fix: Fix) -> dict[str, Fix]:
    return {name: fix for name, ours in names.items() if isinstance(ours, str) and ours.endswith("norm")}


_CONV1D = {f"h.*.{name}": CONV1D for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
_NEIGHBOURS = {"h.*.attn.q_proj": NEIGHBOUR_PAIRS, "h.*.attn.k_proj": NEIGHBOUR_PAIRS}
_GEMMA2 = _but(_LLAMA, _OUT_NORMS)
_QK_NORMED_GEMMA = _GEMMA2 | _QK_NORM  # Gemma 3, and OLMo 2 that has no norms on what it reads

# --- the table -------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        read=configs.gpt2, names=_GPT2, prefix="transformer.", fixes=_CONV1D, models="GPT-2, DistilGPT-2, DialoGPT"
    ),
    "gpt_neo": Family(read=configs.gpt_neo, names=_GPT_NEO, prefix="transformer.", models="GPT-Neo, TinyStories"),
    "gpt_neox": Family(
        read=configs.gpt_neox,
        names=_GPT_NEOX,
        prefix="gpt_neox.",
        fixes={"layers.*.attention.query_key_value": GROUPED_HEADS},
        models="Pythia, GPT-NeoX-20B, Dolly 2",
    ),
    "llama": Family(read=configs.llama, names=_LLAMA, models="Llama 1-3, SmolLM 1-2, TinyLlama, Falcon 3, Yi"),
    "mistral": Family(read=configs.mistral, names=_LLAMA, models="Mistral 7B, Nemo, Zephyr"),
    "ministral": Family(read=configs.mistral, names=_LLAMA, models="Ministral 8B"),
    "qwen2": Family(read=configs.qwen2, names=_LLAMA, models="Qwen 1.5, 2, 2.5"),
    "qwen3": Family(read=configs.qwen3, names=_LLAMA | _QK_NORM, models="Qwen 3"),
    "opt": Family(
        read=configs.opt,
        names=_OPT,
        prefix="model.decoder.",
        fixes={"embed_positions": OFFSET_TWO},
        models="OPT, Galactica",
    ),
    "gptj": Family(read=configs.gptj, names=_GPTJ, prefix="transformer.", fixes=_NEIGHBOURS, models="GPT-J 6B"),
    "gemma": Family(read=configs.gemma, names=_LLAMA, fixes=_all_norms(_LLAMA, PLUS_ONE), models="Gemma"),
    "gemma2": Family(read=configs.gemma2, names=_GEMMA2, fixes=_all_norms(_GEMMA2, PLUS_ONE), models="Gemma 2"),
    "gemma3_text": Family(
        read=configs.gemma3,
        names=_QK_NORMED_GEMMA,
        fixes=_all_norms(_QK_NORMED_GEMMA, PLUS_ONE),
        models="Gemma 3, also its text part",
    ),
    "phi": Family(read=configs.phi, names=_but(_LLAMA, _PHI), models="Phi 1, 1.5, 2"),
    "phi3": Family(read=configs.phi3, names=_but(_LLAMA, _PHI3), models="Phi 3, 3.5, 4"),
    "smollm3": Family(read=configs.smollm3, names=_LLAMA, models="SmolLM 3"),
    "olmo": Family(read=configs.olmo, names=_LLAMA, models="OLMo"),
    "olmo2": Family(
        read=configs.olmo2, names=_QK_NORMED_GEMMA, fixes=_all_norms(_QK_NORMED_GEMMA, IN_FLOAT32), models="OLMo 2"
    ),
    "stablelm": Family(read=configs.stablelm, names=_LLAMA | _STABLELM, models="StableLM 2, StableLM Zephyr"),
    "granite": Family(read=configs.granite, names=_LLAMA, models="Granite 3"),
    "gpt_bigcode": Family(
        read=configs.gpt_bigcode,
        names=_GPT2,
        prefix="transformer.",
        fixes={"h.*.attn.c_attn": GROUPED_HEADS},
        models="SantaCoder, StarCoder",
    ),
    "starcoder2": Family(read=configs.starcoder2, names=_but(_LLAMA, _STARCODER2), models="StarCoder 2"),
}

_STATE = "it keeps a recurrent state instead of looking back at all tokens"
_HYBRID = "some of its layers keep a recurrent state instead of looking back at all tokens"
_EXPERTS = "its MLPs are mixtures of experts"
_ENCODER = "it is not a decoder that predicts the next token"
_LATER = "this decoder family is not supported yet"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7", "xlstm"), _STATE),
    **dict.fromkeys(
        (
            "qwen3_next",
            "qwen3_5",
            "lfm2",
            "falcon_h1",
            "nemotron_h",
            "jamba",
            "recurrent_gemma",
            "bamba",
            "zamba",
            "zamba2",
        ),
        _HYBRID,
    ),
    **dict.fromkeys(("granitemoehybrid",), _HYBRID),
    **dict.fromkeys(
        (
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "olmoe",
            "gpt_oss",
            "phimoe",
            "granitemoe",
            "dbrx",
            "llama4",
            "llama4_text",
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"), "it compresses keys and values (MLA)"),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "its layers have embeddings and caches of their own"),
    **dict.fromkeys(("gemma4", "gemma4_text"), "its layers have embeddings and caches of their own"),
    **dict.fromkeys(
        (
            "bert",
            "roberta",
            "xlm-roberta",
            "distilbert",
            "albert",
            "electra",
            "deberta",
            "deberta-v2",
            "modernbert",
            "vit",
        ),
        _ENCODER,
    ),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "whisper", "t5gemma"), _ENCODER),
    **dict.fromkeys(
        (
            "bloom",
            "mpt",
            "falcon",
            "codegen",
            "cohere",
            "cohere2",
            "glm",
            "glm4",
            "olmo3",
            "nemotron",
            "xglm",
            "persimmon",
        ),
        _LATER,
    ),
}
