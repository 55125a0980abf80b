"""The flow: of which tokens the vector at one position is made, layer after layer."""

from __future__ import annotations

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

LABEL_WIDTH, NARROW, BARS = 8, 5, 8


class Rows:
    """Tokens across, layers up; in each cell the token's share in the vector, the emptiest left empty."""

    def __init__(
        self, scan: Scan, found: Sources, position: int, *, colour: bool, cursor: int, most_rows: int,
        every: int | None, rollout: bool,
    ) -> None:  # fmt: skip
        self._scan, self._found, self._position, self._cursor = scan, found, position, cursor
        self._colour, self._rollout = colour, rollout
        self._layers = layers_shown(scan.n_layer, most_rows, every)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scan, n = self._scan, self._position + 1
        names = [label(scan, id) for id in scan.ids[:n]]
        width = widest(names, NARROW, 9 if options.max_width > 90 else 7) + 1
        columns = window(n, (options.max_width - LABEL_WIDTH) // (width + 1), min(self._cursor, n - 1))
        for i in reversed(self._layers):
            line = Text.assemble((f"L{i}".rjust(LABEL_WIDTH - 1) + " ", "dim"))
            row = self._found.row(i, self._position, rollout=self._rollout)
            for j in columns:
                line.append_text(self._cell(row[j], width))
                line.append(" ")
            yield line
        line = Text.assemble(("token".rjust(LABEL_WIDTH - 1) + " ", "dim"))
        for j in columns:
            own = j == self._position
            ground = theme.PROMPT if j < scan.n_prompt else theme.ANSWER
            style = f"{theme.INK} on {ground}" if self._colour else "bold" if own or j >= scan.n_prompt else ""
            line.append(fit(" " + names[j], width), style)
            line.append(" ")
        yield line
        yield self._legend(columns)

    def _cell(self, share: float, width: int) -> Text:
        text = probability(share) if share >= 0.005 else ""
        if self._colour:
            return Text(text.rjust(width - 1) + " ", shaded(share))
        return Text(text.rjust(width - 2) + f" {level(share) if text else '·'}")

    def _legend(self, columns: range) -> Flow:
        scale = Text("share of the vector 0 ", "dim")
        for k in range(16):
            scale.append(" " if self._colour else level(k / 15), f"on {smooth(k / 15)}" if self._colour else "")
        scale.append(" 1")
        cut = columns_cut(self._position + 1, positions=columns)
        return Flow([scale, "below .005 empty", rows_cut(self._layers, self._scan.n_layer, "layers"), cut],
                    indent=LABEL_WIDTH)  # fmt: skip


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

    rollout: by the looks alone, whatever was taken.
    """
    found, last = scan.flow, scan.n_layer - 1
    assert found is not None
    title = Text.assemble(("of which tokens the vector is made ", "bold"))
    title.append_text(chip(label(scan, scan.ids[position]), theme.PROMPT if position < scan.n_prompt else theme.ANSWER,
                           colour=colour))  # fmt: skip
    title.append(f"  position {position}, after each layer", "dim")
    rows = Rows(
        scan, found, position, colour=colour, cursor=position if cursor is None else cursor, most_rows=most_rows,
        every=every, rollout=rollout,
    )  # fmt: skip
    shares = found.row(last, position, rollout=rollout)
    best = sorted(range(position + 1), key=lambda j: -shares[j])[:BARS]
    names = [f"{label(scan, scan.ids[j])}@{j}" for j in best]
    rest = position + 1 - len(best)
    width, lines = min(16, max(map(cell_len, (*names, f"{rest} others" * bool(rest))))), []
    for j, name in zip(best, names, strict=True):
        line = Text(f"  {fit(name, width)} {probability(shares[j])} ")
        line.append(bar(shares[j], 30), theme.ink("label", colour=colour, light=light))
        lines.append(line)
    if rest:
        left = 1 - sum(shares[j] for j in best)
        lines.append(Text(f"  {fit(f'{rest} others', width)} {probability(max(0.0, left))}", "dim"))
    return Group(title, rows, Text(f"after L{last}", "bold"), *lines, _notes(found, position, rollout=rollout),
                 footer(scan, f"looks ✓ {found.error:.0e}"))  # fmt: skip


def _notes(found: Sources, position: int, *, rollout: bool) -> Flow:
    if rollout:
        return Flow([
            "rollout, a heuristic: half of a vector stays, half comes from where the heads look on average",
            "it does not know what was taken, and leans to the first tokens",
        ])  # fmt: skip
    worst = max(row[position] for row in found.bias.rows())
    return Flow([
        "by how close to the whole is what was taken from each, layer by layer, multiplied",
        "the MLPs work on each position alone",
        f"biases come from no token and are left out: up to {probability(worst)} of a layer" if worst else "",
    ])  # fmt: skip
