"""A text cut into tokens: pieces side by side, each above its id."""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.render import theme
from gptcli.render.safe import one_line


def draw(pieces: Sequence[tuple[int, str]], special: Sequence[bool]) -> RenderableType:
    """Each token as a green cell, special ones violet, with its id below; last a line that counts them."""
    cells = []
    for (i, piece), steers in zip(pieces, special, strict=True):
        colour = theme.LABEL if steers else theme.PROMPT
        width = max(Text(one_line(piece)).cell_len, len(str(i)))
        cell = Text(
            one_line(piece).ljust(width - Text(one_line(piece)).cell_len + len(one_line(piece))),
            f"{theme.INK} on {colour}",
        )
        cells.append(Group(cell, Text(str(i).ljust(width), "dim")))
    count = Text(f"{len(pieces)} tokens" if len(pieces) != 1 else "1 token", "dim")
    return Group(Columns(cells, padding=(0, 1)), Text(), count) if cells else count


if __name__ == "__main__":
    from rich.console import Console

    Console().print(
        draw([(1, "<s>"), (9038, "·Once"), (2501, "·upon"), (263, "·a"), (931, "·time")], [True] + [False] * 4)
    )
