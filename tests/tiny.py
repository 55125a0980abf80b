"""A byte-level tokenizer, and tiny checkpoints written by hand: for tests that need a model and no reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

END = "<|endoftext|>"
MERGES = ("h e", "l l", "Ġ t", "Ġ a", "i n", "o n", "he ll", "Ġt he", "r e", "Ġ w")


def letters() -> list[str]:
    """GPT-2's letter for each byte, by the byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def vocabulary() -> dict[str, int]:
    """The end token, 256 bytes, ten merges: 267 ids."""
    pieces = [END, *letters(), *(merge.replace(" ", "") for merge in MERGES)]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


N_VOCAB = len(vocabulary())


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json as GPT-2's kind has them."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": END, "special": True, "normalized": False, "single_word": False,
                          "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary(), "merges": list(MERGES)},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = {"bos_token": END, "eos_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


CONFIG: dict[str, Any] = {
    "model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": N_VOCAB,
    "eos_token_id": 0, "bos_token_id": 0,
}  # fmt: skip


def gpt2_tensors(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in GPT-2's spelling, as the hub has it: no prefix, matrices lying on their side."""
    g = torch.Generator().manual_seed(seed)
    d, tensors = config["n_embd"], {}
    tensors["wte.weight"] = torch.randn(config["vocab_size"], d, generator=g) * 0.35
    tensors["wpe.weight"] = torch.randn(config["n_positions"], d, generator=g) * 0.3
    for i in range(config["n_layer"]):
        for name, rows, columns in (
            ("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d),
        ):  # fmt: skip
            tensors[f"h.{i}.{name}.weight"] = torch.randn(rows, columns, generator=g) / rows**0.5
            tensors[f"h.{i}.{name}.bias"] = torch.randn(columns, generator=g) * 0.2
        for name in ("ln_1", "ln_2"):
            tensors[f"h.{i}.{name}.weight"] = 0.4 + 1.6 * torch.rand(d, generator=g)
            tensors[f"h.{i}.{name}.bias"] = torch.randn(d, generator=g) * 0.2
    tensors["ln_f.weight"] = 0.4 + 1.6 * torch.rand(d, generator=g)
    tensors["ln_f.bias"] = torch.randn(d, generator=g) * 0.2
    return tensors


def write_gpt2(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **values: Any) -> Path:
    """A whole checkpoint folder of 35,000 parameters; `values` change its config.json, `tensors` its weights."""
    config = {**CONFIG, **values}
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(gpt2_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_padded(folder: Path) -> Path:
    """The same with 133 rows of the head beyond the tokenizer's tokens, which have large scores."""
    tensors = gpt2_tensors({**CONFIG, "vocab_size": 400})
    tensors["wte.weight"][N_VOCAB:] *= 2
    return write_gpt2(folder, tensors, vocab_size=400)
