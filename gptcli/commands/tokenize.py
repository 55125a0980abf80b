"""gptcli tokenize: ids and pieces of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.commands.loading import chosen_tokenizer
from gptcli.commands.prompt import read_prompt
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle


def tokenize(
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", show_default=False, help="The text; - for stdin.")
    ] = None,
    file: o.File = None,
    model: o.Model = None,
    ids: Annotated[bool, typer.Option("--ids", help="Only the ids, on one line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    color: o.PlainColor = None,
    keep_newline: o.KeepNewline = False,
    escape: o.Escape = False,
    bos: o.Bos = None,
    revision: o.Revision = None,
) -> None:
    """Show how a model's tokenizer cuts a text: ids and pieces, a start token included where the model gets one."""
    from gptcli.tokens import show

    settings = settle({"model": model, "color": color})
    output = Output()
    whole = read_prompt(text, None, file, keep_newline=keep_newline, escape=escape)
    tokenizer = chosen_tokenizer(settings, revision)
    found = tokenizer.encode(whole, bos=bos)
    if ids:
        output.line(" ".join(map(str, found)))
        return
    if as_json:
        tokens = [{"id": i, "piece": tokenizer.piece(i), "bytes": list(tokenizer.raw(i))} for i in found]
        output.json({"text": whole, "ids": found, "tokens": tokens})
        return
    pieces = [(i, show(tokenizer.raw(i)) if not tokenizer.is_special(i) else tokenizer.piece(i) or "") for i in found]
    special = [tokenizer.is_special(i) for i in found]
    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    if not coloured:
        output.write(draw_plain(pieces))
        return
    from gptcli.render.pieces import draw

    output.write(theme.drawn(draw(pieces, special), colour=True))


def draw_plain(pieces: list[tuple[int, str]]) -> str:
    """One token a line, id, tab, piece: for cut, sort and uniq."""
    from gptcli.render.safe import one_line

    return "".join(f"{i}\t{one_line(piece)}\n" for i, piece in pieces)
