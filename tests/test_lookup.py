"""Speculation: several tokens at once, and never another text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import zoo
from programs import quick

from gptcli import Checkpoint, Sampling, UsageError, generate, load, lookup, prepare, start
from gptcli.cache import Cache
from gptcli.linear import FEW
from gptcli.lookup import LONG, MOST, Lookup, Repeats
from gptcli.model import Decoder

GREEDY = Sampling(temperature=0)
KINDS = ("gpt2", "llama", "llama-dynamic", "phi3-longrope", "mistral", "gemma2", "gemma3", "gpt_neo", "gptj", "opt")
N_CTX = 300


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, zoo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint; rotary ones with room for windows to move on."""
    folder = zoo.built(request.param, zoo_root)[0]
    if request.param in ("llama", "mistral", "gemma2", "gemma3", "gptj"):
        folder = shutil.copytree(folder, tmp_path_factory.mktemp("long") / request.param)
        values = json.loads((folder / "config.json").read_text())
        key = "n_positions" if "n_positions" in values else "max_position_embeddings"
        (folder / "config.json").write_text(json.dumps(values | {key: N_CTX}))
    return load(str(folder))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass of any decoder computed."""
    found, stream = list[int](), Decoder.stream

    def counted(self: Decoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        found.append(ids.shape[1])
        return stream(self, ids, *rest)

    monkeypatch.setattr(Decoder, "stream", counted)
    return found


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no busy machine decides how often a test looks ahead."""
    monkeypatch.setattr(lookup, "perf_counter", lambda: 0.0)


class Foresight(Repeats):
    """Proposes what really comes, with a mistake now and then: a model that writes noise has nothing to look up."""

    text: tuple[int, ...] = ()
    wrong = 13

    def proposal(self, most: int, least: int = 1) -> list[int]:
        n = len(self.ids)
        found = list(self.text[n : n + min(most, 1 + n % MOST)])
        return [id if (n + i) % self.wrong else (id + 1) % 200 for i, id in enumerate(found)]


def text_of(model: Checkpoint, prompt: Any, **options: Any) -> list[tuple[Any, ...]]:
    steps = generate(model, prompt, ignore_eos=True, **options)
    return [(s.index, s.id, s.chunks, s.finish, s.n_kept, s.draw, s.n_dropped) for s in steps]


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(repetition_penalty=1.3)], ids=lambda s: f"temperature {s.temperature}"
)
def test_proposals_right_and_wrong_change_no_text(
    model: Checkpoint, sampling: Sampling, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"sampling": sampling, "seed": 5, "max_tokens": 200}
    prompt = prepare(model, "hello hello")
    plain = text_of(model, prompt, **options)
    n_plain = len(passes)
    Foresight.text = (*prompt.ids, *(step[1] for step in plain))
    monkeypatch.setattr(lookup, "Repeats", Foresight)
    passes.clear()
    assert text_of(model, prompt, lookup=True, **options) == plain
    if sampling.greedy and not any(layer.rope and layer.rope.kind == "dynamic" for layer in model.config.layers):
        assert max(passes[1:]) > 1 and len(passes) < 0.9 * n_plain


