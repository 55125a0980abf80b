"""What a fine-tuning keeps of what it was asked for, in run/: the plan, the data as they are shown, and its recipe."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.commands.fitting import Asked, asked_recipe, changed, check_training_fits
from gptcli.commands.given import refuse_context
from gptcli.errors import BadCheckpoint, GptcliError, UsageError
from gptcli.pairs import FIELDS, Pair, are_pairs, read_pairs
from gptcli.recipe import Recipe, scaled
from gptcli.render.output import say

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.data import Batches, Encoded
    from gptcli.lora import Rank

RATE, LORA_RATE = 1e-4, 1e-3  # an adapter starts from nothing and takes larger steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What recipe.json keeps beside the recipe: what is trained, and on which kind of data."""

    model: str  # where it is
    name: str  # as it was asked for
    pairs: bool = False  # told when the data is read
    lora: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    base: str | None = None  # the digest of the weights beside which an adapter is trained
    recipe: Recipe | None = None

    def rank(self, checkpoint: Checkpoint) -> Rank | None:
        from gptcli.families import FAMILIES
        from gptcli.lora import Rank, targets_of

        if self.lora is None:
            return None
        alpha = 2.0 * self.lora if self.alpha is None else self.alpha
        return Rank(r=self.lora, alpha=alpha, targets=self.targets or targets_of(FAMILIES[checkpoint.family]))


def hold_pairs(files: list[str], fields: tuple[str, str]) -> bool:
    """Whether these files hold pairs. Raises UsageError if some do and others do not, and for fields of a text."""
    kinds = {are_pairs(name, fields) for name in files}
    if len(kinds) > 1:
        raise UsageError("some files hold pairs and others text", hint="give one kind")
    if kinds == {False} and fields != FIELDS:
        raise UsageError("--fields is for pairs, and the data is text", hint="leave it out")
    return kinds == {True}


def able(plan: Plan, device: str, n_ctx: int | None) -> tuple[Plan, Checkpoint]:
    """The plan with its model's place, and that model. Raises what can be refused before anything is written."""
    from gptcli.layout import look
    from gptcli.lora import places, weights_digest

    named = Path(plan.model)  # a file, of several that its folder may hold, or a folder by whatever name
    where = named if named.is_file() else look(plan.model).source.folder
    plan = dataclasses.replace(plan, model=str(where.resolve()))
    hint = "choose a smaller model" if plan.lora else "--lora RANK takes a quarter of it"
    checkpoint = load(plan.model, device, adapter=plan.lora is not None, hint=hint)
    if (rank := plan.rank(checkpoint)) is not None:
        places(checkpoint, rank.targets)  # raises for a name that does not exist
        plan = dataclasses.replace(plan, base=weights_digest(checkpoint.decoder))
    refuse_context(n_ctx, checkpoint.config.n_ctx, plan.name)
    return plan, checkpoint


def prepared(
    plan: Plan,
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
) -> Plan:
    """Writes run/: the data as it will be shown, the tokenizer, recipe.json last."""
    from gptcli import corpus
    from gptcli.checkpoint import COMPANIONS
    from gptcli.disk import replace_text
    from gptcli.saves import clear, versions

    run = out / "run"
    try:
        clear(run)
        for name in COMPANIONS:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, run / name)
        texts = corpus.keep_stdin(files, run, fields[0])
        plan = dataclasses.replace(plan, pairs=hold_pairs([*texts, *held_out], fields))
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


def _recipe(plan: Plan, asked: Asked, n_tokens: int, length: int, *, batch: int, seed: int) -> Recipe:
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


def resumed(out: Path, asked: Asked) -> Plan:
    from gptcli.saves import read_json

    values = read_json(out / "run" / "recipe.json")
    try:
        if "model" not in values:
            raise UsageError(f"the run in {out} is one of gptcli train", hint=f"gptcli train --resume --out {out}")
        known = {field.name: values[field.name] for field in dataclasses.fields(Plan) if field.name != "base"}
        targets = known["targets"] and tuple(known["targets"])
        was = Recipe(**known["recipe"])
        plan = Plan(**{**known, "recipe": was, "targets": targets, "base": values.get("base")})
    except (TypeError, KeyError) as error:
        raise BadCheckpoint(f"{out / 'run' / 'recipe.json'} is not a recipe: {error}") from None
    return dataclasses.replace(plan, recipe=changed(was, asked, out))


def load(name: str, device: str, *, adapter: bool, hint: str) -> Checkpoint:
    """In float32, as optimizers want it. Raises OutOfMemory, with the hint, where that cannot be trained."""
    from gptcli.checkpoint import load_layout, pick_device
    from gptcli.layout import look

    layout = look(name)
    check_training_fits(layout.config.n_params(), pick_device(device), n_moving=0 if adapter else None, hint=hint)
    checkpoint = load_layout(layout, device=device, dtype="float32")
    checkpoint.decoder.requires_grad_(True)
    return checkpoint


def batches(plan: Plan, run: Path, checkpoint: Checkpoint) -> Batches:
    from gptcli.corpus import read_tokens
    from gptcli.data import Pairs, Windows, encode_pairs
    from gptcli.strict_json import os_errors

    assert plan.recipe
    if not plan.pairs:
        return Windows(run, read_tokens(run), n_ctx=plan.recipe.n_ctx, seed=plan.recipe.seed)
    parts = []
    for name in ("train", "validation"):
        file = run / f"{name}.jsonl"
        with os_errors(str(file)):
            pairs = read_pairs([str(file)]) if file.stat().st_size else []
        parts.append(encode_pairs(pairs, checkpoint.tokenizer, end_id=_end(checkpoint), start_id=checkpoint.start_id))
    return Pairs(*parts, seed=plan.recipe.seed)
