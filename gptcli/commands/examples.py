"""gptcli examples: the training examples that a text gives, as the article shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.given import refuse_given
from gptcli.commands.loading import chosen_tokenizer
from gptcli.commands.prompt import read_prompt
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.records import Lesson
    from gptcli.render.examples import Guess
    from gptcli.tokens import Tokenizer


def examples(
    ctx: typer.Context,
    text: o.WholeText = None,
    file: o.File = None,
    model: o.Model = None,
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", min=1, help="Show at most the last N features. \\[all]")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--number", metavar="N", min=1, help="The first N only. \\[all]")
    ] = None,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn", help="Train one step on the text, and show each guess, and the error before and after."
        ),
    ] = False,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", metavar="X", min=0.0, help="Of that step.")
    ] = 3e-4,
    as_json: Annotated[bool, typer.Option("--jsonl", "--json", help="One JSON object for each example.")] = False,
    color: o.PlainColor = None,
    revision: o.Revision = None,
) -> None:
    """Slide a window over a text and show every training example it gives: the features, and the correct next token.

    With --learn the model guesses each of them, and one step of training is done on a copy that is then forgotten.
    """
    from gptcli.model_choice import chosen_model
    from gptcli.tokens import show

    if not learn:
        refuse_given(ctx, ("learning_rate",), "without --learn nothing is learned")
    settings = settle({"model": model, "color": color})
    output = Output()
    whole = read_prompt(text, None, file)
    tokenizer = chosen_tokenizer(settings, revision)
    ids = tokenizer.encode(whole, bos=False)
    if len(ids) < 2:
        raise UsageError("a training example needs a text of two tokens or more", hint="gptcli examples TEXT")
    last = min(len(ids), n + 1) if n else len(ids)
    learned = _learned(chosen_model(settings), revision, ids, learning_rate) if learn else None
    if as_json:
        for i in range(1, last):
            seen = ids[max(0, i - window) if window else 0 : i]
            output.json(_row(tokenizer, i, seen, ids[i], learned[i - 1] if learned else None))
        return
    pieces = [show(tokenizer.raw(i)) for i in ids]
    from gptcli.render.examples import draw, draw_plain

    guesses = [_guess(tokenizer, lesson) for lesson in (learned or [])[: last - 1]]
    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    if not coloured and not output.is_terminal:
        output.write(draw_plain(pieces[:last], window, guesses))
        return
    output.write(theme.drawn(draw(pieces[:last], window, guesses, n_all=len(ids) - 1), colour=coloured))


def _row(tokenizer: Tokenizer, i: int, seen: Sequence[int], label: int, lesson: Lesson | None) -> dict[str, Any]:
    """The i-th example as JSON; with a lesson, what the model made of it."""

    def text(*ids: int) -> str:
        return b"".join(map(tokenizer.raw, ids)).decode(errors="replace")

    row = {
        "example": i,
        "features": list(seen),
        "label": label,
        "features_text": text(*seen),
        "label_text": text(label),
    }
    if lesson is None:
        return row
    return row | {
        "guess": lesson.guess,
        "guess_text": text(lesson.guess),
        "p_guess": lesson.p_guess,
        "p_before": lesson.p_before,
        "p_after": lesson.p_after,
    }


def _guess(tokenizer: Tokenizer, lesson: Lesson) -> Guess:
    from gptcli.render.examples import Guess
    from gptcli.tokens import show

    return Guess(
        piece=show(tokenizer.raw(lesson.guess)),
        right=lesson.guess == lesson.label,
        p=lesson.p_guess,
        p_before=lesson.p_before,
        p_after=lesson.p_after,
    )


def _learned(name: str, revision: str | None, ids: list[int], learning_rate: float) -> list[Lesson]:
    from gptcli.checkpoint import load
    from gptcli.train import lessons

    checkpoint = load(name, revision=revision, dtype="float32")
    if len(ids) > checkpoint.config.n_ctx + 1:
        raise UsageError(f"--learn shows {checkpoint.config.n_ctx + 1} tokens at most, not {len(ids)}")
    return lessons(checkpoint.decoder, ids, learning_rate)
