"""What train and finetune share: the loop over the records of a run, its saves, its metrics, its picture."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gptcli.disk import replace_text, sweep
from gptcli.errors import GptcliError, UsageError
from gptcli.render import theme
from gptcli.render.output import hears, say
from gptcli.settings import Setting

if TYPE_CHECKING:
    import torch

    from gptcli.data import Batches
    from gptcli.model import Decoder
    from gptcli.recipe import Recipe
    from gptcli.records import Progress
    from gptcli.saves import Save
    from gptcli.tokens import Tokenizer
    from gptcli.train import Training

SAVE_SECONDS, VALIDATE_SHARE, LINE_SECONDS = 120.0, 40, 10.0
MORE_MEMORY = "end what else takes memory, or go on with a copy of the folder on a larger machine"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says of the recipe; None: the default, or as the run had it."""

    tokens: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    schedule: Any = None
    optimizer: Any = None
    precision: Any = None
    micro_batch: int | None = None
    compiled: bool | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.steps is not None:
            raise UsageError("--tokens and --steps say the same; leave one out")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise UsageError(f"--learning-rate must be a number above 0, not {rate:g}")

    def n_tokens(self, batch_tokens: int, n_ctx: int) -> int | None:
        """How long to train, if that was said."""
        return self.tokens if self.steps is None else self.steps * max(1, round(batch_tokens / n_ctx)) * n_ctx


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a run is watched. `every`s count steps; None: by the clock, or by the length of the run."""

    save_every: int | None
    validate_every: int | None
    quiet: bool
    coloured: bool

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Setting], *, save_every: int | None, validate_every: int | None
    ) -> Watch:
        return cls(
            save_every=save_every,
            validate_every=validate_every,
            quiet=settings["quiet"].value,
            coloured=theme.wants_colour(settings["color"].value, terminal=hears()),
        )


def asked_recipe(asked: Asked, recipe: Recipe, n_params: int, device: str) -> Recipe:
    """The recipe of a new run with what decides its bits: precision, compiled or not, sequences at once."""
    from gptcli.checkpoint import pick_device
    from gptcli.train import best_precision, worth_compiling

    where = pick_device(device)
    compiled = worth_compiling(n_params, recipe) if asked.compiled is None else asked.compiled
    return dataclasses.replace(
        recipe,
        precision=asked.precision or best_precision(where),
        compiled=compiled,
        micro_batch=asked.micro_batch or 0,
    )


def changed(was: Recipe, asked: Asked, out: Path) -> Recipe:
    """The recipe of a run that goes on: longer, or changed where a change makes sense, if the command line says so.

    Raises UsageError for another optimizer.
    """
    from gptcli.recipe import scaled

    if asked.optimizer not in (None, was.optimizer):
        raise UsageError(f"the run in {out} uses {was.optimizer}; its state is of no use to {asked.optimizer}")
    again, n_steps = was, was.n_steps if asked.tokens is None and asked.steps is None else asked.steps
    if (n_steps, asked.schedule or was.schedule) != (was.n_steps, was.schedule):
        again = scaled(
            n_tokens=asked.n_tokens(was.batch * was.n_ctx, was.n_ctx) or was.n_tokens(was.n_steps),
            n_ctx=was.n_ctx,
            batch_tokens=was.batch * was.n_ctx,
            learning_rate=was.learning_rate,
            schedule=asked.schedule or was.schedule,
            optimizer=was.optimizer,
            seed=was.seed,
            growth=(was.ramp_from, was.ramp_tokens),  # or what was shown already would be shown again
            n_steps=n_steps,
        )
    return dataclasses.replace(
        again,
        learning_rate=was.learning_rate if asked.learning_rate is None else asked.learning_rate,
        weight_decay=was.weight_decay,
        precision=asked.precision or was.precision,
        micro_batch=was.micro_batch if asked.micro_batch is None else asked.micro_batch,
        compiled=was.compiled if asked.compiled is None else asked.compiled,
    )


def begin(out: Path, recipe: Recipe, device: str, watch: Watch) -> tuple[bool, Save | None]:
    """Whether steps are left to do, and the save to go on from; None where there is none yet.

    Raises UsageError for a device that is not there or a compiler that is missing, BadCheckpoint for damaged saves.
    """
    from gptcli.checkpoint import pick_device
    from gptcli.saves import drop_damaged, newest, read_json

    run = out / "run"
    check_compiler(recipe.compiled, pick_device(device).type)
    with written(out):
        for path in (run / "recipe.json", run / "LATEST", out / "metrics.jsonl", out / "loss.svg"):
            sweep(path)
    found = newest(run)
    published(out, found, watch)
    if found and found.step >= recipe.n_steps:
        if not watch.quiet:
            n = read_json(run / "recipe.json")["recipe"]["n_steps"]
            said = f"all {n} steps are done" if n == recipe.n_steps else f"{found.step} steps are done already"
            say(f"gptcli: {said}; --resume --steps N with more than that goes on")
        return False, found
    if found:
        drop_damaged(run, found)
    return True, found


def training_from(decoder: Decoder, batches: Batches, recipe: Recipe, found: Save | None) -> Training:
    """A training that goes on from its save, or from its beginning."""
    from gptcli.train import Training

    if found is None:
        return Training(decoder, batches, recipe)
    return Training(decoder, batches, recipe, step=found.step, n_tokens=found.n_tokens, state=found.state)


def check_training_fits(n_params: int, device: torch.device, *, hint: str, n_moving: int | None = None) -> None:
    """Raises OutOfMemory where weights, gradients and what Adam remembers do not fit, in float32.

    n_moving: how many parameters are trained; None for all.
    """
    from gptcli.memory import check_fits

    moving = n_params if n_moving is None else n_moving
    check_fits(4 * (n_params + 3 * moving), device, what="weights, gradients and what Adam remembers", hint=hint)


def check_compiler(compiled: bool | None, device: str) -> None:
    """Raises UsageError for a run that is to be compiled where nothing can compile it."""
    from gptcli.compiled import has_compiler

    if compiled and device == "cpu" and not has_compiler():
        raise UsageError("the step cannot be compiled: there is no C++ compiler", hint="--no-compile, or install g++")


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Raises GptcliError for a disk that is full, or a folder that nothing can be written to."""
    try:
        yield
    except OSError as error:
        hint = "make room and go on with --resume"
        raise GptcliError(f"{out} cannot be written: {error.strerror or error}", hint=hint) from error


