"""gptcli batch: many prompts in a .jsonl file, many answers, one a line."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.generate import SAMPLING
from gptcli.commands.loading import load_chosen
from gptcli.errors import GptcliError, NotFound, UsageError
from gptcli.render.output import Output, hears, say, tell
from gptcli.sampling import Sampling
from gptcli.settings import OPTIONS, checked
from gptcli.strict_json import no_constant, unique

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.generation import Request
    from gptcli.records import Step

OF_A_LINE = (*SAMPLING, "max_tokens", "seed", "stop", "ignore_eos")  # what a line may say for itself
KEYS = ("prompt", "id", *OF_A_LINE)


def batch(
    file: Annotated[
        str, typer.Argument(metavar="FILE.jsonl", show_default=False, help='Lines like {"prompt": ...}; - for stdin.')
    ],
    model: o.Model = None,
    adapter: o.Adapter = None,
    rows: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, max=4096, help="How many texts are computed at a time.")
    ] = 32,
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Write each answer when it is ready, not in the order of the lines.")
    ] = False,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    repeat_last_n: o.RepeatLastN = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    ignore_eos: o.IgnoreEos = None,
    overflow: o.Overflow = None,
    quiet: o.Quiet = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
) -> None:
    """Answer every line of a .jsonl file, many at a time, and write one JSON object a line.

    A line is {"prompt": TEXT} and may have an "id" of its own and max_tokens, temperature, top_k, top_p, seed, stop and
    the other options of sampling; what it does not say is as the options say. Its answer is to the byte what
    gptcli generate makes of the same prompt, options and seed alone, whatever runs beside it.
    """
    flags = {key: value for key, value in locals().items() if key in OPTIONS}
    output = Output()
    wishes = list(read_wishes(file))
    checkpoint, settings = load_chosen(
        flags, adapter=adapter, revision=revision, allow=allow_config or (), rounded="packed"
    )
    values = {key: setting.value for key, setting in settings.items()}
    if not values["quiet"]:
        for note in checkpoint.notes:
            say(f"gptcli: note: {note}")
        if not wishes:
            say(f"gptcli: note: {'standard input' if file == '-' else file} holds no prompt, so there is no answer")
    first_seed = secrets.randbits(32) if values["seed"] is None else values["seed"]
    requests = list(_requests(checkpoint, file, wishes, values | {"seed": first_seed}))
    interrupted = False
    shown = _Progress(len(wishes), on=hears() and not values["quiet"])
    queue = _Queue(ordered=not unordered)

    def write(answers: Iterable[tuple[int, list[Step]]]) -> None:
        for number, steps in answers:
            shown.hide()
            output.json(_answer(number, steps, requests[number].seed, wishes[number][1]))

    try:
        for number, steps in _finished(checkpoint, requests, rows=rows, shown=shown):
            write(queue.add(number, steps))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        write(queue.rest())  # also when a text cannot be computed: what was answered is not lost
        shown.hide()
    drawn = any(not r.sampling.greedy and "seed" not in w for r, (_, w) in zip(requests, wishes, strict=True))
    if values["seed"] is None and drawn and not values["quiet"]:
        say(f"gptcli: seed {first_seed}; the answer with index i has it plus i, if its line names none")
    if interrupted:
        raise typer.Exit(130)


def read_wishes(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty. Raises UsageError that names the line, NotFound."""
    try:
        if file == "-" and sys.stdin is None:
            raise UsageError("standard input is closed", hint="name a .jsonl file")
        if file == "-":
            lines = sys.stdin.buffer.read().splitlines()
        else:
            with open(file, "rb") as opened:
                lines = opened.read().splitlines()
    except FileNotFoundError:
        raise NotFound(f"no such file: {file}") from None
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from None
    hint = 'a line is for example {"prompt": "Once upon a time", "max_tokens": 40}'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            wish = json.loads(text, parse_constant=no_constant, parse_float=_finite, object_pairs_hook=unique)
            json.dumps(wish, ensure_ascii=False).encode()  # half a character, written \\ud800, is no text
        except UnicodeDecodeError as error:
            raise UsageError(f"{where}: byte {error.start} is not UTF-8", hint=hint) from None
        except UnicodeEncodeError:
            raise UsageError(f"{where}: half a character (a lone surrogate)", hint=hint) from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON: {error}", hint=hint) from None
        if not isinstance(wish, dict) or not isinstance(wish.get("prompt"), str):
            raise UsageError(f'{where}: there is no "prompt" with a text', hint=hint)
        unknown = next((key for key in wish if key not in KEYS), None)
        if unknown is not None:
            raise UsageError(f"{where}: {unknown!r} is not known", hint=f"known: {', '.join(KEYS)}")
        for key in OF_A_LINE:
            if key in wish:
                value = [wish[key]] if key == "stop" and isinstance(wish[key], str) else wish[key]
                wish[key] = checked(key, value, f"{where}: {key}")
        yield number, wish


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _requests(
    checkpoint: Checkpoint, file: str, wishes: Iterable[tuple[int, dict[str, Any]]], values: dict[str, Any]
) -> Iterator[Request]:
    """What each line asks for; a prompt that cannot be answered is an error before anything is computed."""
    from gptcli.generation import Request, prepare

    for i, (number, wish) in enumerate(wishes):
        own = values | {"seed": values["seed"] + i} | {key: wish[key] for key in OF_A_LINE if key in wish}
        try:
            prompt = prepare(checkpoint, wish["prompt"], max_tokens=own["max_tokens"], overflow=own["overflow"])
        except GptcliError as error:
            raise UsageError(f"{file}: line {number}: {error.message}", hint=error.hint) from None
        yield Request(
            prompt=prompt,
            sampling=Sampling(**{name: own[name] for name in SAMPLING}),
            **{key: own[key] for key in ("max_tokens", "seed", "stop", "ignore_eos", "overflow")},
        )


