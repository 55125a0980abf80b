"""config.json, read strictly: what is read is understood, and what is left over must be known to be inert.

Families (families.py) ask a `Reader` for the values they need. When they are done, `Reader.finish` looks at what nobody
asked for: a key on the inert list, or an unknown one that is null, false or empty, changes nothing; any other is
refused by name. So a checkpoint can never run with a setting silently left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gptcli.config import Rope, RopeKind
from gptcli.errors import BadCheckpoint, Unsupported

# Spellings of one and the same thing, in all families: they must agree.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions",),
    "norm_eps": ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_epsilon"),
    "rope_theta": ("rotary_emb_base",),
    "partial_rotary_factor": ("rotary_pct",),
}
# Spellings that say nothing beside a family's own one, with which published files disagree: StarCoder 2, some GPT-2.
SECOND: Mapping[str, str] = {
    "max_position_embeddings": "n_ctx",
    "hidden_act": "activation_function",
    "activation_function": "hidden_act",
}

# Keys without influence on a forward pass: training, bookkeeping, tokens (read elsewhere), classification heads.
INERT = re.compile(
    r"""_.* | .*_token_id | .*_token_index | .*drop.* | (torch_)?dtype | architectures | model_type
    | .*_version | unsloth_.* | transformers\.js_config | auto_map | tokenizer_class | initializer_range | init_std
    | initializer_factor | init_device | use_cache | cache_implementation | gradient_checkpointing | tie_word_embeddings
    | summary_.* | task_specific_params | problem_type | id2label | label2id | num_labels | return_dict(_in_generate)?
    | output_(attentions|hidden_states|scores|router_logits) | torchscript | use_bfloat16 | is_decoder | is_llama_config
    | pretraining_tp | prefix | name | finetuning_task | chunk_size_feed_forward | tf_legacy_loss | attn_implementation
    | finetuned | reorder_and_upcast_attn
    | (scale_)?attention_softmax_in_fp32 | use_flash_attn | flash_attn.* | fused_.*
    | do_sample | early_stopping | num_beams | num_beam_groups | diversity_penalty | temperature | top_k | top_p
    | typical_p | repetition_penalty | length_penalty | no_repeat_ngram_size | encoder_no_repeat_ngram_size
    | bad_words_ids | num_return_sequences | forced_.* | remove_invalid_values | exponential_decay_length_penalty
    | suppress_tokens | begin_suppress_tokens | max_length | min_length | model_max_length | max_sequence_length
    | vision_config | mm_tokens_per_image | sep_token | base_model_tp_plan | runner_type | validate_runner_input
    | inference_runner | pad_key_length | num_(samples|epochs)_.* | rotary
    """,
    re.VERBOSE,
)

ACTIVATIONS = {  # Hugging Face's name -> ours; its plain "gelu" is the exact one, the next three agree to 1e-7
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}

_REQUIRED: Any = object()
LONGEST = 1 << 31  # tokens


class Reader:
    """Typed look-ups in a config.json that remember what was asked. null counts as absent, as transformers has it."""

    def __init__(self, values: Mapping[str, Any], where: str, *, allow: Sequence[str] = ()) -> None:
        self._values, self.where, self._read, self._allow = dict(values), where, set(allow), tuple(allow)

    def _bad(self, key: str, expected: str) -> BadCheckpoint:
        name = self._spelling(key)
        return BadCheckpoint(f"{self.where}: '{name}' is {str(self._values.get(name))[:40]!r}, expected {expected}")

    def _spelling(self, key: str) -> str:
        """Which of its names the file has for a key; the key itself where it has none."""
        names = (key, *ALIASES.get(key, ()), SECOND.get(key, key))
        return next((name for name in names if self._values.get(name) is not None), key)

    def get(self, key: str) -> Any:
        """The raw value under any of its spellings; None when absent. Two of ALIASES that disagree are an error."""
        names, second = (key, *ALIASES.get(key, ())), SECOND.get(key, key)
        self._read.update((*names, second))
        present = [name for name in names if self._values.get(name) is not None]
        for other in present[1:]:
            if self._values[other] != self._values[present[0]]:
                raise BadCheckpoint(f"{self.where}: '{present[0]}' and '{other}' mean the same and differ")
        return self._values.get(present[0] if present else second)

    def assume(self, key: str, value: Any) -> None:
        """A default for a key that all families must have, for one that leaves it out."""
        if self.get(key) is None:
            self._values[key] = value

    def ignore(self, key: str) -> None:
        """A key that the family's files have and that has no influence there."""
        self._read.update((key, *ALIASES.get(key, ()), SECOND.get(key, key)))

    def null(self, key: str) -> bool:
        """Whether the key is there and says null, where that means none rather than the default."""
        self._read.add(key)
        return key in self._values and self._values[key] is None

    def integer(self, key: str, default: Any = _REQUIRED, *, low: int = 1, high: int = 1 << 31) -> Any:
        """An integer within [low, high]; `default` when absent."""
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self._bad(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, positive: bool = True) -> Any:
        """A finite number, greater than 0 unless told otherwise; `default` when absent."""
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or (positive and value <= 0):
            raise self._bad(key, "a positive number" if positive else "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._bad(key, "true or false")
        return value

    def values(self, key: str, length: int, *kinds: type) -> list[Any] | None:
        """A list of `length` values of the given kinds; None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(type(v) not in kinds for v in value):
            raise self._bad(key, f"a list of {length} of {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    def act(self, default: str, key: str = "hidden_act") -> str:
        """The activation function, by our name."""
        value = self.get(key) or default
        if not isinstance(value, str) or value not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise Unsupported(
                f"{self.where}: activation {str(value)[:40]!r} is not supported", hint=f"supported: {names}"
            )
        return ACTIVATIONS[value]

    def only(self, key: str, expected: Any, why: str) -> None:
        """Refuses any value but one."""
        value = self.get(key)
        if value is not None and value != expected:
            raise Unsupported(f"{self.where}: '{self._spelling(key)}' is {str(value)[:40]!r}: {why}")

    def _default(self, key: str, default: Any) -> Any:
        if default is _REQUIRED:
            raise BadCheckpoint(f"{self.where}: '{key}' is missing")
        return default

    def n_layer(self) -> int:
        """How many blocks are stacked; the bound keeps a poisoned file from filling the memory with layers."""
        return int(self.integer("num_hidden_layers", high=10_000))

    def heads(self, default: int | None = None) -> tuple[int, int]:
        """Query heads and the key/value heads they share; null: as many. `default`: the family's, when absent."""
        n_head = self.integer("num_attention_heads")
        n_kv_head = self.integer(
            "num_key_value_heads", n_head if self.null("num_key_value_heads") else default or n_head
        )
        if n_head % n_kv_head:
            raise BadCheckpoint(f"{self.where}: {n_head} query heads cannot share {n_kv_head} key/value heads evenly")
        return n_head, n_kv_head

    def d_head(self, d_model: int, n_head: int, default: int | None = None) -> int:
        """Width of a head: explicit, or an even share of the stream."""
        given = self.integer("head_dim", default)
        if given is None and d_model % n_head:
            raise BadCheckpoint(f"{self.where}: hidden_size {d_model} does not divide into {n_head} heads")
        return int(given or d_model // n_head)

    def windows(self, n_layer: int, window: int | None, default: Sequence[bool]) -> list[int | None]:
        """The window of each layer: by `layer_types` where the config has it, else where `default` says."""
        types = self.values("layer_types", n_layer, str)
        for kind in types or ():
            if kind not in ("full_attention", "sliding_attention"):
                raise Unsupported(f"{self.where}: layer type {kind!r} is not supported")
        slides = [kind == "sliding_attention" for kind in types] if types else default
        if any(slides) and window is None:
            if types:
                raise BadCheckpoint(f"{self.where}: 'layer_types' has sliding layers but 'sliding_window' is missing")
            return [None] * n_layer
        return [window if slide else None for slide in slides]

    def rope(self, d_head: int, *, share: float | None = None, theta: float = 10000.0, kind: str | None = None) -> Rope:
        """Rotary positions in the old spelling (rope_theta, rope_scaling) or the new one (rope_parameters).

        `share` and `theta` are the family's defaults; `kind` chooses among parameters nested by layer type. share: None
        for a family that turns whole heads and does not look at partial_rotary_factor, so that it may only say 1.
        """
        new, old = self.get("rope_parameters"), self.get("rope_scaling")
        values = old or new or {}
        if not isinstance(values, dict):
            raise self._bad("rope_scaling" if old else "rope_parameters", "an object")
        where = f"{self.where}: {'rope_scaling' if old else 'rope_parameters'}"
        if kind is not None and kind in values:
            values = values[kind] if isinstance(values[kind], dict) else {}
        elif any(isinstance(value, dict) for value in values.values()):
            raise Unsupported(f"{where}: rotary parameters nested by layer type are not expected in this family")
        return _rope(
            Reader(values, where, allow=self._allow),
            d_head,
            share=self.share(share),
            theta=self.number("rope_theta", theta),
            n_ctx=self.integer("max_position_embeddings"),
            trained=self.integer("original_max_position_embeddings", None),
        )

    def share(self, default: float | None) -> float | None:
        """How much of a head is turned; None, and nothing else said, for a family that turns whole heads."""
        if default is not None:
            return float(self.number("partial_rotary_factor", default))
        self.only("partial_rotary_factor", 1, "this family turns whole heads")
        return None

    def finish(self) -> None:
        """Refuses the first key that nobody understood and that may change what the model computes."""
        for key, value in self._values.items():
            if key in self._read or INERT.fullmatch(key) or value is None or value is False or value in ([], {}, ""):
                continue
            raise Unsupported(
                f"{self.where}: '{key}' is not understood and may change what the model computes",
                hint=f"if it has no effect on the forward pass, allow it with --allow-config {key}",
            )


def rotary_dim(where: str, d_head: int, dim: int) -> int:
    """How many dimensions of a head are turned. Raises BadCheckpoint for a number that is not even, or too large."""
    if dim % 2 or not 0 < dim <= d_head:
        raise BadCheckpoint(f"{where}: {dim} of a head of {d_head} is not an even number of rotary dimensions")
    return dim


def _rope(c: Reader, d_head: int, *, share: float | None, theta: float, n_ctx: int, trained: int | None) -> Rope:
    name, named = c.get("rope_type"), c.get("type")
    kind = name or named or "default"
    theta, share = c.number("rope_theta", theta), c.share(share)
    inner = c.integer("original_max_position_embeddings", n_ctx)
    trained = trained or inner
    dim = rotary_dim(c.where, d_head, d_head if share is None else int(d_head * share))
    gain, more = 1.0, {}
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        more["factor"] = factor = c.number("factor")
        if factor * max(n_ctx, trained) > LONGEST:
            raise BadCheckpoint(f"{c.where}: a factor of {factor:g} leads to contexts that no tensor holds")
    match kind:
        case "default" | "linear":
            pass
        case "dynamic":
            trained = n_ctx
            if dim == 2:
                raise BadCheckpoint(f"{c.where}: dynamic scaling needs more than 2 rotary dimensions")
        case "llama3":
            more |= {key: c.number(key) for key in ("low_freq_factor", "high_freq_factor")}
            if more["high_freq_factor"] <= more["low_freq_factor"]:
                raise BadCheckpoint(f"{c.where}: high_freq_factor must be greater than low_freq_factor")
        case "yarn":
            if theta <= 1:
                raise BadCheckpoint(f"{c.where}: yarn needs a base above 1, not {theta:g}")
            more |= {"beta_fast": c.number("beta_fast", 32.0), "beta_slow": c.number("beta_slow", 1.0)}
            more["truncate"] = c.flag("truncate", True)
            of, over = c.number("mscale", None, positive=False), c.number("mscale_all_dim", None, positive=False)
            gain = _mscale(factor, of) / _mscale(factor, over) if of and over else _mscale(factor, 1.0)
        case "longrope" | "su":  # "su": the name Phi-3 was released with
            kind, stretch = "longrope", c.number("factor", n_ctx / trained)
            if trained == 1:
                raise BadCheckpoint(f"{c.where}: longrope cannot stretch a context of 1 token")
            gain = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
            for key in ("short_factor", "long_factor"):
                factors = c.values(key, dim // 2, int, float)
                if factors is None or any(not math.isfinite(f) or f <= 0 for f in factors):
                    raise BadCheckpoint(f"{c.where}: '{key}' must hold {dim // 2} positive numbers")
                more[key] = tuple(float(f) for f in factors)
        case _:
            raise Unsupported(f"{c.where}: rotary scaling of type {str(kind)!r} is not supported")
    if kind in ("yarn", "longrope"):
        gain = c.number("attention_factor", gain)
    c.finish()
    return Rope(theta=theta, dim=dim, kind=cast(RopeKind, kind), n_ctx_trained=trained, gain=gain, **more)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
