"""A loss curve, twice: in a terminal's braille dots, and as an SVG that says what it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from gptcli.render import theme
from gptcli.render.safe import one_line

Point = tuple[float, float]
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # braille, row by row from the top
VALIDATION = "#4149b2"  # the article's violet, dark enough for a line
LINE, MARK = "⠤", "◆"  # how a terminal shows losses and validations
APART = 5  # cells from one mark to the next, at least: between them the line is seen


def braille(points: Sequence[Point], width: int, height: int, marked: Sequence[Point] = ()) -> list[str]:
    """The points as a line of dots, and a MARK for each that is `marked`: `height` lines of `width` cells, all used."""
    dots = [[0] * width for _ in range(height)]
    points, marked = ([(x, y) for x, y in some if math.isfinite(y)] for some in (points, marked))
    if not (every := [*points, *marked]):
        return [" " * width] * height
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = extent([y for _, y in every])

    def column(x: float) -> int:
        return int((x - left) / max(right - left, 1e-9) * (2 * width - 1))

    def row(y: float) -> int:
        return round((high - y) / (high - low) * (4 * height - 1))

    sums: list[list[float]] = [[] for _ in range(2 * width)]
    for x, y in points:
        sums[column(x)].append(y)
    known = [(i, sum(ys) / len(ys)) for i, ys in enumerate(sums) if ys]
    before: int | None = None
    for i, y in _joined(known):
        here = row(y)
        start, stop = sorted((here, here if before is None else before))
        for dot in range(start + (stop > start and before == start), stop + 1 - (stop > start and before == stop)):
            dots[dot // 4][i // 2] |= DOTS[dot % 4][i % 2]
        before = here
    cells = [[chr(0x2800 + dot) if dot else " " for dot in line] for line in dots]
    end = width
    for x, y in reversed(marked):  # so that the newest is shown
        if (i := column(x) // 2) < end:
            cells[row(y) // 4][i], end = MARK, i + 1 - APART
    return ["".join(line) for line in cells]


def _joined(known: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Columns and heights, with a straight line over the columns that nothing is known of."""
    for (i, y), (j, z) in pairwise(known):
        yield from ((k, y + (z - y) * (k - i) / (j - i)) for k in range(i, j))
    yield from known[-1:]


def extent(ys: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, never the same."""
    low, high = min(ys), max(ys)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def smoothed(points: Sequence[Point], most: int = 400) -> list[Point]:
    """Neighbours averaged until there are at most so many points."""
    n = max(1, math.ceil(len(points) / most))
    groups = [points[i : i + n] for i in range(0, len(points), n)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def svg(loss: Sequence[Point], validation: Sequence[Point], *, title: str) -> str:
    """The curve of a run. x: tokens predicted; y: loss in nats a token, from the last ones' scale on."""
    width, height, left, top, right, bottom = 760, 420, 64, 44, 24, 52
    loss = smoothed([p for p in loss if math.isfinite(p[1])])
    every = [*loss, *validation]
    if not every:
        every = [(0.0, 0.0)]
    x0, x1 = 0.0, max(x for x, _ in every) or 1.0
    low, high = min(y for _, y in every), max(y for _, y in every)
    low, high = math.floor(low * 2) / 2, max(math.ceil(high * 2) / 2, math.floor(low * 2) / 2 + 0.5)

    def at(x: float, y: float) -> str:
        return (
            f"{left + (x - x0) / (x1 - x0) * (width - left - right):.1f},"
            f"{top + (high - y) / (high - low) * (height - top - bottom):.1f}"
        )

    text = 'font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="13" fill="#2b2b2b"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(one_line(title))}</title>",
        f'<rect width="{width}" height="{height}" fill="#fafaf8"/>',
        f'<text x="{left}" y="26" {text} font-weight="600">{escape(one_line(title))}</text>',
    ]
    for tick in _ticks(low, high):
        left_end, there = at(x0, tick).split(",")
        parts.append(f'<path d="M{left_end},{there}H{width - right}" stroke="#dcdcd8"/>')
        parts.append(f'<text x="{left - 8}" y="{float(there) + 4:.1f}" {text} text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x0, x1):
        place = at(tick, low).split(",")[0]
        parts.append(f'<text x="{place}" y="{height - bottom + 20}" {text} text-anchor="middle">{count(tick)}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 10}" {text} text-anchor="end">tokens predicted</text>')
    parts.append(f'<text x="{left}" y="{height - 10}" {text}>nats a token</text>')
    for points, colour, name, size in ((loss, "#d98aa3", "loss", 1.5), (validation, VALIDATION, "validation", 2.5)):
        if points:
            line = " ".join(at(x, y) for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{size}"/>')
            if len(points) == 1:
                parts.append(f'<circle cx="{line.split(",")[0]}" cy="{line.split(",")[1]}" r="3" fill="{colour}"/>')
            end, ink = width - right - (0 if points is validation else 150), text.replace("#2b2b2b", colour)
            label = f"{name} {points[-1][1]:.3f}"
            parts.append(f'<text x="{end}" y="26" {ink} text-anchor="end" font-weight="600">{label}</text>')
    return "\n".join((*parts, "</svg>", ""))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between, four to nine of them."""
    rough = (high - low) / 5
    step = 10 ** math.floor(math.log10(rough))
    step *= next(k for k in (1, 2, 5, 10) if k * step >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, int(high / step + 1e-9) + 1)]


def count(n: float) -> str:
    """0, 950, 12k, 3.5M, 1.2B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * size:  # or three digits would round to a thousand of the smaller one
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


if __name__ == "__main__":
    demo = [(i * 8192.0, 2 + 6 * math.exp(-i / 60) + 0.1 * math.sin(i * 7)) for i in range(400)]
    print("\n".join(braille(demo, 70, 8, [(x, y + 0.5) for x, y in demo[::40]])))
    print(theme.ANSWER, len(svg(demo, demo[::40], title="demo")))
