"""Many texts through a pass that gives each the numbers it has alone: then all of each is what it is alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from test_batch import GREEDY, alone, assert_as_alone, ragged, together

from gptcli import Checkpoint, GptcliError, Sampling, load
from gptcli.cache import Cache
from gptcli.generation import Request
from gptcli.linear import FEW, exact

FAMILIES = ("gpt2", "gpt_neo", "mistral", "gemma2-capped-hard", "qwen3-slides", "llama-dynamic", "phi3-longrope")


class EachAlone:
    """The compiled pass as it should be, from the decoder's own passes of one token."""

    def __init__(self, model: Checkpoint) -> None:
        self.model, self.n = model, 0

    def of_texts(self, ids: Sequence[int], caches: Sequence[Cache]) -> torch.Tensor:
        self.n += 1
        assert len(ids) == len(caches) == len(set(map(id, caches))) and len(ids) % FEW == 0
        decoder = self.model.decoder
        return torch.cat(
            [
                decoder.readout(decoder.stream(torch.tensor([[each]]), cache))[0].float()
                for each, cache in zip(ids, caches, strict=True)
            ]
        )


@pytest.fixture
def few(ours: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> EachAlone:
    """In bfloat16, where batches take this way."""
    found = EachAlone(load(str(ours.folder), dtype="bfloat16"))
    monkeypatch.setattr(Checkpoint, "few_tokens", lambda self: found)
    return found


gpt2 = pytest.mark.parametrize("kind", [kind for kind in zoo.ZOO if kind.name == "gpt2"], ids=str)


@pytest.mark.parametrize("kind", [kind for kind in zoo.ZOO if kind.name in FAMILIES], ids=str)
@pytest.mark.parametrize("batch", [5, pytest.param(32, marks=pytest.mark.slow)])
def test_every_text_is_what_it_is_alone_in_bfloat16(few: EachAlone, batch: int) -> None:
    assert_as_alone(few.model, ragged(24), batch=batch, within=1e-5)
    dynamic = any(layer.rope and layer.rope.kind == "dynamic" for layer in few.model.config.layers)
    assert few.n > 3 or dynamic


@gpt2
def test_full_contexts_end_or_slide_beside_others(few: EachAlone) -> None:
    requests = [
        Request(prompt="hello", max_tokens=90, seed=i, ignore_eos=True, overflow="slide" if i % 2 else "error")
        for i in range(6)
    ]
    found = together(few.model, requests)
    assert [steps[-1].finish for steps in found] == ["context", "length"] * 3
    assert sum(step.n_dropped > 0 for step in found[1]) >= 1
    assert_as_alone(few.model, requests, within=1e-5)


@gpt2
def test_one_prompt_is_computed_once_and_its_cache_is_everybody_s_own(
    few: EachAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, stream = list[int](), few.model.decoder.stream

    def counted(ids: torch.Tensor, *more: Any) -> torch.Tensor:
        passes.append(ids.shape[1])
        return stream(ids, *more)

    monkeypatch.setattr(few.model.decoder, "stream", counted)
    requests = [Request(prompt=[5, 6, 7, 8], max_tokens=9, seed=i, ignore_eos=True) for i in range(FEW)]
    found = together(few.model, requests)
    assert passes.count(4) == 1 and few.n == 8
    assert [[step.id for step in steps] for steps in found] == [
        [step.id for step in alone(few.model, each)] for each in requests
    ]


@gpt2
def test_in_float32_many_texts_keep_their_own_way_and_alone_is_alone(few: EachAlone) -> None:
    model = load(str(few.model.folder))
    assert_as_alone(model, [replace(each, sampling=GREEDY) for each in ragged(20)], batch=12)
    together(few.model, [Request(prompt="hello", max_tokens=5)])
    together(few.model, ragged(5), batch=1)
    assert few.n == 0
    few.model = model
    assert_as_alone(model, ragged(20), batch=8, within=1e-5)
    assert few.n > 3


@gpt2
def test_lost_numbers_are_reported_as_for_one_text(few: EachAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(prompt=[5, 6], max_tokens=9, seed=i, ignore_eos=True) for i in range(4)]
    few.model.decoder.embed.weight.data[9] = float("nan")  # also in the scores: the head is the same matrix

    def lost() -> None:
        together(few.model, requests)

    with pytest.raises(GptcliError) as batched:
        lost()
    with pytest.raises(GptcliError) as single:
        alone(few.model, requests[0])
    assert str(batched.value) == str(single.value) and "not finite" in str(single.value)


@gpt2
def test_greedy_ties_go_to_the_lowest_id_here_too(few: EachAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(ids: Sequence[int], caches: Sequence[Cache]) -> torch.Tensor:
        EachAlone.of_texts(few, ids, caches)
        scores = torch.zeros(FEW, few.model.config.n_vocab)
        scores[:, [11, 4, 9]] = 1.0
        return scores

    monkeypatch.setattr(few, "of_texts", flat)
    greedy = Sampling(temperature=0)
    requests = [Request(prompt=[5, 6], max_tokens=4, sampling=greedy, ignore_eos=True) for _ in range(3)]
    assert all([step.id for step in steps][1:] == [4, 4, 4] for steps in together(few.model, requests))


def test_a_model_whose_scores_have_a_few_bits_runs_many_only_with_that_pass(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, zoo_root: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load(str(zoo.built("gpt2", zoo_root)[0]), dtype="bfloat16")
    assert model.few_tokens() is None and not exact(model.decoder)
    assert_as_alone(model, ragged(6), within=1e-5)
