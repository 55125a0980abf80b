"""What if: an edit changes what it names and nothing else, also in a cached generation; effects are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from xray_checks import IDS, SUMS, check_ablation, traced
from zoo import Kind, built

from gptcli import Checkpoint, Sampling, Trace, Unsupported, UsageError, generate, load, xray
from gptcli.ledger import head_ledger, ledger, refusal
from gptcli.lens import end_of, scores
from gptcli.occlusion import neutral_token, occlusion
from gptcli.places import (
    Look,
    Patch,
    Place,
    check_look,
    check_place,
    check_position,
    read_ablation,
    read_patch,
    read_place,
)
from gptcli.trace import Editor
from gptcli.whatif import Edits, Exchange, covering, direct_effect, effect, mean, sweep


@pytest.fixture
def checkpoint(tiny_gpt2: Path) -> Checkpoint:
    return load(str(tiny_gpt2))


def test_a_head_is_cut_at_the_input_of_the_output_matrix(checkpoint: Checkpoint) -> None:
    checkpoint.decoder.double()
    check_ablation(checkpoint.decoder)


@pytest.mark.parametrize("kind", SUMS, ids=str)
@torch.inference_mode()
def test_switching_off_takes_exactly_the_part_away(kind: Kind, ours: Checkpoint) -> None:
    decoder = ours.decoder
    before = traced(decoder)
    for text in ("L1.mlp", "L2.attn", "L1"):
        place = read_place(text)
        after = traced(decoder, edits=Edits(decoder, [place]))
        i = place.layer
        assert torch.equal(after.resid_pre[i], before.resid_pre[i])
        off = {"mlp": (False, True), "attn": (True, False), "layer": (True, True)}[place.part]
        assert (not bool(after.attn_out[i].any()), not bool(after.mlp_out[i].any())) == off
        if place.part == "layer":
            assert torch.equal(after.resid_post[i], after.resid_pre[i])
    head = traced(decoder, edits=Edits(decoder, [Place(layer=0, part="head", head=3)]))
    assert not bool(head.z[0, 3].any()) and torch.equal(head.z[0, :3], before.z[0, :3])


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_edits_hold_in_cached_generation_as_in_the_whole_text(kind: Kind, ours: Checkpoint) -> None:
    """Windows and longer frequencies included: what is cut is cut at every token, what is exchanged at its position."""
    places = [read_place("L1H2"), read_place("L2.mlp")]
    means = traced(ours.decoder, IDS[:11])
    other = traced(ours.decoder, IDS[3:14])

    def edits() -> Edits:
        exchange = Exchange(place=read_place("L0"), position=12, other=other, other_position=4)
        return Edits(ours.decoder, places, [exchange], means=means)

    trace = Trace(ours.decoder, edits=edits())
    steps = generate(ours, IDS[:11], sampling=Sampling(temperature=0), max_tokens=9, ignore_eos=True, tape=trace)
    ids = IDS[:11] + [step.id for step in steps][:-1]
    whole = traced(ours.decoder, ids, edits())
    assert (trace.states[-1] - whole.states[-1]).abs().max() <= 1e-5 * whole.states[-1].abs().max()
    theirs, ours_ = other.states[1, 4], whole.states[1, 12]
    assert (ours_ - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_patch_at_the_last_layer_is_the_other_prediction(checkpoint: Checkpoint) -> None:
    a, b = xray(checkpoint, "hello there"), xray(checkpoint, "the other one")
    last = checkpoint.config.n_layer - 1
    for place, field in (("L0H1", "z"), ("L1.attn", "attn_out"), ("L1.mlp", "mlp_out")):
        exchange = Exchange(place=read_place(place), position=2, other=b, other_position=3)
        edited = traced(checkpoint.decoder, list(a.ids), Edits(checkpoint.decoder, (), [exchange]))
        at = (0, 1) if field == "z" else (1,)
        assert torch.equal(getattr(edited, field)[(*at, 2)], getattr(b, field)[(*at, 3)])
        assert torch.equal(getattr(edited, field)[(*at, 1)], getattr(a, field)[(*at, 1)])
    exchange = Exchange(
        place=Place(layer=last, part="layer"), position=len(a.ids) - 1, other=b, other_position=len(b.ids) - 1
    )
    edited = traced(checkpoint.decoder, list(a.ids), Edits(checkpoint.decoder, (), [exchange]))
    assert (edited.states[-1, -1] - b.states[-1, -1]).abs().max() <= 1e-6 * b.states[-1].abs().max()
    assert torch.equal(edited.states[-1, :-1], a.states[-1, :-1])


def test_a_layer_of_a_model_whose_stream_is_no_sum_cannot_be_exchanged(zoo_root: Path) -> None:
    decoder = load(str(built("opt-350m", zoo_root)[0])).decoder
    trace = traced(decoder)
    exchange = Exchange(place=Place(layer=1, part="layer"), position=1, other=trace, other_position=1)
    with pytest.raises(Unsupported, match="cannot be exchanged"):
        Edits(decoder, (), [exchange])
    assert bool(traced(decoder, edits=Edits(decoder, [read_place("L1.mlp")])).mlp_out[1].any()) is False


def test_means_leave_out_position_0(checkpoint: Checkpoint) -> None:
    trace = traced(checkpoint.decoder)
    edited = traced(checkpoint.decoder, edits=Edits(checkpoint.decoder, [read_place("L1.mlp")], means=trace))
    expected = trace.mlp_out[1, 1:].mean(0)
    assert all(torch.equal(row, expected) for row in edited.mlp_out[1])
    assert float(mean(torch.tensor([5.0]))) == 5.0


def test_an_effect_is_the_difference_of_two_runs(checkpoint: Checkpoint) -> None:
    place = read_place("L1H0")
    a = traced(checkpoint.decoder)
    b = traced(checkpoint.decoder, edits=Edits(checkpoint.decoder, [place]))
    with torch.inference_mode():
        x, y = (t.states[-1, -1] for t in (a, b))
        p, q = (scores(end_of(checkpoint.decoder), s).double().log_softmax(-1) for s in (x, y))
    target, rival = (int(i) for i in p.topk(2).indices)
    found = effect(checkpoint, a, b, target, rival)
    assert found.logprob == pytest.approx((float(p[target]), float(q[target])), abs=1e-5)
    assert found.rank == (1, 1 + int((q > q[target]).sum()))
    assert found.best == (target, int(q.argmax()))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5) and found.kl > 1e-4
    assert found.lead[1] == pytest.approx(float(q[target] - q[rival]), abs=1e-4)
    middle = ((p.exp() + q.exp()) / 2).log()
    assert found.js == pytest.approx(float((p.exp() * (p - middle) + q.exp() * (q - middle)).sum()) / 2, abs=1e-6)
    assert found.moved == pytest.approx(float((q.exp() - p.exp()).clamp(min=0).sum()), abs=1e-6) and found.moved > 1e-3


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_the_direct_effect_is_what_the_ledger_lacks(kind: Kind, ours: Checkpoint) -> None:
    """By the definition: the part's row of the ledger, taken away, or exchanged for the mean's."""
    trace = traced(ours.decoder)
    ids = torch.full((len(IDS),), 5)
    book = ledger(trace, ids, ids + 1)
    scale = float(book.parts[:, -1].abs().sum())
    row = {name: float(book.parts[i, -1]) for i, name in enumerate(book.names)}
    places = [read_place(p) for p in ("L1.mlp", "L2", "L2H1", "L2.attn", "L1.mlp")]
    expected = -row["L1 mlp"] - row["L2 attn"] - row["L2 mlp"]
    assert direct_effect(trace, places, 5, 6, to_mean=False) == pytest.approx(expected, abs=1e-5 * scale)
    heads = [Place(layer=3, part="head", head=h) for h in range(ours.config.n_head)]
    every = [direct_effect(trace, [head], 5, 6, to_mean=True) or 0.0 for head in heads]
    assert direct_effect(trace, heads, 5, 6, to_mean=True) == pytest.approx(sum(every), abs=1e-5 * scale)
    to_mean = float((trace.mlp_out[0, 1:].mean(0) - trace.mlp_out[0, -1]).float() @ book.direction[-1])
    assert direct_effect(trace, [read_place("L0.mlp")], 5, 6, to_mean=True) == pytest.approx(to_mean, abs=1e-5 * scale)


@pytest.mark.parametrize("to_mean", [False, True])
@pytest.mark.parametrize("what", ["heads", "mlps"])
def test_a_sweep_is_every_part_by_itself(
    checkpoint: Checkpoint, what: str, to_mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = traced(checkpoint.decoder)
    monkeypatch.setattr("gptcli.whatif.TOKENS", 3 * len(IDS))  # three at once
    found = sweep(checkpoint, trace, what, 7, 8, to_mean=to_mean)  # type: ignore[arg-type]
    assert found.direct is not None
    for i in range(checkpoint.config.n_layer):
        for h in range(checkpoint.config.n_head if what == "heads" else 1):
            place = Place(layer=i, part="head", head=h) if what == "heads" else Place(layer=i, part="mlp")
            edits = Edits(checkpoint.decoder, [place], means=trace if to_mean else None)
            one = effect(checkpoint, trace, traced(checkpoint.decoder, edits=edits), 7, 8)
            assert float(found.logprob[i, h]) == pytest.approx(one.logprob[1] - one.logprob[0], abs=1e-4)
            assert float(found.lead[i, h]) == pytest.approx(one.lead[1] - one.lead[0], abs=1e-4)
            assert int(found.best[i, h]) == one.best[1]
            direct = direct_effect(trace, [place], 7, 8, to_mean=to_mean)
            assert float(found.direct[i, h]) == pytest.approx(direct, abs=1e-4)
    assert found.logprob.shape == (checkpoint.config.n_layer, checkpoint.config.n_head if what == "heads" else 1)


def test_occlusion_is_the_difference_of_the_two_texts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.occlusion.TOKENS", 4 * len(IDS))
    neutral = neutral_token(checkpoint)
    assert checkpoint.tokenizer.raw(neutral) == b" "
    found = occlusion(checkpoint, tuple(IDS), 9, neutral)
    whole = float(checkpoint.decoder(torch.tensor([IDS]))[0, -1].log_softmax(-1)[9])
    for i in (0, 7, len(IDS) - 1):
        without = [*IDS[:i], neutral, *IDS[i + 1 :]]
        p = float(checkpoint.decoder(torch.tensor([without]))[0, -1].log_softmax(-1)[9])
        assert float(found[i]) == pytest.approx(whole - p, abs=1e-4)


# --- how places are written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["L9H4", "L7.mlp", "L7.attn", "L3"])
def test_places_are_read_as_they_are_written(text: str) -> None:
    assert str(read_place(text)) == str(read_place(text.lower())) == text


@pytest.mark.parametrize("text", ["", "9", "H4", "L", "L1H", "L1.out", "L1.H2", "L-1", "L1H2 L3", "L99999999"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a place"):
        read_place(text)


def test_patches_are_read_as_they_are_written() -> None:
    assert read_patch('"a @ b: c"@L5:-1') == Patch(text="a @ b: c", place=read_place("L5"), position=-1)
    assert read_patch("The dog@L2H3") == Patch(text="The dog", place=read_place("L2H3"), position=-1)
    assert read_patch("x@L2.mlp:+4").position == 4
    for text in ("no place", "x@y", "x@L1:", "x@L1:two"):
        with pytest.raises(UsageError, match="--patch"):
            read_patch(text)


def test_a_layer_a_head_or_a_token_that_is_not_there_is_told_the_range() -> None:
    check_place(read_place("L3H2"), n_layer=4, n_head=3)
    with pytest.raises(UsageError, match="no layer 4: this model's are L0 to L3"):
        check_place(read_place("L4"), n_layer=4, n_head=3)
    with pytest.raises(UsageError, match="no head 3 in layer 1: the heads are H0 to H2"):
        check_place(read_place("L1H3"), n_layer=4, n_head=3)
    assert [check_position(i, 5, option="--token") for i in (0, 4, -1, -5)] == [0, 4, 4, 0]
    for i in (5, -6):
        with pytest.raises(UsageError, match=f"--token {i} is out of range: tokens are 0 to 4"):
            check_position(i, 5, option="--token")


def test_edits_say_where_they_act_and_another_tape_says_nothing(checkpoint: Checkpoint) -> None:
    class Plain:
        def start(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def heads(self, layer: int, q: Any, k: Any, v: Any, mask: Any, z: torch.Tensor) -> torch.Tensor:
            return z

        def write(self, layer: int, part: str, x: torch.Tensor) -> torch.Tensor:
            return x

    before = traced(checkpoint.decoder)
    exchanges = [
        Exchange(place=read_place(place), position=5, other=before, other_position=2) for place in ("L0.attn", "L0H2")
    ]
    looks = [look("L1H0:9/4=0")]
    edits = Edits(checkpoint.decoder, [read_place("L1H3"), read_place("L1.attn")], exchanges, looks=looks)
    found, plain = traced(checkpoint.decoder, edits=edits), traced(checkpoint.decoder, edits=Plain())
    assert isinstance(edits, Editor) and not isinstance(Plain(), Editor)
    assert found.overwritten(0).nonzero().flatten().tolist() == [5] and bool(found.overwritten(1).all())
    assert found.replaced(0).nonzero().tolist() == [[2, 5]]
    assert found.replaced(1).any(1).tolist() == [False, False, False, True]
    assert float(found.pattern_of(1)[0, 9, 4]) == 0 < float(plain.pattern_of(1)[0, 9, 4])
    assert not any(bool(t.overwritten(i).any() or t.replaced(i).any()) for t in (before, plain) for i in range(2))


def test_an_effect_s_rank_does_not_count_padding(tmp_path: Path) -> None:
    checkpoint = load(str(tiny.write_padded(tmp_path / "padded")))
    counted = 0
    for start in range(6):
        trace = traced(checkpoint.decoder, IDS[start : start + 8])
        with torch.inference_mode():
            z = checkpoint.decoder.readout(trace.states[-1, -1])
        best = int(z[:267].argmax())
        assert effect(checkpoint, trace, trace, best, 3).rank == (1, 1)
        counted += int((z > z[best]).sum())
    assert counted > 0


def test_a_place_inside_another_counts_once() -> None:
    places = [read_place(p) for p in ("L1H0", "L1.attn", "L2.mlp", "L2", "L3H1", "L3H1", "L3.mlp")]
    assert [str(p) for p in covering(places)] == ["L1.attn", "L2", "L3H1", "L3.mlp"]


# --- looks -----------------------------------------------------------------------------------------------------------


def look(text: str) -> Look:
    found = read_ablation(text)
    assert isinstance(found, Look)
    return found


@pytest.mark.parametrize("after", ["", "=0"])
@pytest.mark.parametrize("kind", SUMS, ids=str)
@torch.inference_mode()
def test_a_forbidden_look_leaves_its_share_to_the_others_and_one_that_is_set_to_0_does_not(
    kind: Kind, ours: Checkpoint, after: str
) -> None:
    """What the head gathers is what its own pattern gathers with that place struck out, and the row made 1 again."""
    decoder, c = ours.decoder, ours.config
    before = traced(decoder)
    pattern = before.pattern_of(1)[2]
    i = 3 + int(pattern[3:].amax(-1).argmin())  # the token whose looks are spread the most
    a, b = pattern[i].topk(2).indices.tolist()
    looks = [look(f"L1H2:{i}/{a}{after}"), look(f"L1H2:{i}/{b}{after}")]
    found = traced(decoder, edits=Edits(decoder, looks=looks))
    weights = pattern[i].clone()
    weights[[a, b]] = 0
    weights /= 1.0 if after else weights.sum()
    values = before.v[1].repeat_interleave(c.n_head // c.n_kv_head, 0)[2]
    torch.testing.assert_close(found.z[1, 2, i], weights @ values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.pattern_of(1)[2, i], weights, rtol=1e-3, atol=1e-6)
    same = torch.ones_like(before.z[1], dtype=torch.bool)
    same[2, i] = False
    assert torch.equal(found.z[1][same], before.z[1][same]) and torch.equal(found.z[0], before.z[0])
    assert not torch.allclose(found.z[1, 2, i], before.z[1, 2, i])


@pytest.mark.parametrize("kind", SUMS, ids=str)
@torch.inference_mode()
def test_looks_are_forbidden_in_cached_generation_as_in_the_whole_text(kind: Kind, ours: Checkpoint) -> None:
    looks = [look("L0.attn:/1"), look("L1H1:9/8"), look("L1H1:9/7=0"), look("L2H0:12/3"), look("L2.attn:/4=0")]
    trace = Trace(ours.decoder, edits=Edits(ours.decoder, looks=looks))
    steps = generate(ours, IDS[:8], sampling=Sampling(temperature=0), max_tokens=8, ignore_eos=True, tape=trace)
    whole = traced(ours.decoder, IDS[:8] + [step.id for step in steps][:-1], Edits(ours.decoder, looks=looks))
    assert (trace.states[-1] - whole.states[-1]).abs().max() <= 1e-5 * whole.states[-1].abs().max()
    row = whole.pattern_of(0)[:, 1:, 1]
    assert bool((row[:, 1:] == 0).all()) and bool((row[:, 0] > 0).all())  # a token may look at itself


@pytest.mark.parametrize("kind", SUMS, ids=str)
@torch.inference_mode()
def test_the_direct_effect_of_a_look_is_what_the_head_wrote_otherwise(kind: Kind, ours: Checkpoint) -> None:
    """In the last layer's attention, with the layer's own MLP held as it was, nothing but that write changes."""
    if refusal(ours.decoder) or ours.config.post_norm:
        pytest.skip("no ledger")
    decoder, i = ours.decoder, ours.config.n_layer - 1
    before = traced(decoder)
    looks = [look(f"L{i}H1:{before.n_positions - 1}/{before.n_positions - 2}")]
    after = traced(decoder, edits=Edits(decoder, looks=looks))
    direct = direct_effect(before, (), 3, 5, to_mean=False, looks=looks)
    d = ledger(before, torch.full((before.n_positions,), 3), torch.full((before.n_positions,), 5)).direction[-1]
    wrote = (after.attn_out[i, -1] - before.attn_out[i, -1]) @ d
    if not decoder.blocks[i].attn_out_norm:  # whose divisor changes with what it norms
        assert direct == pytest.approx(float(wrote), rel=1e-3, abs=1e-5)
    assert direct_effect(before, [read_place(f"L{i}.attn")], 3, 5, to_mean=False, looks=looks) == direct_effect(
        before, [read_place(f"L{i}.attn")], 3, 5, to_mean=False
    )


@pytest.mark.parametrize("kind", SUMS, ids=str)
@torch.inference_mode()
def test_the_direct_effect_of_a_look_set_to_0_is_its_line_in_the_ledger(kind: Kind, ours: Checkpoint) -> None:
    trace = traced(ours.decoder)
    T = trace.n_positions
    d = ledger(trace, torch.full((T,), 3), torch.full((T,), 5)).direction
    for i in range(ours.config.n_layer):
        direct = direct_effect(trace, (), 3, 5, to_mean=False, looks=[look(f"L{i}H2:{T - 1}/{T - 3}=0")])
        part = float(head_ledger(trace, i, d).sources[2, -1, -3])
        assert direct == pytest.approx(-part, rel=1e-3, abs=1e-5)


def test_a_look_at_itself_can_be_set_to_0_where_there_is_no_other(checkpoint: Checkpoint) -> None:
    first = check_look(look("L1H0:0/0=0"), 5)
    found = traced(checkpoint.decoder, edits=Edits(checkpoint.decoder, looks=[first]))
    assert not bool(found.z[1, 0, 0].any()) and bool(found.z[1, 1, 0].any())


def test_looks_are_read_as_they_are_written() -> None:
    for text in ("L9H4:7/2", "L9H4:-1/0", "L7.attn:/3", "L9H4:7/2=0"):
        assert str(read_ablation(text)) == text
    assert look("l9h4:+7/-3") == Look(place=read_place("L9H4"), position=7, source=-3)
    for text, words in {
        "L3:7/2": "only heads look",
        "L3.mlp:7/2": "only heads look",
        "L3H1:7": "not a place",
        "L3H1:7/2=1": "not a place",
    }.items():
        with pytest.raises(UsageError, match=words):
            read_ablation(text)


def test_a_look_that_cannot_be_is_refused() -> None:
    assert str(check_look(look("L1H0:-1/-3"), 5)) == "L1H0:4/2"
    for text, words in {
        "L1H0:2/3": "does not see",
        "L1H0:0/0": "nothing else",
        "L1H0:9/0": "out of range",
        "L1H0:/9": "range",
    }.items():
        with pytest.raises(UsageError, match=words):
            check_look(look(text), 5)
