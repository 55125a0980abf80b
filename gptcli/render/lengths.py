"""Norms: how long the vectors are, and how the writes lie to what they are added to. Scales leave out position 0."""

from __future__ import annotations

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.records_xray import Scan
from gptcli.render.bars import bar
from gptcli.render.cell import (
    Columns,
    Flow,
    Legend,
    columns_cut,
    compact,
    fit,
    label,
    layers_shown,
    level,
    rows_cut,
    shaded,
    signed,
    window,
)
from gptcli.render.check import footer


class Map:
    """Length of every state: tokens across, layers up, coloured by its logarithm."""

    def __init__(self, scan: Scan, *, cursor: int | None, colour: bool, most_rows: int, every: int | None) -> None:
        self._scan, self._cursor, self._colour = scan, cursor, colour
        self._rows = layers_shown(len(scan.cells.rows), most_rows, every)
        others = [math.log(max(1e-9, x)) for row in scan.lengths.states.rows() for x in (row[1:] or row)]
        self._low, self._high = min(others), max(others)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scan = self._scan
        shown = window(scan.n_positions, (options.max_width - 6) // 8, self._cursor)
        for i in reversed(self._rows):
            line = Text.assemble((f"{scan.cells.rows[i]:>5} ", "dim"))
            for j in shown:
                line.append_text(self._cell(scan.lengths.states.number(i, j), j))
                line.append(" ")
            yield line
        yield Text("      " + "".join(fit(label(scan, scan.ids[j]), 7) + " " for j in shown), "bold")
        marked = 0 in shown and any(self._outside(scan.lengths.states.number(i, 0)) for i in self._rows)
        notes = (
            rows_cut(self._rows, len(scan.cells.rows)), columns_cut(scan.n_positions, positions=shown),
            "⊥ position 0, outside the scale" if marked else "",
        )  # fmt: skip
        if any(notes):
            yield Flow(notes, indent=6)

    def _share(self, x: float) -> float:
        return (math.log(max(1e-9, x)) - self._low) / ((self._high - self._low) or 1.0)

    def _outside(self, x: float) -> bool:
        return not 0 <= self._share(x) <= 1

    def _cell(self, x: float, j: int) -> Text:
        if j == 0 and self._outside(x):
            return Text(fit(f"⊥{compact(x)}", 7), "bold")
        share = max(0.0, min(1.0, self._share(x)))
        if not self._colour:
            return Text(fit(compact(x), 6) + level(share))
        return Text(fit(" " + compact(x), 7), shaded(share))


def draw(
    scan: Scan,
    position: int,
    *,
    colour: bool,
    cursor: int | None = None,
    most_rows: int = 40,
    every: int | None = None,
) -> RenderableType:
    """All states at a glance, then one position's writes."""
    table = Columns(
        ("", "right"), ("|x|", "right"), ("|attn|/|x|", "right"), ("", "left"), ("cos", "right"),
        ("|mlp|/|x|", "right"), ("", "left"), ("cos", "right"), spare=(3, 6),
    )  # fmt: skip
    n = scan.lengths
    into = [max(1e-30, n.states.number(i, position)) for i in range(scan.n_layer)]
    shares = [(n.attn.number(i, position) / x, n.mlp.number(i, position) / x) for i, x in enumerate(into)]
    most = max((x for pair in shares for x in pair), default=1.0) or 1.0
    for i in reversed(range(scan.n_layer)):
        a, m = shares[i]
        table.add_row(
            f"L{i}", compact(n.states.number(i, position)),
            compact(a), Text(bar(a / most, 8)), signed(n.attn_cos.number(i, position)),
            compact(m), Text(bar(m / most, 8)), signed(n.mlp_cos.number(i, position)),
        )  # fmt: skip
    notes = [
        ("|x|", "|x|: length of the vector that enters"),
        ("cos", "cos: of a write to what it is added to; below 0 it takes away"),
    ]
    title = Text.assemble(("how long the vectors are ", "bold"), ("(Euclidean norm, colours by its logarithm)", "dim"))
    second = Text.assemble(("\nwhat is written at ", "bold"))
    second.append(f"{label(scan, scan.ids[position])}, position {position}", "dim")
    view = Map(scan, cursor=cursor, colour=colour, most_rows=most_rows, every=every)
    return Group(title, view, second, table, Legend(table, notes), footer(scan))
