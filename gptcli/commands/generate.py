"""gptcli generate: raw text in, raw text out, one token at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import shutil
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.editing import Wanted, refuse_mean_alone
from gptcli.commands.priming import Priming, show, with_stops
from gptcli.commands.prompt import read_cases, read_prompt
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output, hears, say, tell
from gptcli.render.safe import one_line
from gptcli.sampling import Sampling
from gptcli.settings import Setting, settle

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.model import Tape
    from gptcli.records import Candidate, Prompt, Step
    from gptcli.records_xray import Strip

NEXT = 4  # other tokens that a strip names
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling) if field.name != "logit_bias")


def generate(
    prompt: o.Text = None,
    prompt_option: o.PromptFlag = None,
    file: o.File = None,
    examples: o.Examples = None,
    example: o.Example = None,
    example_format: o.ExampleFormat = None,
    show_prompt: o.ShowPrompt = False,
    model: o.Model = None,
    adapter: o.Adapter = None,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    repeat_last_n: o.RepeatLastN = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    logit_bias: o.LogitBias = None,
    seed: o.Seed = None,
    num_samples: o.NumSamples = None,
    stop: o.Stop = None,
    ignore_eos: o.IgnoreEos = None,
    overflow: o.Overflow = None,
    logprobs: o.Logprobs = None,
    as_json: o.Json = False,
    as_jsonl: o.Jsonl = False,
    echo: o.Echo = False,
    stream: o.Stream = True,
    stats: o.Stats = None,
    quiet: o.Quiet = None,
    verbose: o.Verbose = False,
    color: o.Color = None,
    stdin_last: o.StdinLast = False,
    keep_newline: o.KeepNewline = False,
    escape: o.Escape = False,
    bos: o.Bos = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
    xray: o.Xray = False,
    ablate: o.Ablate = None,
    patch: o.Patch = None,
    mean: o.Mean = False,
) -> None:
    """Go on from a text, one token at a time. Without a prompt the model starts from its own start token.

    Options win over GPTCLI_* variables, these over the config file, the model's generation_config.json and the
    defaults in brackets. Filters act in this order: logit bias, penalties, temperature, top-k, top-p, min-p.

    With --examples the prompt is a case like theirs, or one in each line of a pipe, and is answered in the same way.
    """
    started = time.perf_counter()
    flags = {key: value for key, value in locals().items() if key in o.SETTINGS}
    early = settle(flags)
    if as_json and as_jsonl:
        raise UsageError("--json and --jsonl exclude each other", hint="--jsonl is for reading along")
    if logprobs is not None and not 0 <= logprobs <= 100:
        raise UsageError(f"--logprobs must be from 0 to 100, not {logprobs}")
    Sampling(**{name: early[name].value for name in SAMPLING})  # bad flags are refused before anything is loaded
    wanted = Wanted.read(ablate, patch, mean=mean)
    refuse_mean_alone(wanted, mean=mean)
    if wanted.patches and early["overflow"].value == "slide":
        raise UsageError("--patch names a token, and --overflow slide moves the tokens", hint="leave one of them out")
    output = Output()
    priming = Priming.asked(examples, example, example_format)
    text, cases = "", list[str]()
    if priming:
        cases = read_cases(prompt, prompt_option, file, escape=escape)
    else:
        text = read_prompt(prompt, prompt_option, file, stdin_last=stdin_last, keep_newline=keep_newline, escape=escape)
    if show_prompt:
        show(output, priming, text, cases, flags, adapter=adapter, revision=revision, allow=allow_config or (), bos=bos)
        return
    quiet = early["quiet"].value
    waiting = hears() and not quiet
    if waiting:
        tell("\x1b[2mloading ...\x1b[0m")
    try:
        from gptcli.checkpoint import load_layout
        from gptcli.layout import generation_config, look
        from gptcli.model_choice import adapter_folder, chosen_model

        extra = None if adapter is None else adapter_folder(adapter)
        layout = look(chosen_model(early), revision=revision, allow=allow_config or ())
        settings = settle(flags, layout.generation_config | (generation_config(extra) if extra else {}))
        checkpoint = load_layout(layout, device=settings["device"].value, dtype=settings["dtype"].value)
        if extra is not None:
            from gptcli.lora import apply

            apply(checkpoint, extra)
    finally:
        if waiting:
            tell("\r\x1b[K")
    loaded = time.perf_counter()
    if not quiet:
        for note in checkpoint.notes:
            say(f"gptcli: note: {note}")
        if text.endswith(" "):
            say("gptcli: note: the prompt ends with a space; most models write it together with the next word")
    wanted.check(checkpoint.config.n_layer, checkpoint.config.n_head)
    run = _Run(
        checkpoint=checkpoint,
        text=text,
        settings=settings,
        sampling=Sampling(
            **{name: settings[name].value for name in SAMPLING}, logit_bias=_biases(checkpoint, logit_bias or ())
        ),
        seed=secrets.randbits(32) if settings["seed"].value is None else settings["seed"].value,
        top=max(logprobs or 0, NEXT if xray else 0),
        wanted=wanted,
        xray=xray,
        bos=bos,
        times=_Times(started=started, loaded=loaded),
    )
    if verbose:
        for name, setting in settings.items():
            say(f"gptcli: {name} = {setting.value!r} ({setting.source})")
    write = _as_json if as_json else _as_jsonl if as_jsonl else None
    for each in _runs(run, priming, cases):
        if write:
            write(each, output, logprobs=logprobs is not None)
        elif xray:
            _as_strips(each, output)
        else:
            _as_text(each, output, echo=echo, stream=stream, by_probability=logprobs is not None)
            if len(cases) > 1 and not output.is_terminal:
                output.line()  # an answer a line


def _runs(run: _Run, priming: Priming | None, cases: list[str]) -> Iterable[_Run]:
    """The run itself; with examples one for each case, with the same seed."""
    if priming is None:
        yield run
        return
    c, tokenizer = run.checkpoint.config, run.checkpoint.tokenizer
    for i, prompt in enumerate(priming.prompts(cases, run.settings, tokenizer=tokenizer, n_ctx=c.n_ctx, bos=run.bos)):
        now = time.perf_counter()
        yield dataclasses.replace(
            run,
            text=prompt.text,
            settings=with_stops(run.settings, prompt.stops),
            times=_Times(started=now, loaded=now) if i else run.times,
            last=i + 1 == len(cases),
        )


@dataclasses.dataclass
class _Times:
    """Seconds, read off one clock."""

    started: float
    loaded: float
    first: float | None = None
    ended: float = 0.0
    n_generated: int = 0


@dataclasses.dataclass(kw_only=True)
class _Run:
    """One call of the command: what to run, and what came of it."""

    checkpoint: Checkpoint
    text: str
    settings: dict[str, Setting]
    sampling: Sampling
    seed: int
    top: int
    bos: bool | None
    times: _Times
    wanted: Wanted
    xray: bool
    prompt: Prompt | None = None
    interrupted: bool = False
    last: bool = True  # of several cases; the seed is said once
    strips: dict[int, Strip] = dataclasses.field(default_factory=dict)  # by token, of the sample that is running

    def samples(self) -> Iterable[tuple[int, Iterable[Step]]]:
        """The samples, each a stream of steps; the prompt is computed once for all."""
        from gptcli.generation import generate, start

        value = {key: setting.value for key, setting in self.settings.items()}
        n, prompt = value["num_samples"], self.prepared()
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
            )
            yield i, self._timed(self._read(steps, tape))

    def _tape(self, prompt: Prompt) -> Tape | None:
        """What watches the passes, or changes what passes; None leaves the model alone."""
        if not self.xray and not self.wanted:
            return None
        from gptcli.strips import Strips

        edits = self.wanted.edits(self.checkpoint, prompt) if self.wanted else None
        return Strips(self.checkpoint.decoder, edits=edits) if self.xray else edits

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
            if self.prompt.n_dropped and not value["quiet"]:
                n = self.prompt.n_dropped
                say(f"gptcli: note: the {n} oldest tokens of the prompt were dropped to fit the context")
        return self.prompt

    def _timed(self, steps: Iterable[Step]) -> Iterable[Step]:
        for step in steps:
            now = time.perf_counter()
            self.times.first = self.times.first or now
            self.times.ended, self.times.n_generated = now, self.times.n_generated + 1
            yield step

    def stats(self) -> dict[str, float | int]:
        """Figures of the whole run; times in seconds, memory in bytes."""
        t, n_prompt = self.times, len(self.prompt.ids) if self.prompt else 0
        if t.first is None:
            return {"load_s": t.loaded - t.started, "prompt_tokens": n_prompt, "generated_tokens": 0}
        rest, prefill = t.n_generated - 1, t.first - t.loaded
        return {
            "load_s": round(t.loaded - t.started, 4),
            "first_token_s": round(t.first - t.started, 4),
            "prompt_tokens": n_prompt,
            "prefill_tokens_per_s": round(n_prompt / prefill, 2) if prefill > 0 else 0.0,
            "generated_tokens": t.n_generated,
            "decode_tokens_per_s": round(rest / (t.ended - t.first), 2) if rest and t.ended > t.first else 0.0,
            "peak_memory_bytes": _peak_memory(),
        }

    def close(self, *, newline: bool = False) -> None:
        """What is said on standard error when all is done; a Ctrl-C ends with its exit code."""
        value = {key: setting.value for key, setting in self.settings.items()}
        if newline:
            tell("\n")
        if self.last and not value["quiet"] and not self.sampling.greedy and value["seed"] is None:
            from gptcli.render.stream import seeds

            say(f"gptcli: {seeds(self.seed, value['num_samples'])}")
        if value["stats"]:
            say("gptcli: " + _stats_line(self.stats()))
        if self.interrupted:
            raise typer.Exit(130)


def _as_text(run: _Run, output: Output, *, echo: bool, stream: bool, by_probability: bool) -> None:
    from gptcli.render.stream import TextView, finish_note, legend

    choice = run.settings["color"].value
    coloured = theme.wants_colour(
        "always" if choice == "prob" and output.is_terminal else choice, terminal=output.is_terminal
    )
    if choice == "prob" and not output.is_terminal:
        coloured = True  # asked for by name, so it is wanted in a pipe too, for less -R
    look = "plain" if not coloured else "prob" if by_probability or choice == "prob" else "article"
    view = TextView(output, look=look, echo=echo or (coloured and output.is_terminal))  # type: ignore[arg-type]
    many = run.settings["num_samples"].value > 1
    steps = list[Any]()
    try:
        for i, sample in run.samples():
            if many and i:
                output.write("" if output.at_line_start else "\n")
            steps.clear()
            if stream:
                view.begin(run.prepared())
            for step in sample:
                steps.append(step)
                if stream:
                    view.step(step)
                if step.n_dropped and not run.settings["quiet"].value:
                    say(f"gptcli: note: the context was full; its {step.n_dropped} oldest tokens were dropped")
            if not stream:
                view.begin(run.prepared())
                for step in steps:
                    view.step(step)
            view.end()
            note = finish_note(steps, run.checkpoint.config.n_ctx)
            if note and not run.settings["quiet"].value:
                say(f"gptcli: note: {note}")
    except KeyboardInterrupt:
        run.interrupted = True
        if not stream:
            view.begin(run.prepared())
            for step in steps:
                view.step(step)
        view.end()
    if look == "prob" and hears() and not run.settings["quiet"].value:
        tell(legend())
    run.close()


def _as_strips(run: _Run, output: Output) -> None:
    """One line for each token: the token, a cell for each layer, where it was decided, what else it could have been."""
    from gptcli.render.strip import StripView

    coloured = theme.wants_colour(run.settings["color"].value, terminal=output.is_terminal)
    config, tokenizer = run.checkpoint.config, run.checkpoint.tokenizer
    width = shutil.get_terminal_size((100, 24)).columns
    view = StripView(output, n_layer=config.n_layer, colour=coloured, width=width)
    try:
        for _, sample in run.samples():
            view.begin(run.prepared())
            for step in sample:
                view.step(step, run.strips[step.index], tokenizer.piece(step.id) or "")
            view.end(_checked(run))
    except KeyboardInterrupt:
        run.interrupted = True
    run.close()


def _checked(run: _Run) -> list[str]:
    """What the strips' self-check says beside its number."""
    from gptcli.render.check import sizes

    checkpoint, first = run.checkpoint, run.prepared().ids[0]
    start = first in (checkpoint.tokenizer.bos_id, checkpoint.start_id)
    parts = [f"without {', '.join(run.wanted.words)}"] if run.wanted else []
    parts.append(f"{str(checkpoint.dtype).removeprefix('torch.')} {checkpoint.device}, read in float32")
    parts.append(f"start token {checkpoint.tokenizer.piece(first)}" if start else "no start token")
    return [one_line(part) for part in [*parts, sizes(checkpoint.tokenizer.size, checkpoint.config.n_vocab)]]


