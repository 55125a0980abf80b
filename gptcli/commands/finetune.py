"""gptcli finetune: goes on training a model on a text, or on prompts and completions; all of it, or an adapter."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.commands import options as o
from gptcli.commands.fitting import (
    MORE_MEMORY,
    Asked,
    Watch,
    asked_recipe,
    begin,
    changed,
    check_compiler,
    check_training_fits,
    empty_out,
    fit,
    manner,
)
from gptcli.commands.given import refuse_context, refuse_given
from gptcli.errors import BadCheckpoint, GptcliError, UsageError
from gptcli.pairs import FIELDS, Pair, are_pairs, read_pairs
from gptcli.recipe import Recipe, scaled
from gptcli.render.output import say
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.data import Batches, Encoded
    from gptcli.lora import Rank

LORA = "Adapter"
BEGUN = ("lora", "lora_alpha", "lora_targets", "fields", "batch", "n_ctx", "seed", "validation", "validation_share")
RATE, LORA_RATE = 1e-4, 1e-3  # an adapter starts from nothing and takes larger steps


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
    resume: o.Resume = False,
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
        typer.Option("--epochs", metavar="X", rich_help_panel=o.RUN, help="Times that everything is shown. \\[3]"),
    ] = None,
    steps: Annotated[int | None, o.count("--steps", "Steps instead of --epochs.")] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, rich_help_panel=o.RUN, help="Sequences of a step.")
    ] = 16,
    n_ctx: Annotated[
        int | None,
        o.count("--context", "Tokens of a sequence; longer pairs are left out. \\[512; of pairs: the model's]"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="X",
            rich_help_panel=o.RUN,
            show_default=False,
            help=f"At its peak. \\[{RATE:g}; an adapter's {LORA_RATE:g}]",
        ),
    ] = None,
    schedule: o.ScheduleName = None,
    optimizer: o.OptimizerName = None,
    seed: o.RunSeed = 0,
    validation: o.Validation = None,
    validation_share: o.ValidationShare = 0.02,
    precision: o.PrecisionName = None,
    micro_batch: o.MicroBatch = None,
    compiled: o.Compile = None,
    device: o.Device = None,
    save_every: o.SaveEvery = None,
    validate_every: o.ValidateEvery = None,
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
        plan = _resumed(out, asked)
        with alone(out / "run"):
            _run(plan, out, where, watch)
        return
    if not model or not data:
        raise UsageError("finetune needs a model and data", hint="gptcli finetune MODEL DATA... --out DIR")
    o.check_share(validation_share)
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
    _hold_pairs([name for name in (*files, *held_out) if name != "-"], names)
    check_compiler(compiled, pick_device(where).type)
    plan = _Plan(
        model=model,
        name=model,
        lora=lora,
        alpha=lora_alpha,
        targets=tuple(filter(None, lora_targets.split(","))) if lora_targets else None,
    )
    plan, checkpoint = _able(plan, where, n_ctx)
    with alone(out / "run"):
        plan = _prepared(
            plan, checkpoint, out, files, held_out, names, asked, where,
            share=validation_share, epochs=epochs, batch=batch, n_ctx=n_ctx, seed=seed, quiet=watch.quiet,
        )  # fmt: skip
        _run(plan, out, where, watch, checkpoint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What recipe.json keeps beside the recipe: what is trained, and on which kind of data."""

    model: str  # where it is
    name: str  # as it was asked for
    pairs: bool = False  # told when the data is read
    lora: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    recipe: Recipe | None = None

    def rank(self, checkpoint: Checkpoint) -> Rank | None:
        from gptcli.families import FAMILIES
        from gptcli.lora import Rank, targets_of

        if self.lora is None:
            return None
        alpha = 2.0 * self.lora if self.alpha is None else self.alpha
        return Rank(r=self.lora, alpha=alpha, targets=self.targets or targets_of(FAMILIES[checkpoint.family]))


def _hold_pairs(files: list[str], fields: tuple[str, str]) -> bool:
    """Whether these files hold pairs. Raises UsageError if some do and others do not, and for fields of a text."""
    kinds = {are_pairs(name, fields) for name in files}
    if len(kinds) > 1:
        raise UsageError("some files hold pairs and others text", hint="give one kind")
    if kinds == {False} and fields != FIELDS:
        raise UsageError("--fields is for pairs, and the data is text", hint="leave it out")
    return kinds == {True}


