"""The ledger: why this token and not that one, as a sum that is printed with its result beside the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.records_xray import Book, Scan
from gptcli.render import theme
from gptcli.render.cell import Columns, chip, exact, label, off, signed, two_sided
from gptcli.render.check import footer
from gptcli.render.heads import called

BAR = 14
MOST_HEADS = 10


def draw(
    scan: Scan, position: int, *, alone: bool, over_mean: bool = False, colour: bool, light: bool = False
) -> RenderableType:
    """One position's. alone: the logit itself, not its lead over the best other token; over_mean: over that of all."""
    if not scan.books:
        return Group(Text(f"there is no ledger of this model: {scan.check.no_ledger}"), footer(scan))
    against_rival = not alone and not over_mean
    book = next(book for book in scan.books if (book.against_rival, book.over_mean) == (against_rival, over_mean))
    parts = [(name, book.parts.number(n, position)) for n, name in enumerate(book.names)]
    if const := book.const.number(position):
        parts.append(("constant", const))
    most = max((abs(x) for _, x in parts), default=0.0) or 1.0
    table = Columns(("", "right"), ("", "right"), ("", "left"), header=False, spare=(2,))
    for name, x in parts:
        table.add_row(
            name.replace(" attn", " attention"), signed(x), two_sided(x, most, BAR, colour=colour, light=light)
        )
    total, logit = book.total.number(position), book.logit.number(position)
    table.add_row(Text("sum", "bold"), Text(exact(total), "bold"), "")
    what = "model" if book.capped is None else "model, before its cap"
    table.add_row(what, exact(logit), off(total - logit))
    if book.capped is not None:
        table.add_row("after the cap", exact(book.capped.number(position)), "")
    heads = _heads(scan, book, position, colour=colour, light=light)
    return Group(_title(scan, position, book, colour=colour), table, *heads, footer(scan))


def _title(scan: Scan, position: int, book: Book, *, colour: bool) -> Text:
    text = Text.assemble(("why ", "bold"))
    text.append_text(chip(label(scan, scan.answers[position]), theme.ANSWER, colour=colour))
    if book.against_rival:
        text.append(" and not ", "bold")
        text.append(f" {label(scan, scan.rivals[position])} ", "reverse" if colour else "bold")
    what = "logit difference" if book.against_rival else "logit over the mean of all" if book.over_mean else "logit"
    text.append(f"  after {label(scan, scan.ids[position])}, position {position}", "dim")
    text.append(f": what each part wrote ({what}, nats)", "dim")
    return text


def _heads(scan: Scan, book: Book, position: int, *, colour: bool, light: bool) -> list[RenderableType]:
    """The heads that put in most, and from where."""
    if book.heads is None or book.source_parts is None or book.source_positions is None:
        return []
    found = [(book.heads.number(i, h, position), i, h) for i in range(scan.n_layer) for h in range(scan.n_head)]
    found.sort(key=lambda one: -abs(one[0]))
    rows = list[_Head]()
    for x, i, h in found[:MOST_HEADS]:
        at, parts = book.source_positions.ids(i, h, position), book.source_parts.row(i, h, position)
        taken = [(j, part) for j, part in zip(at, parts, strict=True) if j <= position and part]
        sources = tuple((label(scan, scan.ids[j]), j, part) for j, part in taken)
        whole = len(taken) < len(at) or len(at) > position  # what is not even among the largest is nothing
        rows.append(_Head(f"L{i}H{h}", x, sources, whole, called(scan, i, h)))
    head = Text.assemble(("heads ", "bold"))
    head.append(
        f"the {min(MOST_HEADS, len(found))} largest of {len(found)}, what each took from where, and its role", "dim"
    )
    return [head, _Heads(rows, colour=colour, light=light)]


class _Head(NamedTuple):
    name: str
    value: float
    sources: tuple[tuple[str, int, float], ...]  # the largest first
    whole: bool  # whether these are all
    role: str

    def said(self, n: int) -> Text:
        """The n largest sources, what the others are together, and the role."""
        parts = [Text.assemble(token, (f"@{j} {signed(part)}", "dim")) for token, j, part in self.sources[:n]]
        if not self.sources:
            parts.append(Text("set, and taken from no token", "dim"))
        elif n and not (self.whole and n == len(self.sources)):
            rest = self.value - sum(part for *_, part in self.sources[:n])
            parts.append(Text(f"others {signed(rest)}", "dim"))
        return Text("  ").join([*parts, *[Text(self.role, "dim")] * bool(self.role)])


class _Heads:
    """Where it is too wide the bars are left out, then sources; never a value or a role."""

    def __init__(self, rows: Sequence[_Head], *, colour: bool, light: bool) -> None:
        self._rows, self._colour, self._light = rows, colour, light

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows, bars = self._rows, BAR + 3
        room = options.max_width - 4 - max(len(row.name) for row in rows) - max(len(signed(row.value)) for row in rows)
        table = Columns(("", "right"), ("", "right"), ("", "left"), ("", "left"), header=False)
        wide = max(row.said(len(row.sources)).cell_len for row in rows) <= room - bars
        most = abs(rows[0].value) or 1.0
        for row in rows:
            fitting = (n for n in range(len(row.sources), 0, -1) if row.said(n).cell_len <= room)
            bar = two_sided(row.value, most, BAR // 2, colour=self._colour, light=self._light)
            table.add_row(row.name, signed(row.value), *[bar] * wide, row.said(next(fitting, 0)))
        yield table
