"""gptcli generate: raw text in, raw text out, one token at a time."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import typer

from gptcli.commands import answers
from gptcli.commands import options as o
from gptcli.commands.answering import Run, Times, Together
from gptcli.commands.editing import Wanted, refuse_mean_alone
from gptcli.commands.given import refuse_given
from gptcli.commands.loading import load_chosen
from gptcli.commands.priming import Priming, show, with_stops
from gptcli.commands.prompt import read_cases, read_prompt
from gptcli.errors import GptcliError, UsageError
from gptcli.render.output import Output, say
from gptcli.sampling import Sampling
from gptcli.settings import OPTIONS, Setting, settle

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint

NEXT = 4  # other tokens that a strip names
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling) if field.name != "logit_bias")


def generate(
    ctx: typer.Context,
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
    quantize: o.Quantize = None,
    lookup: o.Lookup = False,
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
    flags = {key: value for key, value in locals().items() if key in OPTIONS}
    early = settle(flags)
    if as_json and as_jsonl:
        raise UsageError("--json and --jsonl exclude each other", hint="--jsonl is for reading along")
    if logprobs is not None and not 0 <= logprobs <= 100:
        raise UsageError(f"--logprobs must be from 0 to 100, not {logprobs}")
    Sampling(**{name: early[name].value for name in SAMPLING})  # bad flags are refused before anything is loaded
    wanted = Wanted.read(ablate, patch, mean=mean)
    refuse_mean_alone(wanted, mean=mean)
    if lookup and (xray or wanted):
        raise UsageError(
            "--lookup computes several tokens at once, and --xray, --ablate and --patch need each by itself",
            hint="leave --lookup out",
        )
    if (wanted.patches or wanted.looks) and early["overflow"].value == "slide":
        option = "--patch" if wanted.patches else "--ablate"
        raise UsageError(f"{option} names a token, and --overflow slide moves the tokens", hint="leave one of them out")
    output = Output()
    priming = Priming.asked(examples, example, example_format)
    if as_json or as_jsonl:
        refuse_given(ctx, ("echo",), "JSON holds the prompt anyway")
    elif xray:
        refuse_given(ctx, ("echo", "stream", "logprobs"), "--xray writes a line for each token as it comes")
    if priming:
        refuse_given(ctx, ("keep_newline", "stdin_last"), "with examples each line is a case of its own")
    text, cases = "", list[str]()
    if priming:
        cases = read_cases(prompt, prompt_option, file, escape=escape)
    else:
        text = read_prompt(prompt, prompt_option, file, stdin_last=stdin_last, keep_newline=keep_newline, escape=escape)
    if show_prompt:
        show(output, priming, text, cases, flags, adapter=adapter, revision=revision, allow=allow_config or (), bos=bos)
        return
    checkpoint, settings = load_chosen(
        flags,
        adapter=adapter,
        revision=revision,
        allow=allow_config or (),
        rounded="whole" if xray or wanted else "packed",
    )
    from gptcli.linear import exact  # not before torch is needed

    loaded = time.perf_counter()
    figures = as_jsonl or logprobs is not None or settings["color"].value == "prob"
    if not settings["quiet"].value:
        for note in checkpoint.notes:
            say(f"gptcli: note: {note}")
        if lookup and not exact(checkpoint.decoder) and checkpoint.few_tokens() is None:
            say(
                "gptcli: note: --lookup does nothing here: without `gptcli optimize` it keeps a text exact in float32 "
                "alone, without --quantize"
            )
        elif lookup and not figures and early["num_samples"].value * max(1, len(cases)) > 1:
            say("gptcli: note: --lookup is for one text, and does nothing for several at once")
        if text.endswith(" "):
            say("gptcli: note: the prompt ends with a space; most models write it together with the next word")
    wanted.check(checkpoint.config.n_layer, checkpoint.config.n_head)
    run = Run(
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
        figures=figures,
        lookup=lookup,
        bos=bos,
        times=Times(started=started, loaded=loaded),
    )
    if verbose:
        more = {"logit_bias": logit_bias, "add_bos": bos, "lookup": lookup or None, "adapter": adapter}
        more |= {"revision": revision, "allow_config": allow_config, "ablate": ablate, "patch": patch}
        _tell_settings(run, more | {"mean": mean or None})
    write = answers.as_json if as_json else answers.as_jsonl if as_jsonl else None
    runs = list(_runs(run, priming, cases))
    Together.of(runs)
    for i, each in enumerate(runs):
        if i and not each.together:
            now = time.perf_counter()
            each.times = Times(started=now, loaded=now)
        try:
            if write:
                write(each, output, logprobs=logprobs)
            elif xray:
                answers.as_strips(each, output)
            else:
                answers.as_text(each, output, echo=echo, stream=stream, by_probability=logprobs is not None)
                if len(cases) > 1 and not output.is_terminal:
                    output.line()  # an answer a line
        except GptcliError:
            if i:  # answers that were given can be had again
                each.tell_seed()
            raise


def _tell_settings(run: Run, more: Mapping[str, object]) -> None:
    """Every setting in force, what it came to, and its source. more: what flags alone can say; None was not said."""
    checkpoint = run.checkpoint
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    became = {"device": str(checkpoint.device), "dtype": dtype, "seed": str(run.seed)}
    flags = {name: Setting(value=value, source="flag") for name, value in more.items() if value not in (None, [])}
    for name, setting in (run.settings | flags).items():
        value = checkpoint.name if name == "model" else setting.value
        shown = value if isinstance(value, str) else "none" if value in (None, ()) else f"{value!r}"
        if became.get(name, shown) != shown:
            shown += f": {became[name]}"
        say(f"gptcli: {name} = {shown} ({setting.source})")


def _runs(run: Run, priming: Priming | None, cases: list[str]) -> Iterable[Run]:
    """The run itself; with examples one for each case, with the same seed."""
    if priming is None:
        yield run
        return
    c, tokenizer = run.checkpoint.config, run.checkpoint.tokenizer
    for i, prompt in enumerate(priming.prompts(cases, run.settings, tokenizer=tokenizer, n_ctx=c.n_ctx, bos=run.bos)):
        yield dataclasses.replace(
            run,
            text=prompt.text,
            settings=with_stops(run.settings, prompt.stops),
            last=i + 1 == len(cases),
        )


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
            token = int(name[:20])  # more digits are no id either
            if token >= checkpoint.n_tokens:
                raise UsageError(f"--logit-bias: there is no token {name[:20]}, the last is {checkpoint.n_tokens - 1}")
        else:
            found = checkpoint.tokenizer.id_of(name[1:-1] if quoted else name)
            if found is None:
                raise UsageError(f"--logit-bias: {name!r} is not one token", hint="see gptcli tokenize")
            token = found
        biases.append((token, bias))
    return tuple(biases)
