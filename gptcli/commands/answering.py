"""One call of generate: what is to be run, and what came of it. How it is shown is in answers.py."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from gptcli.commands.editing import Wanted
from gptcli.errors import GptcliError
from gptcli.render.output import say, tell
from gptcli.sampling import Sampling
from gptcli.settings import Setting

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.generation import Request
    from gptcli.model import Tape
    from gptcli.records import Prompt, Step
    from gptcli.records_xray import Strip

TIE = 1e-4  # between the two best logits; sums of another order, as another machine makes them, may turn it round


@dataclasses.dataclass
class Times:
    """Seconds, read off one clock."""

    started: float
    loaded: float
    first: float | None = None
    ended: float = 0.0
    n_prompt: int = 0  # tokens, of all runs that are computed together
    n_generated: int = 0


class Together:
    """The texts of one or more runs, computed in one batch and shown one after the other."""

    def __init__(self, runs: Sequence[Run]) -> None:
        from gptcli.batch import InOrder, generate_batch

        counts = [run.settings["num_samples"].value for run in runs]
        self._first = {id(run): sum(counts[:i]) for i, run in enumerate(runs)}
        self._texts = InOrder(generate_batch(runs[0].checkpoint, self._requests(runs)))
        for run in runs:
            run.together, run.times = self, runs[0].times  # one clock: they are computed side by side

    @staticmethod
    def of(runs: Sequence[Run]) -> None:
        """Has the runs computed together where that is right: nobody looks into the model, or at its last digits."""
        many = sum(run.settings["num_samples"].value for run in runs) > 1
        if many and not any(run.xray or run.wanted or run.figures for run in runs):
            Together(runs)

    def text(self, run: Run, sample: int) -> Iterable[Step]:
        """The steps of one sample of a run."""
        return self._texts.text(self._first[id(run)] + sample)

    @staticmethod
    def _requests(runs: Sequence[Run]) -> Iterable[Request]:
        for run in runs:
            try:
                yield from run.requests()
            except GptcliError:  # it is said when its turn comes, after the answers before it
                return


@dataclasses.dataclass(kw_only=True)
class Run:
    """One call of the command: what to run, and what came of it."""

    checkpoint: Checkpoint
    text: str
    settings: dict[str, Setting]
    sampling: Sampling
    seed: int
    top: int
    bos: bool | None
    times: Times
    wanted: Wanted
    xray: bool
    figures: bool = False  # whether numbers are shown that are rounded otherwise when texts are computed together
    together: Together | None = None
    lookup: bool = False
    prompt: Prompt | None = None
    interrupted: bool = False
    last: bool = True  # of several cases; the seed is said once
    n_generated: int = 0  # tokens of this run
    n_silent: int = 0  # samples that the model ended before it wrote anything
    n_ties: int = 0  # tokens that were the likeliest by less than TIE
    strips: dict[int, Strip] = dataclasses.field(default_factory=dict)  # by token, of the sample that is running

    def samples(self) -> Iterable[tuple[int, Iterable[Step]]]:
        """The samples, each a stream of steps; the prompt is computed once for all."""
        from gptcli.generation import generate, start

        value = {key: setting.value for key, setting in self.settings.items()}
        n, prompt = value["num_samples"], self.prepared()
        if self.together:
            for i in range(n):
                yield i, self._timed(self.together.text(self, i))
            return
        tape = self._tape(prompt)
        alone = n == 1 or tape is not None  # a tape sees a text from its start
        begin = prompt if alone else start(self.checkpoint, prompt, max_tokens=value["max_tokens"])
        for i in range(n):
            self.strips = {}
            steps = generate(
                self.checkpoint,
                begin,
                sampling=self.sampling,
                max_tokens=value["max_tokens"],
                seed=self.seed,
                sample=i,
                stop=value["stop"],
                ignore_eos=value["ignore_eos"],
                top=self.top,
                overflow=value["overflow"],
                tape=tape,
                lookup=self.lookup,
            )
            yield i, self._timed(self._read(steps, tape))

    def requests(self) -> Iterable[Request]:
        """The same samples, for those who compute them together."""
        from gptcli.generation import Request

        value = {key: setting.value for key, setting in self.settings.items()}
        for i in range(value["num_samples"]):
            yield Request(
                prompt=self.prepared(),
                sampling=self.sampling,
                max_tokens=value["max_tokens"],
                seed=self.seed,
                sample=i,
                stop=value["stop"],
                ignore_eos=value["ignore_eos"],
                overflow=value["overflow"],
            )

    def _tape(self, prompt: Prompt) -> Tape | None:
        """What watches the passes, or changes what passes; None leaves the model alone."""
        if not self.xray and not self.wanted:
            return None
        from gptcli.strips import Strips

        edits = self.wanted.edits(self.checkpoint, prompt, bos=self.bos) if self.wanted else None
        decoder, size = self.checkpoint.decoder, self.checkpoint.n_tokens
        return Strips(decoder, edits=edits, size=size) if self.xray else edits

    def _read(self, steps: Iterable[Step], tape: Tape | None) -> Iterable[Step]:
        """Each token with its strip, read off the pass that wrote it."""
        for step in steps:
            if self.xray:
                self.strips[step.index] = tape.read(step.id, step.logprob)  # type: ignore[union-attr]
            yield step

    def prepared(self) -> Prompt:
        """The prompt's tokens, made to fit."""
        from gptcli.generation import prepare

        value = {key: setting.value for key, setting in self.settings.items()}
        if self.prompt is None:
            self.prompt = prepare(
                self.checkpoint, self.text, max_tokens=value["max_tokens"], overflow=value["overflow"], bos=self.bos
            )
            self.times.n_prompt += len(self.prompt.ids)
            if self.prompt.n_dropped and not value["quiet"]:
                n = self.prompt.n_dropped
                say(f"gptcli: note: the {n} oldest tokens of the prompt were dropped to fit the context")
        return self.prompt

    def _timed(self, steps: Iterable[Step]) -> Iterable[Step]:
        for step in steps:
            now = time.perf_counter()
            self.n_silent += step.index == 0 and step.finish == "eos"
            self.n_ties += self.sampling.greedy and step.margin < TIE
            self.times.first = self.times.first or now
            self.times.ended, self.times.n_generated = now, self.times.n_generated + 1
            self.n_generated += 1
            yield step

    def stats(self) -> dict[str, float | int]:
        """Figures of the run: times in seconds, memory in bytes; speeds are of all that are computed beside it."""
        t, n_prompt = self.times, len(self.prompt.ids) if self.prompt else 0
        if t.first is None:
            return {"load_s": t.loaded - t.started, "prompt_tokens": n_prompt, "generated_tokens": 0}
        rest, prefill = t.n_generated - 1, t.first - t.loaded
        return {
            "load_s": round(t.loaded - t.started, 4),
            "first_token_s": round(t.first - t.started, 4),
            "prompt_tokens": n_prompt,
            "prefill_tokens_per_s": round(t.n_prompt / prefill, 2) if prefill > 0 else 0.0,
            "generated_tokens": self.n_generated,
            "decode_tokens_per_s": round(rest / (t.ended - t.first), 2) if rest and t.ended > t.first else 0.0,
            "peak_memory_bytes": _peak_memory(),
        }

    def tell_seed(self) -> None:
        """How to get the same answer again, unless a person chose the seed, or nothing was drawn."""
        value = {key: setting.value for key, setting in self.settings.items()}
        if not value["quiet"] and not self.sampling.greedy and value["seed"] is None:
            from gptcli.render.stream import seeds

            say(f"gptcli: {seeds(self.seed, value['num_samples'])}")

    def close(self, *, newline: bool = False) -> None:
        """What is said on standard error when all is done; a Ctrl-C ends with its exit code."""
        value = {key: setting.value for key, setting in self.settings.items()}
        if newline:
            tell("\n")
        if self.last or self.interrupted:
            self.tell_seed()
        if self.n_silent and not value["quiet"]:
            which = f"{self.n_silent} of {value['num_samples']} times " if value["num_samples"] > 1 else ""
            say(f"gptcli: note: {which}the model ended the text at once; --ignore-eos makes it go on")
        if self.n_ties and not value["quiet"]:
            which = "a token was" if self.n_ties == 1 else f"{self.n_ties} tokens were"
            say(f"gptcli: note: {which} the likeliest by less than {TIE:g}; another machine may choose the other")
        if value["stats"] and (self.last or not self.together):
            whole = {"prompt_tokens": self.times.n_prompt, "generated_tokens": self.times.n_generated}
            say("gptcli: " + _stats_line(self.stats() | whole))
        if self.interrupted:
            raise typer.Exit(130)


def _stats_line(stats: dict[str, float | int]) -> str:
    from gptcli.memory import human

    parts = [f"loaded in {stats['load_s']:.2f} s"]
    if "first_token_s" in stats:
        parts += [
            f"first token after {stats['first_token_s']:.2f} s",
            f"prompt {stats['prompt_tokens']:,} tokens, {_rate(stats['prefill_tokens_per_s'])}/s",
            f"answer {stats['generated_tokens']:,} tokens, {_rate(stats['decode_tokens_per_s'])}/s",
            f"peak memory {human(int(stats['peak_memory_bytes']))}",
        ]
    return " | ".join(parts)


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _peak_memory() -> int:
    """Most that this process ever held, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
