"""Many texts at once: each is, token for token, what it is alone, whatever runs beside it."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo
from programs import PROGRAM, environment, quick

from gptcli import Checkpoint, Sampling, UsageError, generate, joining, load, prepare
from gptcli import batch as module
from gptcli.batch import InOrder, generate_batch
from gptcli.certain import certain
from gptcli.errors import GptcliError
from gptcli.generation import Request
from gptcli.records import Step
from gptcli.sample import adjust, choose

GREEDY = Sampling(temperature=0)
SAMPLINGS = (
    Sampling(),
    GREEDY,
    Sampling(temperature=1.3, top_k=0, top_p=1.0),
    Sampling(top_k=5, repetition_penalty=1.2, frequency_penalty=0.1),
    Sampling(top_k=0, top_p=1.0, min_p=0.05),
    Sampling(top_k=0, top_p=0.8, logit_bias=((5, 2.0), (6, float("-inf")))),
)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path) -> Checkpoint:
    return load(str(tiny_gpt2))


def together(checkpoint: Checkpoint, requests: Sequence[Request], batch: int = 32) -> list[list[Step]]:
    found = [list[Step]() for _ in requests]
    for number, step in generate_batch(checkpoint, requests, batch=batch):
        found[number].append(step)
    return found


def alone(checkpoint: Checkpoint, request: Request) -> list[Step]:
    return list(generate(checkpoint, **{field.name: getattr(request, field.name) for field in fields(request)}))


def assert_as_alone(
    checkpoint: Checkpoint, requests: Sequence[Request], batch: int = 32, *, within: float = 1e-3
) -> None:
    for request, steps in zip(requests, together(checkpoint, requests, batch), strict=True):
        expected = alone(checkpoint, request)
        assert [s.id for s in steps] == [s.id for s in expected]
        for ours, theirs in zip(steps, expected, strict=True):
            for name in ("index", "raw", "draw", "chunks", "finish", "n_dropped"):
                assert getattr(ours, name) == getattr(theirs, name), name
            for name in ("logprob", "p", "margin"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=within, abs=within), name


def ragged(n: int, **values: Any) -> list[Request]:
    """Prompts, lengths and samplings of all kinds."""
    number = random.Random(n)
    return [
        Request(
            prompt=[1 + number.randrange(200) for _ in range(1 + 5 * i % 23)],
            sampling=SAMPLINGS[i % len(SAMPLINGS)],
            max_tokens=1 + 7 * i % 31,
            seed=i,
            **values,
        )
        for i in range(n)
    ]


FAMILIES = (
    *("gpt2", "gpt_neo", "llama", "mistral", "gemma2-capped-hard", "gemma3", "phi", "opt-350m", "gpt_bigcode"),
    *("granite", "qwen3-slides", "smollm3-every-2", "llama-dynamic", "phi3-longrope", "olmo2"),
)


@pytest.mark.parametrize("kind", [kind for kind in zoo.ZOO if kind.name in FAMILIES], ids=str)
def test_every_text_is_what_it_is_alone_in_every_kind_of_decoder(ours: Checkpoint) -> None:
    assert_as_alone(ours, ragged(12), batch=5)


def test_samples_of_one_prompt_are_what_their_seeds_give_alone(model: Checkpoint) -> None:
    assert_as_alone(model, [Request(prompt="hello", max_tokens=20, seed=7, sample=i) for i in range(32)])


def test_full_contexts_end_or_slide_beside_others(model: Checkpoint) -> None:
    requests = [
        Request(prompt="hello", max_tokens=90, seed=i, ignore_eos=True, overflow="slide" if i % 2 else "error")
        for i in range(4)
    ]
    found = together(model, requests)
    assert [steps[-1].finish for steps in found] == ["context", "length"] * 2
    assert sum(step.n_dropped > 0 for step in found[1]) >= 1
    assert_as_alone(model, requests)


def test_a_full_context_slides_beside_others_from_its_first_token_on(model: Checkpoint) -> None:
    n_ctx = model.config.n_ctx
    prompt = prepare(model, [1 + i % 50 for i in range(n_ctx - 1)], max_tokens=1, overflow="error")
    requests = [Request(prompt=prompt, max_tokens=12, seed=i, ignore_eos=True, overflow="slide") for i in range(3)]
    assert_as_alone(model, requests)


def test_stops_and_end_tokens_end_one_text_and_not_its_neighbours(model: Checkpoint) -> None:
    first = "".join(step.text for step in alone(model, Request(prompt="hello", max_tokens=30, seed=3)))
    requests = [Request(prompt="hello", max_tokens=30, seed=3 + i % 2, stop=(first[7:9],)) for i in range(4)]
    requests.append(Request(prompt="hello", max_tokens=9, seed=1, sampling=Sampling(logit_bias=((0, 1000.0),))))
    assert [steps[-1].finish for steps in together(model, requests)][::4] == ["stop", "eos"]
    assert_as_alone(model, requests, batch=3)


def test_a_text_that_ends_makes_place_for_the_next_at_once(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    stream = model.decoder.stream

    def counted(ids: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(ids) > 1:
            sizes.append(len(ids))
        return stream(ids, *more)

    monkeypatch.setattr(model.decoder, "stream", counted)
    requests = [Request(prompt="hello", max_tokens=5 + i % 11, seed=i, ignore_eos=True) for i in range(30)]
    n_tokens = sum(len(steps) for steps in together(model, requests, batch=4))
    assert n_tokens == sum(request.max_tokens for request in requests)
    assert sizes.count(4) * 4 >= 0.9 * (n_tokens - 30)  # the first token of each comes from its prompt's own pass


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_one_prompt_with_many_lengths_is_computed_a_few_times(
    name: str, zoo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again only for a text that is longer than all before it, or whose cache is laid out otherwise for a window."""
    model = load(str(zoo.built(name, zoo_root)[0]))
    lengths, really = list[int](), joining.start

    def counted(*of: Any, max_tokens: int) -> Any:
        lengths.append(max_tokens)
        return really(*of, max_tokens=max_tokens)

    prompt = [5, 6, 7, 8, 9, 10, 11]
    requests = [Request(prompt=prompt, max_tokens=n, seed=n, ignore_eos=True) for n in (20, 6, 3, 17, 25, 9, 24, 1)]
    with monkeypatch.context() as counting:
        counting.setattr(joining, "start", counted)
        together(model, requests, batch=3)
    assert lengths == [20, 25]
    monkeypatch.setattr("gptcli.cache.SLACK", 4)
    monkeypatch.setattr("gptcli.joining.SLACK", 4)
    assert_as_alone(model, requests, batch=3)


