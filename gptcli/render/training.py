"""A training run on the screen: a line for pipes; for people a live panel with the step as the article draws it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from gptcli.records import Lesson, Progress

REFRESH = 0.25  # seconds between two pictures, at least
MARK = "◆"  # where the validation texts were scored
MARK_COLUMNS = 8  # from one to the next, at least
LESSON_SECONDS = 4.0  # a lesson stays long enough to be read


class Vocabulary(Protocol):
    """What the panel needs of a tokenizer: the bytes of an id."""

    def raw(self, id: int) -> bytes: ...


def duration(seconds: float) -> str:
    """1:05:09, 4:31, 0:07."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def line(p: Progress) -> str:
    """One step as one line."""
    done = f"step {p.step}/{p.n_steps}  loss {p.loss:.4f}"
    if p.validation is not None:
        done += f"  validation {p.validation:.4f}"
    done += f"  lr {p.learning_rate:.2e}  norm {p.grad_norm:.2f}  {p.tokens_per_s:,.0f} tokens/s"
    return f"{done}  {duration(p.seconds)}"


class Panel:
    """The live panel on standard error. `kept`: the metrics of earlier sessions of the same run."""

    def __init__(
        self, tokenizer: Vocabulary, n_steps: int, kept: Sequence[Mapping[str, Any]] = (), *, coloured: bool = True
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._tokenizer, self._n_steps = tokenizer, n_steps
        self._losses = [(float(r["step"]), float(r["loss"])) for r in kept]
        self._validations = [(float(r["step"]), float(r["validation"])) for r in kept if "validation" in r]
        self._first: Progress | None = None
        self._lesson: Lesson | None = None
        self._drawn = self._lesson_at = 0.0
        console = Console(file=sys.stderr, no_color=not coloured, highlight=False, markup=False, emoji=False)
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, p: Progress) -> None:
        """Takes a step in, and draws if it is time."""
        self._losses.append((p.step, p.loss))
        if p.validation is not None:
            self._validations.append((p.step, p.validation))
        self._first = self._first or p
        now = time.monotonic()
        if p.lesson is not None and now - self._lesson_at >= LESSON_SECONDS:
            self._lesson, self._lesson_at = p.lesson, now
        if now - self._drawn >= REFRESH or p.step == self._n_steps:
            self._drawn = now
            self._live.update(draw(p, self._losses, self._validations, self._lesson, self._tokenizer, self._pace(p)))
            self._live.refresh()

    def _pace(self, p: Progress) -> float:
        """Seconds a step, over all that were seen: what the time left is reckoned with."""
        first = self._first or p
        done = p.step - first.step
        return (p.seconds - first.seconds) / done if done else p.seconds

    def close(self) -> None:
        """Leaves the last picture where it is."""
        self._live.stop()


