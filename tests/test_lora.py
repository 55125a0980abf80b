"""Adapters are PEFT's: peft runs ours, we run peft's, to the same logits, however a family stores its matrices."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import ZOO, Kind, built

from gptcli import Checkpoint, load, save
from gptcli.errors import BadCheckpoint, NotFound, Unsupported, UsageError
from gptcli.lora import Rank, apply, attach, places, restore, save_adapter

peft = pytest.importorskip("peft")

NAMES = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "qwen2", "phi3", "opt", "gpt_bigcode")
KINDS = [next(kind for kind in ZOO if kind.family == name) for name in NAMES]
IDS = torch.randint(1, 260, (1, 24), generator=torch.Generator().manual_seed(3))
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def rank(checkpoint: Checkpoint, *targets: str) -> Rank:
    from gptcli.families import FAMILIES
    from gptcli.lora import targets_of

    return Rank(r=3, alpha=7.0, targets=targets or targets_of(FAMILIES[checkpoint.family]))


def with_numbers(checkpoint: Checkpoint) -> None:
    """An adapter that does something: b is zero before training."""
    g = torch.Generator().manual_seed(11)
    for p in checkpoint.decoder.parameters():
        if p.requires_grad:
            p.data.copy_(torch.randn(p.shape, generator=g) * 0.15)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@every_kind
@torch.no_grad()
def test_peft_runs_our_adapter_to_the_same_logits(kind: Kind, zoo_root: Path, tmp_path: Path) -> None:
    folder, theirs = built(kind.name, zoo_root)
    ours = load(str(folder))
    plain = ours.decoder(IDS)
    size = rank(ours)
    attach(ours, size)
    assert torch.equal(ours.decoder(IDS), plain), "a new adapter changes nothing"
    with_numbers(ours)
    logits = ours.decoder(IDS)
    assert distance(logits, plain) > 0.05
    save_adapter(ours, size, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), str(tmp_path / "adapter"))
    assert distance(logits, model(IDS, use_cache=False).logits) <= 1e-5
    merged = load(str(folder))
    assert apply(merged, tmp_path / "adapter") == stored_numbers(tmp_path / "adapter")
    assert distance(merged.decoder(IDS), logits) <= 1e-5


def stored_numbers(folder: Path) -> int:
    return sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())


@every_kind
@torch.no_grad()
def test_we_run_peft_s_adapter_to_the_same_logits(kind: Kind, zoo_root: Path, tmp_path: Path) -> None:
    folder, theirs = built(kind.name, zoo_root)
    checkpoint = load(str(folder))
    names = sorted({name.rpartition(".")[2] for name in places(checkpoint, rank(checkpoint).targets)})
    values: Any = peft.LoraConfig(r=4, lora_alpha=6, target_modules=names, task_type="CAUSAL_LM", use_rslora=True)
    model = peft.get_peft_model(copy.deepcopy(theirs), values)
    g = torch.Generator().manual_seed(5)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.copy_(torch.randn(p.shape, generator=g) * 0.15)
    model.save_pretrained(str(tmp_path))
    apply(checkpoint, tmp_path)
    assert distance(checkpoint.decoder(IDS), model(IDS, use_cache=False).logits) <= 1e-5


def test_an_adapter_is_not_added_to_rounded_weights(zoo_root: Path, tmp_path: Path) -> None:
    folder, _ = built("gpt2", zoo_root)
    ours = load(str(folder))
    attach(ours, rank(ours))
    save_adapter(ours, rank(ours), tmp_path / "adapter")
    with pytest.raises(UsageError, match="rounded"):
        apply(load(str(folder), quantize="int8"), tmp_path / "adapter")


@every_kind
def test_training_goes_on_from_a_saved_adapter(kind: Kind, zoo_root: Path, tmp_path: Path) -> None:
    folder, _ = built(kind.name, zoo_root)
    ours, again = load(str(folder)), load(str(folder))
    size = rank(ours)
    attach(ours, size)
    with_numbers(ours)
    save_adapter(ours, size, tmp_path / "adapter")
    attach(again, size, seed=5)
    restore(again, size, tmp_path / "adapter")
    moving = [(n, p) for n, p in ours.decoder.named_parameters() if p.requires_grad]
    assert moving
    for name, p in moving:
        assert torch.equal(p, again.decoder.get_parameter(name)), name


def test_only_the_adapter_has_gradients(zoo_root: Path) -> None:
    ours = load(str(built("gpt_neo", zoo_root)[0]))
    attach(ours, rank(ours, "q_proj", "c_fc"))
    moving = {name.rpartition(".")[0] for name, p in ours.decoder.named_parameters() if p.requires_grad}
    assert moving == {f"blocks.{i}.{part}" for i in range(4) for part in ("attn.q", "mlp.up")}


def test_a_merged_model_is_saved_as_a_model_of_its_own(zoo_root: Path, tmp_path: Path) -> None:
    folder, _ = built("llama", zoo_root)
    ours = load(str(folder))
    attach(ours, rank(ours))
    with_numbers(ours)
    save_adapter(ours, rank(ours), tmp_path / "adapter")
    merged = load(str(folder))
    apply(merged, tmp_path / "adapter")
    save(merged, tmp_path / "merged")
    with torch.no_grad():
        assert distance(load(str(tmp_path / "merged")).decoder(IDS), ours.decoder(IDS)) <= 1e-5


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(zoo_root: Path, tmp_path: Path) -> Path:
    ours = load(str(built("gpt_neo", zoo_root)[0]))
    attach(ours, rank(ours))
    save_adapter(ours, rank(ours), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"use_dora": True}, "use_dora = 'True' is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base model's own weights"),
        ({"init_lora_weights": "lora_ga"}, "changes the base model's own weights"),
        ({"alora_invocation_tokens": [30, 40]}, "alora_invocation_tokens"),
        ({"r": 0}, "r must be a count"),
        ({"r": True}, "r must be a count"),
        ({"lora_alpha": "8"}, "lora_alpha a number"),
        ({"r": 5}, r"has shapes \[3, 32\] and \[32, 3\], this model makes them \[5, 32\]"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused_by_name(
    zoo_root: Path, adapter: Path, change: dict[str, Any], complaint: str
) -> None:
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | change))
    with pytest.raises(BadCheckpoint, match=complaint):
        apply(load(str(built("gpt_neo", zoo_root)[0])), adapter)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop(next(k for k in t if "lora_A" in k)), "has only lora_B"),
        (lambda t: t.update({"base_model.model.wte.lora_embedding_A": torch.zeros(3, 3)}), "not part of a plain LoRA"),
        (
            lambda t: t.update(
                {f"base_model.model.transformer.h.9.mlp.c_fc.lora_{x}.weight": torch.zeros(3, 3) for x in "AB"}
            ),
            "is not a linear layer of this gpt_neo model",
        ),
        (lambda t: t.clear(), "is empty"),
    ],
)
def test_tensors_that_have_no_place_are_named(zoo_root: Path, adapter: Path, edit: Any, complaint: str) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises((BadCheckpoint, Unsupported), match=complaint):
        apply(load(str(built("gpt_neo", zoo_root)[0])), adapter)


def test_a_target_that_does_not_exist_is_named_with_those_that_do(zoo_root: Path) -> None:
    ours = load(str(built("gpt_neo", zoo_root)[0]))
    with pytest.raises(UsageError, match="gpt_neo has no linear layer 'gate_proj'") as caught:
        attach(ours, rank(ours, "q_proj", "gate_proj"))
    assert "q_proj" in caught.value.hint and "c_fc" in caught.value.hint


def test_a_folder_without_an_adapter_is_said_so(zoo_root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="adapter_config.json is not there"):
        apply(load(str(built("gpt_neo", zoo_root)[0])), tmp_path)
