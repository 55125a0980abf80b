"""Generation as a library: records that add up."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from gptcli import Checkpoint, GptcliError, Sampling, UsageError, generate, load, prepare, start
from gptcli.generation import Overflow, Request, Text

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path) -> Checkpoint:
    return load(str(tiny_gpt2))


def test_steps_are_the_text_and_its_probabilities(model: Checkpoint) -> None:
    steps = list(generate(model, "hello", max_tokens=20, seed=4, top=5, ignore_eos=True))
    assert [step.index for step in steps] == list(range(20))
    assert [step.finish for step in steps] == [None] * 19 + ["length"]
    assert "".join(step.text for step in steps) == b"".join(step.raw for step in steps).decode(errors="replace")
    ids = list(prepare(model, "hello").ids)
    for step in steps:
        logprobs = model.decoder(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
        assert step.logprob == pytest.approx(float(logprobs[step.id]), abs=1e-5)
        best = logprobs.topk(5)
        assert [c.id for c in step.top] == best.indices.tolist()
        assert step.margin == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-4)
        assert 0 < step.p <= 1 and step.draw is not None and 0 <= step.draw < 1 and 1 <= step.n_kept <= 40
        ids.append(step.id)


def test_greedy_takes_the_best_and_draws_nothing(model: Checkpoint) -> None:
    for step in generate(model, "hello", sampling=GREEDY, max_tokens=5, top=1):
        assert (step.id, step.p, step.n_kept, step.draw) == (step.top[0].id, 1.0, 1, None)


def test_a_generation_is_lazy(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = generate(model, "hello", max_tokens=10**9, overflow="slide", ignore_eos=True)
    assert next(iter(steps)).index == 0  # a billion tokens do not wait to be written, nor does memory for them


def test_a_sample_is_a_function_of_its_seed_alone(model: Checkpoint) -> None:
    def ids(seed: int, sample: int = 0) -> list[int]:
        return [s.id for s in generate(model, "hello", max_tokens=15, seed=seed, sample=sample, ignore_eos=True)]

    assert ids(7) == ids(7) != ids(8)
    assert ids(7, sample=3) == ids(10)


def test_many_texts_can_begin_from_one_computed_prompt(model: Checkpoint) -> None:
    begin = start(model, prepare(model, "hello on"), max_tokens=15)
    with pytest.raises(UsageError, match="room for 15 tokens, and 16 are asked for"):
        next(generate(model, begin, max_tokens=16))
    for seed in (1, 2, 1):
        together = [s.id for s in generate(model, begin, max_tokens=15, seed=seed)]
        assert together == [s.id for s in generate(model, "hello on", max_tokens=15, seed=seed)]


def test_an_empty_prompt_is_the_start_token_and_none_is_an_error(model: Checkpoint) -> None:
    assert prepare(model, "").ids == prepare(model, "", bos=False).ids == (0,)
    with pytest.raises(UsageError, match="no start token"):
        prepare(replace(model, start_id=None), "")


def test_ids_are_taken_as_they_are_and_checked(model: Checkpoint) -> None:
    assert prepare(model, [5, 6]).ids == (5, 6)
    for bad in (-1, tiny.N_VOCAB):
        with pytest.raises(UsageError, match=str(bad)):
            prepare(model, [5, bad])


@pytest.mark.parametrize(("n", "max_tokens", "kept"), [(63, 5, 59), (100, 1000, 32), (100, 10, 54), (64, 1, 63)])
def test_truncation_makes_room_for_the_answer_but_keeps_half_of_the_context(
    model: Checkpoint, n: int, max_tokens: int, kept: int
) -> None:
    ids = [1 + i % 200 for i in range(n)]
    prompt = prepare(model, ids, max_tokens=max_tokens, overflow="truncate")
    assert prompt.ids == tuple(ids[-kept:]) and prompt.n_dropped == n - kept


def test_a_full_context_ends_a_text_or_slides(model: Checkpoint) -> None:
    ended = list(generate(model, "hello", max_tokens=-1, sampling=GREEDY, ignore_eos=True))
    assert ended[-1].finish == "context" and len(ended) + len(prepare(model, "hello").ids) == 64
    slid = list(generate(model, "hello", max_tokens=150, sampling=GREEDY, ignore_eos=True, overflow="slide"))
    assert [s.id for s in slid[: len(ended)]] == [s.id for s in ended]
    assert len(slid) == 150 and sum(s.n_dropped > 0 for s in slid) >= 2
    # after a slide the text is computed anew from what is left of it
    at = next(i for i, s in enumerate(slid) if s.n_dropped)
    ids = [*prepare(model, "hello").ids, *(s.id for s in slid[:at])][slid[at].n_dropped :]
    assert slid[at].id == int(model.decoder(torch.tensor([ids]))[0, -1].argmax())


def test_padding_rows_of_the_embedding_are_never_chosen(tmp_path: Path) -> None:
    tensors = tiny.gpt2_tensors({**tiny.CONFIG, "vocab_size": 400})
    model = load(str(tiny.write_gpt2(tmp_path / "model", tensors, vocab_size=400)))
    assert model.n_tokens == tiny.N_VOCAB
    hot = Sampling(temperature=50.0, top_k=0, top_p=1.0)
    assert all(s.id < tiny.N_VOCAB for s in generate(model, "hello", max_tokens=55, sampling=hot, ignore_eos=True))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("wte.weight", "the embedding"),
        ("h.0.attn.c_attn.bias", "the heads of layer 0"),
        ("h.1.attn.c_proj.bias", "attention in layer 1"),
        ("h.0.mlp.c_fc.bias", "the MLP in layer 0"),
        ("ln_f.bias", "the final norm or the head"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_lost_are_traced_to_their_place(
    tmp_path: Path, tiny_gpt2: Path, name: str, place: str, value: float
) -> None:
    tensors = load_file(tiny_gpt2 / "model.safetensors")
    tensors[name].view(-1)[-32:] = value
    model = load(str(tiny.write_gpt2(tmp_path / "model", tensors)))
    last = [tiny.N_VOCAB - 1]  # the token whose embedding was damaged
    with pytest.raises(GptcliError, match=place):
        list(generate(model, last, max_tokens=1))


@pytest.mark.parametrize("overflow", ["truncate", "slide"])
def test_a_start_token_that_was_asked_for_stays_when_older_tokens_go(model: Checkpoint, overflow: Overflow) -> None:
    """Also where the tokenizer puts none in front by itself."""
    assert model.tokenizer.bos_id is None and model.start_id is not None
    prompt = prepare(model, "w" * 100, bos=True, overflow=overflow, max_tokens=8)
    assert prompt.ids[0] == model.start_id and len(prompt.ids) == model.config.n_ctx - 8
    steps = list(generate(model, prompt, max_tokens=40, overflow="slide", ignore_eos=True, seed=1))
    assert sum(step.n_dropped for step in steps) > 0
    text = Text(model, prompt, Request(prompt=prompt, overflow="slide"), capacity=len(prompt.ids) - 1)
    assert text.slide() and text.ids[0] == model.start_id


def test_a_text_that_fills_the_context_can_be_computed_if_no_answer_is_asked_for(model: Checkpoint) -> None:
    ids = [5] * model.config.n_ctx
    assert len(prepare(model, ids, max_tokens=0).ids) == model.config.n_ctx
    with pytest.raises(UsageError, match="no room for an answer"):
        prepare(model, ids, max_tokens=1)
    with pytest.raises(UsageError, match="no room for an answer"):
        prepare(model, [*ids, 5], max_tokens=0)
