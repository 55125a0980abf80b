"""Sizes to train: GPT-3's eight by the names of Table 2.1 (Brown et al. 2020, arXiv 2005.14165), and laptop ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptcli.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A shape in GPT-3's layout, with the batch and the learning rate it is trained with."""

    n_layer: int
    d_model: int
    n_head: int
    n_ctx: int
    n_vocab: int
    batch_tokens: int
    learning_rate: float
    window: int = 256  # of the locally banded layers; GPT-3's own was never published, this is GPT-Neo's


def _gpt3(n_layer: int, d_model: int, n_head: int, batch_tokens: int, learning_rate: float) -> Size:
    return Size(
        n_layer=n_layer,
        d_model=d_model,
        n_head=n_head,
        n_ctx=2048,
        n_vocab=50_257,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
    )


def _laptop(n_layer: int, d_model: int, n_head: int, n_vocab: int, learning_rate: float) -> Size:
    return Size(
        n_layer=n_layer,
        d_model=d_model,
        n_head=n_head,
        n_ctx=512,
        n_vocab=n_vocab,
        batch_tokens=8192,
        learning_rate=learning_rate,
    )


# The laptop sizes keep heads of 64, as GPT-3 Small has them: they run faster than more, narrower ones.
SIZES = {
    "nano": _laptop(4, 128, 2, 2048, 4e-3),
    "micro": _laptop(6, 192, 3, 4096, 3e-3),
    "mini": _laptop(8, 256, 4, 4096, 2.5e-3),
    "midi": _laptop(8, 384, 6, 8192, 2e-3),
    "small": _gpt3(12, 768, 12, 500_000, 6.0e-4),
    "medium": _gpt3(24, 1024, 16, 500_000, 3.0e-4),
    "large": _gpt3(24, 1536, 16, 500_000, 2.5e-4),
    "xl": _gpt3(24, 2048, 16, 1_000_000, 2.0e-4),  # the table's 24 heads of 128 do not make 2048; 16 do
    "2.7b": _gpt3(32, 2560, 32, 1_000_000, 1.6e-4),
    "6.7b": _gpt3(32, 4096, 32, 2_000_000, 1.2e-4),
    "13b": _gpt3(40, 5120, 40, 2_000_000, 1.0e-4),  # the table's 5140 does not give its 12,850M parameters; 5120 does
    "175b": _gpt3(96, 12_288, 96, 3_200_000, 0.6e-4),
}


def size_named(name: str) -> Size:
    """The size of that name, in any case. Raises UsageError."""
    if name.lower() not in SIZES:
        raise UsageError(f"size {name!r} is not known", hint=f"choose one of {', '.join(SIZES)}")
    return SIZES[name.lower()]


def config_json(size: Size, *, end_id: int) -> dict[str, Any]:
    """GPT-3's layout as GPT-Neo spells it: learned positions, pre-norm, dense and locally banded layers in turn."""
    pairs, odd = divmod(size.n_layer, 2)
    types: list[list[Any]] = [[["global", "local"], pairs]] if pairs else []
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": size.n_vocab,
        "max_position_embeddings": size.n_ctx,
        "hidden_size": size.d_model,
        "num_layers": size.n_layer,
        "num_heads": size.n_head,
        "intermediate_size": 4 * size.d_model,
        "attention_types": types + ([[["global"], 1]] if odd else []),
        "window_size": size.window,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "embed_dropout": 0.0,
        "resid_dropout": 0.0,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "tie_word_embeddings": True,
    }
