"""gptcli families: which checkpoints run, and how each family spells what all of them do."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle


def families(
    name: Annotated[
        str | None, typer.Argument(metavar="[FAMILY]", show_default=False, help="Only this one, name by name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole table as one JSON object.")] = False,
    color: o.PlainColor = None,
) -> None:
    """List the families of decoders that run here, and how each spells its tensors: a Rosetta stone."""
    from gptcli.families import FAMILIES, REFUSED

    output = Output()
    settings = settle({"color": color})
    if name is not None and name not in FAMILIES:
        reason = f": {REFUSED[name]}" if name in REFUSED else ""
        raise UsageError(f"{name!r} is not a family that runs here{reason}", hint="gptcli families lists them")
    if as_json:
        names = {key: {"models": f.models, "prefix": f.prefix, "names": f.names} for key, f in FAMILIES.items()}
        output.json(names if name is None else names[name])
        return
    from gptcli.render.rosetta import draw_all, draw_one

    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    chosen = FAMILIES.get(name or "")
    spelled = [
        (key, f.models, f.prefix, f.names, {n: fix.why for n, fix in f.fixes.items()}) for key, f in FAMILIES.items()
    ]
    picture = draw_one(*next(s for s in spelled if s[0] == name)) if chosen else draw_all(spelled, REFUSED)
    output.write(theme.drawn(picture, colour=coloured))
