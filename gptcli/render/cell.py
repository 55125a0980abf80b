"""What the x-ray's views share: a token in so many columns, a probability, a bar, a colour that can be read on."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.table import Table as Grid
from rich.text import Text

from gptcli.records_xray import Scan
from gptcli.render import theme
from gptcli.render.safe import one_line
from gptcli.tokens import show

LEVELS = " ▁▂▃▄▅▆▇█"
DOTTED = "⣀⣤⣶⣿"
FADE = 2.0  # nats of KL to the final answer at which a cell has lost 63 % of its colour


def label(scan: Scan, id: int) -> str:
    """A token as it is shown: `·the`, `⏎`, `<s>`; harmless to a terminal, on one line."""
    raw = scan.pieces.get(id)
    if raw:
        return one_line(show(raw))
    return one_line(scan.special.get(id, f"#{id}"))


def fit(text: str, width: int) -> str:
    """Exactly so many columns: padded, or cut behind an ellipsis; wide characters count as two."""
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    return set_cell_size(set_cell_size(text, width - 1).rstrip(" ") + "…", width) if width > 1 else " " * width


def probability(p: float) -> str:
    """Four columns: 1.00, 0.17, <.01; never 0.00."""
    return "<.01" if p < 0.01 else f"{p:.2f}"


def signed(x: float, digits: int = 2) -> str:
    """+0.12, -3.40; what rounds to nothing is +.00 with its sign kept as `~0`."""
    text = f"{x:+.{digits}f}"
    return "~0" if float(text) == 0 and x != 0 else "0" if x == 0 else text.replace("-", "−")


def exact(x: float) -> str:
    """+1.0166, −0.0466: a sum, and the model's own number under it."""
    return f"{x:+.4f}".replace("-", "−")


def off(error: float) -> Text:
    """`error −5e-07`, of a sum."""
    return Text(f"error {'−' if error < 0 else '+'}{abs(error):.0e}" if error else "error 0", "dim")


def compact(x: float) -> str:
    """A length in three digits that mean something: 0.42, 3.14, 35.2, 704, 25k; <.01 for what would be 0.00."""
    if x >= 9_950:
        return f"{x / 1000:.0f}k"
    if x >= 9.95:
        return f"{x:.0f}" if x >= 99.5 else f"{x:.1f}"
    text = f"{x:.2f}"
    return text if float(text) else "<.01" if x > 0 else "0"


def level(p: float) -> str:
    """One column for a share from 0 to 1: ▁ to █."""
    return LEVELS[min(8, 1 + int(max(0.0, p) * 8))]


def dotted(p: float) -> str:
    """The same in dots: ⣀ to ⣿."""
    return DOTTED[min(3, int(max(0.0, p) * 4))]


def two_sided(x: float, most: float, width: int, *, colour: bool, light: bool = False) -> Text:
    """A bar to the left (blue) for less than 0, to the right (orange) for more, around a middle line; 2 width + 1."""
    n = round(min(1.0, abs(x) / most) * width * 2) if most > 0 else 0
    n = max(n, 1) if x else 0
    full, half = divmod(n, 2)
    if x < 0:
        text = ("▐" if half else "") + "█" * full
        left, right = text.rjust(width), " " * width
    else:
        text = "█" * full + ("▌" if half else "")
        left, right = " " * width, text.ljust(width)
    minus, plus = theme.ink("minus", colour=colour, light=light), theme.ink("plus", colour=colour, light=light)
    return Text.assemble((left, minus), ("│", "dim"), (right, plus))


