"""The ledger: why this token and not that one, as a sum that is printed with its result beside the model's own."""

from __future__ import annotations

from rich.console import Group, RenderableType
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
    most = abs(found[0][0]) or 1.0
    table = Columns(("", "right"), ("", "right"), ("", "left"), ("", "left"), header=False, spare=(2,))
    for x, i, h in found[:MOST_HEADS]:
        rest, sources = x, Text()
        at = book.source_positions.ids(i, h, position)
        for j, part in zip(at, book.source_parts.row(i, h, position), strict=True):
            if j <= position and part:
                rest -= part
                sources.append(f"{label(scan, scan.ids[j])}")
                sources.append(f"@{j} {signed(part)}  ", "dim")
        sources.append(f"others {signed(rest)}" if sources else "set, and taken from no token", "dim")
        if role := called(scan, i, h):
            sources.append(f"  {role}", "dim")
        table.add_row(f"L{i}H{h}", signed(x), two_sided(x, most, BAR // 2, colour=colour, light=light), sources)
    head = Text.assemble(("heads ", "bold"))
    head.append(
        f"the {min(MOST_HEADS, len(found))} largest of {len(found)}, what each took from where, and its role", "dim"
    )
    return [head, table]
