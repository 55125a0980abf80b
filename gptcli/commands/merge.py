"""gptcli merge: an adapter becomes part of its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.errors import UsageError
from gptcli.render.output import say
from gptcli.settings import settle


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
        raise UsageError("merge needs a model, an adapter and --out DIR", hint="gptcli merge MODEL ADAPTER --out DIR")
    from gptcli.checkpoint import load, save
    from gptcli.layout import generation_config
    from gptcli.lora import apply
    from gptcli.model_choice import adapter_folder

    settings = settle({"dtype": dtype, "quiet": quiet})
    checkpoint, folder = load(model, device="cpu", dtype=settings["dtype"].value), adapter_folder(adapter)
    n = apply(checkpoint, folder)
    wishes = checkpoint.generation_config | generation_config(folder)  # how the adapter asks to be run
    save(dataclasses.replace(checkpoint, generation_config=wishes), Path(out))
    if not settings["quiet"].value:
        say(f"gptcli: {n:,} numbers of {adapter} are part of {out} now")
