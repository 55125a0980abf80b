"""The walk back to the words: exact for every family, equal to what autograd finds, and drawn as a tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import quick
from torch import Tensor
from xray_checks import IDS, SUMS, traced
from zoo import Kind, built

from gptcli import Checkpoint, load, model
from gptcli import walk as walks
from gptcli.attention import seen, shared
from gptcli.errors import CheckFailed, Unsupported
from gptcli.ledger import head_ledger, ledger
from gptcli.model import Norm
from gptcli.records_xray import Stop
from gptcli.render.walk import branches
from gptcli.walk import walk

AT, TARGET, RIVAL = 17, 5, 9


def frozen_norm(self: Norm, x: Tensor) -> Tensor:
    """The norm with its statistics as constants."""
    if self.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt().detach()
    y = y if self.weight is None else y * self.weight
    return y if self.bias is None else y + self.bias


def frozen_looks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Attention with its pattern as a constant."""
    scores = q[0] @ shared(k[0], q.shape[1]).transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    sees = seen(q.shape[2], None) if mask is None else mask
    weights = scores.masked_fill(~sees, float("-inf")).softmax(-1).detach()
    return (weights @ shared(v[0], q.shape[1]))[None]


def by_autograd(decoder: Any, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Each embedding times the gradient of the lead, where looks, gates and statistics are constants. [T], [T]."""
    monkeypatch.setattr(Norm, "forward", frozen_norm)
    monkeypatch.setattr(model, "attend", frozen_looks)
    if decoder.config.clip_qkv:
        clamp = Tensor.clamp
        monkeypatch.setattr(Tensor, "clamp", lambda x, *bounds: x * (clamp(x, *bounds) / x).detach())
    for block in decoder.blocks:
        act = block.mlp.act
        gated = lambda x, act=act: act(x).detach()  # noqa: E731
        plain = lambda x, act=act: x * (act(x) / x).detach()  # noqa: E731
        monkeypatch.setattr(block.mlp, "act", gated if block.mlp.gate else plain)
    words = decoder.embed_tokens(torch.tensor([ids]), None).detach().requires_grad_()
    places = decoder.pos_embed.weight[: len(ids)].detach() if decoder.pos_embed else torch.zeros_like(words[0])
    places = places.clone().requires_grad_()
    monkeypatch.setattr(decoder, "embed_tokens", lambda ids, position: words + places)
    end = decoder.config.final_softcap
    x = decoder.stream(torch.tensor([ids]), None, None)[0, AT]
    object.__setattr__(decoder.config, "final_softcap", None)
    z = decoder.readout(x)
    object.__setattr__(decoder.config, "final_softcap", end)
    lead = z[TARGET] - z[RIVAL]
    dw, dp = torch.autograd.grad(lead, (words, places))
    return (words * dw)[0].sum(-1).detach(), (places * dp).sum(-1).detach()


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_the_words_shares_are_those_that_autograd_finds_and_add_up_to_the_lead(
    kind: Kind, ours: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = ours.decoder.double()
    trace = traced(decoder)
    found = walk(trace, AT, TARGET, RIVAL)
    book = ledger(trace, torch.tensor([TARGET] * len(IDS)), torch.tensor([RIVAL] * len(IDS)))
    assert found.score == pytest.approx(float(book.logit[AT]), abs=1e-6)
    total = sum(found.words) + sum(found.places) + found.constant
    assert total == pytest.approx(found.score, rel=1e-6, abs=1e-6)  # RMSNorm is computed in float32
    assert found.error < 1e-6
    words, places = by_autograd(decoder, IDS, monkeypatch)
    assert torch.allclose(torch.tensor(found.words, dtype=torch.float64), words, rtol=1e-5, atol=1e-6)
    if found.places:
        assert torch.allclose(torch.tensor(found.places, dtype=torch.float64), places, rtol=1e-5, atol=1e-6)
    assert not any(found.words[AT + 1 :])  # what comes later gives nothing


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_the_first_branches_are_the_ledgers_parts_and_every_stop_is_the_sum_of_what_it_opens_into(
    kind: Kind, ours: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "MOST_STOPS", 60)
    decoder = ours.decoder.double()
    trace = traced(decoder)
    found = walk(trace, AT, TARGET)
    book = ledger(trace, torch.tensor([TARGET] * len(IDS)))
    named = dict(zip(book.names, book.parts[:, AT].tolist(), strict=True))
    heads = [head_ledger(trace, i, book.direction).sources[:, AT] for i in range(decoder.config.n_layer)]
    first = [stop for stop in found.stops if stop.depth == 0]
    assert sum(stop.value for stop in first) == pytest.approx(found.score, abs=1e-5)
    for stop in first:
        if stop.name == "word":
            assert stop.value == pytest.approx(named["token"])
        elif stop.name.endswith("mlp"):
            assert stop.value == pytest.approx(named[stop.name])
        elif "H" in stop.name:
            layer, head = map(int, stop.name[1:].split("H"))
            assert stop.value == pytest.approx(float(heads[layer][head, stop.position]))
    depths = [stop.depth for stop in found.stops]
    assert max(depths) > 1
    for n, stop in enumerate(found.stops):
        below = []
        for after in found.stops[n + 1 :]:
            if after.depth <= stop.depth:
                break
            below += [after.value] if after.depth == stop.depth + 1 else []
        assert not below or sum(below) == pytest.approx(stop.value, abs=1e-5)


def tiled(k: Tensor, n_head: int) -> Tensor:
    """The wrong way to share keys: by turns."""
    return k.repeat(n_head // k.shape[0], *[1] * (k.dim() - 1))


SEEDED = {
    "shared heads by turns": (walks, "shared", tiled),
    "gates as if they were 1": (walks, "through_mlp", None),
    "the last norm's statistics": (walks, "through_norm", None),
    "shift left out": (walks, "through_values", None),
}


@pytest.mark.parametrize("bug", SEEDED, ids=str)
def test_a_seeded_bug_is_refused(bug: str, zoo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, wrong = SEEDED[bug]
    right = getattr(module, name)
    if name == "through_mlp":
        wrong = lambda block, x, d: right(block, 2 * x, d)  # noqa: E731
    elif name == "through_norm":
        wrong = lambda norm, x, d: right(norm, x * 1.1, d)  # noqa: E731
    elif name == "through_values":
        wrong = lambda block, x, d: (right(block, x, d)[0], torch.zeros(len(x)))  # noqa: E731
    trace = traced(load(str(built("qwen2", zoo_root)[0])).decoder)
    walk(trace, AT, TARGET, RIVAL)
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(CheckFailed, match="the walk does not hold"):
        walk(trace, AT, TARGET, RIVAL)


def test_a_stream_that_is_no_running_sum_is_refused(zoo_root: Path) -> None:
    with pytest.raises(Unsupported, match="no way back"):
        walk(traced(load(str(built("opt-350m", zoo_root)[0])).decoder), AT, TARGET)


def test_in_bfloat16_what_rounding_did_is_named_and_with_it_the_sum_is_the_score(zoo_root: Path) -> None:
    decoder = load(str(built("llama", zoo_root)[0])).decoder.bfloat16()
    found = walk(traced(decoder), AT, TARGET, RIVAL)
    assert found.rounding != 0
    total = sum(found.words) + sum(found.places) + found.constant + found.rounding
    assert total == pytest.approx(found.score, abs=1e-4)


def test_in_bfloat16_one_unit_that_is_nearly_all_of_a_write_is_no_reason_to_refuse(zoo_root: Path) -> None:
    """So it is at the first position of most models: then the rounding of one number evens out with no other."""
    g = torch.Generator().manual_seed(0)
    for _ in range(8):
        decoder = load(str(built("llama", zoo_root)[0])).decoder.bfloat16()
        for block in decoder.blocks:
            with torch.no_grad():
                block.mlp.down.weight[:, int(torch.randint(block.config.d_ff, (1,), generator=g))] *= 200
        trace = traced(decoder)
        for position in range(0, trace.n_positions, 2):
            assert walk(trace, position, TARGET, RIVAL).error < 0.02


def test_branches_join_what_belongs_together() -> None:
    depths = (0, 1, 2, 1, 0, 1)
    stops = tuple(Stop(depth=d, name="word", position=0, value=1.0, n_parts=1) for d in depths)
    assert branches(stops) == ["├─ ", "│  ├─ ", "│  │  └─ ", "│  └─ ", "└─ ", "   └─ "]


def test_the_command_draws_the_tree_and_a_trace_draws_it_again(tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.xray"
    made = quick("xray", "the cat sat", "-m", tiny_gpt2, "--walk", "--save", file)
    assert made.returncode == 0, made.stderr.decode()
    assert (
        "ahead of" in made.stdout.decode()
        and "├─ " in made.stdout.decode()
        and "through all ways together" in made.stdout.decode()
    )
    assert "walk ✓" in made.stdout.decode()
    again = quick("xray", file, "--walk")
    assert again.returncode == 0 and again.stdout.decode() == made.stdout.decode()
    got = json.loads(quick("xray", file, "--walk", "--format", "json").stdout)["walk"]
    total = sum(got["words"]) + sum(got["places"]) + got["constant"]
    assert total == pytest.approx(got["score"], abs=1e-4)
    assert {"depth", "name", "position", "value", "n_parts"} == got["stops"][0].keys()


def test_alone_follows_the_logit_itself(tiny_gpt2: Path) -> None:
    made = quick("xray", "the cat sat", "-m", tiny_gpt2, "--walk", "--alone")
    assert made.returncode == 0 and "ahead of" not in made.stdout.decode() and "the logit, nats" in made.stdout.decode()


def test_a_changed_model_has_no_walk(tiny_gpt2: Path) -> None:
    made = quick("xray", "the cat sat", "-m", tiny_gpt2, "--walk", "--ablate", "L0H1")
    assert made.returncode == 2 and "--walk is of the model as it is" in made.stderr.decode()
