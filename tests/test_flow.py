"""Of which tokens a vector is made: what the formulas say, worked out the long way, for every family."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import complaint, quick
from torch import Tensor
from xray_checks import IDS, KINDS, traced
from zoo import Kind, built

from gptcli import Trace, flow, load, prepare
from gptcli.errors import CheckFailed, UsageError
from gptcli.flow import contributions
from gptcli.flow import flow as flow_of
from gptcli.ledger import ledger
from gptcli.records_xray import Scan, Sources
from gptcli.render import flow as flow_view
from gptcli.render import theme
from gptcli.scan import run
from gptcli.scan import scan as scan_of
from gptcli.tables import Table
from gptcli.trace_file import load as load_trace
from gptcli.trace_file import save as save_trace

N = len(IDS)


@torch.inference_mode()
def slowly(trace: Trace, layer: int, i: int) -> tuple[Tensor, float]:
    """Shares of one vector, a source and a head at a time; and how far the parts are from what attention wrote."""
    c, block = trace.config, trace.decoder.blocks[layer]
    out, norm, D = block.attn.out, block.attn_out_norm, c.d_head
    taken = []
    for j in range(N):
        part = torch.zeros(c.d_model, dtype=torch.float64)
        for h in range(c.n_head):
            value = trace.v[layer][h // (c.n_head // c.n_kv_head), j]
            part += trace.pattern_of(layer)[h, i, j] * (out.weight[:, h * D : (h + 1) * D] @ value)
        taken.append(part)
    bias = torch.zeros(c.d_model, dtype=torch.float64) if out.bias is None else out.bias
    if norm is not None:  # by torch's own formula of the whole, minus that of the whole without the part
        raw, ones = sum(taken) + bias, 1.0
        centred = [x - x.mean() if norm.kind == "layer" else x for x in (*taken, bias)]
        spread = raw.var(unbiased=False) if norm.kind == "layer" else raw.square().mean()
        gain = ones if norm.weight is None else norm.weight
        *taken, bias = (x / (spread + norm.eps).sqrt() * gain for x in centred)
        bias = bias if norm.bias is None else bias + norm.bias
    taken, bias = [x * c.residual_scale for x in taken], bias * c.residual_scale
    write, own = trace.attn_out[layer][i], trace.states[layer][i]
    off = float((sum(taken) + bias - write).abs().max())
    whole, taken[i] = own + write, taken[i] + own
    seen = [bool((trace.pattern_of(layer)[:, i, j] > 0).any()) or j == i for j in range(N)]
    near = [
        max(float(whole.abs().sum() - (whole - part).abs().sum()), 1e-5) if sees else 0.0
        for part, sees in zip(taken, seen, strict=True)
    ]
    return torch.tensor(near, dtype=torch.float64) / sum(near), off


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_shares_are_what_the_formula_says_source_by_source(kind: Kind, zoo_root: Path) -> None:
    """Also where attention's output has a norm behind it, a multiplier, shared keys, a window, or no running sum."""
    trace = traced(load(str(built(kind.name, zoo_root)[0])).decoder.double())
    whole = torch.eye(N, dtype=torch.float64)
    found = flow_of(trace)
    for layer in range(trace.config.n_layer):
        own = contributions(trace, layer)
        assert own.relative_error < 1e-6  # the looks are in float64 too, an RMSNorm is not
        for i in (0, 1, 11, N - 1):
            slow, off = slowly(trace, layer, i)
            assert off < 1e-5 and torch.allclose(own.shares[i].double(), slow, atol=1e-6)
        whole = own.shares.double() @ whole
        assert torch.allclose(found.shares[layer].double(), whole, atol=1e-5)
    for shares in (found.shares, found.rollout):
        assert torch.allclose(shares.sum(-1), torch.ones(N, dtype=shares.dtype), atol=1e-5)
        assert float(shares.triu(1).abs().max()) == 0 and float(shares.min()) >= 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_rollout_is_that_of_transformers_own_looks(name: str, zoo_root: Path) -> None:
    folder, model = built(name, zoo_root)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        looks = model(torch.tensor([IDS]), output_attentions=True).attentions
    rolled = torch.eye(N)
    found = flow_of(traced(load(str(folder)).decoder)).rollout
    for layer, each in enumerate(looks):
        rolled = (each[0].mean(0) / 2 + torch.eye(N) / 2) @ rolled
        assert torch.allclose(found[layer], rolled, atol=1e-5)


