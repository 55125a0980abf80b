"""Training is correct: gradients as transformers has them, one batch learned by heart, and stops that lose nothing."""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from zoo import ZOO, Kind, built

from gptcli import Checkpoint, attend, load, model
from gptcli.commands.fitting import between_updates
from gptcli.config import Config, Layer, Rope
from gptcli.data import IGNORED, Batch, Encoded, Pairs
from gptcli.errors import BadCheckpoint, GptcliError
from gptcli.families import FAMILIES
from gptcli.layout import stored_names
from gptcli.model import Attention, Decoder
from gptcli.optimizer import optimizers
from gptcli.recipe import Recipe
from gptcli.train import Training, at_once, count, initialise, losses

TRAINED = [kind for kind in ZOO if kind.name in ("gpt2", "gpt_neo", "gpt_neox", "llama", "qwen3", "gptj", "gemma2")]
CONFIG = Config(
    n_vocab=60, n_ctx=16, d_model=32, n_head=4, n_kv_head=4, d_head=8, d_ff=64, layers=(Layer(), Layer(window=4)),
    learned_positions=True, tied=True, norm_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip


class Fixed:
    """The same few sequences again and again."""

    def __init__(self, n: int = 4, seed: int = 0, *, wrong: int | None = None) -> None:
        ids = torch.randint(0, CONFIG.n_vocab, (n, 17), generator=torch.Generator().manual_seed(seed))
        self.batch, self.wrong = Batch(ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous()), wrong

    def train(self, start: int, stop: int) -> Batch:
        rows = [i % len(self.batch.ids) for i in range(start, stop)]
        return Batch(ids=self.batch.ids[rows], labels=self.batch.labels[rows])

    def validation(self) -> Sequence[Batch]:
        return [self.batch]


def recipe(**values: object) -> Recipe:
    return Recipe(**{"n_steps": 120, "n_ctx": 16, "batch": 4, "learning_rate": 3e-3, "schedule": "constant", **values})  # type: ignore[arg-type]


def new(seed: int = 0) -> Decoder:
    decoder = Decoder(CONFIG)
    initialise(decoder, seed)
    return decoder


@pytest.mark.parametrize("kind", TRAINED, ids=str)
def test_gradients_equal_the_reference_s(kind: Kind, zoo_root: Path) -> None:
    """Every parameter's, in fp32, to 1e-5 of its largest."""
    folder, theirs = built(kind.name, zoo_root)
    ours = load(str(folder))
    ours.decoder.requires_grad_(True)
    ids = torch.randint(1, 260, (3, 21), generator=torch.Generator().manual_seed(2))
    labels = ids[:, 1:].clone()
    labels[0, :7] = IGNORED
    losses(ours.decoder, ids[:, :-1], labels).backward()
    theirs.zero_grad()
    with torch.enable_grad():
        logits = theirs(ids[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).backward()
    gradients = as_stored(ours)
    found = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    theirs.zero_grad()
    assert len(found) > 10
    for name, gradient in found.items():
        mine = gradients[name if name in gradients else name.replace("lm_head", "embed_out")]
        assert float((mine - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name


def as_stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Our gradients in the family's own spelling: those of a gain stored as 1 + w are w's own."""
    gradients = {name: p.grad for name, p in checkpoint.decoder.named_parameters()}
    result = {}
    for name, (fix, parts) in stored_names(checkpoint.config, FAMILIES[checkpoint.family]).items():
        rows = [gradients[p.name] if p.row is None else gradients[p.name][p.row] for p in parts]  # type: ignore[index]
        gradient = torch.cat(rows) if len(rows) > 1 else rows[0]  # type: ignore[arg-type]
        linear = fix and "minus" not in fix.why
        result[name] = fix.save(gradient, checkpoint.config) if fix and linear else gradient
    return result


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_batch_is_learned_by_heart(optimizer: str) -> None:
    training = Training(new(), Fixed(), recipe(optimizer=optimizer, learning_rate=5e-3))
    curve = [progress.loss for progress in training.run()]
    assert curve[0] == pytest.approx(math.log(CONFIG.n_vocab), abs=0.1), "before training every token is as likely"
    assert curve[-1] < 0.02


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_twenty_steps_and_twenty_more_are_forty(optimizer: str) -> None:
    r = recipe(n_steps=40, optimizer=optimizer, batch=3)
    whole = Training(new(), Fixed(7), r)
    curve = [p.loss for p in whole.run()]
    half = Training(new(), Fixed(7), r)
    first = [p.loss for _, p in zip(range(20), half.run(), strict=False)]
    again = new(seed=99)
    again.load_state_dict(half.decoder.state_dict())
    rest = Training(again, Fixed(7), r, step=half.step, n_tokens=half.n_tokens, state=half.state())
    second = [p.loss for p in rest.run()]
    assert first + second == curve
    assert rest.n_tokens == whole.n_tokens == 40 * 3 * 16
    for (name, a), b in zip(whole.decoder.named_parameters(), rest.decoder.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_micro_batches_give_the_same_gradients() -> None:
    curves = [
        [p.loss for p in Training(new(), Fixed(8), recipe(batch=8, n_steps=6, micro_batch=m)).run()] for m in (8, 3)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_bfloat16_learns_too() -> None:
    *_, last = Training(new(), Fixed(), recipe(precision="bfloat16", learning_rate=5e-3)).run()
    assert last.loss < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_rows_of_all_lengths_are_compiled_once(precision: str, rel: float) -> None:
    """A batch of pairs is as wide as its longest: compiled for each width anew, each took most of a minute."""
    torch.compiler.reset()  # or what another precision's run compiled counts as a first time
    lengths = (3, 5, 6, 8, 9, 11, 12, 14)
    rows = [Encoded(ids=tuple(range(n)), n_prompt=n // 2) for n in lengths for _ in range(4)]
    asked = recipe(n_steps=len(lengths), batch=4, learning_rate=1e-3, precision=precision)
    found = {}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for compiled in (True, False):
            batches = InOrder(rows, (), seed=0)
            run = Training(new(), batches, dataclasses.replace(asked, compiled=compiled)).run()
            found[compiled] = [progress.loss for progress in run]
    assert found[True] == pytest.approx(found[False], rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("rope", [None, Rope(theta=10000.0, dim=8)], ids=["learned", "rotary"])
def test_a_compiled_step_that_attends_in_blocks_learns_the_same(
    rope: Rope | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(attend, "BLOCK", 6)  # of 16 tokens: two blocks and a rest
    config = dataclasses.replace(
        CONFIG, learned_positions=rope is None, layers=(Layer(rope=rope), Layer(rope=rope, window=4))
    )
    called, true = [], model.attend_blocks

    def attend_blocks(*how: Any) -> torch.Tensor:
        called.append(how[0].shape)
        return true(*how)

    monkeypatch.setattr(model, "attend_blocks", attend_blocks)
    losses = []
    for compiled in (True, False):
        decoder = Decoder(config)
        initialise(decoder, 0)
        asked = recipe(n_steps=8, compiled=compiled, precision="bfloat16")
        losses.append([p.loss for p in Training(decoder, Fixed(), asked).run()])
        assert len(called) == 2 * 8  # layers and steps of the compiled run, and none of the other
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_run_is_the_same_to_the_bit_however_its_threads_meet(precision: str) -> None:
    """The gradient of the embedding is a sum of rows, and two threads add to the same ones."""
    ids = torch.randint(5, (6, 16, 65), generator=torch.Generator().manual_seed(1))

    class Crowded(Fixed):
        def train(self, start: int, stop: int) -> Batch:
            rows = ids[start // 16 % 6]
            return Batch(ids=rows[:, :-1].contiguous(), labels=rows[:, 1:].contiguous())

    config = dataclasses.replace(CONFIG, n_ctx=64, d_model=64, n_head=4, n_kv_head=4)
    asked = dataclasses.replace(recipe(n_steps=6, batch=16, compiled=True, precision=precision), n_ctx=64)
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            decoder = Decoder(config)
            initialise(decoder, 0)
            found.append([p.loss for p in Training(decoder, Crowded(), asked).run()])
            found[-1] += [float(p.detach().double().sum()) for p in decoder.parameters()]
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("batch", "n_ctx", "micro"), [(16, 300, 8), (16, 600, 4), (12, 512, 6), (6, 1024, 3), (16, 512, 8), (13, 512, 8)]
)
def test_a_compiled_step_sees_parts_of_one_size(batch: int, n_ctx: int, micro: int) -> None:
    """Each size is compiled for itself, a minute or two; a batch of 13 takes two sizes and no 13 parts."""
    asked = dataclasses.replace(recipe(batch=batch, compiled=True), n_ctx=n_ctx)
    assert at_once(asked, 4096, cached=True) == micro


@pytest.mark.parametrize(
    ("more", "n_ctx", "uneven", "expected"),
    [
        ({}, 16, False, True),
        ({"compiled": False}, 16, False, False),
        ({"precision": "float32"}, 16, False, False),
        ({}, 4096, False, False),  # there the scores that are kept for the way back are too many
        ({}, 16, True, False),  # each number of blocks would be compiled for itself
    ],
)
def test_it_attends_in_blocks_where_that_pays(more: dict[str, Any], n_ctx: int, uneven: bool, expected: bool) -> None:
    asked = dataclasses.replace(recipe(**{"compiled": True, "precision": "bfloat16"} | more), n_ctx=n_ctx)
    batches = InOrder([Encoded(ids=(1, 2, 3), n_prompt=1)], (), seed=0) if uneven else Fixed()
    training = Training(new(), batches, asked)
    assert {m.in_blocks for m in training.decoder.modules() if isinstance(m, Attention)} == {expected}


def test_a_growing_batch_is_compiled_once_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set[tuple[int, ...]]()

    def compiled(f: Callable[..., torch.Tensor], **how: object) -> Callable[..., torch.Tensor]:
        def run(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            shapes.add(tuple(ids.shape))
            return f(ids, labels)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    growing = {"batch": 11, "ramp_from": 2, "ramp_tokens": 16 * 60, "n_steps": 12, "micro_batch": 3}
    losses = [[p.loss for p in Training(new(), Fixed(), recipe(**growing, compiled=c)).run()] for c in (False, True)]
    assert shapes == {(3, 16)} and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_is_in_the_record_though_its_validation_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(new(), Fixed(), recipe())

    def interrupted() -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "validate", interrupted)
    steps = training.run(validate_every=2)
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        next(steps)


def test_a_step_is_in_the_record_though_its_lesson_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(new(), Fixed(), recipe())
    asked = list[int]()
    really = training._probabilities

    def interrupted(batch: Batch, at: int) -> torch.Tensor:
        asked.append(at)
        if len(asked) == 2:  # after the update
            raise KeyboardInterrupt
        return really(batch, at)

    monkeypatch.setattr(training, "_probabilities", interrupted)
    steps = training.run(show_every=1)
    first = next(steps)
    assert first.step == 1 and first.lesson is None and not training.torn
    with pytest.raises(KeyboardInterrupt):
        next(steps)


def test_validation_shows_no_more_at_once_than_a_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(new(), Fixed(7), recipe(micro_batch=2))
    rows, really = list[int](), training._sum

    def seen(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids))
        return really(ids, labels)

    monkeypatch.setattr(training, "_sum", seen)
    whole = Training(new(), Fixed(7), recipe(micro_batch=7)).validate()
    assert training.validate() == pytest.approx(whole, rel=1e-6) and rows == [2, 2, 2, 1]


class InOrder(Pairs):
    """As they come, so that every batch has another width."""

    def _order(self, epoch: int) -> torch.Tensor:
        return torch.arange(len(self._train))


def test_labels_that_are_ignored_are_neither_learned_nor_counted() -> None:
    decoder, ids = new(), Fixed().batch.ids
    labels = torch.full_like(ids, IGNORED)
    labels[:, 3] = 7
    assert count(Batch(ids=ids, labels=labels)) == 4
    rows = decoder(ids)[:, 3].log_softmax(-1)[:, 7]
    torch.testing.assert_close(losses(decoder, ids, labels), -rows.sum())


def test_a_loss_that_is_no_number_stops_before_it_does_harm() -> None:
    decoder = new()
    training = Training(decoder, Fixed(), recipe())
    steps = training.run()
    for _ in range(3):
        next(steps)
    decoder.blocks[0].mlp.up.bias.data[0] = math.nan  # type: ignore[union-attr, index]
    before = decoder.embed.weight.detach().clone()
    with pytest.raises(GptcliError, match="step 4: the loss is nan") as caught:
        next(steps)
    assert "--learning-rate" in caught.value.hint
    assert training.step == 3 and torch.equal(decoder.embed.weight, before)


@pytest.mark.parametrize(("what", "saved"), [("loss", 0), ("loss", 2), ("gradient's norm", 2), ("validation loss", 2)])
def test_whatever_is_no_number_is_said_in_the_same_words(what: str, saved: int) -> None:
    training = Training(new(), Fixed(), recipe(n_steps=3))
    steps = training.run(validate_every=3)
    next(steps)
    next(steps)
    training.saved = saved
    if what == "gradient's norm":
        training.decoder.embed.weight.register_hook(lambda gradient: gradient * math.inf)
    elif what == "loss":
        training.decoder.embed.weight.data[0] = math.nan
    else:
        training.validate = lambda: math.nan  # type: ignore[method-assign]
    with pytest.raises(GptcliError, match=f"^step 3: the {what} is (nan|inf)") as caught:
        next(steps)
    assert caught.value.message.endswith("; the last good save is step 2") is bool(saved)
    assert ("--resume" in caught.value.hint) is bool(saved) and "--learning-rate" in caught.value.hint


def test_what_the_next_step_could_not_be_made_from_is_not_to_be_saved() -> None:
    training = Training(new(), Fixed(), recipe())
    next(training.run())
    training.check()
    training.parameters["unused"] = torch.nn.Parameter(torch.tensor([1.0, math.nan]))
    with pytest.raises(GptcliError, match="^step 1: the sum of unused is nan"):
        training.check()
    training.decoder.blocks[0].mlp.up.weight.data *= 1e38  # type: ignore[union-attr, index, operator]
    with pytest.raises(GptcliError, match="^step 2: the (loss|gradient's norm) is "):
        training.check()


def test_a_lesson_shows_a_real_position_before_and_after_its_step() -> None:
    fixed, decoder = Fixed(), new()
    training = Training(decoder, fixed, recipe(learning_rate=1e-2, warmup_tokens=0))
    progress = next(training.run(show_every=1))
    lesson = progress.lesson
    assert lesson is not None
    row = fixed.batch.ids[0].tolist()
    at = next(i for i in range(16) if tuple(row[max(0, i - 15) : i + 1]) == lesson.features)
    assert lesson.label == int(fixed.batch.labels[0, at])
    with torch.no_grad():
        p_after = decoder(fixed.batch.ids[:1])[0, at].softmax(-1)
        p_before = new()(fixed.batch.ids[:1])[0, at].softmax(-1)
    assert lesson.p_before == pytest.approx(float(p_before[lesson.label]), rel=1e-3)
    assert lesson.p_after == pytest.approx(float(p_after[lesson.label]), rel=1e-3)
    assert lesson.guess == int(p_before.argmax()) and lesson.p_after > lesson.p_before


def test_validation_is_the_mean_loss_of_its_tokens() -> None:
    training = Training(new(), Fixed(), recipe())
    batch = Fixed().batch
    assert training.validate() == pytest.approx(losses(new(), batch.ids, batch.labels).item() / 64, rel=1e-6)


def test_the_state_of_another_model_is_refused() -> None:
    state = Training(new(), Fixed(), recipe()).state()
    assert not state, "nothing is remembered before the first step"
    training = Training(new(), Fixed(), recipe(n_steps=1))
    list(training.run())
    other = Decoder(dataclasses.replace(CONFIG, d_ff=48))
    with pytest.raises(BadCheckpoint, match="does not fit"):
        Training(other, Fixed(), recipe(), step=1, state=training.state())


def test_new_weights_are_gpt2_s() -> None:
    decoder = Decoder(dataclasses.replace(CONFIG, d_model=256, d_ff=1024, n_vocab=tiny.N_VOCAB, d_head=64))
    initialise(decoder, 0)
    std = {name: float(p.detach().std()) for name, p in decoder.named_parameters() if p.ndim == 2}
    assert std["embed.weight"] == pytest.approx(0.02, rel=0.02)
    for name in ("blocks.0.mlp.down.weight", "blocks.1.attn.out.weight"):
        assert std[name] == pytest.approx(0.02 / math.sqrt(4), rel=0.02), "what is written to the stream starts smaller"
    assert std["blocks.0.attn.q.weight"] == pytest.approx(0.02 / 8, rel=0.02), "1/sqrt(d) is in the queries"
    assert all(not p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))


def test_while_an_update_is_half_made_the_training_is_torn() -> None:
    """What Ctrl-C finds then must not be saved as the state of a step."""
    training, seen = Training(new(), Fixed(), recipe()), list[bool]()
    step = training.optimizers[-1].step

    def watched(rate: float) -> None:
        step(rate)
        seen.append(training.torn)
        raise KeyboardInterrupt

    training.optimizers[-1].step = watched  # type: ignore[method-assign]
    assert not training.torn
    with pytest.raises(KeyboardInterrupt):
        next(training.run())
    assert seen == [True] and training.torn and training.step == 0
    training = Training(new(), Fixed(), recipe())
    next(training.run())
    assert not training.torn and training.step == 1


@pytest.mark.parametrize("kind", [kind for kind in ZOO if "qk_layernorm" in kind.values], ids=str)
def test_gains_of_each_head_begin_at_one_and_do_not_decay(kind: Kind, ours: Checkpoint) -> None:
    initialise(ours.decoder, seed=0)
    gains = {name: p for name, p in ours.decoder.named_parameters() if "q_norm.weight" in name}
    assert gains and all(bool((p == 1).all()) for p in gains.values())
    for found in optimizers(ours.decoder.requires_grad_(True), recipe(optimizer="muon")):
        for group in found.groups:
            assert not gains.keys() & group.parameters.keys() or group.decay == 0


def test_a_run_that_goes_on_shows_a_lesson_at_once() -> None:
    training = Training(new(), Fixed(), recipe(n_steps=14), step=4)
    assert [p.step for p in training.run(show_every=5) if p.lesson] == [5, 10]


def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end() -> None:
    training = Training(new(), Fixed(), recipe(n_steps=20))
    true = training.optimizers[0].step

    def step(rate: float) -> None:
        if training.step == 3:
            signal.raise_signal(signal.SIGINT)
        true(rate)

    training.optimizers[0].step = step  # type: ignore[method-assign]
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), between_updates(training):
        for progress in training.run():
            done.append(progress.step)
    assert done == [1, 2, 3, 4] and training.step == 4 and not training.torn
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), between_updates(training):
        signal.raise_signal(signal.SIGINT)  # between two updates it ends at once