def mixed(a: str, b: str, share: float) -> str:
    """The colour `share` of the way from a to b."""
    share = max(0.0, min(1.0, share))
    parts = (round(int(a[i : i + 2], 16) * (1 - share) + int(b[i : i + 2], 16) * share) for i in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, 0 to 1 (WCAG 2)."""
    linear = []
    for i in (1, 3, 5):
        c = int(colour[i : i + 2], 16) / 255
        linear.append(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def believed(p: float, kl: float, *, light: bool = False) -> Style:
    """Colour by probability, faded the farther the prediction still is from the final one; ink that can be read."""
    ground = "#e4e4df" if light else "#262a31"
    faded = 1 - math.exp(-kl / FADE)
    colour = mixed(smooth(p), ground, faded)
    strong = "#ffffff" if luminance(colour) < 0.18 else "#000000"
    faint = mixed(strong, colour, 0.4)  # what is far from the answer is written softly
    return Style(bgcolor=colour, color=mixed(strong, faint, faded * faded))


def smooth(p: float) -> str:
    """The probability scale between its ten steps."""
    at = max(0.0, min(1.0, p)) * (len(theme.SCALE) - 1)
    i = min(int(at), len(theme.SCALE) - 2)
    return mixed(theme.SCALE[i], theme.SCALE[i + 1], at - i)


def texts(scan: Scan, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several share belongs to the one that brings its last byte."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown = [one_line(decoder.decode(scan.pieces.get(id, b""))) for id in ids]
    return [*shown[:-1], shown[-1] + one_line(decoder.decode(b"", final=True))] if shown else []


def text_line(scan: Scan, *, colour: bool) -> Text:
    """The whole text: the prompt on green, the answer on pink; without colours a line stands between them."""
    text = Text(overflow="fold")
    for i, shown in enumerate(texts(scan, scan.ids)):
        ground = theme.PROMPT if i < scan.n_prompt else theme.ANSWER
        if i == scan.n_prompt and not colour:
            text.append("│")
        text.append(shown, f"{theme.INK} on {ground}" if colour else "")
    return text


def layers_shown(n_rows: int, most: int, every: int | None = None) -> list[int]:
    """Which rows of a stack are shown: the first, the last, every so many below it or as many as fit. Ascending."""
    if every is None and n_rows <= max(2, most):
        return list(range(n_rows))
    stride = every or math.ceil((n_rows - 1) / max(1, most - 1))
    return sorted({0, *range(n_rows - 1, 0, -stride)})


def window(n: int, room: int, cursor: int | None) -> range:
    """Which of n columns are shown: the last ones, or those around the cursor."""
    room = max(1, min(n, room))
    start = n - room if cursor is None else max(0, min(n - room, cursor - room // 2))
    return range(start, start + room)


def columns_cut(n: int, **shown: range) -> str:
    """`keys 25 to 47 of 0 to 47 (--at N)`, of what is shown by name; nothing where all n are."""
    parts = [f"{name} {some[0]} to {some[-1]}" for name, some in shown.items() if len(some) < n]
    return f"{', '.join(parts)} of 0 to {n - 1} (--at N)" if parts else ""


def rows_cut(shown: Sequence[int], n: int, name: str = "rows") -> str:
    """`12 of 31 rows (--every 1: all)`; nothing where all n are shown."""
    return f"{len(shown)} of {n} {name} (--every 1: all)" if len(shown) < n else ""


def widest(texts: Sequence[str], low: int, high: int) -> int:
    """Columns of the widest text, within bounds."""
    return max(low, min(high, max(map(cell_len, texts), default=low)))


class Columns:
    """A table without lines, none of whose cells is broken; where it is too wide, the spare columns are left out."""

    def __init__(
        self, *named: tuple[str, Literal["left", "right"]], header: bool = True, spare: Sequence[int] = ()
    ) -> None:
        """spare: columns that may be left out, the first first."""
        self._named, self._header, self._spare = named, header, spare
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: Text | str) -> None:
        """Cells from the left; the rest of the row is empty."""
        row = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        self._rows.append(row + [Text()] * (len(self._named) - len(row)))

    def shown(self, width: int) -> list[str]:
        """What the columns are called for which there is room."""
        return [self._named[i][0] for i in self._kept(self._widths(), width)]

    def _widths(self) -> list[int]:
        names = [name if self._header else "" for name, _ in self._named]
        return [max([cell_len(name), *(row[i].cell_len for row in self._rows)]) for i, name in enumerate(names)]

    def _kept(self, widths: Sequence[int], width: int) -> list[int]:
        kept = list(range(len(widths)))
        for column in self._spare:
            if sum(widths[i] + 2 for i in kept) - 2 > width:
                kept.remove(column)
        return kept

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths()
        kept = self._kept(widths, options.max_width)
        table = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=self._header, header_style="dim")
        for i in kept:  # if it is too wide still, the last column is cut
            least = None if i == kept[-1] else widths[i]
            table.add_column(
                self._named[i][0], justify=self._named[i][1], no_wrap=True, min_width=least, overflow="ellipsis"
            )
        for row in self._rows:
            table.add_row(*(row[i] for i in kept))
        yield table


class Blocks:
    """Layers up, heads across: as many columns side by side as fit, the others below them."""

    def __init__(
        self,
        names: Sequence[str],
        layers: Sequence[int],
        cell: Callable[[int, int], Text],
        *,
        width: int,
        right: bool = False,
        side: tuple[str, Callable[[int], str]] | None = None,
    ) -> None:
        """cell: of a layer and a column, `width` wide. side: what stands after the last column, and its heading."""
        self._names, self._layers, self._cell, self._width = names, layers, cell, width
        self._right, self._side = right, side

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n, room = len(self._names), max(1, (options.max_width - 6) // (self._width + 1))
        blocks = [range(start, min(n, start + room)) for start in range(0, n, room)]
        if self._side and 6 + len(blocks[-1]) * (self._width + 1) + cell_len(self._side[0]) > options.max_width:
            blocks.append(range(0))
        for block in blocks:
            aligned = [name.rjust(self._width) if self._right else name.ljust(self._width) for name in self._names]
            side = self._side if block is blocks[-1] else None
            yield Text("      " + "".join(aligned[h] + " " for h in block) + (side[0] if side else ""), "dim")
            for i in reversed(self._layers):
                line = Text.assemble((f"{f'L{i}':>5} ", "dim"))
                for h in block:
                    line.append_text(self._cell(i, h))
                    line.append(" ")
                line.append(side[1](i) if side else "", "dim")
                yield line


def chip(text: str, ground: str, *, colour: bool) -> Text:
    """A token on green or pink."""
    return Text(f" {text} ", f"{theme.INK} on {ground}" if colour else "bold")


def tinted(x: float, most: float) -> str:
    """A style for a signed number: blue below 0, orange above, dark around it."""
    share = min(1.0, abs(x) / most) if most else 0.0
    ground = mixed("#2a2d33", theme.PLUS if x > 0 else theme.MINUS, share)
    return f"{'#000000' if share > 0.45 else '#e8e8e8'} on {ground}"


def shaded(share: float) -> str:
    """A style for a share from 0 to 1 on the probability scale."""
    return f"{'#000000' if share > 0.5 else '#ffffff'} on {smooth(share)}"


class Flow:
    """Items side by side, as many as fit in a line; an item is never broken unless it alone is too wide."""

    def __init__(self, items: Sequence[Text | str], *, indent: int = 0, between: str = "  ") -> None:
        self._items = [Text(item, "dim") if isinstance(item, str) else item for item in items if item]
        self._indent, self._between = indent, between

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line, empty = Text(" " * self._indent, overflow="fold"), True
        for item in self._items:
            if not empty and line.cell_len + len(self._between) + item.cell_len > options.max_width:
                yield line
                line, empty = Text(" " * self._indent, overflow="fold"), True
            line.append("" if empty else self._between, "dim")
            line.append_text(item)
            empty = False
        yield line


class Legend:
    """What the columns of a table mean, those for which there is room."""

    def __init__(self, table: Columns, notes: Sequence[tuple[str, str]]) -> None:
        """notes: a column and what is said of it; what is said of none is always said."""
        self._table, self._notes = table, notes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = {"", *self._table.shown(options.max_width)}
        yield Flow([note for column, note in self._notes if column in shown])


def vector(numbers: Sequence[float], width: int, *, colour: bool, light: bool = False) -> Text:
    """The first numbers of a vector: blue below 0, orange above; without colours in dots below 0."""
    numbers = numbers[:width]
    most = max((abs(x) for x in numbers), default=0.0) or 1.0
    text = Text()
    for x in numbers:
        share = abs(x) / most
        if colour:
            strong = theme.ink("plus" if x > 0 else "minus", colour=True, light=light)
            text.append("█", mixed(theme.NEUTRAL, strong, share))
        else:
            text.append(dotted(share) if x < 0 else level(share))
    return text
