"""gptcli finetune: goes on training a model on a text, or on prompts and completions; all of it, or an adapter."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.commands import options as o
from gptcli.commands import run_options as r
from gptcli.commands.fitting import (
    MORE_MEMORY,
    Asked,
    Watch,
    begin,
    check_compiler,
    empty_out,
    fit,
    manner,
    new_run,
    say_saved,
    training_from,
)
from gptcli.commands.given import refuse_given
from gptcli.commands.tuning import LORA_RATE, RATE, Plan, able, batches, hold_pairs, load, prepared, resumed
from gptcli.errors import GptcliError, UsageError
from gptcli.folder import SHIPPED
from gptcli.pairs import FIELDS
from gptcli.render.output import say
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint

LORA = "Adapter"
BEGUN = ("lora", "lora_alpha", "lora_targets", "fields", "batch", "n_ctx", "seed", "validation", "validation_share")


def finetune(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", show_default=False, help="What to start from, as for --model.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...", show_default=False, help="Text, or .jsonl of prompt and completion; files, or folders."
        ),
    ] = None,
    out: o.Out = None,
    resume: r.Resume = False,
    lora: Annotated[
        int | None,
        typer.Option(
            "--lora",
            metavar="RANK",
            min=1,
            rich_help_panel=LORA,
            show_default=False,
            help="Train an adapter of this rank, and leave the model as it is.",
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            "--lora-alpha", metavar="X", rich_help_panel=LORA, help="It is multiplied by X / RANK. \\[2 RANK]"
        ),
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            "--lora-targets",
            metavar="NAMES",
            rich_help_panel=LORA,
            help="Layers it sits on, as the family calls them: q_proj,v_proj. \\[all linear layers]",
        ),
    ] = None,
    fields: Annotated[
        str, typer.Option("--fields", metavar="NAMES", help="What prompt and completion are called in the .jsonl.")
    ] = ",".join(FIELDS),
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", metavar="X", rich_help_panel=r.RUN, help="Times that everything is shown. \\[3]"),
    ] = None,
    steps: Annotated[int | None, r.count("--steps", "Steps instead of --epochs.")] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, rich_help_panel=r.RUN, help="Sequences of a step.")
    ] = 16,
    n_ctx: Annotated[
        int | None,
        r.count("--context", "Tokens of a sequence; longer pairs are left out. \\[512; of pairs: the model's]"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="X",
            rich_help_panel=r.RUN,
            show_default=False,
            help=f"At its peak. \\[{RATE:g}; an adapter's {LORA_RATE:g}]",
        ),
    ] = None,
    schedule: r.ScheduleName = None,
    optimizer: r.OptimizerName = None,
    seed: r.RunSeed = 0,
    validation: r.Validation = None,
    validation_share: r.ValidationShare = 0.02,
    precision: r.PrecisionName = None,
    micro_batch: r.MicroBatch = None,
    compiled: r.Compile = None,
    device: o.Device = None,
    save_every: r.SaveEvery = None,
    validate_every: r.ValidateEvery = None,
    quiet: o.Quiet = None,
    color: o.PlainColor = None,
) -> None:
    """Train a model further, so that it is better at one thing: on a text, or on prompts and their completions.

    Of a pair only the completion is learned, and an end token behind it. The result is a model, or with --lora an
    adapter as PEFT writes them: gptcli generate --adapter DIR runs it, gptcli merge makes it part of a model.
    """  # fmt: skip
    settings = settle({"device": device, "quiet": quiet, "color": color})
    watch = Watch.from_settings(settings, save_every=save_every, validate_every=validate_every)
    asked = Asked(
        steps=steps,
        learning_rate=learning_rate,
        schedule=schedule,
        optimizer=optimizer,
        precision=precision,
        micro_batch=micro_batch,
        compiled=compiled,
    )
    where = settings["device"].value
    from gptcli.saves import alone

    if resume:
        if model or data or out is None:
            raise UsageError("--resume goes on with the run in --out DIR, and reads nothing else")
        if epochs is not None:
            raise UsageError("--resume counts steps, of the whole run", hint="--steps instead of --epochs")
        refuse_given(ctx, BEGUN, "a run goes on as it was begun")
        plan = resumed(out, asked)
        with alone(out / "run"):
            _run(plan, out, where, watch)
        return
    if not model or not data:
        raise UsageError("finetune needs a model and data", hint="gptcli finetune MODEL DATA... --out DIR")
    r.check_share(validation_share)
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps say the same", hint="leave one out")
    epochs = 3.0 if epochs is None else epochs
    if not 0 < epochs < math.inf:
        raise UsageError(f"--epochs must be a number above 0, not {epochs}")
    if lora_alpha is not None and (not math.isfinite(lora_alpha) or lora_alpha == 0):
        raise UsageError(f"--lora-alpha must be a number and not 0, not {lora_alpha:g}")
    if lora_targets is not None and not any(lora_targets.split(",")):
        raise UsageError(f"--lora-targets {lora_targets!r} names no layer")
    if (lora_alpha is not None or lora_targets is not None) and lora is None:
        raise UsageError("--lora-alpha and --lora-targets are for an adapter", hint="add --lora RANK")
    from gptcli.checkpoint import pick_device
    from gptcli.corpus import find, find_held_out

    names = _fields(fields)
    held_out = find_held_out(validation or ())
    files, out = find(data, held_out=held_out), empty_out(out)
    hold_pairs([name for name in (*files, *held_out) if name != "-"], names)
    check_compiler(compiled, pick_device(where).type)
    plan = Plan(
        model=model,
        name=model,
        lora=lora,
        alpha=lora_alpha,
        targets=tuple(filter(None, lora_targets.split(","))) if lora_targets else None,
    )
    plan, checkpoint = able(plan, where, n_ctx)
    with new_run(out):
        plan = prepared(
            plan, checkpoint, out, files, held_out, names, asked, where,
            share=validation_share, epochs=epochs, batch=batch, n_ctx=n_ctx, seed=seed, quiet=watch.quiet,
        )  # fmt: skip
        _run(plan, out, where, watch, checkpoint)


def _fields(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2 or not all(names):
        raise UsageError(f"--fields {text!r} is not two names", hint="for example --fields description,code")
    return names[0], names[1]


def _base(plan: Plan) -> str:
    """What an adapter says it belongs to: the model as it was named, but for ours, whose name only we know."""
    return plan.model if plan.name == SHIPPED else plan.name


def _run(plan: Plan, out: Path, device: str, watch: Watch, loaded: Checkpoint | None = None) -> None:
    """Makes the steps that are left. loaded: the model, where a new run has it in memory."""
    from gptcli.checkpoint import save
    from gptcli.lora import attach, restore, save_adapter, weights_digest

    assert plan.recipe
    run, recipe = out / "run", plan.recipe
    left, found = begin(out, recipe, device, watch)
    if not left:
        return
    saved = str(found.folder) if found and plan.lora is None else plan.model
    checkpoint = loaded or load(saved, device, adapter=plan.lora is not None, hint=MORE_MEMORY)
    rank = plan.rank(checkpoint)
    if rank:
        if loaded is None and plan.base is not None and plan.base != weights_digest(checkpoint.decoder):
            raise GptcliError(
                f"the weights in {plan.model} are not those that this adapter was begun on",
                hint="bring those back, or start again in a new folder",
            )
        attach(checkpoint, rank, seed=recipe.seed)
        if found:
            restore(checkpoint, rank, found.folder)
    checkpoint = dataclasses.replace(checkpoint, folder=run, name=_base(plan) if rank else out.name)
    training = training_from(checkpoint.decoder, batches(plan, run, checkpoint), recipe, found)
    if not watch.quiet:
        n, moving = checkpoint.config.n_params(), sum(p.numel() for p in training.parameters.values())
        say(
            f"gptcli: {moving:,} parameters move"
            + (f" beside {n:,} that do not" if rank else "")
            + f", {recipe.n_steps - training.step} steps of {recipe.batch} sequences of up to {recipe.n_ctx} tokens, "
            + manner(recipe)
        )

    def write(folder: Path) -> None:
        if rank:
            save_adapter(checkpoint, rank, folder)
        else:
            save(checkpoint, folder)

    fit(training, out, write, checkpoint.tokenizer, watch)
    say_saved(out, watch, base=plan.name if rank else None)
