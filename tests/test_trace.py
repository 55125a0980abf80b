"""The trace: watching changes nothing, and what was seen is what was there, however the text was computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from xray_checks import IDS, KINDS, block_outputs, check_attention, check_states, traced
from zoo import Kind

import gptcli
from gptcli import Checkpoint, Sampling, Unsupported, UsageError, generate, load, xray
from gptcli.attention import role_scores, seen

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@every_kind
@torch.inference_mode()
def test_logits_with_the_tape_on_equal_those_without_bitwise(kind: Kind, ours: Checkpoint) -> None:
    ids = torch.tensor([IDS])
    trace = gptcli.Trace(ours.decoder)
    assert torch.equal(ours.decoder(ids, tape=trace), ours.decoder(ids))
    assert trace.n_positions == len(IDS)


@every_kind
def test_states_are_what_goes_from_block_to_block(kind: Kind, ours: Checkpoint) -> None:
    check_states(ours.decoder)


@every_kind
def test_the_middle_is_what_the_mlp_reads(kind: Kind, ours: Checkpoint) -> None:
    trace = traced(ours.decoder)
    if ours.config.parallel:
        with pytest.raises(Unsupported, match="same time"):
            _ = trace.resid_mid
        assert torch.equal(trace.resid_post[0], trace.resid_pre[0] + trace.attn_out[0] + trace.mlp_out[0])
        return
    block = ours.decoder.blocks[1]
    with torch.inference_mode():
        norm = None if ours.config.post_norm else block.mlp_norm
        write = block.mlp(norm(trace.resid_mid[1]) if norm else trace.resid_mid[1])
        write = block.mlp_out_norm(write) if block.mlp_out_norm else write
        write = write * ours.config.residual_scale
    assert differ(write, trace.mlp_out[1]) <= 1e-6


@every_kind
def test_patterns_are_transformers_eager_weights(kind: Kind, theirs: Any, ours: Checkpoint) -> None:
    check_attention(ours, theirs, stateful=kind.stateful)


@every_kind
def test_what_is_seen_token_by_token_is_what_is_seen_at_once(kind: Kind, ours: Checkpoint) -> None:
    """Across windows, and where longer texts have other frequencies and are computed anew."""
    trace, ids = gptcli.Trace(ours.decoder), IDS[:11]
    steps = generate(ours, ids, sampling=Sampling(temperature=0), max_tokens=14, ignore_eos=True, tape=trace)
    ids = ids + [step.id for step in steps][:-1]
    whole = traced(ours.decoder, ids)
    assert trace.n_positions == len(ids) == 24
    for field in ("embed", "attn_out", "mlp_out", "q", "k", "v", "z", "states", "pattern"):
        assert differ(getattr(trace, field), getattr(whole, field)) <= 1e-5, field


@torch.inference_mode()
def test_what_is_seen_token_by_token_in_float64(tiny_gpt2: Path) -> None:
    decoder = load(str(tiny_gpt2)).decoder.double()
    from gptcli.cache import Cache

    cache, trace = Cache(decoder.config, 30, dtype=torch.float64), gptcli.Trace(decoder)
    for portion in (IDS[:5], *([i] for i in IDS[5:])):
        decoder.stream(torch.tensor([portion]), cache, trace)
    whole = traced(decoder)
    for field in ("states", "z", "pattern"):
        assert differ(getattr(trace, field), getattr(whole, field)) <= 1e-12


def test_python_gets_tensors_by_their_names(tiny_gpt2: Path) -> None:
    checkpoint = load(str(tiny_gpt2))
    trace = xray(checkpoint, "hello there")
    T, c = len(trace.ids), checkpoint.config
    assert trace.resid_pre.shape == trace.resid_post.shape == trace.attn_out.shape == (c.n_layer, T, c.d_model)
    assert trace.mlp_out.shape == trace.resid_mid.shape == (c.n_layer, T, c.d_model)
    assert trace.pattern.shape == (c.n_layer, c.n_head, T, T)
    assert trace.resid_pre.numpy().dtype == "float32"
    assert torch.equal(xray(str(tiny_gpt2), list(trace.ids)).states, trace.states)
    assert xray(checkpoint, "").ids == (checkpoint.start_id,)


def test_an_empty_text_without_a_start_token_is_refused(tmp_path: Path) -> None:
    import json

    folder = tiny.write_gpt2(tmp_path / "none")
    (folder / "tokenizer_config.json").write_text(json.dumps({}))
    config = json.loads((folder / "config.json").read_text())
    del config["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="no start token"):
        xray(str(folder), "")


def test_a_batch_is_refused(tiny_gpt2: Path) -> None:
    decoder = load(str(tiny_gpt2)).decoder
    with pytest.raises(ValueError, match="batch of 2"):
        decoder(torch.tensor([[1, 2], [3, 4]]), tape=gptcli.Trace(decoder))


def test_layers_are_in_order_beyond_ten(tmp_path: Path) -> None:
    check_states(load(str(tiny.write_gpt2(tmp_path / "deep", n_layer=12))).decoder)


def test_hooks_see_the_blocks_of_both(tiny_gpt2: Path) -> None:
    decoder = load(str(tiny_gpt2)).decoder
    assert len(block_outputs(decoder, decoder.blocks, IDS)) == decoder.config.n_layer


def test_roles_of_patterns_that_are_nothing_else() -> None:
    first, n = 1, 6
    T = first + 2 * n
    patterns = torch.zeros(4, T, T)
    for i in range(T):
        patterns[0, i, max(0, i - 1)] = 1
        patterns[1, i, i - n if i >= first + n else i] = 1
        patterns[2, i, i - n + 1 if i >= first + n else i] = 1
        patterns[3, i, 0] = 1
    found = role_scores(patterns, first, n)
    for head, role in enumerate(("previous", "duplicate", "induction", "sink")):
        assert [float(found[role][h]) for h in range(4)] == pytest.approx(
            [float(h == head) if role != "sink" else {0: 1 / (T - 1), 3: 1.0}.get(h, 0.0) for h in range(4)]
        )


def test_what_a_window_hides() -> None:
    assert seen(4, 2).tolist() == [
        [True, False, False, False], [True, True, False, False], [False, True, True, False], [False, False, True, True],
    ]  # fmt: skip
    assert torch.equal(seen(4, None), torch.ones(4, 4).tril().bool())


def test_a_trace_without_heads_has_the_same_states_and_nothing_of_the_heads(tiny_gpt2: Path) -> None:
    checkpoint = gptcli.load(str(tiny_gpt2))
    found = []
    for heads in (True, False):
        trace = gptcli.Trace(checkpoint.decoder, heads=heads)
        with torch.inference_mode():
            checkpoint.decoder.stream(torch.tensor([IDS]), None, trace)
        found.append(trace)
    assert torch.equal(found[0].states, found[1].states) and found[0].z.numel()
    for ask in (lambda: found[1].z, lambda: found[1].pattern):
        with pytest.raises(Unsupported, match="without the heads"):
            ask()