def test_requests_are_read_only_as_rows_get_free(model: Checkpoint) -> None:
    read = list[int]()

    def requests() -> Any:
        for i in range(100):
            read.append(i)
            yield Request(prompt="hello", max_tokens=10, seed=i, ignore_eos=True)

    steps = generate_batch(model, requests(), batch=4)
    for _ in range(20):
        next(steps)
    assert len(read) == 4


def test_what_is_not_certain_is_computed_alone_and_goes_on(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound so wide that hardly a token is certain, every text is computed alone up to each of its tokens."""
    n = 0
    really = module._Batch._alone

    def counted(self: Any, row: int, scores: torch.Tensor) -> torch.Tensor:
        nonlocal n
        n += 1
        return really(self, row, scores)

    monkeypatch.setattr(module._Batch, "_alone", counted)
    requests = [Request(prompt="hello", max_tokens=12, seed=i, ignore_eos=True) for i in range(4)]
    together(model, requests)
    rarely, n = n, 0
    monkeypatch.setattr(module, "LEAST", 0.02)
    assert_as_alone(model, requests)
    assert rarely <= 1 and n > 20


def test_a_tie_that_the_common_pass_would_break_otherwise_goes_to_the_text_alone(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The common pass is disturbed by less than the bound: the margin of some token is smaller, its choice is not."""
    logits, g = module._Batch._logits, torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        module._Batch, "_logits", lambda self: (x := logits(self)) + 0.01 * (2 * torch.rand(x.shape, generator=g) - 1)
    )
    requests = [
        Request(prompt="hello", max_tokens=20, seed=i, ignore_eos=True, sampling=SAMPLINGS[i % 4]) for i in range(8)
    ]
    assert_as_alone(model, requests, within=0.1)


