"""The stream of a generation: prompt and answer as they come, plain for pipes, in the article's colours for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gptcli.records import Prompt, Step
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.render.safe import safe
from gptcli.text_stream import TextStream

if TYPE_CHECKING:
    from rich.style import Style

Look = Literal["plain", "article", "prob"]


class TextView:
    """Writes a text while it is being generated.

    plain: the text as it is; made safe only if a terminal shows it. article: prompt green, answer pink. prob: each
    token's background tells the probability that the model gave it.
    """

    def __init__(self, output: Output, *, look: Look, echo: bool) -> None:
        self._output, self._look, self._echo = output, look, echo
        self._probs: dict[int, float] = {}
        if look != "plain":
            from rich.style import Style

            self._prompt = Style(bgcolor=theme.PROMPT, color=theme.INK)
            self._answer = Style(bgcolor=theme.ANSWER, color=theme.INK)

    def begin(self, prompt: Prompt) -> None:
        """Shows the prompt, where it is to be shown."""
        self._probs.clear()
        if self._echo:
            self._output.write(self._paint(prompt.text, None))

    def step(self, step: Step) -> None:
        """Shows the text that this step made certain."""
        self._probs[step.index] = math.exp(step.logprob)
        for chunk in step.chunks:
            self._output.write(self._paint(chunk.text, self._probs.get(chunk.index, 0.0)))

    def end(self) -> None:
        """Ends the line where a person waits for a prompt; a pipe gets the model's text and nothing else."""
        if self._output.is_terminal and not self._output.at_line_start:
            self._output.line()

    def _paint(self, text: str, p: float | None) -> str:
        if self._look == "plain":
            return safe(text) if self._output.is_terminal else text
        style = self._prompt if p is None else theme.shade(p) if self._look == "prob" else self._answer
        return _painted(text, style)


def tinted(given: bytes, parts: Sequence[tuple[bytes, float]]) -> str:
    """A whole text, each token on the colour of its probability. parts: bytes and probability; half characters join."""
    stream, done = TextStream(), list[str]()
    chunks = [*stream.feed(0, given)]
    for i, (raw, _) in enumerate(parts, 1):
        chunks += stream.feed(i, raw)
    for chunk in [*chunks, *stream.finish()]:
        style = theme.shade(parts[chunk.index - 1][1]) if chunk.index else None
        done.append(_painted(chunk.text, style))
    return "".join(done)


def _painted(text: str, style: Style | None) -> str:
    """Line by line: a terminal fills the rest of a line with the background that is on when the line ends."""
    lines = safe(text).split("\n")
    return "\n".join(theme.painted(line, style) if line and style else line for line in lines)


def legend() -> str:
    """The scale of --color prob, for standard error."""
    cells = (theme.painted("  ", f"on {colour}") for colour in theme.SCALE)
    return f"probability 0 {''.join(cells)} 1\n"


def seeds(seed: int, n_samples: int) -> str:
    """How to get the same texts again."""
    return f"seed {seed}" if n_samples == 1 else f"seeds {seed} to {seed + n_samples - 1}"


def finish_note(steps: Sequence[Step], n_ctx: int) -> str:
    """A word on an end that a person may not expect; empty otherwise."""
    last = steps[-1] if steps else None
    if last and last.finish == "context":
        return f"the context of {n_ctx} tokens is full; --overflow slide goes on without the oldest"
    return ""