def published(out: Path, found: Save | None, watch: Watch) -> None:
    """What a run that goes on finds: its newest save is what `out` holds, and a person is told of damaged ones."""
    from gptcli.saves import publish

    if found is None:
        return
    if not watch.quiet:
        for fault in found.skipped:
            say(f"gptcli: note: a save is damaged and left out: {fault}")
    with written(out):
        publish(found.folder, out)
        kept = [record for record in metrics(out) if record["step"] <= found.step]
        replace_text(out / "loss.svg", picture(kept, title=f"{out.resolve().name}: loss while training"))


def empty_out(out: Path | None, *, resumes: bool = True) -> Path:
    """The folder of a new run; what a run left that never began may be in it. Raises UsageError otherwise.

    resumes: whether the command can go on with a run.
    """
    if out is None:
        raise UsageError("--out DIR is missing", hint="the model is written there")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="choose a new folder")
    if out.is_dir() and not _unbegun(out):
        more = ", or go on with what is there: --resume" if resumes else ""
        raise UsageError(f"{out} exists already", hint=f"choose a new folder{more}")
    return out


def _unbegun(out: Path) -> bool:
    """Whether a folder is empty, or holds what a run has left that never began: that has a lock, and is cleared."""
    names, run = {p.name for p in out.iterdir()}, out / "run"
    if names != {"run"} or run.is_symlink() or not run.is_dir():
        return not names
    from gptcli.saves import LOCK

    left = {p.name for p in run.iterdir()}
    return not left or (LOCK in left and "recipe.json" not in left)


@contextmanager
def new_run(out: Path) -> Iterator[None]:
    """This process alone in the folder of a new run. If the run cannot begin, nothing of it stays.

    Raises GptcliError where another one is training there.
    """
    from gptcli.saves import alone

    made = not out.exists()
    with alone(out / "run"):
        try:
            yield
        except BaseException:
            if not (out / "run" / "recipe.json").exists():
                shutil.rmtree(out / "run", ignore_errors=True)
                if made:
                    with suppress(OSError):  # somebody put something into it meanwhile
                        out.rmdir()
            raise


def manner(recipe: Recipe) -> str:
    """How its steps are made: float32, 2 threads, compiled."""
    import torch

    n = torch.get_num_threads()
    return f"{recipe.precision}, {n} thread{'s' if n > 1 else ''}" + (", compiled" if recipe.compiled else "")


