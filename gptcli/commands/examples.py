"""gptcli examples: the training examples that a text gives, as the article shows them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gptcli.commands import options as o
from gptcli.commands.prompt import read_prompt
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle


def examples(
    text: o.Text = None,
    file: o.File = None,
    model: o.Model = None,
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", min=1, help="Show at most the last N features. \\[all]")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--number", metavar="N", min=1, help="The first N only. \\[all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--jsonl", "--json", help="One JSON object for each example.")] = False,
    color: o.Color = None,
    revision: o.Revision = None,
) -> None:
    """Slide a window over a text and show every training example it gives: the features, and the correct next token."""
    from gptcli.folder import resolve
    from gptcli.model_choice import chosen_model
    from gptcli.tokens import Tokenizer, show

    settings = settle({"model": model, "color": color})
    output = Output()
    whole = read_prompt(text, None, file)
    tokenizer = Tokenizer.from_folder(resolve(chosen_model(settings), revision=revision).folder)
    ids = tokenizer.encode(whole, bos=False)
    if len(ids) < 2:
        raise UsageError("a text of two tokens or more gives an example", hint="gptcli examples TEXT")
    last = min(len(ids), n + 1) if n else len(ids)
    if as_json:
        for i in range(1, last):
            seen = ids[max(0, i - window) if window else 0 : i]
            output.line(
                json.dumps(
                    {
                        "example": i,
                        "features": seen,
                        "label": ids[i],
                        "features_text": b"".join(map(tokenizer.raw, seen)).decode(errors="replace"),
                        "label_text": tokenizer.raw(ids[i]).decode(errors="replace"),
                    },
                    ensure_ascii=False,
                )
            )
        return
    pieces = [show(tokenizer.raw(i)) for i in ids]
    from gptcli.render.examples import draw, draw_plain

    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    if not coloured and not output.is_terminal:
        output.write(draw_plain(pieces[:last], window))
        return
    output.write(theme.drawn(draw(pieces[:last], window, n_all=len(ids) - 1), colour=coloured))