def _answer(number: int, steps: list[Step], seed: int | None, wish: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": number,
        **({"id": wish["id"]} if "id" in wish else {}),
        "text": "".join(step.text for step in steps),
        "finish": steps[-1].finish if steps else None,
        "n_tokens": len(steps),
        "seed": seed,
    }


class _Queue:
    """Texts that have ended, by number; in order those wait whose turn has not come."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered, self._due = ordered, 0
        self._ready: dict[int, list[Step]] = {}

    def add(self, number: int, steps: list[Step]) -> Iterator[tuple[int, list[Step]]]:
        """One more; yields those whose turn it is now."""
        if not self._ordered:
            yield number, steps
            return
        self._ready[number] = steps
        while self._due in self._ready:
            yield self._due, self._ready.pop(self._due)
            self._due += 1

    def rest(self) -> Iterator[tuple[int, list[Step]]]:
        """Those that still wait."""
        for number in sorted(self._ready):
            yield number, self._ready.pop(number)


def _finished(
    checkpoint: Checkpoint, requests: list[Request], *, rows: int, shown: _Progress
) -> Iterator[tuple[int, list[Step]]]:
    """(number, its steps) of each text that has ended, as soon as it has."""
    from gptcli.batch import generate_batch

    yield from ((i, []) for i, request in enumerate(requests) if request.max_tokens == 0)
    running: dict[int, list[Step]] = {}
    for number, step in generate_batch(checkpoint, requests, batch=rows):
        running.setdefault(number, []).append(step)
        shown.step(ended=step.finish is not None)
        if step.finish:
            yield number, running.pop(number)


@dataclasses.dataclass
class _Progress:
    """One line on standard error at a terminal: how many have ended, and how fast it goes."""

    n: int
    on: bool
    done: int = 0
    tokens: int = 0
    began: float = dataclasses.field(default_factory=time.perf_counter)
    last: float = 0.0

    def step(self, *, ended: bool) -> None:
        """One more token."""
        self.done, self.tokens = self.done + ended, self.tokens + 1
        now = time.perf_counter()
        if self.on and now - self.last > 0.1:
            self.last = now
            speed = self.tokens / max(now - self.began, 1e-9)
            tell(f"\r\x1b[2m{self.done:,} of {self.n:,} answers, {speed:,.0f} tokens/s\x1b[0m\x1b[K")

    def hide(self) -> None:
        """Makes room for what is to stay."""
        if self.on:
            tell("\r\x1b[K")
