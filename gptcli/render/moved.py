"""Which numbers moved: layers down, matrices across, each cell coloured by how far its matrix is from where it was."""

from __future__ import annotations

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.records import Difference, Moved
from gptcli.render import theme
from gptcli.render.cell import Flow
from gptcli.render.safe import one_line

CELL = 8
SHORT = {
    "attn_norm": "norm 1", "attn_out_norm": "post 1", "mlp_norm": "norm 2", "mlp_out_norm": "post 2",
    "attn.q_norm": "q norm", "attn.k_norm": "k norm",
}  # fmt: skip
NAMED = 3  # of the parameters that have no cell


def draw(found: Difference) -> RenderableType:
    """The map, what is outside the layers, what moved most of the rest, and a line that sums it up."""
    most = max((m.relative for m in found.moved if _has_cell(m) and math.isfinite(m.relative)), default=0.0)
    n_changed = sum(m.n_changed for m in found.moved)
    if not n_changed:
        return Text(f"{one_line(found.before)} and {one_line(found.after)} are the same, number for number")
    farthest = max(found.moved, key=lambda m: m.relative)
    title = Text.assemble(
        (one_line(found.before), f"{theme.INK} on {theme.PROMPT}"),
        " → ",
        (one_line(found.after), f"{theme.INK} on {theme.ANSWER}"),
    )
    total = Text(
        f"{n_changed:,} of {found.n_params:,} numbers changed ({_share(n_changed, found.n_params)}); "
        f"{farthest.name.removesuffix('.weight')} moved most: {percent(farthest.relative)}"
    )
    return Group(title, Text(), _Map(found, most), Text(), _Scale(most), *_without_cell(found), total)


def _has_cell(m: Moved) -> bool:
    return m.layer is None or not m.part.endswith(".bias")


def _without_cell(found: Difference) -> list[Flow]:
    """The biases of the layers that moved most."""
    moved = [m for m in found.moved if m.n_changed and not _has_cell(m)]
    moved.sort(key=lambda m: -m.relative)
    named = [f"{m.name} {percent(m.relative)}" for m in moved[:NAMED]]
    return [Flow(["biases that moved most (no cell above):", *named])] if moved else []


class _Scale:
    """What the colours mean; where there are none, what the numbers are."""

    def __init__(self, most: float) -> None:
        self._most = most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scale = Text("change, relative to size", "dim")
        if console.color_system:
            scale.append(": 0 ")
            for colour in theme.SCALE:
                scale.append("  ", f"on {colour}")
            scale.append(f" {percent(self._most)}")
        yield scale


class _Map:
    """Fits the width it is given: columns that do not fit follow below."""

    def __init__(self, found: Difference, most: float) -> None:
        self._most = most
        self._layers: dict[int, dict[str, Moved]] = {}
        self._rest = list[Moved]()
        for m in found.moved:
            if m.layer is None:
                self._rest.append(m)
            elif _has_cell(m):
                self._layers.setdefault(m.layer, {})[m.part] = m
        self._parts = list(dict.fromkeys(part for row in self._layers.values() for part in row))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fit = max(1, (options.max_width - 6) // (CELL + 1))
        for start in range(0, len(self._parts), fit):
            parts = self._parts[start : start + fit]
            head = Text(" " * 6)
            for part in parts:
                head.append(_short(part).rjust(CELL - 1)[:CELL].ljust(CELL + 1), theme.LABEL)
            yield head
            for layer in sorted(self._layers, reverse=True):  # the first layer at the bottom, as the stream flows
                row = Text(f"L{layer:<4} ", "dim")
                for part in parts:
                    m = self._layers[layer].get(part)
                    row.append_text(self._cell(m) if m else Text(" " * CELL))
                    row.append(" ")
                yield row
            yield Text()
        for m in self._rest:
            yield Text.assemble((f"{m.part:<16} ", theme.LABEL), self._cell(m))

    def _cell(self, m: Moved) -> Text:
        share = min(1.0, m.relative / self._most) if self._most else 0.0
        return Text(percent(m.relative).rjust(CELL - 1).ljust(CELL), theme.shade(share) if m.n_changed else "dim")


def _short(part: str) -> str:
    return SHORT.get(part, part.replace("_", " ").replace(".", " "))


def percent(x: float) -> str:
    """0, <.01%, 0.12%, 57.31%, 1234%, new (where there was nothing)."""
    if not math.isfinite(x):
        return "new"
    if x == 0:
        return "0"
    p = 100 * x
    return "<.01%" if p < 0.01 else f"{p:.2f}%" if p < 999.995 else f"{p:.0f}%"


def _share(n: int, total: int) -> str:
    """Rounded down, so that only all of them are 100%."""
    return "100%" if n == total else "<.1%" if 1000 * n < total else f"{1000 * n // total / 10:.1f}%"


if __name__ == "__main__":
    parts = ("attn_norm", "attn.q", "attn.k", "attn.v", "attn.out", "mlp_norm", "mlp.up", "mlp.down")
    moved = [
        Moved(name="embed.weight", shape=(9, 9), n_changed=81, relative=0.002, rms_before=1, rms_change=1, largest=1)
    ]
    for i in range(8):
        for j, part in enumerate(parts):
            r = 0.3 * abs(math.sin(i * 1.7 + j)) * (i + 1) / 8
            name = f"blocks.{i}.{part}.weight"
            moved.append(
                Moved(name=name, shape=(9, 9), n_changed=81, relative=r, rms_before=1, rms_change=1, largest=1)
            )
    Console().print(draw(Difference(before="weights", after="my-model", n_params=10_000, moved=tuple(moved))))
