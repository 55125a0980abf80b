"""The table of families: one line for each, or one family name by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from gptcli.render import theme

Names = Mapping[str, str | tuple[str, ...]]
Spelled = tuple[
    str, str, str, Names, Mapping[str, str]
]  # family, members, prefix, theirs -> ours, theirs -> what is undone


def draw_all(families: Sequence[Spelled], refused: Mapping[str, str]) -> RenderableType:
    """Every family with its members and how it spells the matrix that makes queries; below, what is refused and why."""
    reasons = defaultdict[str, list[str]](list)
    for name, reason in refused.items():
        reasons[reason].append(name)
    no = Table.grid(padding=(0, 2, 0, 0))
    no.add_column(style="dim")
    no.add_column(style="dim")
    for reason, names_ in reasons.items():
        no.add_row(reason, ", ".join(names_))
    return Group(_Families(families), Text(), Text("refused by name", theme.LABEL), no)


class _Families:
    """One row for each; where a screen is too narrow for whole words in every column, the last ones are left out."""

    def __init__(self, families: Sequence[Spelled]) -> None:
        self._rows = list[tuple[str, ...]]()
        for family, models, _, names, fixes in families:
            query = next(
                theirs
                for theirs, ours in names.items()
                if "blocks.*.attn.q" in (ours if isinstance(ours, tuple) else (ours,))
            )
            self._rows.append((family, models, query, "; ".join(sorted(set(fixes.values())))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = ("family", "models", "its queries are made by", "undone while loading")
        broken = (False, True, False, True)  # which columns may be wrapped
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=theme.LABEL)
        used = -2
        for i, head in enumerate(heads):
            cells = [head, *(row[i] for row in self._rows)]
            used += 2 + max(len(word) for cell in cells for word in (cell.split() if broken[i] else [cell]))
            if i > 1 and used > options.max_width:
                break
            table.add_column(head, style="" if i else "bold", no_wrap=not broken[i])
        for row in self._rows:
            table.add_row(*row[: len(table.columns)])
        yield table


def draw_one(family: str, models: str, prefix: str, names: Names, fixes: Mapping[str, str]) -> RenderableType:
    """Their names beside ours; * is the layer."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=theme.LABEL)
    table.add_column(f"{family} ({models})", overflow="fold")
    table.add_column("here", overflow="fold", style="bold")
    table.add_column("undone while loading")
    for theirs, ours in names.items():
        first = ours if isinstance(ours, str) else " + ".join((ours[0], *(o.rpartition(".")[2] for o in ours[1:])))
        table.add_row(("" if ours == "head" else prefix) + theirs, first, fixes.get(theirs, ""))
    return table
