"""gptcli diff: which matrices moved between two checkpoints, and how far."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle


def diff(
    before: Annotated[
        str | None, typer.Argument(metavar="A", show_default=False, help="A model, as for --model.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Argument(metavar="B", show_default=False, help="Another of its shape, or an adapter for it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, every parameter on its own.")] = False,
    color: o.PlainColor = None,
) -> None:
    """Show which numbers training moved: layers down, matrices across, each cell the change relative to what was there.

    The change is the norm of the difference over the norm of the matrix in A. B may be an adapter:
    its folder, or the name of one that comes with gptcli.
    """
    if before is None or after is None:
        raise UsageError("diff needs two checkpoints", hint="gptcli diff A B")
    settings = settle({"color": color})
    output = Output()
    from gptcli.compare import compare

    found = compare(before, after)
    if as_json:
        values = [
            {
                "name": m.name,
                "layer": m.layer,
                "shape": list(m.shape),
                "changed": m.n_changed,
                "relative": m.relative if m.relative != float("inf") else None,
                "rms_before": m.rms_before,
                "rms_change": m.rms_change,
                "largest": m.largest,
            }
            for m in found.moved
        ]
        output.json({"before": found.before, "after": found.after, "parameters": values})
        return
    from gptcli.render.moved import draw

    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    output.write(theme.drawn(draw(found), colour=coloured))
