"""Strict both ways: what is stored is expected, what is expected is stored, what is said is understood."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from zoo import built

from gptcli.errors import BadCheckpoint, Unsupported
from gptcli.families import REFUSED
from gptcli.layout import look, read_config


def with_tensors(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    """A tiny checkpoint with tensors added, replaced or (None) taken away; dots are written as two underscores."""
    tensors = tiny.gpt2_tensors()
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return tiny.write_gpt2(tmp_path / "model", tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        (
            "h.0.attn.secret.weight",
            torch.ones(2),
            r"1 tensor \(h.0.attn.secret.weight\) that config.json knows nothing",
        ),
        ("h.2.ln_1.weight", torch.ones(32), "h.2.ln_1.weight"),
        ("h.00.ln_1.weight", torch.ones(32), "h.00.ln_1.weight"),
        ("h.999999999999.ln_1.weight", torch.ones(32), "knows nothing"),
        ("h.0.attn.bias", torch.ones(32), "h.0.attn.bias"),
        ("transformer.wte.weight", torch.ones(tiny.N_VOCAB, 32), "are the same parameter"),
        ("h.0.ln_1.weight", torch.ones(31), r"h.0.ln_1.weight has shape \[31\], config.json makes it \[32\]"),
        ("wte.weight", torch.ones(tiny.N_VOCAB + 1, 32), r"wte.weight has shape \[268, 32\]"),
        ("h.1.mlp.c_fc.weight", torch.ones(32, 127), "h.1.mlp.c_fc.weight has shape"),
        ("ln_f.bias", torch.tensor(1.0), r"ln_f.bias has shape \[\]"),
    ],
)
def test_a_tensor_that_does_not_belong_is_named(tmp_path: Path, name: str, tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        look(str(with_tensors(tmp_path, **{name.replace(".", "__"): tensor})))


@pytest.mark.parametrize("name", ["wpe.weight", "h.1.ln_2.bias", "h.0.attn.c_attn.bias", "ln_f.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadCheckpoint, match=f"lack 1 tensor \\(transformer.{name}\\)"):
        look(str(with_tensors(tmp_path, **{name.replace(".", "__"): None})))


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    folder = tiny.write_gpt2(tmp_path / "model", tiny.gpt2_tensors(), n_layer=3)
    with pytest.raises(BadCheckpoint, match="lack 12 tensors .* and 9 more"):
        look(str(folder))


def test_a_wrong_shape_names_the_keys_that_decide_it(tmp_path: Path) -> None:
    folder = tiny.write_gpt2(tmp_path / "model", tiny.gpt2_tensors(), n_inner=64)
    with pytest.raises(BadCheckpoint) as error:
        look(str(folder))
    assert "intermediate_size" in error.value.hint


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_weights_of_a_kind_that_is_not_read_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(Unsupported, match=r"ln_f.bias is stored as"):
        look(str(with_tensors(tmp_path, ln_f__bias=torch.ones(32).to(dtype))))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"attention_sinks": 4}, "'attention_sinks' is not understood"),
        ({"logit_scale": 0.5}, "'logit_scale' is not understood"),
        ({"rope_theta": 500.0}, "'rope_theta' is not understood"),
        ({"activation_function": "xielu"}, "activation 'xielu' is not supported"),
        ({"add_cross_attention": True}, "cross-attention"),
        ({"is_encoder_decoder": True}, "not a decoder alone"),
        ({"is_causal": False}, "only causal attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised .gptq."),
        ({"model_type": "mamba"}, "mamba.* is not supported: it keeps a recurrent state"),
        ({"model_type": "t5"}, "not a decoder that predicts"),
        ({"model_type": "who_knows"}, "this model type is not known"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"n_embd": None}, "'hidden_size' is missing"),
        ({"n_embd": -4}, "expected an integer from 1"),
        ({"n_embd": True}, "expected an integer"),
        ({"n_embd": "32"}, "expected an integer"),
        ({"n_embd": 1e300}, "expected an integer"),
        ({"n_layer": 100_000}, "expected an integer from 1 to 10000"),
        ({"n_head": 5}, "does not divide"),
        ({"max_position_embeddings": 48}, "'max_position_embeddings' and 'n_positions' mean the same and differ"),
        ({"hidden_size": 48}, "'hidden_size' and 'n_embd' mean the same and differ"),
        ({"layer_norm_epsilon": 0}, "expected a positive number"),
        ({"scale_attn_weights": "yes"}, "expected true or false"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        look(str(tiny.write_gpt2(tmp_path / "model", tiny.gpt2_tensors(), **values)))


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_an_unknown_key_that_says_nothing_is_no_obstacle(tmp_path: Path, value: Any) -> None:
    assert look(str(tiny.write_gpt2(tmp_path / "model", attention_sinks=value)))


def test_a_key_can_be_allowed_by_name(tmp_path: Path) -> None:
    folder = str(tiny.write_gpt2(tmp_path / "model", attention_sinks=4))
    assert look(folder, allow=["attention_sinks"]).family == "gpt2"
    with pytest.raises(Unsupported):
        look(folder, allow=["another"])


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"type": "su_v2", "factor": 2.0}, "'su_v2' is not supported"),
        ({"type": "linear"}, "'factor' is missing"),
        ({"type": "linear", "factor": 0.0}, "positive number"),
        ({"type": "linear", "factor": 2.0, "finesse": 3}, "'finesse' is not understood"),
        ({"rope_type": "llama3", "factor": 8.0}, "'low_freq_factor' is missing"),
        ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}, "must hold|a list of"),
        ("linear", "an object"),
        ({"type": ["linear"], "factor": 2.0}, "is not supported"),
        ({"type": "linear", "factor": 1e308}, "contexts that no tensor holds"),
        ({"type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "yarn needs a base above 1"),
        ({"type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.25}, "turns whole heads"),
        (
            {
                "type": "longrope",
                "original_max_position_embeddings": 1,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0] * 4,
            },
            "cannot stretch a context of 1 token",
        ),
    ],
)
def test_rotary_scaling_that_is_not_understood_is_refused(tmp_path: Path, scaling: Any, says: str) -> None:
    values = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 64, "vocab_size": 267, "max_position_embeddings": 64}  # fmt: skip
    folder = tiny.write_gpt2(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**values, "rope_scaling": scaling}))
    with pytest.raises(BadCheckpoint, match=says):
        look(str(folder))


def test_dynamic_scaling_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    values = {"model_type": "phi3", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 64, "vocab_size": 267, "max_position_embeddings": 64,
              "rope_scaling": {"type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.25}}  # fmt: skip
    folder = tiny.write_gpt2(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(BadCheckpoint, match="more than 2 rotary dimensions"):
        look(str(folder))


def test_a_key_of_rotary_scaling_can_be_allowed_by_name(zoo_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built("llama-dynamic", zoo_root)[0], folder)
    values = json.loads((folder / "config.json").read_text())
    name = "rope_scaling" if "rope_scaling" in values else "rope_parameters"
    values[name] |= {"finesse": 3, "finetuned": True}  # the second says nothing of what is computed
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(Unsupported, match="'finesse' is not understood"):
        look(str(folder))
    assert look(str(folder), allow=["finesse"]).family == "llama"


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("phi3", {"full_attn_mod": 2}, "'full_attn_mod' is '2': only 1"),
        ("phi3", {"interpolate_factor": 4}, "'interpolate_factor' is '4': only 1"),
        ("starcoder2", {"mlp_type": "gated"}, "'mlp_type' is 'gated': only 'default'"),
        ("starcoder2", {"norm_type": "rms_norm"}, "'norm_type' is 'rms_norm': only 'layer_norm'"),
        ("starcoder2", {"scale_attn_weights": False}, "'scale_attn_weights' is 'False': only 'true'"),
        ("gemma2", {"sliding_window_size": 16}, "'sliding_window_size' is '16': 'sliding_window' is 8"),
        ("opt", {"learned_embeddings": False}, "'learned_embeddings' is 'False': .* positions are learned"),
    ],
)
def test_what_published_files_say_is_accepted_only_where_it_changes_nothing(
    kind: str, values: dict[str, Any], says: str, zoo_root: Path, tmp_path: Path
) -> None:
    config = json.loads((built(kind, zoo_root)[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(Unsupported, match=says):
        read_config(tmp_path / "config.json")


def test_a_wrapper_s_own_words_count_for_its_text_part(zoo_root: Path, tmp_path: Path) -> None:
    values = json.loads((built("gemma3-wrapper", zoo_root)[0] / "config.json").read_text())
    values |= {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = read_config(tmp_path / "config.json")[2]
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (2, [1, 106], 0)
    values |= {"eos_token_id": None, "quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(Unsupported, match="quantised .bitsandbytes."):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("kind", REFUSED)
def test_every_refused_family_says_why(tmp_path: Path, kind: str) -> None:
    folder = tiny.write_gpt2(tmp_path / "model", model_type=kind)
    with pytest.raises(Unsupported) as error:
        look(str(folder))
    assert kind in error.value.message and REFUSED[kind] in error.value.message


def test_a_head_that_is_missing_though_promised_is_noted(tmp_path: Path) -> None:
    layout = look(str(tiny.write_gpt2(tmp_path / "model", tie_word_embeddings=False)))
    assert layout.config.tied and "the embedding serves" in layout.notes[0]


def test_a_head_that_is_there_is_used_whatever_the_config_says(tmp_path: Path) -> None:
    folder = with_tensors(tmp_path, lm_head__weight=torch.ones(tiny.N_VOCAB, 32))
    assert not look(str(folder)).config.tied


def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path, tiny_gpt2: Path) -> None:
    shutil.copyfile(tiny_gpt2 / "model.safetensors", tmp_path / "adapter_model.safetensors")
    with pytest.raises(Unsupported, match="adapter"):
        look(str(tmp_path))


def test_a_pattern_of_endless_layers_is_refused_before_it_is_written_out(tmp_path: Path) -> None:
    """A short config.json must not name ten thousand million layers."""
    config = json.loads((Path(__file__).parent.parent / "weights" / "config.json").read_text())
    config["attention_types"] = [["g" * 100_000, 10_000]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tracemalloc.start()
    with pytest.raises(BadCheckpoint, match="attention_types"):
        read_config(tmp_path / "config.json")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20
