"""gptcli merge: an adapter becomes part of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.errors import UsageError
from gptcli.render.output import say


def merge(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help="As for --model.")] = None,
    adapter: Annotated[
        str | None, typer.Argument(metavar="ADAPTER", show_default=False, help="The folder of an adapter.")
    ] = None,
    out: o.Out = None,
    dtype: o.Dtype = None,
    quiet: o.Quiet = None,
) -> None:
    """Add an adapter to the weights of its model, and write the sum as a model of its own."""
    if model is None or adapter is None or out is None:
        raise UsageError("a model, an adapter and a place are needed", hint="gptcli merge MODEL ADAPTER --out DIR")
    from gptcli.checkpoint import load, save
    from gptcli.folder import read_object
    from gptcli.lora import apply
    from gptcli.model_choice import adapter_folder
    from gptcli.saves import replace_text
    from gptcli.settings import GENERATION_CONFIG

    checkpoint = load(model, device="cpu", dtype=dtype or "auto")
    folder = adapter_folder(adapter)
    n = apply(checkpoint, folder)
    save(checkpoint, Path(out))
    wishes = [place / GENERATION_CONFIG for place in (Path(out), folder)]  # how it asks to be run; the adapter's win
    values = [read_object(file) for file in wishes if file.is_file()]
    if values:
        merged = {key: value for each in values for key, value in each.items()}
        replace_text(Path(out) / GENERATION_CONFIG, json.dumps(merged, indent=2) + "\n")
    if not quiet:
        say(f"gptcli: {n:,} numbers of {adapter} are part of {out} now")