def _as_json(run: _Run, output: Output, *, logprobs: bool) -> None:
    samples = []
    try:
        for i, sample in run.samples():
            steps, strips = list[Any](), run.strips
            samples.append((i, steps, strips))
            for step in sample:
                steps.append(step)
    except KeyboardInterrupt:
        run.interrupted = True
    prompt = run.prepared()
    answer = {
        "model": run.checkpoint.name,
        "prompt": {"text": prompt.text, "ids": list(prompt.ids), "dropped": prompt.n_dropped},
        "samples": [_sample_json(run, i, steps, strips, logprobs=logprobs) for i, steps, strips in samples],
        "settings": _settings_json(run),
        "stats": run.stats(),
    }
    output.line(_dumps(answer))
    run.close()


def _as_jsonl(run: _Run, output: Output, *, logprobs: bool) -> None:
    prompt = run.prepared()
    ids = list(prompt.ids)
    start = {
        "type": "prompt",
        "model": run.checkpoint.name,
        "text": prompt.text,
        "ids": ids,
        "dropped": prompt.n_dropped,
    }
    output.line(_dumps(start | {"settings": _settings_json(run)}))
    try:
        for i, sample in run.samples():
            steps = list[Any]()
            for step in sample:
                steps.append(step)
                output.line(
                    _dumps(
                        {
                            "type": "token",
                            "sample": i,
                            **_step_json(step, run.strips.get(step.index), top=logprobs),
                            "released": step.text,
                        }
                    )
                )
            output.line(_dumps({"type": "done", **_sample_json(run, i, steps, {}, logprobs=False)}))
    except KeyboardInterrupt:
        run.interrupted = True
    output.line(_dumps({"type": "stats", **run.stats()}))
    run.close()