@pytest.mark.parametrize(
    ("dear", "wrong", "most"), [(2.0, 1000, 0.6), (20.0, 1000, 1.1), (20.0, 2, 1.1), (2.0, 2, 1.2)]
)
def test_looking_ahead_costs_little_where_it_does_not_pay(
    model: Checkpoint, dear: float, wrong: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the time of a clock on which a pass over one token takes 1, and over several `dear`; but for one try."""
    now, stream = [0.0], Decoder.stream

    def timed(self: Decoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        now[0] += 1.0 if ids.shape[1] == 1 else dear
        return stream(self, ids, *rest)

    prompt = prepare(model, "hello hello")
    options: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 200}
    monkeypatch.setattr(Decoder, "stream", timed)
    monkeypatch.setattr(lookup, "perf_counter", lambda: now[0])
    plain = text_of(model, prompt, **options)
    alone, now[0] = now[0], 0.0
    Foresight.text = (*prompt.ids, *(step[1] for step in plain))
    monkeypatch.setattr(Foresight, "wrong", wrong)
    monkeypatch.setattr(lookup, "Repeats", Foresight)
    assert text_of(model, prompt, lookup=True, **options) == plain
    dynamic = any(layer.rope and layer.rope.kind == "dynamic" for layer in model.config.layers)
    assert now[0] < alone * (1.2 if dynamic else most) + dear


def test_every_record_is_that_of_plain_generation(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prepare(model, "hello")
    plain = list(generate(model, prompt, seed=1, max_tokens=40, top=3, ignore_eos=True))
    Foresight.text = (*prompt.ids, *(step.id for step in plain))
    monkeypatch.setattr(lookup, "Repeats", Foresight)
    for step, same in zip(
        generate(model, prompt, seed=1, max_tokens=40, top=3, ignore_eos=True, lookup=True), plain, strict=True
    ):
        for name in ("logprob", "p", "margin"):
            assert getattr(step, name) == pytest.approx(getattr(same, name), abs=1e-3), name
        assert [c.id for c in step.top] == [c.id for c in same.top]


def test_a_doubtful_choice_is_made_from_plain_scores_to_the_bit(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is equal then, numbers and all; also where windows have moved on since the last plain pass."""
    prompt = prepare(model, "hello")
    options: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 160, "ignore_eos": True}
    plain = list(generate(model, prompt, **options))
    Foresight.text = (*prompt.ids, *(step.id for step in plain))
    monkeypatch.setattr(lookup, "Repeats", Foresight)
    again = Lookup.again

    def counted(self: Lookup, *rest: Any) -> torch.Tensor:
        logits = again(self, *rest)
        self.ended, self.n_repeated = False, 0  # never discouraged
        return logits

    def sometimes(self: Lookup, *rest: Any, **more: Any) -> bool:
        return not self.certain and len(self.repeats.ids) % 37 == 0

    monkeypatch.setattr(Lookup, "again", counted)
    monkeypatch.setattr(Lookup, "doubtful", sometimes)
    for step, same in zip(generate(model, prompt, lookup=True, **options), plain, strict=True):
        assert step.id == same.id
        if (len(prompt.ids) + step.index) % 37 == 0:
            assert step == same


def test_a_text_that_slides_and_many_that_share_a_prompt(model: Checkpoint) -> None:
    options: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 90, "overflow": "slide"}
    assert text_of(model, "hello hello hello", lookup=True, **options) == text_of(model, "hello hello hello", **options)
    begin = start(model, prepare(model, "on on on on"), max_tokens=30)
    for seed in (1, 2, 1):
        with_it = text_of(model, begin, seed=seed, max_tokens=30, lookup=True)
        assert with_it == text_of(model, begin, seed=seed, max_tokens=30)


def test_a_tape_is_refused(model: Checkpoint) -> None:
    from gptcli.strips import Strips

    with pytest.raises(UsageError, match="token by token"):
        next(iter(generate(model, "hello", tape=Strips(model.decoder), lookup=True)))


def test_an_ngram_is_found_where_it_was_last() -> None:
    found = Repeats([1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 8, 1, 2, 3])
    found.trust = 1.0
    assert found.proposal(8)[:2] == [6, 7]
    found.add(6)
    assert found.length == LONG + 1 and found.proposal(8)[0] == 7
    found.add(0)
    assert found.length == 0 and found.proposal(8) == []


def test_a_loop_is_proposed_as_a_loop() -> None:
    found = Repeats([4, 5] * 8)
    assert found.proposal(7) == [4, 5, 4, 5, 4, 5, 4]


def test_agreement_earns_longer_proposals_and_poor_guesses_none() -> None:
    text, found = [*range(30), *range(10)], list[int]()
    for n in (33, 36, 40):
        repeats = Repeats(text[:n])
        repeats.trust = 1.0
        found.append(len(repeats.proposal(MOST)))
    assert 0 < found[0] < found[1] < found[2]
    poor = Repeats([1, 2, 3, 4])
    poor.trust = 0.2
    for id in (8, 1, 2, 3):
        poor.add(id)
    assert poor.length == LONG and poor.proposal(MOST) == []


def test_a_cache_takes_back_what_it_can_and_says_what_it_cannot() -> None:
    from test_cache import IDS, SLACK, WINDOW, decoder

    model = decoder(WINDOW, None)
    with torch.inference_mode():
        cache = Cache(model.config, 300, batch=2, dtype=torch.float32)
        model(IDS[:, :70], cache)
        model(IDS[:, 70:80], cache)  # here the window's rows move to the front
        assert cache.back_to(71) and cache.n_seen == 71
        again = model(IDS[:, 71:90], cache)
        assert (again - model(IDS[:, :90])[:, 71:]).abs().max() < 1e-4
        assert not cache.back_to(WINDOW) and cache.n_seen == 90
        assert WINDOW + SLACK < 80


