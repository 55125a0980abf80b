"""Speculation without a second model: where a text repeats itself, several tokens are computed in one pass.

    ... the red fox ran. Then the red      the last tokens were there before: "fox ran ." followed them
                                  └─ one pass over `red fox ran .` gives the scores after each of the four

Each token is still chosen by the same rule, from scores, in order; what was proposed is only kept while it is what the
rule chose. So a proposal never changes a text, whatever the temperature. Rounding could: a pass over several tokens
sums in another order than passes over one, and what it leaves in the cache is off in the last bits as well. Therefore:

- A choice from such scores stands only if no error up to `bound` could change it: no other token within reach, no
  border of the draw or of a filter. Else every token since the last plain pass is computed again, one at a time, as
  without speculation, and the choice is made from these scores, which are the plain ones to the bit.
- The bound was measured, not proved (see UNITS), and each such recomputation measures it once more: where likely tokens
  moved against each other by half of what is allowed, speculation ends for the rest of the text.

Without `gptcli optimize` this is for float32 alone, and for weights that are not rounded. In bfloat16 one rounding of a
score of 8 to 32 is 0.06 to 0.13, so many choices are doubtful, and computing again took what was gained: nothing is
proposed there. Where the passes are compiled (few.py), several tokens get the very numbers that each would get alone,
in every dtype: then no choice is doubtful, and nothing is computed again.

How often it looks ahead depends on the time that passes took, which no token depends on.

So the tokens are those of plain generation as long as rounding errors stay below the bound; log-probabilities of
tokens that were computed ahead may differ from the plain ones by as much as the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from gptcli.cache import SLACK, Cache
from gptcli.certain import certain, spread
from gptcli.few import FewTokens
from gptcli.linear import FEW, exact
from gptcli.model import Decoder
from gptcli.sample import Choice, adjust, finite
from gptcli.sampling import Sampling

LONG, SHORT = 3, 2  # tokens that must agree with an earlier place of the text
EARNED = 8  # tokens of agreement that are enough even in a text that often goes on otherwise
LEAST = 4  # proposed at once: a product with 2 or 3 rows takes MKL longer than one with 5
MOST = 12  # proposed at once; must stay below SLACK, so that a cache can take them back
# How far float32 scores may be off, in units of eps times the largest score. Measured up to SmolLM2-135M: likely
# tokens move against each other by up to twice 3; the worst of all 49,152 tokens at 120 places was off by some 13.
UNITS = 16.0
CHEAP = 2  # tokens that are computed again at once, when little of a proposal was right
PASS = 0.5  # what a pass over several tokens costs more than a plain one, in plain ones: a guess until it is timed
assert MOST < SLACK


class Repeats:
    """Where the end of a text was before, kept up to date at the cost of two look-ups a token."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list[int]()
        self.after: dict[tuple[int, ...], int] = {}  # an n-gram -> the index of what followed it last
        self.at = 0  # index of what should come next, if the text goes on as before
        self.length = 0  # how many tokens agree, up to there; 0 for no earlier place
        self.trust = 0.5  # running share of single tokens foreseen, wherever there was an earlier place
        for id in ids:
            self.add(id)

    def add(self, id: int) -> None:
        """One more token."""
        if self.length:
            hit = self.ids[self.at] == id
            self.trust += 0.1 * (hit - self.trust)
            self.at, self.length = (self.at + 1, self.length + 1) if hit else (0, 0)
        self.ids.append(id)
        n = len(self.ids)
        for size in (LONG, SHORT):
            if n < size:
                continue
            gram = tuple(self.ids[-size:])
            found = self.after.get(gram)
            self.after[gram] = n
            if not self.length and found is not None:
                self.at, self.length = found, size

    def proposal(self, most: int, least: int = LEAST) -> list[int]:
        """What followed the earlier place: the longer the agreement, the more; nothing while guesses are poor."""
        if self.length < LONG or (self.length < EARNED and self.trust < 0.75):
            return []
        n = min(most, max(least, self.length - 1))
        found = self.ids[self.at : self.at + n]
        while found and len(found) < n:  # the earlier place overlaps the end: a loop goes on as a loop
            found = (found + self.ids[self.at :])[:n]
        return found


