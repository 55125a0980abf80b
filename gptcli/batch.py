"""Many texts at once: one pass of the decoder adds a token to each, and a text that ends makes place for the next.

Every text is, token for token, what it would be alone. Where its numbers are the same among others, to the last bit
(alike.py), that is all. Where they are rounded otherwise, a token is taken from the common pass only if no rounding of
that size could have led to another (certain.py). How large it is, is measured while it runs: the first text is
computed alone beside the others for some tokens, and so is every text whose next token was not certain, up to that
token; then it goes on among the others.

What the steps say of a token beside it (logprob, p, margin, top) is of the common pass, and equal up to rounding.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain, islice
from math import inf

import torch
from torch import Tensor

from gptcli.alike import alike
from gptcli.cache import Cache
from gptcli.certain import HEAD, plain, spread
from gptcli.checkpoint import Checkpoint
from gptcli.errors import OutOfMemory
from gptcli.generation import Request, Text
from gptcli.joining import Joining, choices_of
from gptcli.linear import FEW, exact
from gptcli.memory import check_fits
from gptcli.records import Prompt, Step
from gptcli.rows import Rows
from gptcli.sample import Choice
from gptcli.sampling import Sampling
from gptcli.together import HAIR, Together

WITNESSED = 4  # tokens of the first text that are computed alone too
SAFETY = 8  # how many times the largest difference ever seen is allowed for
LEAST = 2.0**-20  # of the largest logit, in float32: allowed for even where nothing was seen


def generate_batch(
    checkpoint: Checkpoint, requests: Iterable[Request], *, batch: int = 32
) -> Iterator[tuple[int, Step]]:
    """Yields (number of the request, its next step), in the order of the steps; up to `batch` texts run at a time.

    Each text is, token for token, what `generate` makes of that request alone; logprob, p and margin may differ by
    rounding. Requests are read as rows become free, and consecutive ones with the same prompt have it computed once.
    How, by what is there: with the compiled pass of a few tokens through that (together.py), unless they are more than
    FEW, greedy and in float32; else in one pass for all, if that changes no number (alike.py), or if all weights are
    float32 (with fewer bits near-ties are everywhere); else one after another. So runs, in any case, a text that
    outgrows its rotary frequencies.

    Raises UsageError, OutOfMemory, and GptcliError for logits that are not finite.
    """
    waiting = enumerate(requests)
    first = list(islice(waiting, batch)) if batch > 1 else []
    n_rows = _that_fit(checkpoint, [request for _, request in first]) if len(first) > 1 else 1
    engine = _engine(checkpoint, n_rows, [request.sampling for _, request in first]) if n_rows > 1 else None
    every = chain(first, waiting)
    if engine:
        yield from engine.run(every)
        return
    joining = Joining(checkpoint)
    for number, request in every:
        yield from joining.alone(number, request)


def _engine(checkpoint: Checkpoint, n_rows: int, samplings: Sequence[Sampling]) -> Together | _Batch | None:
    """What computes so many texts at once; None where nothing does."""
    is_exact = exact(checkpoint.decoder)
    few = checkpoint.few_tokens()
    if few and not (is_exact and n_rows > FEW and all(sampling.greedy for sampling in samplings)):
        return Together(checkpoint, few, n_rows)  # greedy choices are seldom doubtful, and one pass for all is faster
    if alike(checkpoint, n_rows):
        return _Batch(checkpoint, n_rows, same=True)
    is_open = any(not sampling.greedy and not sampling.top_k for sampling in samplings)
    if is_open and checkpoint.decoder.large:
        return None  # any of thousands of tokens may be next: too many doubts, and each costs a text computed anew
    return _Batch(checkpoint, n_rows) if is_exact else None


class InOrder:
    """The steps of many texts, handed out text by text; those that come too early wait."""

    def __init__(self, steps: Iterator[tuple[int, Step]]) -> None:
        self._steps = steps
        self._waiting = defaultdict[int, deque[Step]](deque)

    def text(self, number: int) -> Iterator[Step]:
        """All steps of one text, each as soon as it is there."""
        while True:
            while not (waiting := self._waiting[number]):
                found = next(self._steps, None)
                if found is None:
                    return
                self._waiting[found[0]].append(found[1])
            step = waiting.popleft()
            yield step
            if step.finish:
                del self._waiting[number]
                return


def _that_fit(checkpoint: Checkpoint, requests: list[Request]) -> int:
    """How many rows memory has room for, one at least."""
    config, n = checkpoint.config, len(requests)
    longest = max(config.n_ctx if r.max_tokens < 0 else min(config.n_ctx, r.max_tokens + _length(r)) for r in requests)
    while n > 1:
        try:
            need = 3 * n * config.kv_bytes(longest, checkpoint.dtype.itemsize)  # they grow by doubling
            check_fits(need, checkpoint.device, what=f"the caches of {n} texts")
            break
        except OutOfMemory:
            n //= 2
    return n


def _length(request: Request) -> int:
    """Tokens of the prompt, or more."""
    prompt = request.prompt
    return len(prompt.ids if isinstance(prompt, Prompt) else prompt.encode() if isinstance(prompt, str) else prompt) + 1


class _Batch:
    """The texts that are running, one a row, and how far rounding was seen to go."""

    def __init__(self, checkpoint: Checkpoint, n_rows: int, *, same: bool = False) -> None:
        """same: every text gets the numbers that it gets alone."""
        self.checkpoint, self.n_rows, self.same = checkpoint, n_rows, same
        self.rows = Rows(checkpoint.config, n_rows, device=checkpoint.device, dtype=checkpoint.dtype, apart=same)
        self.texts = list[Text]()
        self.numbers = list[int]()
        self.joining = Joining(checkpoint)
        self.witness: tuple[Text, Cache] | None = None  # the text that is computed alone too
        self.largest: float | None = None  # difference of a logit, alone and together
        self.likely = 0.0  # the same of likely tokens, when what all of them have in common is taken off

    def run(self, waiting: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Step]]:
        """All steps of all texts."""
        while len(self.texts) < self.n_rows and (yield from self._join(len(self.texts), waiting)):
            pass
        self.rows.only(len(self.texts))
        while self.texts:
            yield from self._slide()
            yield from self._renew(waiting)
            if self.texts:
                for number, text, logits, choice in self._choices():
                    yield number, text.take(logits, choice)
                yield from self._renew(waiting)

    def _join(self, row: int, waiting: Iterator[tuple[int, Request]]) -> Generator[tuple[int, Step], None, bool]:
        """Puts the next text that lasts into a row; False if there is none."""
        found = yield from self.joining.next(waiting)
        if found is None:
            return False
        number, text, begin = found
        self.rows.join(row, begin.cache)
        self.texts[row : row + 1], self.numbers[row : row + 1] = [text], [number]
        if not self.same and self.largest is None and self.witness is None:
            self.witness = text, begin.cache.copy()
        return True

    def _renew(self, waiting: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Step]]:
        """The next texts take over the rows of those that have ended; if there are none, the rows go."""
        for row in reversed(range(len(self.texts))):
            if self.texts[row].finish and not (yield from self._join(row, waiting)):
                self.rows.leave(row)
                self.texts[row], self.numbers[row] = self.texts[-1], self.numbers[-1]
                self.texts.pop()
                self.numbers.pop()

    def _slide(self) -> Iterator[tuple[int, Step]]:
        """Texts whose context is full have what is left of it computed anew, alone."""
        for row, text in enumerate(self.texts):
            if text.slide():
                logits, cache = text.alone()
                self.rows.join(row, cache)
                if self.witness and self.witness[0] is text:
                    self.witness = text, cache.copy()
                yield self.numbers[row], text.take(logits, text.choose(logits, text.draw()))

    def _choices(self) -> list[tuple[int, Text, Tensor, Choice]]:
        """The next token of each text, and the scores it was chosen from."""
        logits, draws = self._logits(), [text.draw() for text in self.texts]
        scale = logits.abs().amax(1)  # not a number where there is one in the row
        witnessed = self._witnessed(logits)
        least = (HAIR if self.same else LEAST) * float(scale.nan_to_num(0, 0, 0).max())
        samplings = [text.request.sampling for text in self.texts]
        errors = [
            max(least, self._error(sampling)) if fine else inf
            for sampling, fine in zip(samplings, scale.isfinite().tolist(), strict=True)
        ]
        found = list[tuple[int, Text, Tensor, Choice]]()
        choices = choices_of(self.texts, logits, draws, errors)
        for row, (number, text, choice) in enumerate(zip(self.numbers, self.texts, choices, strict=True)):
            scores = witnessed.get(row, logits[row])
            if row in witnessed or choice is None:
                if row not in witnessed and not (self.same and scores.isfinite().all()):
                    scores = self._alone(row, logits[row])
                choice = text.choose(scores, draws[row])
            found.append((number, text, scores, choice))
        return found

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        """Scores after each text, [n, V], float32, on the CPU; one pass for all."""
        last = torch.tensor([text.ids[-1:] for text in self.texts], device=self.checkpoint.device)
        decoder = self.checkpoint.decoder
        return decoder.readout(decoder.stream(last, self.rows)[:, -1]).to("cpu", torch.float32)

    def _witnessed(self, logits: Tensor) -> dict[int, Tensor]:
        """The witness's row and its scores as they are alone, as long as it is watched."""
        if self.witness is None:
            return {}
        text, cache = self.witness
        if text not in self.texts or len(text.generated) > WITNESSED:
            self.witness = None
            return {}
        row, scores = self.texts.index(text), text.logits(cache)
        self._saw(scores, logits[row])
        return {row: scores}

    def _alone(self, row: int, together: Tensor) -> Tensor:
        """A row's scores as they are alone; what it was computed from replaces what stood in the row."""
        scores, cache = self.texts[row].alone()
        self._saw(scores, together)
        self.rows.join(row, cache)
        return scores

    def _saw(self, alone: Tensor, together: Tensor) -> None:
        self.largest = max(self.largest or 0.0, float((alone - together).abs().max()))
        self.likely = max(self.likely, spread(alone, together) / 2)

    def _error(self, sampling: Sampling) -> float:
        """How far a logit may be off, by what was seen. A shift of all alike changes no choice, but for a penalty."""
        likely_only = plain(sampling) and (sampling.greedy or 0 < sampling.top_k <= HEAD)
        return SAFETY * (self.likely if likely_only else self.largest or 0.0)