def test_certain_choices_survive_every_change_within_the_error() -> None:
    g, number = torch.Generator().manual_seed(0), random.Random(0)
    n_certain, n = 0, 0
    for round in range(60):
        rows, size, error = 6, (40, 300, 4096)[round % 3], 10 ** -number.uniform(2, 5)
        logits = torch.randn(rows, size, generator=g) * number.choice((1, 3, 6))
        samplings = [
            Sampling(
                temperature=number.choice((0, 0.3, 0.8, 1.5)),
                top_k=number.choice((0, 1, 3, 40)),
                top_p=number.choice((0.3, 0.9, 0.95, 1.0)),
                min_p=number.choice((0.0, 0.0, 0.1)),
            )
            for _ in range(rows)
        ]
        draws = [number.random() for _ in range(rows)]
        found = certain(logits, logits, samplings, draws, [error] * rows)
        for row, (choice, s, u) in enumerate(zip(found, samplings, draws, strict=True)):
            n, n_certain = n + 1, n_certain + (choice is not None)
            if choice is None:
                continue

            def taken(x: torch.Tensor, s: Sampling = s, u: float = u) -> Any:
                return choose(x, s, context=(), generated=(), uniform=lambda: u, size=None)

            same = taken(logits[row])
            assert (choice.id, choice.n_kept, choice.draw) == (same.id, same.n_kept, same.draw)
            assert (choice.p, choice.margin) == pytest.approx((same.p, same.margin), rel=1e-5)
            assert choice.logprob == pytest.approx(same.logprob, abs=1e-4)
            for kind in range(6):
                noise = torch.rand(size, generator=g) * 2 - 1
                noise = noise if kind < 2 else noise.sign()  # at the border of what is allowed
                if kind > 3:  # all against the token taken, or all for it
                    noise = torch.full((size,), 1.0 if kind == 4 else -1.0)
                    noise[choice.id] *= -1
                assert taken(logits[row] + noise * error * 0.99).id == choice.id
    assert n_certain > 0.7 * n


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, logit_bias=((3, 9000.0), (5, 9000.0))),  # where a float32 is rounded to a thousandth
        Sampling(temperature=0, logit_bias=((3, -9000.0), (5, 90.0), (6, 90.0))),
        Sampling(temperature=0, repetition_penalty=1.7, presence_penalty=2.0),
        Sampling(temperature=1.5, top_k=0, top_p=1.0, repetition_penalty=0.6, frequency_penalty=0.3),
    ],
    ids=["bias", "ban", "penalties", "drawn"],
)
def test_certain_choices_survive_the_rounding_of_biases_and_penalties(sampling: Sampling) -> None:
    g, n_certain = torch.Generator().manual_seed(0), 0
    told: dict[str, Any] = {"context": [1, 3, 5, 9], "generated": [3, 5, 5]}
    for trial in range(400):
        logits = 3 * torch.randn(20, generator=g)
        logits[5] = logits[3] - float(torch.rand((), generator=g)) * 4e-3
        error, draw = 2e-6 * float(logits.abs().max()), trial / 400
        adjusted = adjust(logits, sampling, **told)
        (found,) = certain(logits[None], adjusted[None], [sampling], [draw], [error])
        if found is None:
            continue
        n_certain += 1
        for push in (torch.rand(6, 20, generator=g) * 2 - 1).sign():
            other = choose(logits + 0.9 * error * push, sampling, uniform=lambda draw=draw: draw, size=None, **told)
            assert other.id == found.id
    assert n_certain > 30


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_k=0, top_p=1.0)], ids=["greedy", "cut", "open"])
def test_ties_are_not_certain_and_numbers_that_are_lost_are_not_either(sampling: Sampling) -> None:
    logits = torch.zeros(3, 300)
    logits[:, 7] = torch.tensor([5.0, 5.0, torch.nan])
    logits[:, 9] = torch.tensor([5.0, 5.0001, 0.0])
    assert certain(logits, logits, [sampling] * 3, [0.2] * 3, [1e-3, 1e-3, float("inf")]) == [None] * 3


