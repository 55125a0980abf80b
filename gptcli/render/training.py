"""A training run on the screen: a line for pipes; for people a live panel with the step as the article draws it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from gptcli.records import Lesson, Progress

REFRESH = 0.25  # seconds between two pictures, at least
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


class History:
    """The losses of a run of any length, as a curve of a few thousand points: neighbours are merged when it has more.

    A picture takes as long after a million steps as after four thousand.
    """

    FEWEST = 4096  # points of a run that has as many steps

    def __init__(self) -> None:
        self._merged: list[tuple[float, float]] = []
        self._last: list[tuple[float, float]] = []  # not yet as many as make a point
        self._n = 1  # steps in a point

    def add(self, step: float, loss: float) -> None:
        """One more step."""
        self._last.append((step, loss))
        if len(self._last) == self._n:
            self._merged.append(_middle(self._last))
            self._last = []
        if len(self._merged) == 2 * self.FEWEST:
            self._merged = [_middle(self._merged[i : i + 2]) for i in range(0, 2 * self.FEWEST, 2)]
            self._n *= 2

    @property
    def points(self) -> list[tuple[float, float]]:
        """(step, loss), oldest first."""
        return [*self._merged, _middle(self._last)] if self._last else [*self._merged]


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


class Panel:
    """The live panel on standard error. `kept`: the metrics of earlier sessions of the same run."""

    def __init__(
        self, tokenizer: Vocabulary, n_steps: int, kept: Sequence[Mapping[str, Any]] = (), *, coloured: bool = True
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._tokenizer, self._n_steps = tokenizer, n_steps
        self._losses = History()
        for r in kept:
            self._losses.add(float(r["step"]), float(r["loss"]))
        self._validations = [(float(r["step"]), float(r["validation"])) for r in kept if "validation" in r]
        self._first: Progress | None = None
        self._lesson: tuple[int, Lesson] | None = None  # and the step that taught it
        self._drawn = self._lesson_at = 0.0
        console = Console(file=sys.stderr, no_color=not coloured, highlight=False, markup=False, emoji=False)
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, p: Progress) -> None:
        """Takes a step in, and draws if it is time."""
        self._losses.add(p.step, p.loss)
        if p.validation is not None:
            self._validations.append((p.step, p.validation))
        self._first = self._first or p
        now = time.monotonic()
        if p.lesson is not None and now - self._lesson_at >= LESSON_SECONDS:
            self._lesson, self._lesson_at = (p.step, p.lesson), now
        if now - self._drawn >= REFRESH or p.step == self._n_steps:
            self._drawn = now
            self._live.update(
                draw(p, self._losses.points, self._validations, self._lesson, self._tokenizer, self._pace(p))
            )
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
    lesson: tuple[int, Lesson] | None,
    tokenizer: Vocabulary,
    pace: float,
) -> Any:
    """One picture of a run."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from gptcli.render import theme
    from gptcli.render.curve import LINE, MARK, count

    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=p.n_steps, completed=p.step, complete_style=theme.LABEL, finished_style=theme.LABEL)
    left = f"{duration(p.seconds)} gone, {duration((p.n_steps - p.step) * pace)} left"
    head.add_row(Text(f"step {p.step}/{p.n_steps}", "bold"), bar, left)
    scored = f"{validations[-1][1]:.3f}" if validations else "–"
    facts = (
        Text.assemble((f"{LINE} ", _ink("loss")), ("loss ", "dim"), f"{p.loss:.3f}"),
        Text.assemble((f"{MARK} ", _ink("validation")), ("validation ", "dim"), scored),
        Text.assemble(("tokens/s ", "dim"), f"{p.tokens_per_s:,.0f}"),
        Text.assemble(("tokens ", "dim"), count(p.n_tokens)),
        Text.assemble(("learning rate ", "dim"), f"{p.learning_rate:.2e}"),
        Text.assemble(("gradient ", "dim"), f"{p.grad_norm:.2f}"),
    )
    legend = Columns(facts, padding=(0, 2), column_first=True)
    parts: list[Any] = [head, legend, _Curve(losses, validations)]
    if lesson is not None:
        parts += [Text(), *_lesson(*lesson, tokenizer)]
    return Group(*parts)


def _ink(curve: Literal["loss", "validation"]) -> str:
    """The colour of a curve: pink and violet, as in loss.svg."""
    from gptcli.render import theme

    return theme.ink("answer" if curve == "loss" else "label", colour=True, light=theme.light_background())


class _Curve:
    """The losses so far, as wide as there is room, and a mark wherever the validation texts were scored."""

    def __init__(self, losses: Sequence[tuple[float, float]], validations: Sequence[tuple[float, float]]) -> None:
        self._losses, self._validations = losses, validations

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        from gptcli.render.curve import MARK, braille, extent

        if len(self._losses) < 2:
            return
        height = min(8, max(3, console.height // 2 - 6))  # the rest of the panel takes eight lines
        low, high = extent([y for _, y in (*self._losses, *self._validations)])
        lines = braille(self._losses, max(8, options.max_width - 7), height, self._validations)
        for i, cells in enumerate(lines):
            label = f"{high:6.2f}" if i == 0 else f"{low:6.2f}" if i == height - 1 else " " * 6
            line = Text.assemble((label, "dim"), " ", (cells, _ink("loss")), no_wrap=True)
            line.highlight_words([MARK], _ink("validation"))
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


def _lesson(step: int, lesson: Lesson, tokenizer: Vocabulary) -> list[Any]:
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
    right.append(f"  {chance(lesson.p_before)} before step {step}, {chance(lesson.p_after)} after it", "dim")
    return [shown, guess, right]


def chance(p: float) -> str:
    """A probability as a person reads it: 0.8 %, 43 %, <.01 %."""
    x = 100 * p
    return "<.01 %" if x < 0.01 else f"{x:.2f} %" if x < 1 else f"{x:.1f} %" if x < 10 else f"{x:.0f} %"


if __name__ == "__main__":
    import math

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
    Console().print(draw(step, curve, curve[::40], (400, seen), Words(), 2.03))
