"""Wrong numbers that well-known tools have shown, put in on purpose: each must make a check fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from xray_checks import check_ablation, check_attention, check_ledger, check_lens, check_states, check_top
from zoo import built

from gptcli import Checkpoint, Decoder, Trace, load
from gptcli.whatif import Edits

Patch = pytest.MonkeyPatch


@pytest.fixture
def pair(zoo_root: Path, request: pytest.FixtureRequest) -> tuple[Checkpoint, Any]:
    folder, model = built(request.param, zoo_root)
    return load(str(folder)), model


def caught(check: Callable[[], None], bug: Callable[[], None]) -> None:
    """The check holds, and no longer when the bug is in."""
    check()
    bug()
    with pytest.raises(AssertionError):
        check()


def own_head(end: Decoder, x: Tensor) -> Tensor:
    weight = end.embed.weight if end.head.weight is None else end.head.weight
    return torch.nn.functional.linear(x, weight, end.head.bias)


def instead(bug: Callable[[Decoder, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A wrong function in the place of `scores`, which may be given room for its answer."""
    return lambda end, x, out=None, room=None: bug(end, x) if out is None else out.copy_(bug(end, x))


both_norms = pytest.mark.parametrize("pair", ["llama", "gpt2"], indirect=True)


@both_norms
def test_a_lens_without_the_final_norm(pair: tuple[Checkpoint, Any], monkeypatch: Patch) -> None:
    caught(lambda: check_lens(*pair), lambda: monkeypatch.setattr("gptcli.lens.scores", instead(own_head)))


@both_norms
def test_a_lens_that_norms_twice(pair: tuple[Checkpoint, Any], monkeypatch: Patch) -> None:
    def twice(end: Decoder, x: Tensor) -> Tensor:
        assert end.final_norm is not None
        return end.readout(end.final_norm(x))

    caught(lambda: check_lens(*pair), lambda: monkeypatch.setattr("gptcli.lens.scores", instead(twice)))


@both_norms
def test_the_final_layer_s_scale_for_every_layer(pair: tuple[Checkpoint, Any], monkeypatch: Patch) -> None:
    def frozen(end: Decoder, x: Tensor) -> Tensor:
        norm = end.final_norm
        assert norm is not None
        last, shift = x[-1], torch.zeros(())
        if norm.kind == "layer":
            x, last = x - x.mean(-1, keepdim=True), last - last.mean(-1, keepdim=True)
            shift = norm.bias
        scale = (last.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return own_head(end, x / scale * norm.weight + shift)

    caught(lambda: check_lens(*pair), lambda: monkeypatch.setattr("gptcli.lens.scores", instead(frozen)))


def test_layers_sorted_as_words(tmp_path: Path, monkeypatch: Patch) -> None:
    decoder = load(str(tiny.write_gpt2(tmp_path / "deep", n_layer=12))).decoder

    def as_words(trace: Trace, field: str) -> Tensor:
        layers = sorted(range(trace.config.n_layer), key=str)
        return torch.stack([torch.cat(trace._kept[field, i], -2) for i in layers])

    caught(lambda: check_states(decoder), lambda: monkeypatch.setattr(Trace, "_all", as_words))


@pytest.mark.parametrize("pair", ["gpt2"], indirect=True)
def test_a_ledger_without_the_constant(pair: tuple[Checkpoint, Any], monkeypatch: Patch) -> None:
    from gptcli import ledger

    true = ledger.through_norm

    def without(norm: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return true(norm, x, w)[0], torch.zeros(len(x))

    caught(lambda: check_ledger(pair[0].decoder), lambda: monkeypatch.setattr("gptcli.ledger.through_norm", without))


@both_norms
def test_a_mean_of_only_some_of_the_tokens(pair: tuple[Checkpoint, Any], monkeypatch: Patch) -> None:
    from gptcli import ledger

    true = ledger._mean
    caught(
        lambda: check_ledger(pair[0].decoder), lambda: monkeypatch.setattr("gptcli.ledger._mean", lambda x: true(x[7:]))
    )


@both_norms
def test_a_ledger_that_forgets_the_norm_s_gain(pair: tuple[Checkpoint, Any], monkeypatch: Patch) -> None:
    from gptcli import ledger

    true = ledger.through_norm

    def without(norm: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        d, const = true(norm, x, w / norm.weight)
        return d, const

    caught(lambda: check_ledger(pair[0].decoder), lambda: monkeypatch.setattr("gptcli.ledger.through_norm", without))


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
@pytest.mark.parametrize("where", ["attention", "ledger"])
def test_keys_and_values_of_shared_heads_laid_out_in_turns(
    pair: tuple[Checkpoint, Any], where: str, monkeypatch: Patch
) -> None:
    """`tile` (0 1 0 1) where it should be repeat_interleave (0 0 1 1)."""

    def tiled(k: Tensor, n_head: int) -> Tensor:
        return k.repeat(n_head // k.shape[0], 1, 1)

    def check() -> None:
        check_attention(*pair) if where == "attention" else check_ledger(pair[0].decoder)

    caught(check, lambda: monkeypatch.setattr(f"gptcli.{where}.shared", tiled))


def test_a_head_cut_after_the_output_matrix(tiny_gpt2: Path, monkeypatch: Patch) -> None:
    """There the bias is in the sum already, and goes with it."""
    decoder = load(str(tiny_gpt2)).decoder.double()

    def heads(edits: Edits, layer: int, q: Any, k: Any, v: Any, mask: Any, z: Tensor) -> Tensor:
        edits._z = z  # type: ignore[attr-defined]
        return z

    def write(edits: Edits, layer: int, part: str, x: Tensor) -> Tensor:
        for place in edits._ablate:
            if place.layer == layer and part == "attn":
                D, out = decoder.config.d_head, decoder.blocks[layer].attn.out  # type: ignore[union-attr]
                columns = slice(place.head * D, (place.head + 1) * D)
                x = x - torch.nn.functional.linear(edits._z[:, place.head], out.weight[:, columns], out.bias)  # type: ignore[attr-defined]
        return x

    def bug() -> None:
        monkeypatch.setattr(Edits, "heads", heads)
        monkeypatch.setattr(Edits, "write", write)

    caught(lambda: check_ablation(decoder), bug)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_best_tokens_of_scores_already_rounded(name: str, zoo_root: Path, monkeypatch: Patch) -> None:
    checkpoint = load(str(built(name, zoo_root)[0]), dtype="bfloat16")
    from gptcli import lens

    true = lens.scores

    def rounded(end: Decoder, x: Tensor) -> Tensor:
        return true(end, x).bfloat16().float()

    caught(lambda: check_top(checkpoint), lambda: monkeypatch.setattr("gptcli.lens.scores", instead(rounded)))