def test_numbers_that_are_lost_are_an_error_as_they_are_alone(tmp_path: Path) -> None:
    tensors = tiny.gpt2_tensors()
    tensors["wpe.weight"][9] = torch.nan
    model = load(str(tiny.write_gpt2(tmp_path / "model", tensors)))
    with pytest.raises(Exception, match="the embedding is the first that is not finite"):
        together(model, [Request(prompt=[5, 6, 7], seed=i, max_tokens=20, ignore_eos=True) for i in range(3)])


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_rounded_texts_are_what_they_are_alone_whatever_may_be_drawn(bits: str, tiny_gpt2: Path) -> None:
    assert_as_alone(load(str(tiny_gpt2), quantize=bits), ragged(12), batch=5)


def test_the_shipped_model_writes_32_samples_as_it_writes_each_alone() -> None:
    shipped = load()
    prompt = "Once upon a time, there was a little robot"
    assert_as_alone(shipped, [Request(prompt=prompt, max_tokens=24, seed=5, sample=i) for i in range(32)])


def test_steps_are_handed_out_text_by_text_and_the_first_without_waiting() -> None:
    def steps() -> Any:
        for index in range(3):
            for number in range(2):
                yield number, step(index, finish="length" if index == 2 else None)
        raise AssertionError("nobody asked for more")

    def step(index: int, finish: Any) -> Step:
        return Step(index=index, id=1, raw=b"", logprob=0, p=1, n_kept=1, draw=None, margin=0, finish=finish)

    texts = InOrder(steps())
    first = texts.text(0)
    assert next(first).index == 0
    assert [s.index for s in first] == [1, 2]
    assert [s.index for s in texts.text(1)] == [0, 1, 2]


def lines(path: Path, *wishes: Any) -> Path:
    path.write_text("".join(json.dumps(wish) + "\n" for wish in wishes))
    return path


