"""The article's table of training examples: number, features (green), correct next token (violet)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.render import theme
from gptcli.render.safe import one_line

MOST_LABEL = 24


def draw(pieces: Sequence[str], window: int | None, *, n_all: int) -> RenderableType:
    """One row for each example; a row that is too wide keeps its newest features, behind an ellipsis."""
    shown = len(pieces) - 1
    tail = Text(f"{n_all} examples from {n_all + 1} tokens" + (f", {shown} shown" if shown < n_all else ""), "dim")
    return Group(_Table([one_line(piece) for piece in pieces], window), Text(), tail)


class _Table:
    def __init__(self, pieces: Sequence[str], window: int | None) -> None:
        self._pieces, self._window = pieces, window

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pieces = self._pieces
        digits = max(7, len(str(len(pieces))))
        label = min(MOST_LABEL, max(cell_len(p) for p in pieces[1:]) + 2)
        label = max(label, len("correct next token"))
        room = max(12, options.max_width - digits - label - 4)
        yield Text.assemble(
            ("example".rjust(digits), "dim"), "  ", ("features".ljust(room), "dim"), "  ", ("correct next token", "dim")
        )
        for i in range(1, len(pieces)):
            row = Text(f"{i:>{digits}}  ", "dim")
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
            answer.truncate(label, overflow="ellipsis")
            row.append_text(answer)
            yield row


def draw_plain(pieces: Sequence[str], window: int | None) -> str:
    """Number, features, label, between tabs: for cut and awk."""
    rows = []
    for i in range(1, len(pieces)):
        seen = pieces[max(0, i - window) if window else 0 : i]
        rows.append(f"{i}\t{one_line(' '.join(seen))}\t{one_line(pieces[i])}\n")
    return "".join(rows)


if __name__ == "__main__":
    words = ["Second", "·law", "·of", "·robotics", ":", "·A", "·robot", "·must", "·obey", "·the", "·orders"]
    Console().print(draw(words, None, n_all=len(words) - 1))
