"""The track of one token: word, vector, what each layer's attention and MLP write, vector, scores, word.

The dot rides from the left, where the answer is last of all tokens, to the right, where it is the first.
"""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.records_xray import Cells, Scan
from gptcli.render import theme
from gptcli.render.bars import bar
from gptcli.render.cell import Columns, Legend, believed, chip, compact, fit, label, probability, signed, vector
from gptcli.render.check import footer
from gptcli.tables import Table

WAY = 18


def draw(scan: Scan, position: int, *, colour: bool, light: bool = False) -> RenderableType:
    """From the bottom of the model, here the first line, to the top."""
    name = fit(label(scan, scan.answers[position]), 10).strip()
    table = Columns(
        ("", "right"), ("wrote", "left"), ("|write|", "right"), ("cos", "right"), ("best guess after", "left"),
        ("p", "right"), ("rank", "right"), (f"the way of {name}", "left"), ("p of it", "left"),
        spare=(3, 7, 2, 5, 8, 6),
    )  # fmt: skip
    bars, dot = theme.ink("label", colour=colour, light=light), theme.ink("answer", colour=colour, light=light)

    def row(name: str, part: str, write: tuple[float, float | None], cells: Cells | None, at: int) -> None:
        start = (name, part, compact(write[0]), "" if write[1] is None else signed(write[1]))
        if cells is None or position not in cells.positions:
            table.add_row(*start)
            return
        j = cells.positions.index(position)
        best, p = cells.ids.whole(at, j, 0), math.exp(cells.logprobs.number(at, j, 0))
        rank, own = cells.rank.whole(at, j), math.exp(cells.logprob.number(at, j))
        style = believed(p, cells.kl.number(at, j), light=light) if colour else ""
        guess = Text(fit(" " + label(scan, best), 14), style)
        way = _way(rank, scan.check.n_head_rows, dot)
        sure = Text.assemble(probability(own) + " ", (bar(own, 8), bars))
        table.add_row(*start, guess, probability(p), f"#{rank}", way, sure)

    lengths, middle = scan.lengths, None if scan.parallel else scan.between
    row("emb", "word → vector", (lengths.states.number(0, position), None), scan.cells, 0)
    for i in range(scan.n_layer):
        row(f"L{i}", "attention", _write(lengths.attn, lengths.attn_cos, i, position), middle, i)
        row("", "mlp", _write(lengths.mlp, lengths.mlp_cos, i, position), scan.cells, i + 1)
    notes = [
        ("", "vector: blue below 0, orange above" if colour else "vector: ▁ to █ above 0, ⣀ to ⣿ below"),
        ("cos", "cos: of a write to what it is added to; below 0 it takes away"),
        ("rank", f"rank of {scan.check.n_head_rows:,} tokens"),
    ]
    if scan.parallel:
        notes.append(("", "attention and mlp add at the same time"))
    first = Text.assemble("  ", (label(scan, scan.ids[position]), "bold"), (" → vector ", "dim"))
    first.append_text(vector(scan.vectors.row(0, position), 32, colour=colour, light=light))
    first.append(f" … {scan.d_model} numbers", "dim")
    last = Text.assemble((" vector ", "dim"), vector(scan.vectors.row(1, position), 32, colour=colour, light=light))
    last.append(" → scores", "dim")
    scores = _scores(scan, position, bars, colour=colour)
    return Group(_title(scan, position, colour=colour), first, table, last, *scores, Legend(table, notes), footer(scan))


def _write(length: Table, cos: Table, layer: int, position: int) -> tuple[float, float]:
    return length.number(layer, position), cos.number(layer, position)


def _title(scan: Scan, position: int, *, colour: bool) -> Text:
    ground = theme.PROMPT if position < scan.n_prompt else theme.ANSWER
    text = Text.assemble(("the track of ", "bold"))
    text.append_text(chip(label(scan, scan.ids[position]), ground, colour=colour))
    text.append(" → ")
    text.append_text(chip(label(scan, scan.answers[position]), theme.ANSWER, colour=colour))
    depth, rows = scan.depth_at(position), scan.cells.rows
    said = f"decided at {rows[depth]}" if depth < len(rows) else "not the best even after the last layer"
    text.append(f"  position {position}, {said}", "dim")
    if position + 1 < len(scan.ids) and scan.ids[position + 1] != scan.answers[position]:
        text.append(f"; the prompt goes on with {label(scan, scan.ids[position + 1])}", "dim")
    return text


def _way(rank: int, n: int, ink: str) -> Text:
    """The dot on its way, by the logarithm of the rank."""
    at = round((1 - math.log(max(1, rank)) / math.log(max(2, n))) * (WAY - 1))
    at = max(0, min(WAY - 1, at))
    return Text.assemble(("─" * at, "dim"), ("●", ink), (" " * (WAY - 1 - at) + "▏", "dim"))


def _scores(scan: Scan, position: int, bars: str, *, colour: bool) -> list[Text]:
    """The best tokens of the last row, as bars; the answer points at itself."""
    last, j, lines = len(scan.cells.rows) - 1, scan.cells.positions.index(position), []
    best = zip(scan.cells.ids.ids(last, j), scan.cells.logprobs.row(last, j), strict=True)
    for id, logprob in best:
        p, chosen = math.exp(logprob), id == scan.answers[position]
        style = f"{theme.INK} on {theme.ANSWER}" if chosen and colour else "bold" if chosen else ""
        line = Text.assemble("  ", (fit(" " + label(scan, id), 14), style), f" {probability(p)} ")
        line.append(bar(p, 30), bars)
        line.append(" →" if chosen else "", "bold")
        lines.append(line)
    return lines