def test_the_command_answers_every_line_as_generate_does_alone(tiny_gpt2: Path, tmp_path: Path) -> None:
    wishes = [
        {"prompt": "hello", "max_tokens": 20, "seed": 3, "id": "first"},
        {"prompt": "on the", "temperature": 0, "max_tokens": 3},
        {"prompt": "a", "top_k": 5, "top_p": 0.7, "seed": 4, "stop": "e"},
        {"prompt": "hello", "max_tokens": 0, "id": 8},
    ]
    file = lines(tmp_path / "in.jsonl", *wishes)
    done = quick("batch", file, "-m", tiny_gpt2, "-n", "15", "-s", "50", "--batch", "2")
    assert (done.returncode, done.stderr) == (0, b"")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    assert [answer.get("id") for answer in answers] == ["first", None, None, 8]
    assert [answer["seed"] for answer in answers] == [3, 51, 4, 53]
    for wish, answer in zip(wishes, answers, strict=True):
        options = [f"--{k.replace('_', '-')}={v}" for k, v in wish.items() if k not in ("prompt", "id")]
        seed = [] if "seed" in wish else ["-s", str(answer["seed"])]
        text = quick("generate", str(wish["prompt"]), "-m", tiny_gpt2, "-n", "15", *options, *seed, "-q", "--json")
        sample = json.loads(text.stdout)["samples"][0]
        assert (answer["text"], answer["finish"]) == (sample["text"], sample["finish"])
        assert answer["n_tokens"] == len(sample["ids"])
    as_ended = quick("batch", file, "-m", tiny_gpt2, "-n", "15", "-s", "50", "--unordered").stdout.splitlines()
    assert sorted(as_ended) == sorted(done.stdout.splitlines()) and as_ended[:2] == [
        done.stdout.splitlines()[i] for i in (3, 1)
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a"', "not JSON"),
        ('{"text": "a"}', 'there is no "prompt"'),
        ('{"prompt": 3}', 'there is no "prompt"'),
        ("[1]", 'there is no "prompt"'),
        ('{"prompt": "a", "temprature": 1}', "'temprature' is not known"),
        ('{"prompt": "a", "temperature": -1}', "temperature must be a number"),
        ('{"prompt": "a", "seed": "x"}', "seed must be a whole number"),
        ('{"prompt": "\\ud800"}', "half a character"),
        ('{"prompt": "a", "id": NaN}', "NaN is not a JSON number"),
        ('{"prompt": "a", "id": 1e999}', "1e999 is too large a number"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is there twice"),
        (json.dumps({"prompt": "hello " * 99}), "no room for an answer"),
    ],
)
def test_a_bad_line_is_one_error_that_names_it(tiny_gpt2: Path, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n\n' + line + "\n")
    done = quick("batch", file, "-m", tiny_gpt2)
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"{file}: line 3: " in done.stderr.decode() and said in done.stderr.decode()
    assert done.stderr.decode().startswith("gptcli: error:")


def test_samples_of_the_command_are_written_as_they_were_one_after_another(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "25", "-q")
    each = [quick(*m, "-s", str(seed)).stdout for seed in (4, 5, 6)]
    assert quick(*m, "-s", "4", "--num-samples", "3").stdout == b"\n".join(
        text.removesuffix(b"\n") if i < 2 else text for i, text in enumerate(each)
    )


def test_figures_of_samples_are_those_of_single_runs_to_the_last_digit(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "9", "--logprobs", "2", "--json")
    samples = json.loads(quick(*m, "-s", "4", "--num-samples", "3").stdout)["samples"]
    assert samples[2]["tokens"] == json.loads(quick(*m, "-s", "6").stdout)["samples"][0]["tokens"]


def test_cases_of_a_pipe_run_together_and_are_answered_in_order(tiny_gpt2: Path) -> None:
    m = ("generate", "-m", tiny_gpt2, "--example", "a => b", "-n", "8", "-s", "1", "-q")
    cases = ["hello", "on", "the"]
    done = quick(*m, stdin="\n".join(cases).encode()).stdout
    assert done == b"".join(quick(*m, stdin=case.encode()).stdout + b"\n" for case in cases)


def test_a_case_that_does_not_fit_is_said_after_the_answers_before_it(tiny_gpt2: Path) -> None:
    m = ("generate", "-m", tiny_gpt2, "--example", "a => b", "-n", "8", "-s", "1", "-q")
    done = quick(*m, stdin=b"on\n" + b"hello " * 90)
    assert done.returncode == 2 and done.stdout.endswith(b"\n") and b"no room for an answer" in done.stderr


def test_rows_take_one_token_each() -> None:
    from gptcli.rows import Rows

    with pytest.raises(ValueError, match="one token each"):
        Rows(load().config, 2, dtype=torch.float32).where(2)


def test_a_batch_of_requests_is_refused_as_one_of_them_would_be(model: Checkpoint) -> None:
    with pytest.raises(UsageError, match="no room for an answer"):
        together(model, [Request(prompt="on"), Request(prompt="hello " * 99)])


def test_a_file_without_a_prompt_is_said_to_hold_none(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n  \n")
    done = quick("batch", tmp_path / "in.jsonl", "-m", tiny_gpt2)
    assert done.returncode == 0 and not done.stdout and b"in.jsonl holds no prompt" in done.stderr
    assert not quick("batch", tmp_path / "in.jsonl", "-m", tiny_gpt2, "-q").stderr


def test_closed_standard_input_is_one_clear_line(tiny_gpt2: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM, "batch", "-", "-m", tiny_gpt2],
        env=environment(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.decode().splitlines()[0] == "gptcli: error: standard input is closed"


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), GptcliError("lost")], ids=["Ctrl-C", "error"])
def test_what_was_answered_is_written_whatever_ends_the_run(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    """The first line is still running, and the answers behind it wait for their turn."""
    really = module.generate_batch

    def cut(checkpoint: Checkpoint, requests: list[Request], *, batch: int) -> Any:
        for number, step in really(checkpoint, requests[1:], batch=batch):
            yield number + 1, step
        raise ends

    monkeypatch.setattr(module, "generate_batch", cut)
    file = lines(tmp_path / "in.jsonl", *({"prompt": "hello", "max_tokens": n, "seed": n} for n in (50, 2, 3)))
    done = quick("batch", file, "-m", tiny_gpt2)
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [1, 2]
    assert done.returncode == (130 if isinstance(ends, KeyboardInterrupt) else 1)
