"""Texts that are computed at the same time: how one joins, and which tokens all of them choose."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from gptcli.cache import SLACK, Cache
from gptcli.certain import certain, plain
from gptcli.checkpoint import Checkpoint
from gptcli.generation import Request, Start, Text, answer, capacity_of, prepare, start
from gptcli.records import Prompt, Step
from gptcli.sample import Choice, adjust


class Joining:
    """Computes prompts, and the same one after another only once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._last: Start | None = None

    def next(
        self, waiting: Iterator[tuple[int, Request]]
    ) -> Generator[tuple[int, Step], None, tuple[int, Text, Start] | None]:
        """The next text that lasts, and its number; None if there is none. Yields the steps that were made for it.

        Texts that end with their first token, or that have to be computed alone, are done then.
        """
        for number, request in waiting:
            begin = self.start(request)
            text = Text(self.checkpoint, begin.prompt, request)
            if text.outgrows:
                yield from self.alone(number, request)
            elif not text.finish:
                step = text.take(begin.logits, text.choose(begin.logits, text.draw()))
                yield number, step
                if not step.finish:
                    return number, text, begin
        return None

    def start(self, request: Request) -> Start:
        """The request's prompt, computed alone."""
        prompt, n = request.prompt, request.max_tokens
        if not isinstance(prompt, Prompt):
            prompt = prepare(self.checkpoint, prompt, max_tokens=n, overflow=request.overflow)
        if not (last := self._last) or last.prompt != prompt or not self._has_room(last.cache, len(prompt.ids), n):
            last = self._last = start(self.checkpoint, prompt, max_tokens=n)
        return last

    def _has_room(self, cache: Cache, n_prompt: int, max_tokens: int) -> bool:
        """Whether a cache is as good for an answer so long as its own would be: as large, and no window laid out else.

        So texts of one beginning and many lengths have it computed a few times, and not once for each.
        """
        own = capacity_of(self.checkpoint, n_prompt, max_tokens)
        windows = {layer.window for layer in self.checkpoint.config.layers if layer.window}
        return own <= cache.capacity and all((w + SLACK < own) == (w + SLACK < cache.capacity) for w in windows)

    def alone(self, number: int, request: Request) -> Iterator[tuple[int, Step]]:
        """All of a text, by itself."""
        begin = self.start(request)
        for step in answer(self.checkpoint, request, replace(begin, cache=begin.cache.copy())):
            yield number, step


def choices_of(
    texts: Sequence[Text], logits: Tensor, draws: Sequence[float], errors: Sequence[float]
) -> list[Choice | None]:
    """The next token of each text, or None where one that is off by its error could lead to another. logits: [n, V]."""
    adjusted = logits
    rows = [row for row, text in enumerate(texts) if not plain(text.request.sampling)]
    if rows:  # with biases and penalties
        adjusted = logits.clone()
    for row in rows:
        text = texts[row]
        adjusted[row] = adjust(logits[row], text.request.sampling, context=text.ids, generated=text.generated)
    samplings = [text.request.sampling for text in texts]
    return certain(logits, adjusted[:, : texts[0].checkpoint.n_tokens], samplings, draws, errors)