def draw(
    p: Progress,
    losses: Sequence[tuple[float, float]],
    validations: Sequence[tuple[float, float]],
    lesson: Lesson | None,
    tokenizer: Vocabulary,
    pace: float,
) -> Any:
    """One picture of a run."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from gptcli.render import theme
    from gptcli.render.curve import count

    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=p.n_steps, completed=p.step, complete_style=theme.LABEL, finished_style=theme.LABEL)
    left = f"{duration(p.seconds)} gone, {duration((p.n_steps - p.step) * pace)} left"
    head.add_row(Text(f"step {p.step}/{p.n_steps}", "bold"), bar, left)
    facts = _Facts(
        ("loss", f"{p.loss:.3f}"),
        (f"{MARK} validation", f"{validations[-1][1]:.3f}" if validations else "–"),
        ("tokens/s", f"{p.tokens_per_s:,.0f}"),
        ("learning rate", f"{p.learning_rate:.2e}"),
        ("gradient", f"{p.grad_norm:.2f}"),
        ("tokens", count(p.n_tokens)),
    )
    parts: list[Any] = [head, facts, _Curve(losses, validations)]
    if lesson is not None:
        parts += [Text(), *_lesson(lesson, tokenizer)]
    return Group(*parts)


class _Facts:
    """Names and values side by side, each whole, in as many lines as they take."""

    def __init__(self, *facts: tuple[str, str]) -> None:
        self._facts = facts

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        line = Text(no_wrap=True)
        for name, value in self._facts:
            if line.cell_len and line.cell_len + len(name) + 1 + len(value) > options.max_width:
                yield line
                line = Text(no_wrap=True)
            line.append(f"{name} ", "dim").append(f"{value}   ")
        yield line


class _Curve:
    """The loss so far, as wide as there is room, and a mark where the validation texts were scored."""

    def __init__(self, losses: Sequence[tuple[float, float]], validations: Sequence[tuple[float, float]]) -> None:
        self._points, self._marks = losses, validations

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        from gptcli.render import theme
        from gptcli.render.curve import braille, extent

        if len(self._points) < 2:
            return
        height, width, light = 5 if console.height >= 20 else 3, max(8, options.max_width - 7), theme.light_background()
        low, high = between = extent([y for _, y in (*self._points, *self._marks)])
        left, right = self._points[0][0], self._points[-1][0]
        lines = [list(line) for line in braille(self._points, width, height, between)]
        apart = max(1, math.ceil(MARK_COLUMNS * len(self._marks) / width))
        for x, y in self._marks[::-apart]:  # the last is always there, and the curve can be seen between them
            row, column = (
                round((high - y) / (high - low) * (height - 1)),
                round((x - left) / (right - left) * (width - 1)),
            )
            lines[row][min(max(0, column), width - 1)] = MARK
        inks = {mark: theme.ink("answer" if mark else "label", colour=True, light=light) for mark in (True, False)}
        for i, cells in enumerate(lines):
            label = f"{high:6.2f}" if i == 0 else f"{low:6.2f}" if i == height - 1 else " " * 6
            line = Text.assemble((label, "dim"), " ", no_wrap=True)
            for mark, run in groupby(cells, lambda cell: cell == MARK):
                line.append("".join(run), inks[mark])
            yield line


class _Shown:
    """What the model was shown and what it is to say: of a long text the end, which the next token follows."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.cells import cell_len
        from rich.text import Text

        from gptcli.render import theme

        room, text = max(8, min(200, options.max_width - 13)), self._text
        if cut := cell_len(text) > room:
            text = text[-room:]
            while cell_len(text) > room - 2:
                text = text[1:]
        line = Text(" shown  ", "dim", no_wrap=True).append("… " if cut else "", "dim")
        line.append(text, f"{theme.INK} on {theme.PROMPT}").append("  ").append(
            " ? ", f"{theme.INK} on {theme.UNKNOWN}"
        )
        yield line


def _lesson(lesson: Lesson, tokenizer: Vocabulary) -> list[Any]:
    """Features, guess, right token, error before and after: the article's picture of one training step."""
    from rich.text import Text

    from gptcli.render import theme
    from gptcli.render.safe import one_line

    def word(id: int) -> str:
        text = one_line(tokenizer.raw(id).decode(errors="replace"))
        return text if text.strip() else "␣" if text else "end of text"

    text = b"".join(tokenizer.raw(i) for i in lesson.features).decode(errors="replace")
    shown = _Shown(one_line(text).lstrip() or "the start of a text")
    guess = Text(" guess  ", "dim").append(f" {word(lesson.guess)} ", f"{theme.INK} on {theme.ANSWER}")
    guess.append(f"  {chance(lesson.p_guess)}   ", "dim")
    guess.append("✓ right" if lesson.guess == lesson.label else "✗ wrong", "dim")
    right = Text(" right  ", "dim").append(f" {word(lesson.label)} ", f"#ffffff on {theme.LABEL}")
    right.append(f"  {chance(lesson.p_before)} before this step, {chance(lesson.p_after)} after it", "dim")
    return [shown, guess, right]


def chance(p: float) -> str:
    """A probability as a person reads it: 0.8 %, 43 %, <.01 %."""
    x = 100 * p
    return "<.01 %" if x < 0.01 else f"{x:.2f} %" if x < 1 else f"{x:.1f} %" if x < 10 else f"{x:.0f} %"


if __name__ == "__main__":
    from rich.console import Console

    class Words:
        WORDS = ("Once", " upon", " a", " time", ",", " there", " was", " a", " robot", " cat")

        def raw(self, id: int) -> bytes:
            return self.WORDS[id].encode()

    curve = [(float(i), 2 + 6 * math.exp(-i / 60) + 0.1 * math.sin(i * 7)) for i in range(400)]
    step = Progress(
        step=400, n_steps=1000, n_tokens=3_276_800, loss=2.31, learning_rate=0.0023, grad_norm=0.61, seconds=812.0,
        tokens_per_s=4034.0,
    )  # fmt: skip
    seen = Lesson(features=tuple(range(8)), label=8, guess=9, p_guess=0.21, p_before=0.034, p_after=0.051)
    Console().print(draw(step, curve, curve[::40], seen, Words(), 2.03))