@contextmanager
def between_updates(training: Training) -> Iterator[None]:
    """Ctrl-C in the middle of an update waits for its end, a moment: half an update is no step that can be saved."""

    def interrupted(number: int, frame: object) -> None:
        if training.torn and not training.stops:
            training.stops = True
        else:
            raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, interrupted)
    except ValueError:  # not the main thread, which no signal reaches
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def fit(
    training: Training, out: Path, write_model: Callable[[Path], None], tokenizer: Tokenizer, watch: Watch
) -> Progress | None:
    """Runs what is left of a training, saving on the way; the model of the last save is what `out` holds.

    Ctrl-C ends it after a save; so does an error, without one.
    """
    from gptcli.render.training import Panel, line
    from gptcli.saves import publish, read_json, write_save

    run, n_steps = out / "run", training.recipe.n_steps
    n_moving = sum(p.numel() for p in training.parameters.values())  # of an adapter nothing else is saved
    kept = [record for record in metrics(out) if record["step"] <= training.step]
    recipe = read_json(run / "recipe.json") | {"recipe": dataclasses.asdict(training.recipe)}
    with written(out):
        replace_text(run / "recipe.json", json.dumps(recipe, indent=2) + "\n")  # changed, now that it can go on
        replace_text(out / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))
    panel = Panel(tokenizer, n_steps, kept, coloured=watch.coloured) if hears() and not watch.quiet else None
    saved_at, said_at, last = time.monotonic(), -math.inf, None

    def save() -> None:
        nonlocal saved_at
        training.check()
        folder = write_save(
            run,
            training.state(),
            write_model,
            step=training.step,
            n_tokens=training.n_tokens,
            n_bytes=3 * 4 * n_moving + (8 << 20),  # and their two moments, in float32
        )
        publish(folder, out)
        replace_text(out / "loss.svg", picture(metrics(out), title=f"{out.resolve().name}: loss while training"))
        saved_at, training.saved = time.monotonic(), training.step

    validate_every = watch.validate_every or max(1, n_steps // VALIDATE_SHARE)
    if training.recipe.compiled and training.step < n_steps and not watch.quiet:
        say("gptcli: compiling the step, a minute or two ...")
    try:
        with between_updates(training), written(out), kept_log(out) as log:
            for progress in training.run(validate_every=validate_every, show_every=10 if panel else 0):
                last = progress
                log.write(json.dumps(_metric(progress)) + "\n")
                now, done = time.monotonic(), progress.step == n_steps
                if panel:
                    panel.show(progress)
                elif not watch.quiet and (progress.validation is not None or now - said_at >= LINE_SECONDS or done):
                    say(line(progress))
                    said_at = now
                due = progress.step % watch.save_every == 0 if watch.save_every else now - saved_at >= SAVE_SECONDS
                if due or done:
                    save()
    except KeyboardInterrupt:
        if training.step != training.saved and not training.torn:  # half an update would be made twice
            save()
        if panel:
            panel.close()
        said = f"saved; go on with --resume --out {out}" if training.saved else "before the first save"
        say(f"gptcli: stopped after step {training.saved} of {n_steps}, {said}")
        raise
    finally:
        if panel:
            panel.close()
    return last


def say_saved(out: Path, watch: Watch, *, base: str | None = None) -> None:
    """Where the result of a run is, and what runs it. base: the model that it is an adapter of."""
    folder = shlex.quote(str(out))
    chosen = f"-m {folder}" if base is None else f"-m {shlex.quote(base)} --adapter {folder}"
    if not watch.quiet:
        say(f"gptcli: saved in {out}; now: gptcli generate {chosen}")


def kept_log(out: Path) -> TextIO:
    """metrics.jsonl, to be gone on with; each line is there once it is written."""
    return (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)


def _metric(progress: Progress) -> dict[str, Any]:
    record = {
        "step": progress.step,
        "tokens": progress.n_tokens,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "grad_norm": progress.grad_norm,
        "tokens_per_s": round(progress.tokens_per_s, 1),
    }
    return record if progress.validation is None else record | {"validation": progress.validation}


def picture(records: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The loss curve of a run as SVG."""
    from gptcli.render.curve import svg

    loss = [(float(r["tokens"]), float(r["loss"])) for r in records]
    return svg(loss, [(float(r["tokens"]), float(r["validation"])) for r in records if "validation" in r], title=title)


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was cut off by a crash, or is none of ours, ends it."""
    found = list[dict[str, Any]]()
    path = out / "metrics.jsonl"
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(text)
            numbers = [record["step"], record["loss"], record.get("validation", 0.0)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            break
        if any(type(x) not in (int, float) or not abs(x) < 1e30 for x in numbers):
            break
        found.append(record)
    return found