class OneByOne:
    """The compiled pass of a few tokens as it should be: each gets what it would get alone."""

    def __init__(self, model: Checkpoint) -> None:
        self.model, self.n = model, 0

    def has_room(self, cache: Cache) -> bool:
        return 0 < cache.n_seen <= cache.capacity - FEW

    def __call__(self, ids: Sequence[int], cache: Cache) -> torch.Tensor:
        decoder, self.n = self.model.decoder, self.n + 1
        assert len(ids) == FEW
        for keys, layer in zip(
            cache.layers, decoder.config.layers, strict=True
        ):  # in a window all of them lie together
            keys.room(layer.window, FEW)
            keys.end -= FEW
        return torch.cat([decoder.readout(decoder.stream(torch.tensor([[id]]), cache))[0].float() for id in ids])


DEFAULT = [(200, "greedy", "bfloat16"), (-1, "drawn", "float32"), (7, "drawn", "bfloat16")]
WAYS = [
    pytest.param(n, draw, dtype, marks=[] if (n, draw, dtype) in DEFAULT else pytest.mark.slow)
    for n, draw, dtype in product((200, 7, -1), ("greedy", "drawn"), ("float32", "bfloat16"))
]


@pytest.mark.parametrize(("max_tokens", "draw", "dtype"), WAYS)
def test_where_a_few_tokens_get_the_numbers_of_each_alone_nothing_is_done_twice_in_any_dtype(
    model: Checkpoint, max_tokens: int, draw: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(model.folder), dtype=dtype)
    sampling = GREEDY if draw == "greedy" else Sampling(temperature=1.5)
    prompt = prepare(model, "hello hello", max_tokens=max_tokens)
    options: dict[str, Any] = {"sampling": sampling, "seed": 4, "max_tokens": max_tokens, "top": 3, "ignore_eos": True}
    plain = list(generate(model, prompt, **options))
    Foresight.text = (*prompt.ids, *(step.id for step in plain))
    few = OneByOne(model)
    monkeypatch.setattr(lookup, "Repeats", Foresight)
    monkeypatch.setattr(Checkpoint, "few_tokens", lambda self: few)
    monkeypatch.setattr(Lookup, "again", lambda *rest: pytest.fail("a choice was doubted"))
    assert list(generate(model, prompt, lookup=True, **options)) == plain
    if max_tokens > 100 and not any(layer.rope and layer.rope.kind == "dynamic" for layer in model.config.layers):
        assert few.n > 5


@pytest.mark.parametrize("coarse", [{"dtype": "bfloat16"}, {"quantize": "int8"}])
def test_nothing_is_proposed_where_rounding_is_coarse(
    coarse: dict[str, str], zoo_root: Path, passes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load(str(zoo.built("llama", zoo_root)[0]), **coarse)
    text_of(model, "on on on on on on on on on on on", max_tokens=20, sampling=GREEDY, lookup=True)
    assert passes[1:] == [1] * 19


def test_the_command_has_it_and_refuses_it_beside_an_xray(tiny_gpt2: Path) -> None:
    from typer.testing import CliRunner

    from gptcli.commands.generate import generate as command

    def answer(*more: str) -> Any:
        return CliRunner().invoke(app, ["hello", "-m", str(tiny_gpt2), "-t", "0", "-n", "30", "--ignore-eos", *more])

    app = typer.Typer()
    app.command()(command)
    assert answer("--lookup").output == answer().output != ""
    refused = answer("--lookup", "--xray")
    assert isinstance(refused.exception, UsageError) and "--lookup" in str(refused.exception)


@pytest.mark.parametrize("figures", [("--jsonl",), ("--json", "--logprobs", "0"), ("--color", "prob")])
def test_lookup_is_said_to_do_nothing_only_where_texts_are_computed_together(
    tiny_gpt2: Path, figures: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plain = list[bool](), lookup.Lookup
    monkeypatch.setattr("gptcli.generation.Lookup", lambda *a, **more: asked.append(True) or plain(*a, **more))
    m = ("on on on on", "-m", tiny_gpt2, "-n", "4", "-s", "1", "--num-samples", "2", "--lookup")
    assert b"--lookup is for one text" in quick(*m).stderr and not asked
    assert b"--lookup" not in quick(*m, *figures).stderr and asked
