"""An MLP neuron by neuron: exact for every family, what transformers' own modules give, and drawn as a sum."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import complaint, quick
from torch import Tensor
from xray_checks import IDS, SUMS, traced
from zoo import Kind, built

from gptcli import load, neurons
from gptcli.errors import CheckFailed, Unsupported
from gptcli.ledger import direction, ledger
from gptcli.neurons import neuron_ledger, raised

AT, TARGET, RIVAL = 17, 5, 9
OUTPUTS = ("mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj", "mlp.fc2", "mlp.fc_out", "fc2")


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_neurons_and_bias_add_up_to_the_mlp_s_row_of_the_ledger(kind: Kind, zoo_root: Path) -> None:
    decoder = load(str(built(kind.name, zoo_root)[0])).decoder.double()
    trace = traced(decoder)
    book = ledger(trace, torch.tensor([TARGET] * len(IDS)), torch.tensor([RIVAL] * len(IDS)))
    for layer in range(decoder.config.n_layer):
        split = neuron_ledger(trace, layer, book.direction)
        assert split.parts.shape == (len(IDS), decoder.config.d_ff)
        row = book.parts[book.names.index(f"L{layer} mlp")]
        assert torch.allclose(split.parts.sum(-1) + split.bias, row, rtol=1e-6, atol=1e-6)  # RMSNorm is in float32
        assert split.relative_error < 1e-6


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_what_a_neuron_gives_is_what_transformers_hands_to_its_output_matrix(kind: Kind, zoo_root: Path) -> None:
    folder, model = built(kind.name, zoo_root)
    given = list[Tensor]()
    modules = [m for name, m in model.named_modules() if name.endswith(OUTPUTS)]
    handles = [m.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten(0, -2))) for m in modules]
    with torch.inference_mode():
        model(torch.tensor([IDS]))
    for handle in handles:
        handle.remove()
    trace = traced(load(str(folder)).decoder)
    assert len(given) == trace.config.n_layer
    for layer, theirs in enumerate(given):
        ours = neuron_ledger(trace, layer, torch.ones_like(trace.states[-1])).acts
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "granite", "gpt_neox"])
def test_a_neuron_that_is_switched_off_is_what_the_score_loses(name: str, zoo_root: Path) -> None:
    """In the last layer, through the norm as it was: there nothing comes after it."""
    decoder = load(str(built(name, zoo_root)[0])).decoder.double()
    last, trace = decoder.config.n_layer - 1, traced(decoder)
    d, _ = direction(decoder, trace.states[-1], torch.tensor([TARGET] * len(IDS)), torch.tensor([RIVAL] * len(IDS)))
    split = neuron_ledger(trace, last, d)
    best = int(split.parts[AT].abs().argmax())

    def without(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0].clone()
        x[..., best] = 0
        return (x,)

    handle = decoder.blocks[last].mlp.down.register_forward_pre_hook(without)
    after = traced(decoder)
    handle.remove()
    lost = ((trace.mlp_out[last] - after.mlp_out[last]) * d).sum(-1)
    assert torch.allclose(lost, split.parts[:, best], rtol=1e-5, atol=1e-7) and float(lost[AT].abs()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "granite"])
def test_the_tokens_a_neuron_raises_are_those_whose_logits_rise_when_it_fires_more(name: str, zoo_root: Path) -> None:
    """A little more of its column, both norms dividing by what they divided by."""
    checkpoint = load(str(built(name, zoo_root)[0]))
    decoder, trace = checkpoint.decoder.double(), traced(checkpoint.decoder)
    block, n = decoder.blocks[0], checkpoint.n_tokens
    every, x = torch.arange(n), trace.states[-1][AT].expand(n, -1)
    d, _ = direction(decoder, x, every, None)  # [V, C]
    which, acts = torch.tensor([3, 11]), torch.tensor([1.0, -2.0])
    ids = raised(decoder, 0, which, acts, n=3, size=n)
    for neuron, act, found in zip(which.tolist(), acts.tolist(), ids.tolist(), strict=True):
        column = block.mlp.down.weight[:, neuron]
        if norm := block.mlp_out_norm:
            column = column - column.mean() if norm.kind == "layer" else column
            column = column if norm.weight is None else column * norm.weight
        scores = (d @ column) * act
        assert found == scores.topk(3).indices.tolist()


@pytest.mark.parametrize("bug", ["gate", "bias", "scale", "act"])
def test_a_seeded_bug_is_refused(bug: str, zoo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(str(built({"bias": "gpt2", "scale": "granite"}.get(bug, "llama"), zoo_root)[0]))
    trace = traced(checkpoint.decoder)
    found = neurons.neurons(checkpoint, trace, 1, AT, TARGET, RIVAL)
    assert sum(each.value for each in found.shown) + found.others + found.bias == pytest.approx(found.write, abs=1e-4)
    mlp, right = checkpoint.decoder.blocks[1].mlp, neurons.hidden
    if bug == "gate":
        monkeypatch.setattr(neurons, "hidden", lambda block, x: (*right(block, x)[:2], torch.ones(())))
    elif bug == "act":
        monkeypatch.setattr(mlp, "act", torch.tanh)
    elif bug == "bias":
        monkeypatch.setattr(mlp.down, "bias", None)
    else:
        monkeypatch.setattr(trace, "config", dataclasses.replace(trace.config, residual_scale=1.0))
    with pytest.raises(CheckFailed, match="the neurons of L1 do not add up to its MLP"):
        neurons.neurons(checkpoint, trace, 1, AT, TARGET, RIVAL)


def test_in_bfloat16_they_add_up_as_far_as_it_rounds(zoo_root: Path) -> None:
    for name in ("gpt2", "llama", "gemma2"):
        checkpoint = load(str(built(name, zoo_root)[0]), dtype="bfloat16")
        trace = traced(checkpoint.decoder)
        for layer in range(trace.config.n_layer):
            assert neurons.neurons(checkpoint, trace, layer, AT, TARGET, RIVAL).error < 0.01


def test_a_stream_that_is_no_running_sum_is_refused(zoo_root: Path) -> None:
    checkpoint = load(str(built("opt-350m", zoo_root)[0]))
    with pytest.raises(Unsupported, match="neurons cannot be read"):
        neurons.neurons(checkpoint, traced(checkpoint.decoder), 0, AT, TARGET)


def test_the_command_draws_them_and_a_trace_draws_them_again(tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.xray"
    made = quick("xray", "the cat sat", "-m", tiny_gpt2, "--neurons", "L1", "--save", file)
    assert made.returncode == 0, made.stderr.decode()
    drawn = made.stdout.decode()
    assert "the neurons of L1" in drawn and "neurons ✓" in drawn and "L1 mlp" in drawn and "L1N" in drawn
    again = quick("xray", file, "--neurons", "L1.mlp")
    assert again.returncode == 0 and again.stdout.decode() == drawn
    got = json.loads(quick("xray", file, "--neurons", "L1", "--format", "json").stdout)["neurons"]
    total = sum(each["value"] for each in got["shown"]) + got["others"] + got["bias"]
    assert total == pytest.approx(got["write"], abs=1e-4)
    ledger = json.loads(quick("xray", file, "--ledger", "--format", "json").stdout)["ledger"]
    book = ledger["positions"][got["position"]][0]
    assert book["parts"]["L1 mlp"] == pytest.approx(got["write"], abs=1e-5)
    other = quick("xray", file, "--neurons", "L0")
    assert other.returncode == 2 and "holds the neurons of L1, not of L0" in complaint(other)
    alone = quick("xray", file, "--neurons", "L1", "--alone")
    assert alone.returncode == 2 and "holds the neurons of a lead" in complaint(alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--neurons", "L9"), "there is no layer 9: this model's are L0 to L1"),
        (("--neurons", "L1H2"), "--neurons 'L1H2' is not a layer"),
        (("--neurons", "5"), "--neurons '5' is not a place in a model"),
        (("--neurons", "L1", "--ablate", "L0H1"), "--neurons is of the model as it is"),
    ],
)
def test_what_cannot_be_shown_is_one_line(arguments: tuple[str, ...], said: str, tiny_gpt2: Path) -> None:
    done = quick("xray", "the cat sat", "-m", tiny_gpt2, *arguments)
    assert done.returncode == 2 and said in complaint(done)
