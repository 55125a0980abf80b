"""Two traces side by side: where the answers and the layers that decided them differ."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.records_xray import Scan
from gptcli.render import theme
from gptcli.render.cell import Columns, Flow, fit, label, probability, signed
from gptcli.render.check import changed, footer, weights
from gptcli.render.safe import one_line


def draw(a: Scan, b: Scan, names: tuple[str, str], *, colour: bool) -> RenderableType:
    """Positions are compared as far as both texts hold the same tokens; what follows is said, not compared."""
    same = a.n_same(b)
    shown = min(same, a.n_positions, b.n_positions)
    first, second = (one_line(name) for name in names)
    heads = (f"A {first}", f"B {second}")
    lines: list[RenderableType] = [
        Text.assemble((f"{head}  ", "bold"), (_said(scan), "dim")) for head, scan in zip(heads, (a, b), strict=True)
    ]
    table = Columns(
        ("", "right"), ("token", "left"), ("A", "left"), ("p", "right"), ("decided", "left"), ("B", "left"),
        ("p", "right"), ("decided", "left"), ("Δlog p", "right"), ("layers ≠", "right"), spare=(4, 7, 9, 8),
    )  # fmt: skip
    for i in range(shown):
        pair = [_answer(scan, i) for scan in (a, b)]
        other = sum(a.cells.ids.whole(r, i, 0) != b.cells.ids.whole(r, i, 0) for r in range(len(a.cells.rows)))
        moved = pair[0][0] != pair[1][0]
        style = (f"{theme.INK} on {theme.ANSWER}" if colour else "bold") if moved else ""
        change = "" if moved else signed(b.cells.logprob.number(-1, i) - a.cells.logprob.number(-1, i), 3)
        table.add_row(
            str(i), fit(label(a, a.ids[i]), 10), fit(" " + label(a, pair[0][0]), 11), probability(pair[0][1]),
            pair[0][2], Text(fit(" " + label(b, pair[1][0]), 11), style), probability(pair[1][1]), pair[1][2],
            change, f"{other} of {len(a.cells.rows)}" if other else "none",
        )  # fmt: skip
    lines.append(table)
    if not shown:
        lines.append(Text("the texts differ from their first token on: there is nothing to compare"))
    elif same < max(len(a.ids), len(b.ids)):
        lines.append(Text(f"the texts are the same up to position {same - 1}; what follows is not compared", "dim"))
    notes = ["A, B: the likeliest next token, or the one that was written", "Δlog p: B − A, nats"]
    notes.append("layers ≠: rows whose best guess differs")
    return Group(*lines, Flow(notes), footer(a), footer(b))


def _said(scan: Scan) -> str:
    parts = [one_line(scan.model), scan.check.dtype, *weights(scan.adapter, scan.rounding)]
    return ", ".join([*parts, f"{scan.n_prompt} + {scan.n_answer} tokens", *changed(scan)])


def _answer(scan: Scan, i: int) -> tuple[int, float, str]:
    depth, rows = scan.depth_at(i), scan.cells.rows
    decided = rows[depth] if depth < len(rows) else "not top"
    return scan.answers[i], math.exp(scan.cells.logprob.number(-1, i)), decided
