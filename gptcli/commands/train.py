"""gptcli train: a tokenizer and a decoder from text, in GPT-3's layout and by its recipe, scaled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands import run_options as r
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
    new_run,
    say_saved,
    training_from,
)
from gptcli.commands.given import refuse_given
from gptcli.errors import BadCheckpoint, GptcliError, NotFound, UsageError
from gptcli.presets import SIZES, Size, config_json, size_named
from gptcli.recipe import Recipe, scaled
from gptcli.render.output import say
from gptcli.settings import settle

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

    from gptcli.checkpoint import Checkpoint

BEGUN = (
    "size", "n_layer", "d_model", "n_head", "n_ctx", "window", "n_vocab", "tokenizer", "batch_tokens", "seed",
    "validation", "validation_share",
)  # fmt: skip
PASSES = 4  # over a corpus, at most, by default: to that many, text seen again is as good as new (arXiv 2305.16264)


def train(
    ctx: typer.Context,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CORPUS]...",
            show_default=False,
            help="Text files, .jsonl with a text in each line, folders, or -.",
        ),
    ] = None,
    out: o.Out = None,
    resume: r.Resume = False,
    size: Annotated[
        str, typer.Option("--size", metavar="NAME", rich_help_panel=r.TRAINED, help=f"One of {', '.join(SIZES)}.")
    ] = "micro",
    n_layer: Annotated[int | None, r.count("--layers", "Decoder layers, instead of the size's.", r.TRAINED)] = None,
    d_model: Annotated[int | None, r.count("--width", "Numbers in a token's vector.", r.TRAINED)] = None,
    n_head: Annotated[int | None, r.count("--heads", "Heads in each layer.", r.TRAINED)] = None,
    n_ctx: Annotated[int | None, r.count("--context", "Tokens that the model can see.", r.TRAINED)] = None,
    window: Annotated[int | None, r.count("--window", "Tokens that its locally banded layers see.", r.TRAINED)] = None,
    n_vocab: Annotated[int | None, r.count("--vocab", "Tokens of the vocabulary.", r.TRAINED)] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="PATH", rich_help_panel=r.TRAINED, help="Use this one, and do not train a new one."
        ),
    ] = None,
    tokens: Annotated[
        str | None, r.number("--tokens", "Train on so many: 20M. \\[20 a parameter, at most 4 passes]")
    ] = None,
    steps: r.Steps = None,
    batch_tokens: Annotated[int | None, r.count("--batch-tokens", "Tokens of a step. \\[the size's]")] = None,
    learning_rate: r.LearningRate = None,
    schedule: r.ScheduleName = None,
    optimizer: r.OptimizerName = None,
    seed: r.RunSeed = 0,
    validation: r.Validation = None,
    validation_share: r.ValidationShare = 0.01,
    precision: r.PrecisionName = None,
    micro_batch: r.MicroBatch = None,
    compiled: r.Compile = None,
    device: o.Device = None,
    save_every: r.SaveEvery = None,
    validate_every: r.ValidateEvery = None,
    quiet: o.Quiet = None,
    color: o.PlainColor = None,
) -> None:
    """Train a tokenizer and a decoder from text, in GPT-3's layout: `gptcli generate -m DIR` runs the result.

    The recipe is GPT-3's, scaled: Adam, a short rise and a cosine fall of the learning rate, batches of whole contexts
    with documents packed one after another. Ctrl-C saves; --resume goes on, to the bit as if nothing had happened.
    """
    settings = settle({"device": device, "quiet": quiet, "color": color})
    watch = Watch.from_settings(settings, save_every=save_every, validate_every=validate_every)
    asked = Asked(
        tokens=o.tokens_of(tokens),
        steps=steps,
        learning_rate=learning_rate,
        schedule=schedule,
        optimizer=optimizer,
        precision=precision,
        micro_batch=micro_batch,
        compiled=compiled,
    )
    where = settings["device"].value
    if resume:
        if corpus or out is None:
            raise UsageError("--resume goes on with the run in --out DIR, and reads no other corpus")
        refuse_given(ctx, BEGUN, "a run goes on as it was begun")
        recipe = _resumed(out, asked)
        from gptcli.saves import alone

        with alone(out / "run"):
            _run(out, recipe, where, watch)
        return
    if not corpus:
        raise UsageError("there is nothing to train on", hint="gptcli train FILE... --out DIR; - for stdin")
    r.check_share(validation_share)
    from gptcli.corpus import find, find_held_out

    held_out = find_held_out(validation or ())
    files, out = find(corpus, held_out=held_out), empty_out(out)
    shape = _shape(
        size_named(size),
        n_layer=n_layer, d_model=d_model, n_head=n_head, n_ctx=n_ctx, window=window, n_vocab=n_vocab,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    if tokenizer is not None and n_vocab is not None:
        raise UsageError("--vocab is for a new tokenizer, and --tokenizer names one that is there")
    shape, library = _able(shape, tokenizer, asked, where)
    with new_run(out):
        recipe = _prepared(
            out, shape, files, held_out, library, asked, where, share=validation_share, seed=seed, quiet=watch.quiet
        )
        _run(out, recipe, where, watch)


def _shape(size: Size, **changes: int | None) -> Size:
    shape = dataclasses.replace(size, **{name: n for name, n in changes.items() if n is not None})
    if shape.d_model % shape.n_head:
        raise UsageError(f"a width of {shape.d_model} does not divide into {shape.n_head} heads")
    return shape


def _able(shape: Size, tokenizer: Path | None, asked: Asked, device: str) -> tuple[Size, Library | None]:
    """The size with its tokenizer's vocabulary, and that tokenizer, if one is given.

    Raises what can be refused before the minutes that a large corpus takes: OutOfMemory, UsageError, BadCheckpoint.
    """
    from gptcli.checkpoint import pick_device
    from gptcli.config_json import Reader
    from gptcli.corpus import n_ids, read_tokenizer
    from gptcli.families import FAMILIES

    where = pick_device(device)
    check_compiler(asked.compiled, where.type)
    library = None if tokenizer is None else read_tokenizer(tokenizer)
    if library is not None:
        shape = dataclasses.replace(shape, n_vocab=n_ids(library))
    try:
        config = FAMILIES["gpt_neo"].read(Reader(config_json(shape, end_id=0), "its config.json"))
    except BadCheckpoint as error:
        raise UsageError(f"no such model can be made: {error.message}") from None
    check_training_fits(dataclasses.replace(config, tied=True).n_params(), where, hint="choose a smaller --size")
    return shape, library


def _prepared(
    out: Path,
    shape: Size,
    files: list[str],
    held_out: list[str],
    library: Library | None,
    asked: Asked,
    device: str,
    *,
    share: float,
    seed: int,
    quiet: bool,
) -> Recipe:
    """Writes run/: tokenizer, tokens, recipe.json last."""
    from gptcli import corpus
    from gptcli.disk import replace_text
    from gptcli.saves import clear, versions

    run = out / "run"
    hear = (lambda text: None) if quiet else say
    try:
        clear(run)
        texts = corpus.keep_stdin(files, run)
        if library is None:
            hear(f"gptcli: learning a vocabulary of {shape.n_vocab:,} tokens ...")
            library = corpus.train_tokenizer(corpus.documents(texts), shape.n_vocab)
            if (n := corpus.n_ids(library)) < shape.n_vocab:
                hear(f"gptcli: the text gives no more than {n:,} tokens")
            shape = dataclasses.replace(shape, n_vocab=n)
        end_id = corpus.end_of(library)
        corpus.write_tokenizer(library, run, shape.n_ctx)
        hear("gptcli: turning the text into tokens ...")
        encode, fingerprint = corpus.encoder(run / "tokenizer.json")
        tokens = corpus.write_tokens(
            corpus.documents(texts), corpus.documents(held_out), run,
            encode=encode, n_vocab=shape.n_vocab, end_id=end_id, share=share, tokenizer=fingerprint,
            held_out=bool(held_out),
        )  # fmt: skip
        corpus.check_length(tokens, shape.n_ctx)
        (run / "config.json").write_text(
            json.dumps(config_json(shape, end_id=end_id), indent=2) + "\n", encoding="utf-8"
        )
        ends = {"bos_token_id": end_id, "eos_token_id": end_id}
        (run / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
        n_params = _config(run).n_params()
        n_tokens = min(20 * n_params, PASSES * tokens.n_train)
        recipe = asked_recipe(
            asked,
            scaled(
                n_tokens=asked.n_tokens(shape.batch_tokens, shape.n_ctx) or n_tokens,
                n_ctx=shape.n_ctx,
                batch_tokens=shape.batch_tokens,
                learning_rate=shape.learning_rate if asked.learning_rate is None else asked.learning_rate,
                schedule=asked.schedule or "cosine",
                optimizer=asked.optimizer or "adamw",
                seed=seed,
                n_steps=asked.steps,
            ),
            n_params,
            device,
        )
        kept = {"recipe": dataclasses.asdict(recipe), "files": files, "validation": held_out, "versions": versions()}
        replace_text(run / "recipe.json", json.dumps(kept, indent=2) + "\n")
    except OSError as error:
        raise GptcliError(f"{run} cannot be written: {error.strerror or error}") from error
    return recipe


def _resumed(out: Path, asked: Asked) -> Recipe:
    """The run's recipe; made longer, or changed where a change makes sense, if the command line says so."""
    from gptcli.saves import read_json

    kept = read_json(out / "run" / "recipe.json")
    if "model" in kept:
        raise UsageError(f"the run in {out} is one of gptcli finetune", hint=f"gptcli finetune --resume --out {out}")
    try:
        was = Recipe(**kept["recipe"])
    except (TypeError, KeyError) as error:
        raise BadCheckpoint(f"{out / 'run' / 'recipe.json'} is not a recipe: {error}") from None
    return changed(was, asked, out)


