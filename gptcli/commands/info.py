"""gptcli info: what a checkpoint is, from its headers alone."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.commands.given import refuse_context
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle


def info(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False, help="As for --model.")] = None,
    model_option: o.Model = None,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", min=1, help="Count the cache of N tokens. \\[all it has]")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor and what it fills.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, tensors included.")] = False,
    color: o.PlainColor = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
) -> None:
    """Say what a checkpoint is: family, shapes, parameters, the memory it will need; or why it is not supported."""
    from gptcli.describe import card
    from gptcli.layout import look
    from gptcli.model_choice import chosen_model

    if model is not None and model_option is not None:
        raise UsageError("the model is given twice, as an argument and with --model", hint="leave one out")
    settings = settle({"model": model or model_option, "color": color})
    output = Output()
    name = chosen_model(settings)
    layout = look(name, revision=revision, allow=allow_config or ())
    refuse_context(context, layout.config.n_ctx, name)
    found = card(layout, n_context=context)
    if as_json:
        output.json(dataclasses.asdict(found))
        return
    from gptcli.render.card import draw

    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    output.write(theme.drawn(draw(found, tensors=tensors), colour=coloured))
