"""llama.cpp on the same numbers: a folder of Llama's build as GGUF, and its plain greedy loop.

The file carries no vocabulary (its tokens go in and out as ids), so that nothing but the decoder is compared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_KEPT = list[object]()  # what the library calls back must live as long as it
Run = Callable[[list[int], int], list[float]]

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def convert(model: str, file: str, kind: str) -> None:
    """Writes a GGUF. kind: F32, BF16, Q8_0 or Q4_1, of all matrices. Raises ValueError for another family."""
    import gguf
    import torch
    from safetensors.torch import load_file

    config = json.loads((Path(model) / "config.json").read_text())
    if config["model_type"] != "llama" or config.get("rope_scaling"):
        raise ValueError(f"no GGUF of {config['model_type']} here")
    H, K = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_rope_dimension_count(config["hidden_size"] // H)
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in load_file(Path(model) / "model.safetensors").items():
        w = tensor.to(torch.float32)
        stem = name.removesuffix(".weight")
        if stem in OUTER:
            new = OUTER[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            new = f"blk.{layer}.{NAMES[rest]}"
            if rest in ("self_attn.q_proj", "self_attn.k_proj"):  # pairs of a rotation are neighbours there
                heads = H if rest == "self_attn.q_proj" else K
                w = w.view(heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)
        numbers = w.contiguous().numpy()
        if numbers.ndim == 1 or kind == "F32":
            writer.add_tensor(f"{new}.weight", numbers)
        else:
            form = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(f"{new}.weight", gguf.quants.quantize(numbers, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(file: str, *, n_ctx: int, threads: int) -> Run:
    """The file, mapped, and a run of (prompt, n) -> the times at which n new tokens were there."""
    import llama_cpp as library
    import numpy as np

    @library.llama_log_callback
    def silent(level: int, text: bytes, data: object) -> None:
        pass

    library.llama_log_set(silent, None)
    _KEPT.append(silent)
    library.llama_backend_init()
    model = library.llama_model_load_from_file(file.encode(), library.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {file}")
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = n_ctx, n_ctx, 512
    settings.n_threads = settings.n_threads_batch = threads
    context = library.llama_init_from_model(model, settings)
    n_vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def steps(ids: list[int], n: int) -> Iterator[int]:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        given = ids
        for _ in range(n):
            tokens = (library.llama_token * len(given))(*given)
            if library.llama_decode(context, library.llama_batch_get_one(tokens, len(given))):
                raise SystemExit("llama.cpp failed")
            scores = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (n_vocab,))
            given = [int(scores.argmax())]
            yield given[0]

    def run(ids: list[int], n: int) -> list[float]:
        return [time.perf_counter() for _ in steps(ids, n)]

    return run
