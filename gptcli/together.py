"""Many texts at once through the compiled pass of a few tokens: each gets, to the last bit, what it would get alone.

So no choice is doubtful, and the dtype does not matter; batch.py is for where that pass is not compiled. Every text
keeps its own cache, and FEW of them go through a layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.cache import Cache
from gptcli.checkpoint import Checkpoint
from gptcli.few import FewTokens
from gptcli.generation import Request, Text
from gptcli.joining import Joining, choices_of
from gptcli.linear import FEW
from gptcli.records import Step
from gptcli.sample import finite

HAIR = 1e-9  # of the largest logit: a choice that this could change is made as for one text, where ties go by id
WORTH = 3  # texts from which one pass of FEW is taken for them, and not one pass each


@dataclass
class _Running:
    number: int
    text: Text
    cache: Cache


class Together:
    """The texts that are running, at most `n_rows`."""

    def __init__(self, checkpoint: Checkpoint, few: FewTokens, n_rows: int) -> None:
        self.checkpoint, self.few, self.n_rows = checkpoint, few, n_rows
        self.running = list[_Running]()
        self.joining = Joining(checkpoint)
        self._spare = list[Cache]()  # of texts that nobody reads, where there are fewer than FEW

    def run(self, waiting: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Step]]:
        """All steps of all texts."""
        while True:
            while len(self.running) < self.n_rows:
                found = yield from self.joining.next(waiting)
                if found is None:
                    break
                number, text, begin = found
                self.running.append(_Running(number, text, begin.cache.copy()))
            if not self.running:
                return
            yield from self._step()
            self.running = [each for each in self.running if not each.text.finish]

    def _step(self) -> Iterator[tuple[int, Step]]:
        """The next token of each text."""
        rows = self._scores()
        logits, texts = torch.stack(rows), [each.text for each in self.running]
        draws = [text.draw() for text in texts]
        errors = (HAIR * logits.abs().amax(1)).tolist()
        for i, choice in enumerate(choices_of(texts, logits, draws, errors)):
            step = texts[i].take(rows[i], choice or texts[i].choose(rows[i], draws[i]))
            yield self.running[i].number, step

    def _scores(self) -> list[Tensor]:
        """Scores after each text, [V], all finite."""
        for each in self.running:
            if each.text.slide():
                each.cache.clear()
        some = [each for each in self.running if each.cache.n_seen]
        if (rest := len(some) % FEW) < WORTH:
            some = some[: len(some) - rest]
        found = dict[int, Tensor]()
        if some:
            rows = self._pass(some)
            found = {each.number: row for each, row in zip(some, rows, strict=True)}
            for each in some if not finite(rows) else ():
                if not finite(found[each.number]):
                    found[each.number], each.cache = each.text.alone()  # which says where they were lost
        for each in self.running:
            if each.number not in found:
                found[each.number] = each.text.logits(each.cache)
        return [found[each.number] for each in self.running]

    @torch.inference_mode()
    def _pass(self, some: Sequence[_Running]) -> Tensor:
        """Scores after each of n texts, [n, V]."""
        while len(self._spare) < -len(some) % FEW:
            cache = Cache(self.checkpoint.config, 2, dtype=self.checkpoint.dtype)
            self.checkpoint.decoder.stream(torch.zeros(1, 1, dtype=torch.long), cache)
            self._spare.append(cache)
        spare = self._spare[: -len(some) % FEW]
        for cache in spare:
            cache.back_to(1)
        ids = [each.text.ids[-1] for each in some] + [0] * len(spare)
        return self.few.of_texts(ids, [*(each.cache for each in some), *spare])[: len(some)]
