"""The article's table of training examples: number, features (green), correct next token (violet)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.render import theme
from gptcli.render.safe import one_line
from gptcli.render.training import chance

MOST_LABEL = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What a model made of one example: its best token and what it gave that, and the right one before and after."""

    piece: str
    right: bool
    p: float
    p_before: float
    p_after: float


def draw(pieces: Sequence[str], window: int | None, guesses: Sequence[Guess] = (), *, n_all: int) -> RenderableType:
    """One row for each example; a row that is too wide keeps its newest features, behind an ellipsis."""
    shown = len(pieces) - 1
    tail = Text(f"{n_all} examples from {n_all + 1} tokens" + (f", {shown} shown" if shown < n_all else ""), "dim")
    if guesses:
        tail.append(f"; {sum(g.right for g in guesses)} guessed right; the mean error is {_errors(guesses)}")
    return Group(_Table([one_line(piece) for piece in pieces], window, guesses), Text(), tail)


def _errors(guesses: Sequence[Guess]) -> str:
    before, after = (
        -sum(math.log(max(p, 1e-45)) for p in given) / len(guesses)
        for given in ([g.p_before for g in guesses], [g.p_after for g in guesses])
    )
    return f"{before:.2f} nats a token before the step and {after:.2f} after it"


class _Table:
    def __init__(self, pieces: Sequence[str], window: int | None, guesses: Sequence[Guess]) -> None:
        self._pieces, self._window, self._guesses = pieces, window, guesses

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pieces, guesses = self._pieces, self._guesses
        digits = max(7, len(str(len(pieces))))
        label = min(MOST_LABEL, max(cell_len(p) for p in pieces[1:]) + 2)
        heading = "correct" if guesses else "correct next token"
        label = max(label, len(heading))
        guessed = min(MOST_LABEL // 2, max((cell_len(one_line(g.piece)) + 2 for g in guesses), default=0))
        more = guessed + 22 if guesses else 0
        room = max(8, options.max_width - digits - label - 4 - more)
        head = Text(f"{'example':>{digits}}  {'features':<{room}}  {heading:<{label}}", "dim")
        if guesses:
            head.append(f"  {'guess':<{guessed}}  before     after")
        yield head
        for i in range(1, len(pieces)):
            row = Text.assemble((f"{i:>{digits}}  ", "dim"))
            seen = pieces[max(0, i - self._window) if self._window else 0 : i]
            cells, width, cut = list[str](), 0, False
            for piece in reversed(seen):
                need = cell_len(piece) + 3
                if width + need > room - 2 and cells:
                    cut = True
                    break
                cells.insert(0, piece)
                width += need
            features = Text("… " if cut or len(seen) < i else "", "dim")
            for piece in cells:
                features.append(f" {piece} ", f"{theme.INK} on {theme.PROMPT}")
                features.append(" ")
            features.truncate(room, overflow="ellipsis", pad=True)
            row.append_text(features)
            row.append("  ")
            answer = Text(f" {pieces[i]} ", f"#ffffff on {theme.LABEL}")
            answer.truncate(label, overflow="ellipsis", pad=bool(guesses))
            row.append_text(answer)
            if guesses:
                _guess(row, guesses[i - 1], guessed)
            yield row


def _guess(row: Text, guess: Guess, width: int) -> None:
    """The guess, and what the right token was given: before the step, and after it."""
    said = Text(f" {one_line(guess.piece)} ", f"{theme.INK} on {theme.ANSWER}")
    said.truncate(width, overflow="ellipsis", pad=True)
    row.append("  ").append_text(said)
    row.append(f" {'✓' if guess.right else ' '}{chance(guess.p_before):>8} → ", "dim")
    row.append(f"{chance(guess.p_after):>7}", "bold" if guess.p_after > guess.p_before else "dim")


def draw_plain(pieces: Sequence[str], window: int | None, guesses: Sequence[Guess] = ()) -> str:
    """Number, features, label, and if there are guesses the guess and both probabilities; tabs between: for awk."""
    rows = []
    for i in range(1, len(pieces)):
        seen = pieces[max(0, i - window) if window else 0 : i]
        row = f"{i}\t{one_line(' '.join(seen))}\t{one_line(pieces[i])}"
        if guesses:
            guess = guesses[i - 1]
            row += f"\t{one_line(guess.piece)}\t{guess.p_before:.3g}\t{guess.p_after:.3g}"
        rows.append(row + "\n")
    return "".join(rows)


if __name__ == "__main__":
    words = ["Second", "·law", "·of", "·robotics", ":", "·A", "·robot", "·must", "·obey", "·the", "·orders"]
    Console().print(draw(words, None, n_all=len(words) - 1))