def _config(run: Path) -> Any:
    from gptcli.layout import read_config

    return read_config(run / "config.json")[1]


def _run(out: Path, recipe: Recipe, device: str, watch: Watch) -> None:
    from gptcli.checkpoint import pick_device, save
    from gptcli.corpus import check_tokenizer, read_tokens
    from gptcli.data import Windows

    run = out / "run"
    tokens = read_tokens(run)
    check_tokenizer(tokens, run / "tokenizer.json")
    left, found = begin(out, recipe, device, watch)
    if not left:
        return
    checkpoint = _checkpoint(run, found.folder if found else None, pick_device(device), recipe.seed)
    batches = Windows(run, tokens, n_ctx=recipe.n_ctx, seed=recipe.seed)
    training = training_from(checkpoint.decoder, batches, recipe, found)
    if not watch.quiet:
        n, n_left = checkpoint.config.n_params(), recipe.n_steps - training.step
        passes = (recipe.n_tokens(recipe.n_steps) - training.n_tokens) / tokens.n_train
        say(
            f"gptcli: {n:,} parameters, {n_left} steps of {recipe.batch} x {recipe.n_ctx} tokens, "
            f"{passes:.2f} passes over {tokens.n_train:,} tokens, " + manner(recipe)
        )
    fit(training, out, lambda folder: save(checkpoint, folder), checkpoint.tokenizer, watch)
    say_saved(out, watch)