def _fields(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2 or not all(names):
        raise UsageError(f"--fields {text!r} is not two names", hint="for example --fields description,code")
    return names[0], names[1]


def _able(plan: _Plan, device: str, n_ctx: int | None) -> tuple[_Plan, Checkpoint]:
    """The plan with its model's place, and that model. Raises what can be refused before anything is written."""
    from gptcli.layout import look
    from gptcli.lora import places

    named = Path(plan.model)  # a file, of several that its folder may hold, or a folder by whatever name
    where = named if named.is_file() else look(plan.model).source.folder
    plan = dataclasses.replace(plan, model=str(where.resolve()))
    hint = "choose a smaller model" if plan.lora else "--lora RANK takes a quarter of it"
    checkpoint = _load(plan.model, device, adapter=plan.lora is not None, hint=hint)
    if (rank := plan.rank(checkpoint)) is not None:
        places(checkpoint, rank.targets)  # raises for a name that does not exist
    refuse_context(n_ctx, checkpoint.config.n_ctx, plan.name)
    return plan, checkpoint


def _prepared(
    plan: _Plan,
    checkpoint: Checkpoint,
    out: Path,
    files: list[str],
    held_out: list[str],
    fields: tuple[str, str],
    asked: Asked,
    device: str,
    *,
    share: float,
    epochs: float,
    batch: int,
    n_ctx: int | None,
    seed: int,
    quiet: bool,
) -> _Plan:
    """Writes run/: the data as it will be shown, the tokenizer, recipe.json last."""
    from gptcli import corpus
    from gptcli.checkpoint import COMPANIONS
    from gptcli.saves import clear, replace_text, versions

    run = out / "run"
    try:
        clear(run)
        for name in COMPANIONS:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, run / name)
        texts = corpus.keep_stdin(files, run, fields[0])
        plan = dataclasses.replace(plan, pairs=_hold_pairs([*texts, *held_out], fields))
        if plan.pairs:
            pairs, other = read_pairs(texts, fields), read_pairs(held_out, fields) if held_out else []
            if not other and (n := int(len(pairs) * share)):
                pairs, other = pairs[:-n], pairs[-n:]
            n, length = _write_pairs(checkpoint, run, pairs, other, n_ctx=n_ctx, quiet=quiet)
            n_tokens = round(epochs * n) * length
        else:
            n, length = _write_text(checkpoint, run, texts, held_out, share=share, n_ctx=n_ctx)
            n_tokens = round(epochs * n)
        recipe = _recipe(plan, asked, n_tokens, length, batch=batch, seed=seed)
        if plan.pairs and asked.compiled is None:  # little of their time is in what compiling makes faster: 8 % less
            asked = dataclasses.replace(asked, compiled=False)
        recipe = asked_recipe(asked, recipe, checkpoint.config.n_params(), device)
        plan = dataclasses.replace(plan, recipe=recipe)
        values = dataclasses.asdict(plan) | {"files": files, "validation": held_out, "versions": versions()}
        replace_text(run / "recipe.json", json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise GptcliError(f"{run} cannot be written: {error.strerror or error}") from error
    return plan


def _write_pairs(
    checkpoint: Checkpoint, run: Path, pairs: list[Pair], held_out: list[Pair], *, n_ctx: int | None, quiet: bool
) -> tuple[int, int]:
    """Writes the pairs that fit into the context; how many there are to learn, and the tokens of the longest."""
    most = n_ctx or checkpoint.config.n_ctx
    kept = [_fitting(checkpoint, part, most, quiet=quiet) for part in (pairs, held_out)]
    if not kept[0]:
        raise GptcliError(f"no pair is as short as the context of {most} tokens")
    for name, part in zip(("train", "validation"), kept, strict=True):
        lines = "".join(json.dumps(dataclasses.asdict(p), ensure_ascii=False) + "\n" for p, _ in part)
        (run / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return len(kept[0]), max(len(e.ids) for _, e in kept[0])


def _write_text(
    checkpoint: Checkpoint, run: Path, texts: list[str], held_out: list[str], *, share: float, n_ctx: int | None
) -> tuple[int, int]:
    """Writes a text as tokens; how many there are to predict, and in sequences of how many."""
    from gptcli import corpus

    tokens = corpus.write_tokens(
        corpus.documents(texts), corpus.documents(held_out), run,
        encode=lambda part: list(map(checkpoint.tokenizer.encode, part)),
        n_vocab=checkpoint.config.n_vocab, end_id=_end(checkpoint), share=share, held_out=bool(held_out),
    )  # fmt: skip
    length = n_ctx or max(1, min(checkpoint.config.n_ctx, 512, tokens.n_train - 1))  # a short text is one sequence
    corpus.check_length(tokens, length)
    return tokens.n_train - 1, length


def _recipe(plan: _Plan, asked: Asked, n_tokens: int, length: int, *, batch: int, seed: int) -> Recipe:
    recipe = scaled(
        n_tokens=asked.n_tokens(batch * length, length) or max(1, n_tokens),
        n_ctx=length,
        batch_tokens=batch * length,
        learning_rate=(LORA_RATE if plan.lora else RATE) if asked.learning_rate is None else asked.learning_rate,
        schedule=asked.schedule or "cosine",
        optimizer=asked.optimizer or "adamw",
        seed=seed,
        growth=(0, 0),
    )
    return dataclasses.replace(recipe, weight_decay=0.0 if plan.lora else 0.1)


def _fitting(checkpoint: Checkpoint, pairs: list[Pair], most: int, *, quiet: bool) -> list[tuple[Pair, Encoded]]:
    """The pairs that fit into the context, and unless `quiet` a word about those that do not."""
    from gptcli.data import encode_pairs

    encoded = encode_pairs(pairs, checkpoint.tokenizer, end_id=_end(checkpoint), start_id=checkpoint.start_id)
    kept = [(p, e) for p, e in zip(pairs, encoded, strict=True) if len(e.ids) <= most + 1]
    if len(kept) < len(pairs) and not quiet:
        say(f"gptcli: note: {len(pairs) - len(kept)} of {len(pairs)} pairs are longer than the context and left out")
    return kept


def _end(checkpoint: Checkpoint) -> int:
    """The token that ends a text."""
    for ids in (checkpoint.tokenizer.eos_ids, checkpoint.eos_ids):
        if ids:
            return min(ids)
    raise UsageError("this model has no end token, so it cannot learn where to stop")


def _resumed(out: Path, asked: Asked) -> _Plan:
    from gptcli.saves import read_json

    values = read_json(out / "run" / "recipe.json")
    try:
        if "model" not in values:
            raise UsageError(f"the run in {out} is one of gptcli train", hint=f"gptcli train --resume --out {out}")
        known = {field.name: values[field.name] for field in dataclasses.fields(_Plan)}
        targets = known["targets"] and tuple(known["targets"])
        was = Recipe(**known["recipe"])
        plan = _Plan(**{**known, "recipe": was, "targets": targets})
    except (TypeError, KeyError) as error:
        raise BadCheckpoint(f"{out / 'run' / 'recipe.json'} is not a recipe: {error}") from None
    return dataclasses.replace(plan, recipe=changed(was, asked, out))


def _load(name: str, device: str, *, adapter: bool, hint: str) -> Checkpoint:
    """In float32, as optimizers want it. Raises OutOfMemory, with the hint, where that cannot be trained."""
    from gptcli.checkpoint import load_layout, pick_device
    from gptcli.layout import look

    layout = look(name)
    check_training_fits(layout.config.n_params(), pick_device(device), n_moving=0 if adapter else None, hint=hint)
    checkpoint = load_layout(layout, device=device, dtype="float32")
    checkpoint.decoder.requires_grad_(True)
    return checkpoint


def _run(plan: _Plan, out: Path, device: str, watch: Watch, loaded: Checkpoint | None = None) -> None:
    """Makes the steps that are left. loaded: the model, where a new run has it in memory."""
    from gptcli.checkpoint import save
    from gptcli.lora import attach, restore, save_adapter
    from gptcli.train import Training

    assert plan.recipe
    run, recipe = out / "run", plan.recipe
    left, found = begin(out, recipe, device, watch)
    if not left:
        return
    step = found.step if found else 0
    saved = str(found.folder) if found and plan.lora is None else plan.model
    checkpoint = loaded or _load(saved, device, adapter=plan.lora is not None, hint=MORE_MEMORY)
    rank = plan.rank(checkpoint)
    if rank:
        attach(checkpoint, rank, seed=recipe.seed)
        if found:
            restore(checkpoint, rank, found.folder)
    checkpoint = dataclasses.replace(checkpoint, folder=run, name=plan.name if rank else out.name)
    training = Training(
        checkpoint.decoder,
        _batches(plan, run, checkpoint),
        recipe,
        step=step,
        n_tokens=found.n_tokens if found else 0,
        state=found.state if found else None,
    )
    if not watch.quiet:
        n, moving = checkpoint.config.n_params(), sum(p.numel() for p in training.parameters.values())
        say(
            f"gptcli: {moving:,} parameters move"
            + (f" beside {n:,} that do not" if rank else "")
            + f", {recipe.n_steps - step} steps of {recipe.batch} sequences of up to {recipe.n_ctx} tokens, "
            + manner(recipe)
        )

    def write(folder: Path) -> None:
        if rank:
            save_adapter(checkpoint, rank, folder)
        else:
            save(checkpoint, folder)

    fit(training, out, write, checkpoint.tokenizer, watch)


def _batches(plan: _Plan, run: Path, checkpoint: Checkpoint) -> Batches:
    from gptcli.corpus import Tokens
    from gptcli.data import Pairs, Windows, encode_pairs
    from gptcli.saves import read_json

    assert plan.recipe
    if not plan.pairs:
        tokens = Tokens(**read_json(run / "tokens.json"))
        return Windows(run, tokens, n_ctx=plan.recipe.n_ctx, seed=plan.recipe.seed)
    parts = []
    for name in ("train", "validation"):
        file = run / f"{name}.jsonl"
        pairs = read_pairs([str(file)]) if file.stat().st_size else []
        parts.append(encode_pairs(pairs, checkpoint.tokenizer, end_id=_end(checkpoint), start_id=checkpoint.start_id))
    return Pairs(*parts, seed=plan.recipe.seed)