def test_queries_a_few_at_a_time_make_no_difference(zoo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(load(str(built("gpt2", zoo_root)[0])).decoder)
    whole = flow_of(trace)
    monkeypatch.setattr(flow, "CHUNK", 3 * trace.config.d_model * N)
    few = flow_of(trace)
    assert torch.allclose(few.shares, whole.shares, atol=1e-6) and torch.allclose(few.bias, whole.bias, atol=1e-6)


def test_a_first_token_is_made_of_itself_and_a_head_that_copies_is_seen(zoo_root: Path) -> None:
    """In the last layer attention is made to bring nothing but ten times one earlier value: that is all there is."""
    decoder = load(str(built("gpt2", zoo_root)[0])).decoder
    trace = traced(decoder)
    assert torch.allclose(flow_of(trace).shares[:, 0, 0], torch.ones(decoder.config.n_layer))
    looks = torch.zeros(decoder.config.n_head, N, N)
    looks[:, :, 0] = 1
    last = decoder.config.n_layer - 1
    values = 1e4 * torch.randn_like(trace.v[last])
    gathered = values[:, :1].expand(-1, N, -1)
    out = decoder.blocks[last].attn.out
    with torch.inference_mode():
        trace.v[last], trace.z[last] = values, gathered
        trace.attn_out[last] = out(gathered.transpose(0, 1).reshape(N, -1))
    trace.pattern_of = lambda layer: looks  # type: ignore[method-assign]
    assert float(contributions(trace, last).shares[9, 0]) > 0.99


@pytest.mark.parametrize("bug", ["tiled keys", "scale", "norm", "bias"])
def test_a_seeded_bug_is_refused(bug: str, zoo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"tiled keys": "llama", "scale": "granite", "norm": "gemma2", "bias": "gpt2"}[bug]
    trace = traced(load(str(built(name, zoo_root)[0])).decoder)
    flow_of(trace)
    if bug == "tiled keys":
        monkeypatch.setattr(flow, "shared", lambda v, n: v.repeat(n // v.shape[0], 1, 1))
    elif bug == "norm":
        monkeypatch.setattr(flow, "gained", lambda norm, x: x)
    elif bug == "bias":
        monkeypatch.setattr(trace.decoder.blocks[1].attn.out, "bias", None)
    else:
        monkeypatch.setattr(flow, "divisor", lambda norm, x: 1.0)
        object.__setattr__(trace.config, "residual_scale", trace.config.residual_scale * 1.1)
    with pytest.raises(CheckFailed, match=r"the looks of L\d do not add up to its attention"):
        flow_of(trace)


def test_in_bfloat16_they_add_up_as_far_as_it_rounds(zoo_root: Path) -> None:
    for name in ("gpt2", "llama", "gemma2", "opt-350m"):
        assert 0 < flow_of(traced(load(str(built(name, zoo_root)[0]), dtype="bfloat16").decoder)).error < 0.01


def test_a_text_too_long_to_keep_is_refused(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(load(str(tiny_gpt2)).decoder)
    monkeypatch.setattr(flow, "MOST", 2 * trace.config.n_layer * N * N - 1)
    with pytest.raises(UsageError, match="too many to keep"):
        flow_of(trace)


def test_the_command_draws_it_and_a_trace_draws_it_again(tiny_gpt2: Path, tmp_path: Path) -> None:
    file, text = tmp_path / "run.xray", "the cat sat on the mat"
    made = quick("xray", text, "-m", tiny_gpt2, "--flow", "--token", "5", "--save", file)
    assert made.returncode == 0, made.stderr.decode()
    said = made.stdout.decode()
    assert "of which tokens the vector is made" in said and "position 5" in said and "parts ✓" in said
    assert quick("xray", file, "--flow", "--token", "5").stdout == made.stdout
    rolled = quick("xray", file, "--flow", "--rollout", "--token", "5").stdout
    assert rolled == quick("xray", file, "--rollout", "--token", "5").stdout != made.stdout
    assert "a heuristic" in rolled.decode()
    shares = load_trace(file).flow
    assert shares and sum(shares.row(1, 5, rollout=False)) == pytest.approx(1, abs=1e-3)
    frames = [json.loads(line) for line in quick("xray", file, "--flow", "--format", "ndjson").stdout.splitlines()]
    (frame,) = (frame for frame in frames if frame["type"] == "flow")
    assert frame["shares"][1][5] == list(shares.row(1, 5, rollout=False)) and len(frame["rollout"][0]) == len(
        frame["bias"][0]
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--rollout", "--format", "json"), None),
        (("--flow", "--ablate", "L1H1"), "--flow is of the model as it is"),
        (("--rollout", "--ablate", "L1H1"), "--rollout is of the model as it is"),
        (("--flow", "--token", "2", "--at", "4"), "--at 4 is behind position 2"),
        (("--ledger", "--rollout"), None),
        (("--flow", "--alone"), None),
    ],
)
def test_what_it_cannot_show_is_said(arguments: tuple[str, ...], said: str | None, tiny_gpt2: Path) -> None:
    done = quick("xray", "the cat sat", "-m", tiny_gpt2, *arguments)
    assert done.returncode == (2 if said else 0)
    assert said is None or said in complaint(done)


@pytest.mark.parametrize("field", ["shares", "rollout", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, 7.0])
def test_what_can_be_no_share_is_not_drawn(field: str, value: float, tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.xray"
    quick("xray", "the cat sat", "-m", tiny_gpt2, "--flow", "--save", file)
    found = load_trace(file)
    assert found.flow
    table = getattr(found.flow, field)
    code = {"F16": "e", "F32": "f"}[table.kind]
    wrong = dataclasses.replace(table, data=struct.pack(code, value) * (len(table.data) // struct.calcsize(code)))
    save_trace(dataclasses.replace(found, flow=dataclasses.replace(found.flow, **{field: wrong})), file)
    done = quick("xray", file, "--rollout" if field == "rollout" else "--flow")
    assert done.returncode == 4 and "run.xray is malformed" in complaint(done)


@pytest.mark.parametrize("value", ["null", "1e308", "-1", '"small"', "NaN"])
def test_an_error_that_can_be_none_is_refused(value: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.xray"
    quick("xray", "the cat sat", "-m", tiny_gpt2, "--flow", "--save", file)
    data = file.read_bytes()
    (text,) = re.findall(rb'\\"error\\": [0-9.e-]+\}, \\"neurons', data)
    new = b'\\"error\\": ' + value.replace('"', '\\"').encode() + b"}"
    new = new + b" " * (len(text) - len(new) - len(b', \\"neurons')) + b', \\"neurons'
    file.write_bytes(data.replace(text, new))
    done = quick("xray", file, "--flow")
    assert done.returncode == 4 and complaint(done)


def test_the_largest_shares_have_columns_where_not_all_have_room(tiny_gpt2: Path) -> None:
    scan = replace_shares(tiny_gpt2, last=[0.6, *[0.0] * 17, 0.1, 0.3])
    lines = theme.drawn(flow_view.draw(scan, 19, colour=False), colour=False, width=50).splitlines()
    (positions,) = (line.split()[1:] for line in lines if line.startswith("position  "))
    assert {"0", "18", "19"} < {*positions} and len(positions) < 20 and "the largest" in "\n".join(lines)
    around = theme.drawn(flow_view.draw(scan, 19, colour=False, cursor=9), colour=False, width=50).splitlines()
    (positions,) = (line.split()[1:] for line in around if line.startswith("position  "))
    assert "9" in positions and "0" not in positions


@pytest.mark.parametrize("book, kind", [(2, "against_rival"), (0, "over_mean"), (1, "over_mean")])
def test_a_trace_whose_ledgers_are_of_other_kinds_is_refused(
    book: int, kind: str, tiny_gpt2: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.xray"
    quick("xray", "the cat sat", "-m", tiny_gpt2, "--save", file)
    found = load_trace(file)
    books = [dataclasses.replace(b, **{kind: True}) if i == book else b for i, b in enumerate(found.books)]
    for some in (books, books[2:], [found.books[2]]):
        save_trace(dataclasses.replace(found, books=tuple(some)), file)
        done = quick("xray", file, "--ledger")
        assert done.returncode == 4 and "its ledgers are not those" in complaint(done)
    save_trace(dataclasses.replace(found, books=found.books[:2]), file)  # as before there was a third
    assert quick("xray", file, "--ledger").returncode == 0
    done = quick("xray", file, "--over-mean")
    assert done.returncode == 2 and "of a time before --over-mean" in complaint(done)


def test_a_ledger_is_over_one_thing(tiny_gpt2: Path) -> None:
    trace, ids = traced(load(str(tiny_gpt2)).decoder), torch.ones(N, dtype=torch.long)
    with pytest.raises(ValueError, match="two things"):
        ledger(trace, ids, ids + 1, over_mean=True)


def replace_shares(folder: Path, *, last: list[float]) -> Scan:
    """A scan of as many tokens, whose last vector is made of them in these shares."""
    checkpoint = load(str(folder))
    found = scan_of(checkpoint, run(checkpoint, prepare(checkpoint, IDS[: len(last)]), max_tokens=0))
    L, T = found.n_layer, len(last)
    rows = [[float(i == j) for j in range(T)] for i in range(T - 1)] + [last]
    table = Table("F16", (L, T, T), struct.pack(f"<{L * T * T}e", *(x for _ in range(L) for row in rows for x in row)))
    none = Table("F32", (L, T), bytes(4 * L * T))
    return dataclasses.replace(found, flow=Sources(shares=table, rollout=table, bias=none, error=0.0))


def test_a_text_too_long_is_refused_before_anything_is_computed(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "MOST", 10)
    monkeypatch.setattr("gptcli.scan.run", lambda *of, **more: pytest.fail("it was computed"))
    done = quick("xray", "the cat sat", "-m", tiny_gpt2, "--flow")
    assert done.returncode == 2 and "too many to keep" in complaint(done)


def test_a_trace_without_it_says_how_to_get_it(tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.xray"
    quick("xray", "the cat sat", "-m", tiny_gpt2, "--save", file)
    done: Any = quick("xray", file, "--flow")
    assert done.returncode == 2 and "this trace does not hold what --flow shows" in complaint(done)
