"""The lens and the ledger against transformers' own modules, closed forms, and themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from xray_checks import IDS, KINDS, SUMS, check_attention, check_ledger, check_lens, check_states, check_top, traced
from zoo import Kind, built

from gptcli import Checkpoint, Config, Decoder, Layer, Unsupported, load
from gptcli import divergence as d
from gptcli.ledger import ledger
from gptcli.lens import depth, disagreement, end_of, norms, read, scores
from gptcli.quantize import whole


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_layer_is_read_as_transformers_own_modules_read_it(kind: Kind, theirs: Any, ours: Checkpoint) -> None:
    check_lens(ours, theirs, stateful=kind.stateful)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.inference_mode()
def test_the_lens_of_the_last_layer_is_the_logits(kind: Kind, ours: Checkpoint) -> None:
    x = ours.decoder.stream(torch.tensor([IDS]))[0]
    assert disagreement(ours.decoder, traced(ours.decoder).states[-1], x) == 0.0


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_the_ledger_adds_up(kind: Kind, ours: Checkpoint) -> None:
    check_ledger(ours.decoder)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])  # one head shares the embedding's numbers, one has its own
def test_a_rounded_head_is_not_read_as_if_it_were_the_embedding(name: str, zoo_root: Path) -> None:
    checkpoint = load(str(built(name, zoo_root)[0]), quantize="int8")
    trace = traced(checkpoint.decoder)
    with pytest.raises(Unsupported, match="rounded"):
        read(checkpoint.decoder, trace.states)
    with pytest.raises(Unsupported, match="rounded"):
        ledger(trace, torch.zeros(len(IDS), dtype=torch.long))
    whole(checkpoint.decoder)
    x = checkpoint.decoder.stream(torch.tensor([IDS]))[0]
    assert disagreement(checkpoint.decoder, traced(checkpoint.decoder).states[-1], x) == 0.0


def test_a_model_whose_stream_is_no_sum_has_no_ledger_but_a_lens(zoo_root: Path) -> None:
    decoder = load(str(built("opt-350m", zoo_root)[0])).decoder
    ids = torch.zeros(len(IDS), dtype=torch.long)
    with pytest.raises(Unsupported, match="no running sum"):
        ledger(traced(decoder), ids)
    assert read(decoder, traced(decoder).states).ids.shape == (decoder.config.n_layer + 1, len(IDS), 5)


def test_the_ledger_of_an_embedding_of_another_width() -> None:
    config = Config(
        n_vocab=300, n_ctx=40, d_model=32, n_head=4, n_kv_head=2, d_head=8, d_ff=64, d_embed=16, norm_bias=True,
        tied=True, learned_positions=True, qkv_bias=True, out_bias=True, mlp_bias=True, logit_scale=0.7,
        layers=(Layer(scale=0.3),) * 2,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = Decoder(config)
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.4)
    check_ledger(decoder.eval())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_read_in_float32_whatever_the_dtype(zoo_root: Path, dtype: torch.dtype) -> None:
    for name in ("gemma2", "llama", "gpt2"):
        checkpoint = load(str(built(name, zoo_root)[0]), dtype=str(dtype).removeprefix("torch."))
        check_top(checkpoint)
        trace = traced(checkpoint.decoder)
        with torch.inference_mode():
            x = checkpoint.decoder.stream(torch.tensor([IDS]))[0]
        assert torch.equal(trace.states[-1], x)
        assert 0 < disagreement(checkpoint.decoder, trace.states[-1], x) <= (1e-2 if dtype == torch.bfloat16 else 5e-3)
        target = torch.arange(len(IDS))
        book = ledger(trace, target, target + 1)
        assert book.names[-1] == "rounding" and book.relative_error <= 1e-5
        assert checkpoint.dtype == dtype  # the model itself was left as it is


def test_chunks_make_no_difference(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, ids = load(str(tiny_gpt2)).decoder, torch.tensor(IDS)[:, None]
    states = traced(decoder).states
    whole = read(decoder, states, watch=ids)
    monkeypatch.setattr("gptcli.lens.CHUNK", 2 * 3 * decoder.config.n_vocab)
    parts = read(decoder, states, watch=ids)
    for field in ("ids", "rank"):
        assert torch.equal(getattr(whole, field), getattr(parts, field))
    for field in ("logprobs", "entropy", "kl", "watched"):
        assert (getattr(whole, field) - getattr(parts, field)).abs().max() <= 1e-5


def test_rows_between_are_measured_against_the_last_state(tiny_gpt2: Path) -> None:
    decoder = load(str(tiny_gpt2)).decoder
    trace = traced(decoder)
    whole = read(decoder, trace.states)
    part = read(decoder, trace.states[:2], final=trace.states[-1])
    assert (part.kl - whole.kl[:2]).abs().max() <= 1e-5
    assert (part.entropy - whole.entropy[:2]).abs().max() <= 1e-5


def test_padding_is_in_the_softmax_and_not_in_the_list(tiny_gpt2: Path) -> None:
    decoder = load(str(tiny_gpt2)).decoder
    states = traced(decoder).states
    with torch.inference_mode():
        logprobs = scores(end_of(decoder), states).log_softmax(-1)
    found = read(decoder, states, size=50, top=50)
    assert int(found.ids.max()) == 49
    assert (found.logprobs - logprobs[..., :50].sort(-1, descending=True).values).abs().max() <= 1e-5
    assert read(decoder, states, size=50, top=99).ids.shape[-1] == 50
    ids = torch.arange(len(IDS))[:, None]
    with torch.inference_mode():
        z = scores(end_of(decoder), states)
    above = z[..., :50] > z.gather(-1, ids.expand(len(z), -1, -1))
    ranks = read(decoder, states, watch=ids, size=50).rank[..., 0]
    assert torch.equal(ranks, 1 + above.sum(-1)) and not torch.equal(
        ranks, read(decoder, states, watch=ids).rank[..., 0]
    )


def test_depth_is_the_first_row_from_which_on_the_answer_stands() -> None:
    best = torch.tensor([[7, 1, 1, 1], [1, 1, 2, 1], [1, 7, 1, 2], [1, 1, 1, 3]])
    assert depth(best, torch.tensor([1, 1, 1, 1])).tolist() == [1, 3, 2, 4]
    assert depth(best[:, :1], torch.tensor([9])).tolist() == [4]


def test_norms_and_angles(zoo_root: Path) -> None:
    for name in ("llama", "gpt_neox"):
        trace = traced(load(str(built(name, zoo_root)[0])).decoder)
        found = norms(trace)
        i, t = 2, 5
        mid = trace.resid_pre[i, t] if trace.config.parallel else trace.resid_mid[i, t]
        write = trace.mlp_out[i, t]
        assert float(found.mlp[i, t]) == pytest.approx(float(write.square().sum().sqrt()), rel=1e-5)
        assert float(found.mlp_cos[i, t]) == pytest.approx(float(write @ mid / write.norm() / mid.norm()), abs=1e-5)
        assert float(found.states[i, t]) == pytest.approx(float(trace.resid_pre[i, t].norm()), rel=1e-5)
        attn = trace.attn_out[i, t]
        cos = float(attn @ trace.resid_pre[i, t] / attn.norm() / trace.resid_pre[i, t].norm())
        assert float(found.attn_cos[i, t]) == pytest.approx(cos, abs=1e-5)


def test_all_of_it_on_real_weights(stories15m: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = load(str(stories15m), dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(stories15m, dtype=torch.float32, attn_implementation="eager").eval()
    check_states(checkpoint.decoder)
    check_lens(checkpoint, model)
    check_attention(checkpoint, model)
    check_ledger(checkpoint.decoder)


# --- divergences -----------------------------------------------------------------------------------------------------


def test_divergences_are_torch_s_and_within_their_bounds() -> None:
    torch.manual_seed(1)
    p, q = ((torch.randn(50, 40, dtype=torch.float64) * 6).log_softmax(-1) for _ in range(2))
    P, Q, M = Categorical(logits=p), Categorical(logits=q), Categorical(probs=(p.exp() + q.exp()) / 2)
    assert (d.entropy(p) - P.entropy()).abs().max() <= 1e-12
    assert (d.kl(p, q) - kl_divergence(P, Q)).abs().max() <= 1e-11
    js = (kl_divergence(P, M) + kl_divergence(Q, M)) / 2
    assert (d.js(p, q) - js).abs().max() <= 1e-12
    assert (d.js(p, q) - d.js(q, p)).abs().max() <= 1e-12
    assert bool((d.js(p, q) >= 0).all()) and bool((d.js(p, q) <= math.log(2) + 1e-12).all())
    assert (d.total_variation(p, q) - (p.exp() - q.exp()).clamp(min=0).sum(-1)).abs().max() <= 1e-12


def test_divergences_of_distributions_one_can_do_by_hand() -> None:
    half = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    other = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    apart = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).log()
    assert float(d.entropy(half)) == pytest.approx(math.log(2))
    assert float(d.kl(half, other)) == pytest.approx(math.log(2))
    assert float(d.kl(other, half)) == math.inf
    assert float(d.js(half, apart)) == pytest.approx(math.log(2))
    assert float(d.total_variation(half, apart)) == pytest.approx(1.0)
    assert float(d.kl(half, half)) == float(d.js(half, half)) == 0.0


def test_a_lens_of_nothing_but_nan_is_no_lens(tiny_gpt2: Path) -> None:
    """Python's max(0.0, nan) is 0.0: a check that takes it would pass."""
    decoder = load(str(tiny_gpt2)).decoder
    true = traced(decoder).states[-1]
    assert disagreement(decoder, true, true) == 0
    assert math.isnan(disagreement(decoder, true * math.nan, true))
