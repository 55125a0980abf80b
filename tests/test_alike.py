"""Texts that are computed among others as they are alone, to the last bit; where they are not, it is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from test_batch import FAMILIES, SAMPLINGS, assert_as_alone, ragged, together
from torch import Tensor

from gptcli import Checkpoint, attend, batch, linear, load, model
from gptcli import alike as module
from gptcli.alike import alike
from gptcli.cache import Cache
from gptcli.generation import Request
from gptcli.rows import Rows

native = pytest.mark.skipif(
    linear.emulated(torch.bfloat16, "cpu"), reason="this processor has no instructions for bfloat16"
)


@pytest.fixture
def half(tiny_gpt2: Path) -> Checkpoint:
    return load(str(tiny_gpt2), dtype="bfloat16")


@native
@pytest.mark.parametrize("kind", [kind for kind in zoo.ZOO if kind.name in FAMILIES], ids=str)
def test_half_precision_gives_every_text_what_it_gets_alone(kind: zoo.Kind, zoo_root: Path) -> None:
    checkpoint = load(str(zoo.built(kind.name, zoo_root)[0]), dtype="bfloat16")
    assert alike(checkpoint, 5)
    assert_as_alone(checkpoint, ragged(12), batch=5, within=1e-5)


@native
def test_one_pass_serves_all_texts_and_none_is_computed_anew(half: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    stream = half.decoder.stream

    def counted(ids: Tensor, *more: Any) -> Tensor:
        sizes.append(len(ids))
        return stream(ids, *more)

    monkeypatch.setattr(batch, "alike", lambda *given: True)
    monkeypatch.setattr(half.decoder, "stream", counted)
    requests = [
        Request(prompt="hello", sampling=SAMPLINGS[i % 6], max_tokens=20, seed=i, ignore_eos=True) for i in range(8)
    ]
    assert all(len(steps) == 20 for steps in together(half, requests))
    assert sizes == [1] + [8] * 19  # near-ties, which half precision has everywhere, are no doubts


@native
def test_another_order_of_adding_is_noticed_in_half_precision(
    half: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alike(half, 8)
    half._found.clear()  # it is asked once
    monkeypatch.setattr(linear, "in_half", lambda *given: False)  # one vector as torch multiplies it
    assert not alike(half, 8)


@native
def test_another_attention_for_many_texts_is_noticed(half: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module.attend_plain

    def other(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
        order = torch.arange(k.shape[2]).flip(0) if len(q) > 1 else torch.arange(k.shape[2])
        return whole(q, k[:, :, order], v[:, :, order], scale, softcap)

    monkeypatch.setattr(module, "attend_plain", other)
    assert not alike(half, 8)


@native
def test_a_pass_that_gives_rows_other_numbers_is_noticed(half: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    readout = half.decoder.readout

    def other(x: Tensor) -> Tensor:
        scores = readout(x)
        return scores if len(x) == 1 else scores + scores.abs().max() * 2**-7

    monkeypatch.setattr(half.decoder, "readout", other)
    assert not alike(half, 8)


def test_where_it_is_not_so_half_precision_runs_one_text_after_another(
    half: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "alike", lambda *given: False)
    requests = ragged(6)
    sizes = list[int]()
    stream = half.decoder.stream
    monkeypatch.setattr(half.decoder, "stream", lambda ids, *more: (sizes.append(len(ids)), stream(ids, *more))[1])
    assert_as_alone(half, requests, within=0)
    assert set(sizes) == {1}


@pytest.mark.skipif(not linear.held_back("cpu"), reason="oneDNN multiplies float32 on this processor's rivals only")
def test_a_large_model_in_float32_gives_every_text_what_it_gets_alone(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not alike(load(str(tiny_gpt2)), 8)
    monkeypatch.setattr(model, "LARGE", 0)
    monkeypatch.setattr(linear, "SMALL", 0)
    checkpoint = load(str(tiny_gpt2))
    assert alike(checkpoint, 8)
    assert_as_alone(checkpoint, ragged(24), batch=8, within=1e-6)


@native
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_rounded_weights_give_every_text_what_it_gets_alone(bits: str, tiny_gpt2: Path) -> None:
    checkpoint = load(str(tiny_gpt2), quantize=bits, dtype="bfloat16")
    assert alike(checkpoint, 8)
    assert_as_alone(checkpoint, ragged(24), batch=8, within=1e-5)


def test_a_rounded_matrix_that_is_multiplied_otherwise_for_many_is_noticed(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MANY", 4)
    assert not alike(load(str(tiny_gpt2), quantize="int8", dtype="bfloat16"), 8)


def test_a_text_longer_than_plain_products_reach_is_what_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, half: Checkpoint
) -> None:
    monkeypatch.setattr(attend, "PLAIN", 6)
    config, ids = half.config, [5, 6, 7, 8, 9, 10, 11, 12]
    with torch.inference_mode():
        rows, alone = Rows(config, 4, dtype=half.dtype, apart=True), list[Tensor]()
        for row, n in enumerate((8, 8, 3, 8)):
            cache = Cache(config, 20, dtype=half.dtype)
            half.decoder.stream(torch.tensor([ids[:n]]), cache)
            rows.join(row, cache)
            alone.append(half.decoder(torch.tensor([[1]]), cache)[0])
        assert torch.equal(half.decoder(torch.tensor([[1]] * 4), rows)[:, 0], torch.cat(alone))


def test_a_large_model_that_may_say_anything_is_not_computed_with_doubts(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load(str(tiny_gpt2))
    monkeypatch.setattr(batch, "alike", lambda *given: False)
    assert batch._engine(checkpoint, 8, SAMPLINGS) is not None
    checkpoint.decoder.large = True
    assert batch._engine(checkpoint, 8, SAMPLINGS) is None
    assert batch._engine(checkpoint, 8, SAMPLINGS[:2]) is not None
