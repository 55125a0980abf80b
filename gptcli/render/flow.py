"""The flow: of which tokens the vector at one position is made, layer after layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.records_xray import Scan, Sources
from gptcli.render import theme
from gptcli.render.bars import bar
from gptcli.render.cell import (
    Flow,
    chip,
    columns_cut,
    fit,
    label,
    layers_shown,
    level,
    probability,
    rows_cut,
    shaded,
    smooth,
    widest,
    window,
)
from gptcli.render.check import footer

LABEL_WIDTH, NARROW, BARS, LEAST = 9, 5, 8, 0.005


class Rows:
    """Tokens across, layers up; in each cell the token's share in the vector, the emptiest left empty.

    Where not all tokens have room: those with the largest shares, or those around the cursor.
    """

    def __init__(
        self, scan: Scan, found: Sources, position: int, *, colour: bool, cursor: int | None, most_rows: int,
        every: int | None, rollout: bool,
    ) -> None:  # fmt: skip
        self._scan, self._position, self._cursor, self._colour = scan, position, cursor, colour
        self._layers = layers_shown(scan.n_layer, most_rows, every)
        self._shares = {i: found.row(i, position, rollout=rollout) for i in {*self._layers, scan.n_layer - 1}}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scan, n = self._scan, self._position + 1
        names = [label(scan, id) for id in scan.ids[:n]]
        width = widest(names, NARROW, 9 if options.max_width > 90 else 7) + 1
        columns = self._columns(max(1, (options.max_width - LABEL_WIDTH) // (width + 1)))
        for i in reversed(self._layers):
            line = _label(f"L{i}")
            for j in columns:
                line.append_text(self._cell(self._shares[i][j], width))
                line.append(" ")
            yield line
        tokens, positions = _label("token"), _label("position")
        for j in columns:
            ground = theme.PROMPT if j < scan.n_prompt else theme.ANSWER
            plain = "bold" if j == self._position or j >= scan.n_prompt else ""
            tokens.append(fit(" " + names[j], width), f"{theme.INK} on {ground}" if self._colour else plain)
            tokens.append(" ")
            positions.append(fit(f" {j}", width) + " ", "dim")
        yield tokens
        yield positions
        yield self._legend(columns)

    def _columns(self, room: int) -> list[int]:
        n = self._position + 1
        if n <= room or self._cursor is not None:
            return [*window(n, room, self._cursor)]
        shares = self._shares[self._scan.n_layer - 1]
        others = sorted(range(self._position), key=lambda j: -shares[j])
        return sorted([self._position, *others[: room - 1]])

    def _cell(self, share: float, width: int) -> Text:
        text = probability(share) if share >= LEAST else ""
        if self._colour:
            return Text(text.rjust(width - 1) + " ", shaded(share))
        return Text(text.rjust(width - 2) + f" {level(share) if text else ' '}")

    def _legend(self, columns: Sequence[int]) -> Flow:
        scale, n = Text("share of the vector 0 ", "dim"), self._position + 1
        for k in range(16):
            scale.append(" " if self._colour else level(k / 15), f"on {smooth(k / 15)}" if self._colour else "")
        scale.append(" 1")
        cut = f"the largest {len(columns)} of {n} (--at N: those around it)" if len(columns) < n else ""
        if self._cursor is not None:
            cut = columns_cut(n, positions=range(columns[0], columns[-1] + 1))
        rows = rows_cut(self._layers, self._scan.n_layer, "layers")
        return Flow([scale, f"below {LEAST:g} empty", rows, cut], indent=LABEL_WIDTH)


class Bars:
    """The largest shares after the last layer, and what is left."""

    def __init__(self, scan: Scan, shares: Sequence[float], *, colour: bool, light: bool) -> None:
        self._scan, self._shares, self._colour, self._light = scan, shares, colour, light

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        best = sorted(range(len(self._shares)), key=lambda j: -self._shares[j])[:BARS]
        rest = len(self._shares) - len(best)
        names = [f"{label(self._scan, self._scan.ids[j])}@{j}" for j in best]
        others = f"{rest} other{'s' * (rest > 1)}" if rest else ""
        width = min(16, max(map(cell_len, (*names, others))))
        room = max(1, min(30, options.max_width - width - 9))
        for j, name in zip(best, names, strict=True):
            line = Text(f"  {fit(name, width)} {probability(self._shares[j])} ")
            line.append(bar(self._shares[j], room), theme.ink("label", colour=self._colour, light=self._light))
            yield line
        if rest:
            left = max(0.0, 1 - sum(self._shares[j] for j in best))
            yield Text(f"  {fit(others, width)} {probability(left)}", "dim")


def _label(name: str) -> Text:
    return Text.assemble((name.rjust(LABEL_WIDTH - 1) + " ", "dim"))


def draw(
    scan: Scan,
    position: int,
    *,
    rollout: bool = False,
    colour: bool,
    cursor: int | None = None,
    most_rows: int = 40,
    every: int | None = None,
    light: bool = False,
) -> RenderableType:
    """The rows, the largest shares after the last layer as bars, and the self-check.

    rollout: by the looks alone, whatever was taken. Raises ValueError for what can be no shares.
    """
    found, last = scan.flow, scan.n_layer - 1
    assert found is not None
    title = Text.assemble(("of which tokens the vector is made ", "bold"))
    title.append_text(chip(label(scan, scan.ids[position]), theme.PROMPT if position < scan.n_prompt else theme.ANSWER,
                           colour=colour))  # fmt: skip
    title.append(f"  position {position}, after each layer", "dim")
    rows = Rows(
        scan, found, position, colour=colour, cursor=cursor, most_rows=most_rows, every=every, rollout=rollout,
    )  # fmt: skip
    bars = Bars(scan, found.row(last, position, rollout=rollout)[: position + 1], colour=colour, light=light)
    return Group(title, rows, Text(f"after L{last}", "bold"), bars, _notes(found, position, rollout=rollout),
                 footer(scan, f"parts ✓ {found.error:.0e}"))  # fmt: skip


def _notes(found: Sources, position: int, *, rollout: bool) -> Flow:
    if rollout:
        return Flow([
            "rollout, a heuristic: half of a vector stays, half comes from where the heads look on average",
            "it does not know what was taken, and leans to the first tokens",
        ])  # fmt: skip
    biases = [row[position] for row in found.bias.rows()]
    if not all(0 <= x <= 1 for x in biases):
        raise ValueError(f"what is left out at position {position} can be no share")
    worst = max(biases)
    most = f"up to {probability(worst)}" if worst >= 0.01 else "less than .01"
    return Flow([
        "by how close to the whole is what was taken from each, layer by layer, multiplied",
        "the MLPs work on each position alone",
        f"biases come from no token and are left out: {most} of a layer" if worst else "",
    ])  # fmt: skip