class Lookup:
    """The scores after each token of one text, some of them computed ahead. Plain passes are those of `plain`."""

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        ids: Sequence[int],
        plain: Callable[[Sequence[int]], Tensor],
        *,
        few: FewTokens | None = None,
        cautious: bool = False,
    ) -> None:
        """few: the pass over several tokens whose numbers are those of `plain`, if there is one.

        cautious: a first try must be likely to win, because plain passes may be many times as fast.
        """
        self.decoder, self.cache, self.plain, self.few, self.cautious = decoder, cache, plain, few, cautious
        self.repeats = Repeats(ids)
        self.n_first = self.n_start = len(ids)  # tokens that went through in the one pass that began the cache
        self.n_plain = cache.n_seen  # tokens whose keys and values are those of plain passes
        self.ahead: list[tuple[int, Tensor]] = []  # (a proposed token, the scores after it)
        self.certain = True  # whether the last scores are those of plain passes to the bit
        self.ended = few is None and not exact(decoder)  # or the bound did not hold
        self.n_proposed = self.n_accepted = self.n_repeated = 0
        self.fastest = math.inf  # seconds of a plain pass
        self.seconds, self.n_passes = 0.0, 0  # of passes over several tokens

    def scores(self, ids: Sequence[int]) -> Tensor:
        """Scores after the last of `ids`, [V], float32; all others of `ids` were here before."""
        self.repeats.add(ids[-1])
        if self.ahead and self.ahead[0][0] == ids[-1]:
            self.n_accepted += 1
            return self.ahead.pop(0)[1]
        self.ahead = []
        if self.cache.n_seen >= len(ids):
            self.cache.back_to(len(ids) - 1)
        if self.few:
            self.n_plain = self.cache.n_seen
        if 0 < len(ids) - 1 - self.n_plain <= CHEAP and self.cache.n_seen:  # before a doubt, later, makes it dear
            self._redo(ids[:-1])
        proposal = self._proposal(len(ids))
        return self._pass(ids[-1], proposal) if proposal else self._plain(ids)

    def _proposal(self, n: int) -> list[int]:
        """What to compute ahead of a text of n tokens: as much as has room, and pays by what was seen of this text."""
        most = min(FEW - 1 if self.few else MOST, self.cache.capacity - n - 1)
        if self.few and not self.few.has_room(self.cache):
            return []
        if self.ended or most < 1 or self.cache.n_seen != n - 1 or self.fastest == math.inf:
            return []
        if self.cautious and not self.n_passes and self.repeats.length < EARNED:
            return []
        found = self.repeats.proposal(most, most if self.few else LEAST)
        may_lose = max(0.0, self.cost() - len(found))  # even if all of it is right
        if self.n_repeated + self.n_passes * self.cost() + may_lose > 2 + self.n_accepted + (n - self.n_first) / 64:
            return []
        return [] if self.cache.outgrown(n + MOST) else found

    def cost(self) -> float:
        """Of a pass over several tokens beyond a plain one, in plain ones; a compiled one is several times as fast."""
        return max(0.0, self.seconds / self.n_passes / self.fastest - 1) if self.n_passes else PASS

    @torch.inference_mode()
    def _pass(self, last: int, proposal: list[int]) -> Tensor:
        """One pass over the last token and the proposal."""
        tokens, began = [last, *proposal], perf_counter()
        if self.few:
            rows = self.few([*tokens, *[last] * (FEW - len(tokens))], self.cache)[: len(tokens)]
            self.cache.back_to(self.cache.n_seen - FEW + len(tokens))
        else:
            ids = torch.tensor([tokens], device=self.cache.device)
            rows = self.decoder(ids, self.cache)[0].to("cpu", torch.float32)  # [1 + k, V]
        self.seconds, self.n_passes = self.seconds + perf_counter() - began, self.n_passes + 1
        if not finite(rows):
            self.cache.back_to(self.cache.n_seen - len(proposal) - 1)
            return self._plain(self.repeats.ids)  # which says where they were lost
        self.certain = self.few is not None
        self.n_proposed += len(proposal)
        self.ahead = list(zip(proposal, rows[1:], strict=True))
        return rows[0]

    def _plain(self, ids: Sequence[int]) -> Tensor:
        begins = self.cache.n_seen == 0 or self.cache.outgrown(len(ids))  # then all goes through at once
        self.certain = begins or self.n_plain == len(ids) - 1
        began = perf_counter()
        logits = self.plain(ids)
        if begins:
            self.n_start = len(ids)
        else:
            self.fastest = min(self.fastest, max(perf_counter() - began, 1e-9))
        if self.certain:
            self.n_plain = len(ids)
        return logits

    def doubtful(
        self, logits: Tensor, choice: Choice, sampling: Sampling, *, generated: Sequence[int], size: int | None
    ) -> bool:
        """Whether rounding could have changed the choice that was made from the last scores."""
        if self.certain:
            return False
        adjusted = adjust(logits, sampling, context=self.repeats.ids, generated=generated)[:size]
        error = bound(logits[:size], self.cache.dtype)
        return certain(logits[None], adjusted[None], [sampling], [choice.draw or 0.0], [error])[0] is None

    def again(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        """The scores after the last of `ids` by plain passes alone. logits: what they were taken for."""
        self.ahead, scores = [], self._redo(ids)
        if spread(scores, logits) > bound(scores, self.cache.dtype):
            self.ended = True
        return scores

    def _redo(self, ids: Sequence[int]) -> Tensor:
        """Every token since the last plain pass once more, one at a time; the scores after the last."""
        if not self.cache.back_to(self.n_plain):  # a window has moved on since: from the start
            self.cache.clear()
            self.n_plain = self.n_start
            self.plain(ids[: self.n_start])
        self.n_repeated += len(ids) - self.n_plain
        for n in range(self.n_plain + 1, len(ids) + 1):
            scores = self.plain(ids[:n])
        self.n_plain, self.certain = len(ids), True
        return scores


def bound(logits: Tensor, dtype: torch.dtype) -> float:
    """How far scores may be off if they were computed with others, or after others that were."""
    return UNITS * torch.finfo(dtype).eps * float(logits.abs().max())