def _checkpoint(run: Path, saved: Path | None, device: Any, seed: int) -> Checkpoint:
    """The decoder as it was saved, or a new one; in float32, which is what optimizers want."""
    from gptcli.checkpoint import Checkpoint, load
    from gptcli.layout import read_config
    from gptcli.model import Decoder
    from gptcli.saves import read_json
    from gptcli.tokens import Tokenizer
    from gptcli.train import initialise

    check_training_fits(_config(run).n_params(), device, hint=MORE_MEMORY)
    if saved is not None:
        checkpoint = load(str(saved), device=str(device), dtype="float32")
        checkpoint.decoder.requires_grad_(True)
        return dataclasses.replace(checkpoint, folder=run)
    family, config, values = read_config(run / "config.json")
    decoder = Decoder(config)
    initialise(decoder, seed)
    ends = read_json(run / "generation_config.json")
    if not isinstance(ends.get("eos_token_id"), int):
        raise NotFound(f"{run / 'generation_config.json'} names no end token")
    return Checkpoint(
        name=run.parent.name,
        folder=run,
        family=family,
        config=config,
        decoder=decoder.to(device),
        tokenizer=Tokenizer.from_folder(run, n_vocab=config.n_vocab),
        config_json=values,
        generation_config=ends,
        eos_ids=frozenset({ends["eos_token_id"]}),
        start_id=ends["eos_token_id"],
    )
