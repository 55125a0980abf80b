"""The elevator: tokens across, layers up. Each goes in at the bottom, rides up, and leaves as a guess at the next one.

The best guess stands in each cell; its colour is the probability, faded by how far the layer still is from the final
answer (KL). A written token comes out on top and goes in again at the bottom of the next column: the pink line.
"""

from __future__ import annotations

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.records_xray import Cells, Scan
from gptcli.render import theme
from gptcli.render.cell import (
    Flow,
    believed,
    columns_cut,
    fit,
    label,
    layers_shown,
    level,
    rows_cut,
    smooth,
    text_line,
    widest,
    window,
)
from gptcli.render.check import footer

DECIDED, STANDS, FAR = "◆", "●", "~"
FAR_NATS = 3.0
LABEL_WIDTH = 8
NARROW = 5  # columns of the narrowest cell's token


def at_most(n: int, max_width: int, cursor: int | None) -> range:
    """The columns that can be shown of n where every token is short; what is shown then is among them."""
    return window(n, (max_width - LABEL_WIDTH) // (NARROW + 3), cursor)


class Grid:
    """Fits the width it is given, and `most_rows` rows of layers, if it is not to show every so many of them."""

    def __init__(
        self,
        scan: Scan,
        *,
        colour: bool,
        cursor: int | None = None,
        most_rows: int = 40,
        every: int | None = None,
        between: bool = False,
        light: bool = False,
    ) -> None:
        self._scan, self._colour, self._light = scan, colour, light
        self._cursor, self._most_rows, self._every = cursor, most_rows, every
        self._between = scan.between if between else None
        self._shown: range = range(0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scan, T = self._scan, self._scan.n_positions
        names = [label(scan, i) for i in (*scan.ids, *scan.answers)]
        mark = 1 if self._colour else 2
        width = widest(names, NARROW, 9 if options.max_width > 90 else 7) + 1 + mark
        columns = window(T, (options.max_width - LABEL_WIDTH) // (width + 1), self._cursor)
        yield from self._head(columns, width)
        rows = self._rows()
        lowest = self._lowest_standing([at for cells, at, _ in rows if cells is scan.cells])
        for cells, at, name in rows:
            line = self._label(name)
            for i in columns:
                line.append_text(self._cell(cells, at, i, width, cells is scan.cells and lowest.get(i) == at))
                line.append_text(self._gutter(i, "│", columns))
            yield line
        yield self._tokens(columns, width)
        yield self._legend(columns, rows)

    def _rows(self) -> list[tuple[Cells, int, str]]:
        """From the top: which cells, which row of theirs, and its name."""
        cells, most = self._scan.cells, self._most_rows
        shown = layers_shown(len(cells.rows), most // 2 if self._between else most, self._every)
        rows = []
        for at in reversed(shown):
            rows.append((cells, at, cells.rows[at]))
            if self._between and at > 0:
                rows.append((self._between, at - 1, self._between.rows[at - 1]))
        return rows

    def _head(self, columns: range, width: int) -> RenderResult:
        answers, depths = self._label("answer"), self._label("decided")
        for i in columns:
            written = i >= self._scan.n_prompt - 1 and self._scan.n_answer > 0
            style = f"{theme.INK} on {theme.ANSWER}" if self._colour else "bold"
            name = label(self._scan, self._scan.answers[i])
            answers.append(fit(" " + name, width), style if written else "dim")
            answers.append_text(self._gutter(i, "╮", columns))
            at, last = self._scan.depth_at(i), len(self._scan.cells.rows) - 1
            said = "not top" if at > last else self._scan.cells.rows[at] + (f"/{last - 1}" if at else "")
            depths.append(fit(" " + said, width), "dim")
            depths.append_text(self._gutter(i, "│", columns))
        yield answers
        yield depths

    def _tokens(self, columns: range, width: int) -> Text:
        line = self._label("token")
        for i in columns:
            ground = theme.PROMPT if i < self._scan.n_prompt else theme.ANSWER
            style = f"{theme.INK} on {ground}" if self._colour else "" if i < self._scan.n_prompt else "bold"
            line.append(fit(" " + label(self._scan, self._scan.ids[i]), width), style)
            line.append_text(self._gutter(i, "╰", columns))
        return line

    def _cell(self, cells: Cells, at: int, i: int, width: int, lowest: bool) -> Text:
        if i not in cells.positions:
            return Text(" " * width)
        j = cells.positions.index(i)
        p, kl, best = math.exp(cells.logprobs.number(at, j, 0)), cells.kl.number(at, j), cells.ids.whole(at, j, 0)
        stands = cells is self._scan.cells and at >= self._scan.depth_at(i)
        mark = DECIDED if lowest else STANDS if stands else ""
        name = label(self._scan, best)
        if self._colour:
            style = believed(p, kl, light=self._light)
            return Text(fit(" " + name, width - 1) + (mark or " "), style)
        mark = mark or (FAR if kl >= FAR_NATS else " ")
        return Text(fit(" " + name, width - 2) + (" " if mark == FAR else level(p)) + mark)

    def _lowest_standing(self, shown: list[int]) -> dict[int, int]:
        """For each position the lowest row shown on which the answer stands to stay."""
        depths = zip(self._scan.cells.positions, self._scan.depth, strict=True)
        return {i: min(above) for i, d in depths if (above := [at for at in shown if at >= d])}

    def _gutter(self, i: int, glyph: str, columns: range) -> Text:
        """The way of a written token from the top of its column to the bottom of the next."""
        feeds = i + 1 in columns and i + 1 >= self._scan.n_prompt and i + 1 < len(self._scan.ids)
        return Text(glyph if feeds else " ", theme.ink("answer", colour=self._colour, light=self._light))

    def _label(self, name: str) -> Text:
        style = theme.ink("label", colour=self._colour, light=self._light) if name in NAMED else ""
        return Text.assemble((name.rjust(LABEL_WIDTH - 1) + " ", style or "dim"))

    def _legend(self, columns: range, rows: list[tuple[Cells, int, str]]) -> Flow:
        items = list[Text | str]()
        if self._colour:
            scale = Text("p 0 ", "dim")
            for k in range(24):
                scale.append(" ", f"on {smooth(k / 23)}")
            scale.append(" 1")
            faded = Text("faded by KL to the final answer, nats ", "dim")
            for kl in (0.0, 1.0, 2.0, 4.0, 8.0):
                faded.append(f" {kl:.0f} ", believed(0.7, kl, light=self._light))
            items += [scale, faded]
        else:
            items += ["p: ▁ to █, 0 to 1", f"{FAR} {FAR_NATS:.0f} nats or more of KL from the final answer"]
        shown = [at for cells, at, _ in rows if cells is self._scan.cells]
        hidden = len(shown) < len(self._scan.cells.rows)
        items += [f"{DECIDED} decided here" + " or in a row below it that is not shown" * hidden]
        items += [f"{STANDS} already the final answer", "· a space"]
        items += ["emb: the token's vector", "L0: after layer 0"]
        middle, names = sorted(self._scan.depth)[len(self._scan.depth) // 2], self._scan.cells.rows
        if middle < len(names) and len(self._scan.depth) == self._scan.n_positions > 2:
            items.append(f"half of the tokens decided by {names[middle]}")
        items.append(rows_cut(shown, len(self._scan.cells.rows)))
        items.append(columns_cut(self._scan.n_positions, positions=columns))
        return Flow(items, indent=LABEL_WIDTH)


NAMED = ("answer", "token")


def draw(
    scan: Scan,
    *,
    colour: bool,
    cursor: int | None = None,
    most_rows: int = 40,
    every: int | None = None,
    between: bool = False,
    light: bool = False,
) -> RenderableType:
    """The text, the elevator, its legend, and the self-check."""
    grid = Grid(scan, colour=colour, cursor=cursor, most_rows=most_rows, every=every, between=between, light=light)
    return Group(text_line(scan, colour=colour), Text(), grid, footer(scan))