def _sample_json(run: _Run, i: int, steps: list[Step], strips: dict[int, Strip], *, logprobs: bool) -> dict[str, Any]:
    sample = {
        "sample": i,
        "seed": run.seed + i,
        "text": "".join(step.text for step in steps),
        "ids": [step.id for step in steps],
        "finish": steps[-1].finish if steps else None,
    }
    if not logprobs and not strips:
        return sample
    return sample | {"tokens": [_step_json(step, strips.get(step.index), top=logprobs) for step in steps]}


def _step_json(step: Step, strip: Strip | None, *, top: bool) -> dict[str, Any]:
    token = _token_json(step) | {"index": step.index, "p": step.p, "kept": step.n_kept, "draw": step.draw}
    if strip is not None:
        token["xray"] = {"decided": strip.decided, **dataclasses.asdict(strip)}
    return token | {"top": [_token_json(candidate) for candidate in step.top]} if top else token


def _token_json(token: Step | Candidate) -> dict[str, Any]:
    """A token as OpenAI's API has it: text for reading, bytes for certainty, natural logarithm of its probability."""
    text = token.raw.decode("utf-8", "replace")
    return {"id": token.id, "text": text, "bytes": list(token.raw), "logprob": token.logprob}


def _settings_json(run: _Run) -> dict[str, Any]:
    used = {k: s for k, s in run.settings.items() if k not in ("model", "color", "quiet", "stats", "seed")}
    values = {key: setting.value for key, setting in used.items()} | {"seed": run.seed}
    values |= {"device": str(run.checkpoint.device), "dtype": str(run.checkpoint.dtype).removeprefix("torch.")}
    return values | {"logit_bias": [[i, None if math.isinf(b) else b] for i, b in run.sampling.logit_bias]}


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _biases(checkpoint: Checkpoint, texts: Iterable[str]) -> tuple[tuple[int, float], ...]:
    """50256=-inf, 12=+1.5, " the"=2 -> ids and what is added to their logits."""
    biases = []
    for text in texts:
        name, equals, amount = text.rpartition("=")
        try:
            bias = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(f"--logit-bias {text!r} is not ID=B", hint='for example 50256=-inf, or " the"=2')
        quoted = len(name) > 1 and name[0] == name[-1] == '"'
        if name.isascii() and name.isdigit():
            token = int(name)
            if token >= checkpoint.n_tokens:
                raise UsageError(f"--logit-bias: there is no token {token}, the last is {checkpoint.n_tokens - 1}")
        else:
            found = checkpoint.tokenizer.id_of(name[1:-1] if quoted else name)
            if found is None:
                raise UsageError(f"--logit-bias: {name!r} is not one token", hint="see gptcli tokenize")
            token = found
        biases.append((token, bias))
    return tuple(biases)


def _stats_line(stats: dict[str, float | int]) -> str:
    from gptcli.memory import human

    parts = [f"loaded in {stats['load_s']:.2f} s"]
    if "first_token_s" in stats:
        parts += [
            f"first token after {stats['first_token_s']:.2f} s",
            f"prompt {stats['prompt_tokens']} tokens, {stats['prefill_tokens_per_s']:.3g}/s",
            f"answer {stats['generated_tokens']} tokens, {stats['decode_tokens_per_s']:.3g}/s",
            f"peak memory {human(int(stats['peak_memory_bytes']))}",
        ]
    return " | ".join(parts)


def _peak_memory() -> int:
    """Most that this process ever held, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
