"""Attention: where each head looks from one position, one head's whole pattern, and what heads are for."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.records_xray import Attention, Roles, Scan
from gptcli.render import theme
from gptcli.render.bars import bar
from gptcli.render.cell import (
    Blocks,
    Flow,
    columns_cut,
    fit,
    label,
    layers_shown,
    level,
    probability,
    rows_cut,
    shaded,
    smooth,
    window,
)
from gptcli.render.check import footer

SINK = "⊥"
MOST_QUERIES = 40


def _best(scan: Scan, found: Attention, position: int, layer: int, head: int, *, colour: bool, weighted: bool) -> Text:
    """The position that a head looks at most, or takes most from, without the sink; 12 columns."""
    row = found.row(layer, head, position, weighted=weighted)
    at = max(range(1, position + 1), key=lambda j: row[j], default=0)
    if at == 0 or row[0] > 0.5:
        return Text(fit(f" {SINK} {probability(row[0])}", 12), "dim")
    share, name = row[at], label(scan, scan.ids[at])
    if not colour:
        return Text(f"{fit(name, 6)} {probability(share)}{level(share)}")
    return Text(f"{fit(name, 7)} {probability(share)}", shaded(share))


class Pattern:
    """One head: queries down, keys across, those around the cursor; the sink in a column of its own."""

    def __init__(
        self, scan: Scan, attention: Attention, layer: int, head: int, position: int, *, cursor: int, colour: bool,
        weighted: bool,
    ) -> None:  # fmt: skip
        self._scan, self._found, self._layer, self._head = scan, attention, layer, head
        self._position, self._cursor, self._colour, self._weighted = position, cursor, colour, weighted

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scan, T = self._scan, self._scan.n_positions
        names = [label(scan, i) for i in scan.ids[:T]]
        width = min(12, max(map(cell_len, names)) + 1)
        columns = window(T, (options.max_width - width - 8) // 3, self._cursor)
        yield Text(" " * (width + 1) + f"{SINK}@0 " + ruler([j for j in columns if j]), "dim")
        queries = window(T, MOST_QUERIES, self._cursor)
        for i in queries:
            row = self._found.row(self._layer, self._head, i, weighted=self._weighted)
            line = Text.assemble((fit(names[i], width) + " ", "bold" if i == self._position else ""))
            for j in (0, *(j for j in columns if j)):
                space = 3 if j == 0 else 2
                if j > i:
                    line.append(" " * (space + 1))
                elif self._colour:
                    line.append(" " * space, f"on {smooth(row[j])}")
                    line.append(" ")
                else:
                    line.append(level(row[j]) * space if row[j] >= 0.01 else "·" * space)
                    line.append(" ")
            yield line
        if cut := columns_cut(T, keys=columns, queries=queries):
            yield Flow([cut])


def ruler(positions: Sequence[int]) -> str:
    """The numbers of columns that are three wide; where they have three digits and more, of every fifth."""
    if not positions or positions[-1] < 100:
        return "".join(f"{j:>2} " for j in positions)
    line = [" "] * (3 * len(positions) + 8)
    for at, j in enumerate(positions):
        if j % 5 == 0:
            line[3 * at : 3 * at + len(str(j))] = str(j)
    return "".join(line).rstrip()


def draw(
    scan: Scan,
    position: int,
    *,
    head: tuple[int, int] | None,
    colour: bool,
    cursor: int | None = None,
    most_rows: int = 40,
    every: int | None = None,
    light: bool = False,
    weighted: bool = False,
) -> RenderableType:
    """All heads from one position, or one head with its sources as bars. cursor: what its pattern is shown around.

    weighted: not where they look, but what they take from where: looks times the lengths of what they would add.
    """
    found = scan.attention
    assert found is not None
    check = f"attention ✓ {found.error:.0e}"
    scale = Text(f"share of {'what is taken' if weighted else 'attention'} 0 ", "dim")
    for k in range(16):
        scale.append(" " if colour else level(k / 15), f"on {smooth(k / 15)}" if colour else "")
    scale.append(" 1")
    if head is None:
        what = "what the heads take from where " if weighted else "where the heads look "
        title = Text.assemble((what, "bold"), (f"from {label(scan, scan.ids[position])}, position {position}", "dim"))
        rest = f"{SINK} more than half {'from' if weighted else 'on'} position 0, where heads rest"
        heads, rows = [f"H{h}" for h in range(scan.n_head)], layers_shown(scan.n_layer, most_rows, every)
        notes = Flow([scale, rest, "others: the best besides it", rows_cut(rows, scan.n_layer, "layers")])
        view = Blocks(heads, rows, lambda i, h: _best(scan, found, position, i, h, colour=colour, weighted=weighted),
                      width=12)  # fmt: skip
        return Group(title, view, notes, footer(scan, check))
    layer, h = head
    row = found.row(layer, h, position, weighted=weighted)
    title = Text.assemble(
        (f"L{layer}H{h} ", "bold"), f"{called(scan, layer, h)} ".lstrip(),
        "what it takes " if weighted else "",
        (f"from {label(scan, scan.ids[position])}, position {position}; ", "dim"),
        (f"{SINK} {probability(found.sink.number(layer, h))} of all it looks goes to position 0", "dim"),
    )  # fmt: skip
    lines = []
    for j in sorted(range(position + 1), key=lambda j: -row[j])[:8]:
        name = fit(f"{label(scan, scan.ids[j])}@{j}", 16)
        line = Text(f"  {name} {probability(row[j])} ")
        line.append(bar(row[j], 30), theme.ink("label", colour=colour, light=light))
        lines.append(line)
    without = sum(row) - row[0]  # after a look that was set to 0 a row sums to less than 1
    of = "what it takes" if weighted else "its attention"
    said = f"without position 0: {probability(without)} of {of} is left"
    return Group(title, *lines, Text("  " + said, "dim"), Text(),
                 Pattern(scan, found, layer, h, position, cursor=position if cursor is None else cursor, colour=colour,
                         weighted=weighted), scale, footer(scan, check))  # fmt: skip


ROLES = {"previous": "P", "duplicate": "D", "induction": "I", "sink": SINK}


LEAST = 0.2  # a mean share below which a head has no role to speak of


def role_of(roles: Roles, layer: int, head: int, *, without: str = "") -> tuple[str, float]:
    """What a head does most, and how much of its attention that takes."""
    scores = {role: getattr(roles, role).number(layer, head) for role in ROLES if role != without}
    role = max(scores, key=lambda r: scores[r])
    return role, scores[role]


def called(scan: Scan, layer: int, head: int) -> str:
    """`induction .71`, to stand beside a head's name; nothing where it does little, or where it was not measured."""
    if scan.roles is None:
        return ""
    role, share = role_of(scan.roles, layer, head, without="sink")  # where it rests is no work
    return f"{role} {probability(share).removeprefix('0')}" if share >= LEAST else ""


def draw_roles(scan: Scan, found: Roles, *, colour: bool, every: int | None = None) -> RenderableType:
    """Every head's strongest role and its score."""
    title = Text.assemble(("what the heads do ", "bold"), (f"on {found.n_tokens} random tokens, said twice", "dim"))

    def cell(layer: int, head: int) -> Text:
        role, p = role_of(found, layer, head)
        style = "dim" if p < LEAST else shaded(p) if colour else "bold"
        return Text(f" {ROLES[role]} {probability(p).removeprefix('0'):<3}", style)

    heads, rows = [f"H{h}" for h in range(scan.n_head)], layers_shown(scan.n_layer, scan.n_layer, every)
    notes = [
        "P looks at the previous token", "D at the same token's first time", "I induction: at what followed it then",
        f"{SINK} at position 0", "mean share of attention", rows_cut(rows, scan.n_layer, "layers"),
    ]  # fmt: skip
    return Group(title, Blocks(heads, rows, cell, width=6), Flow(notes), footer(scan))
