"""gptcli new: a decoder that has learned nothing, of any size: in shape alone, or with random values on the disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.given import refuse_given
from gptcli.errors import GptcliError, UsageError
from gptcli.memory import check_fits, human
from gptcli.render import theme
from gptcli.render.output import Output, say
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.params import Subject
    from gptcli.records import Built


def new(
    ctx: typer.Context,
    what: o.SizeOrModel = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="NAME", show_default=False, help="The same, as an option.")
    ] = None,
    meta: Annotated[
        bool, typer.Option("--meta", help="Build it in shape only, which takes no memory: gptcli new gpt3 --meta.")
    ] = False,
    out: o.Out = None,
    seed: Annotated[
        int, typer.Option("-s", "--seed", metavar="N", min=0, max=2**63 - 1, help="Seed of the random values.")
    ] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="PATH", show_default=False,
            help="A tokenizer.json, or a folder with one. \\[DIR's own; for a size: single bytes]",
        ),
    ] = None,
    attention: o.Attention = None,
    window: o.Window = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quiet: o.Quiet = None,
    color: o.PlainColor = None,
) -> None:  # fmt: skip
    """Build a decoder that has learned nothing yet: one of GPT-3's sizes, or an untrained twin of any checkpoint.

    --meta builds it on torch's meta device, all 175 billion numbers of GPT-3 in shape alone. --out gives every number a
    random value, as GPT-2 begins, and saves it: `gptcli generate -m DIR` then shows what a model writes that knows
    nothing. SIZE is as for `gptcli params`.
    """
    if (what is None) == (size is None):
        wrong = "name a size or a model" if what is None else "the size is given twice"
        raise UsageError(wrong, hint="gptcli new gpt3 --meta")
    if meta:
        refuse_given(ctx, ("seed", "tokenizer"), "--meta builds a shape without values or texts")
    if meta == (out is not None):
        raise UsageError(
            "choose --meta, which builds it in shape only, or --out DIR", hint="gptcli new small --out DIR"
        )
    from gptcli.catalogue import read_pattern
    from gptcli.commands.fitting import empty_out
    from gptcli.params import account, subject

    settings = settle({"color": color, "quiet": quiet})
    output = Output()
    found = subject(what or size or "", pattern=read_pattern(attention) if attention else None, window=window)
    if meta:
        from gptcli.untrained import on_meta

        made = on_meta(found.config)
    else:
        found, made = _write(
            found, empty_out(out, resumes=False), seed=seed, tokenizer=tokenizer, quiet=settings["quiet"].value
        )
    if as_json:
        c = found.config
        shape = {"n_layer": c.n_layer, "windows": [layer.window for layer in c.layers]}
        output.json({"name": found.title, "out": out and str(out), **shape, **dataclasses.asdict(made)})
        return
    from gptcli.render.built import draw

    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    picture = draw(account(dataclasses.replace(found, layout=None)), made, out=str(out) if out else None)
    output.write(theme.drawn(picture, colour=coloured))


def _write(found: Subject, out: Path, *, seed: int, tokenizer: Path | None, quiet: bool) -> tuple[Subject, Built]:
    """Saves it; what was asked about as it could be saved, and what was made."""
    hear = (lambda text: None) if quiet else say
    family, config, spelled = _spelling(found, hear)
    check_fits(4 * config.n_params(), what="the weights", hint="--meta builds it in shape only")
    home = next(folder for folder in out.absolute().parents if folder.is_dir())
    need, free = 4 * config.n_params(), shutil.disk_usage(home).free
    if need > free:
        raise GptcliError(f"the weights take {human(need)} and {human(free)} are free on the disk of {out}")
    from gptcli.untrained import at_random  # after everything that is cheap to refuse

    with tempfile.TemporaryDirectory(prefix="gptcli-") as temporary:
        folder = Path(temporary)
        config, spelled = _tokenizer(found, folder, config, spelled, tokenizer, hear)
        from gptcli.checkpoint import save

        checkpoint, made = at_random(family, config, spelled, folder=folder, seed=seed)
        save(checkpoint, out)
    return dataclasses.replace(found, config=config), made


def _spelling(found: Subject, hear: Callable[[str], None]) -> tuple[str, Config, Mapping[str, Any]]:
    config = found.named.saved if found.named else found.config
    if fewer := found.config.n_params() - config.n_params():
        hear(
            f"gptcli: note: saved as GPT-Neo, whose files have no biases for queries, keys and values: "
            f"{fewer:,} numbers fewer than GPT-3's {found.config.n_params():,}"
        )
    return found.family, config, found.spelled


def _tokenizer(
    found: Subject,
    folder: Path,
    config: Config,
    spelled: Mapping[str, Any],
    given: Path | None,
    hear: Callable[[str], None],
) -> tuple[Config, Mapping[str, Any]]:
    """Puts a tokenizer and its end token into the folder; one that is larger than the embedding widens it."""
    from gptcli.checkpoint import COMPANIONS
    from gptcli.corpus import end_of, n_ids, read_tokenizer, train_tokenizer, write_tokenizer

    if given is None and found.layout is not None:
        for name in COMPANIONS:
            if (found.layout.source.folder / name).is_file():
                shutil.copyfile(found.layout.source.folder / name, folder / name)
        return config, spelled
    if given is None:
        hear("gptcli: note: no tokenizer is given, so it reads and writes single bytes; see --tokenizer")
    library = train_tokenizer([], 257) if given is None else read_tokenizer(given)
    end, n = end_of(library), n_ids(library)
    write_tokenizer(library, folder, config.n_ctx)
    ends = {"bos_token_id": end, "eos_token_id": end}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
    if n > config.n_vocab:
        hear(f"gptcli: note: the tokenizer has {n:,} tokens, more than {config.n_vocab:,}: the embedding is as large")
        config, spelled = dataclasses.replace(config, n_vocab=n), {**spelled, "vocab_size": n}
    return config, {**spelled, **ends}
