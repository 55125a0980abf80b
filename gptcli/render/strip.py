"""generate --xray: each token as it is written, and beside it one cell for each layer: how sure that layer already was.

Left is the embedding, right the last layer. Pink is where the token is the best of all; without colours, dots are
where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len

from gptcli.records import Prompt, Step
from gptcli.records_xray import Strip
from gptcli.render import theme
from gptcli.render.cell import dotted, fit, level, probability
from gptcli.render.output import Output
from gptcli.render.safe import one_line, safe
from gptcli.tokens import show

MOST_CELLS = 40  # a cell for each layer where they fit; else for each second, third ... and always for the last
NAME = 14


class StripView:
    """Writes a line for each token as soon as it is there, and the whole text when it ends."""

    def __init__(self, output: Output, *, n_layer: int, colour: bool, width: int, light: bool = False) -> None:
        self._output, self._n_layer, self._colour, self._width = output, n_layer, colour, width
        self._best = theme.ink("answer", colour=colour, light=light)
        self._prompt, self._answer, self._error = "", list[str](), 0.0

    def begin(self, prompt: Prompt) -> None:
        """Shows the prompt, and what the columns are."""
        self._prompt, self._answer, self._error = prompt.text, [], 0.0
        for line in safe(prompt.text).split("\n"):
            self._line(self._ink(line, f"{theme.INK} on {theme.PROMPT}"))
        width = len(self._cells(Strip(logprobs=(0.0,) * (self._n_layer + 1), kl=(0.0,) * (self._n_layer + 1),
                                      stands=(True,) * (self._n_layer + 1), rank=1, error=0.0)))  # fmt: skip
        layers = f"emb to L{self._n_layer - 1}"
        head = f"{'token':<{NAME}} {layers:<{max(width, len(layers))}}    p  decided  next"
        self._line(self._ink(head, "dim"))

    def step(self, step: Step, strip: Strip, name: str) -> None:
        """One token. name: the vocabulary's own spelling, for tokens that stand for no text."""
        self._answer.append(step.text)
        self._error = max(self._error, strip.error)
        shown = fit(" " + one_line(show(step.raw) if step.raw else name), NAME)
        cells = "".join(self._cell(math.exp(logprob), stands) for logprob, stands in self._cells(strip))
        padding = " " * max(0, len(f"emb to L{self._n_layer - 1}") - len(self._cells(strip)))
        room = self._width - NAME - 1 - len(self._cells(strip)) - len(padding) - 16
        named = ""
        for other in [c for c in step.top if c.id != step.id][:3]:
            more = f"{one_line(show(other.raw)) or '⟨⟩'} {probability(math.exp(other.logprob))}"
            if cell_len(named) + 2 + cell_len(more) > room:
                break  # the next is less likely, and is not to stand in its place
            named += ("  " if named else "") + more
        self._line(
            self._ink(shown, f"{theme.INK} on {theme.ANSWER}")
            + f" {cells}{padding} {probability(math.exp(step.logprob))}  {strip.decided:<7}  "
            + self._ink(named, "dim")
        )

    def end(self, checked: Sequence[str]) -> None:
        """The whole text, what the strips mean, and how they prove themselves: `checked` follows the first check."""
        answer = safe("".join(self._answer))
        for line in answer.split("\n"):
            self._line(self._ink(line, f"{theme.INK} on {theme.ANSWER}"))
        scale = ["▁ to █: p from 0 to 1; pink: the best of all tokens"]
        if not self._colour:
            scale = ["▁ to █: p from 0 to 1, where it is the best of all", "⣀ to ⣿: the same where another is likelier"]
        for said in (
            *scale,
            "decided: the layer from which on it is the best",
            "#N: drawn, though N − 1 tokens were likelier",
        ):
            self._line(self._ink(said, "dim"))
        checks = [f"lens(last) = logits ✓ {self._error:.0e}" if self._error else "lens(last) = logits ✓ 0", *checked]
        line = ""
        for part in checks:
            if line and cell_len(line) + 3 + cell_len(part) > self._width:
                self._line(self._ink(line, "dim"))
                line = ""
            line += (" │ " if line else "") + part
        self._line(self._ink(line, "dim"))

    def _cell(self, p: float, stands: bool) -> str:
        if not self._colour:
            return level(p) if stands else dotted(p)
        return self._ink(level(p), self._best if stands else theme.NEUTRAL)

    def _cells(self, strip: Strip) -> list[tuple[float, bool]]:
        """Log-probability and whether it stands, for as many rows as are shown: the last of each group."""
        pairs = list(zip(strip.logprobs, strip.stands, strict=True))
        stride = math.ceil(len(pairs) / max(8, min(MOST_CELLS, self._width - NAME - 24)))
        return pairs if stride == 1 else list(reversed(pairs[::-1][::stride]))

    def _ink(self, text: str, style: str) -> str:
        if not self._colour or not text:
            return text
        return "\n".join(theme.painted(line, style) if line else "" for line in text.split("\n"))

    def _line(self, text: str) -> None:
        self._output.line("\n".join(line.rstrip(" ") for line in text.split("\n")))
