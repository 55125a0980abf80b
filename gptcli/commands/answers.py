"""The answer of generate as it leaves the program: text as it comes, strips, one JSON object, or one a token."""

from __future__ import annotations

import dataclasses
import math
import shutil
from typing import TYPE_CHECKING, Any

from gptcli.commands.answering import Run
from gptcli.render import theme
from gptcli.render.output import Output, hears, say, tell
from gptcli.render.safe import one_line

if TYPE_CHECKING:
    from gptcli.records import Candidate, Step
    from gptcli.records_xray import Strip


def as_text(run: Run, output: Output, *, echo: bool, stream: bool, by_probability: bool) -> None:
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
    steps: list[Step] = []
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


def as_strips(run: Run, output: Output) -> None:
    """One line for each token: the token, a cell for each layer, where it was decided, what else it could have been."""
    from gptcli.render.strip import StripView

    coloured = theme.wants_colour(run.settings["color"].value, terminal=output.is_terminal)
    config, tokenizer = run.checkpoint.config, run.checkpoint.tokenizer
    width = shutil.get_terminal_size((100, 24)).columns
    light = theme.light_background()
    view = StripView(output, n_layer=config.n_layer, colour=coloured, width=width, light=light)
    try:
        for _, sample in run.samples():
            view.begin(run.prepared())
            for step in sample:
                view.step(step, run.strips[step.index], tokenizer.piece(step.id) or "")
            view.end(_checked(run))
    except KeyboardInterrupt:
        run.interrupted = True
    run.close()


def _checked(run: Run) -> list[str]:
    """What the strips' self-check says beside its number."""
    from gptcli.render.check import edits, sizes, weights

    checkpoint, first, bits = run.checkpoint, run.prepared().ids[0], run.settings["quantize"].value
    start = checkpoint.begins(run.prepared().ids)
    parts = [edits(run.wanted.words, to_mean=run.wanted.to_mean)] if run.wanted else []
    parts.append(f"{str(checkpoint.dtype).removeprefix('torch.')} {checkpoint.device}, read in float32")
    parts += weights(None, None if bits == "none" else bits)
    parts.append(f"start token {checkpoint.tokenizer.piece(first)}" if start else "no start token")
    return [one_line(part) for part in [*parts, sizes(checkpoint.tokenizer.size, checkpoint.config.n_vocab)]]


def as_json(run: Run, output: Output, *, logprobs: int | None) -> None:
    samples = []
    try:
        for i, sample in run.samples():
            steps: list[Step] = []
            strips = run.strips
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
    output.json(answer)
    run.close()


def as_jsonl(run: Run, output: Output, *, logprobs: int | None) -> None:
    prompt = run.prepared()
    ids = list(prompt.ids)
    start = {
        "type": "prompt",
        "model": run.checkpoint.name,
        "text": prompt.text,
        "ids": ids,
        "dropped": prompt.n_dropped,
    }
    output.json(start | {"settings": _settings_json(run)})
    try:
        for i, sample in run.samples():
            steps: list[Step] = []
            for step in sample:
                steps.append(step)
                output.json(
                    {
                        "type": "token",
                        "sample": i,
                        **_step_json(step, run.strips.get(step.index), logprobs=logprobs),
                        "released": step.text,
                    }
                )
            output.json({"type": "done", **_sample_json(run, i, steps, {}, logprobs=None)})
    except KeyboardInterrupt:
        run.interrupted = True
    output.json({"type": "stats", **run.stats()})
    run.close()


def _sample_json(
    run: Run, i: int, steps: list[Step], strips: dict[int, Strip], *, logprobs: int | None
) -> dict[str, Any]:
    sample = {
        "sample": i,
        "seed": run.seed + i,
        "text": "".join(step.text for step in steps),
        "ids": [step.id for step in steps],
        "finish": steps[-1].finish if steps else None,
    }
    if logprobs is None and not strips:
        return sample
    return sample | {"tokens": [_step_json(step, strips.get(step.index), logprobs=logprobs) for step in steps]}


def _step_json(step: Step, strip: Strip | None, *, logprobs: int | None) -> dict[str, Any]:
    token = _token_json(step) | {"index": step.index, "p": step.p, "kept": step.n_kept, "draw": step.draw}
    token["margin"] = step.margin if math.isfinite(step.margin) else None
    if strip is not None:
        token["xray"] = {"decided": strip.decided, **dataclasses.asdict(strip)}
    if logprobs is None:
        return token
    return token | {"top": [_token_json(candidate) for candidate in step.top[:logprobs]]}


def _token_json(token: Step | Candidate) -> dict[str, Any]:
    """A token as OpenAI's API has it: text for reading, bytes for certainty, natural logarithm of its probability."""
    text = token.raw.decode("utf-8", "replace")
    return {"id": token.id, "text": text, "bytes": list(token.raw), "logprob": token.logprob}


def _settings_json(run: Run) -> dict[str, Any]:
    used = {k: s for k, s in run.settings.items() if k not in ("model", "color", "quiet", "stats", "seed")}
    values = {key: setting.value for key, setting in used.items()} | {"seed": run.seed}
    values |= {"device": str(run.checkpoint.device), "dtype": str(run.checkpoint.dtype).removeprefix("torch.")}
    return values | {"logit_bias": [[i, None if math.isinf(b) else b] for i, b in run.sampling.logit_bias]}
