"""Recipe: how a model is trained, as numbers; the defaults are GPT-3's (Brown et al. 2020, Appendix B), scaled.

Adam with 0.9, 0.95 and 1e-8; gradients clipped to a norm of 1; decoupled weight decay of 0.1; the learning rate rises
linearly over the first 375M tokens and falls as a cosine to a tenth at 260B of 300B tokens; the batch grows from 32k
tokens over the first 12B. Everything here is a function of the step alone, so that a run which was interrupted goes on
as if it was not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from gptcli.errors import UsageError

Schedule = Literal["cosine", "linear", "constant", "wsd"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["bfloat16", "float32"]

TOKENS, WARMUP, DECAY = 300_000_000_000, 375_000_000, 260_000_000_000  # Appendix B
RAMP_FROM, RAMP = 32_000, 12_000_000_000  # "over the first 4-12 billion tokens", longer for larger models

MOST = 10**12  # steps, sequences, tokens of a sequence
KINDS: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. A batch is `batch` sequences of `n_ctx` tokens; token counts are of tokens predicted.

    Raises UsageError for counts below 1 or above MOST, and for a learning rate that is no number above 0; TypeError for
    what is of another kind.
    """

    n_steps: int
    n_ctx: int
    batch: int
    learning_rate: float
    schedule: Schedule = "cosine"
    warmup_tokens: int = 0
    decay_tokens: int = 0  # cosine, linear: where the floor is reached; wsd: how long the fall at the end takes
    floor: float = 0.1  # of the learning rate
    ramp_from: int = 0  # sequences in the first batch, which grows to `batch` over `ramp_tokens`
    ramp_tokens: int = 0  # 0: no growth
    optimizer: Optimizer = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0  # norm above which the gradient is scaled down to it
    weight_decay: float = 0.1
    seed: int = 0
    # how it is computed: another answer gives other bits, so a run keeps to the one it began with
    precision: Precision = "float32"  # of the matrix products; sums, norms and the parameters stay in float32
    compiled: bool = False
    micro_batch: int = 0  # sequences sent through the decoder at once; 0: as many as fit

    def __post_init__(self) -> None:
        for field in fields(self):
            kinds, value = KINDS.get(str(field.type), (str,)), getattr(self, field.name)
            if type(value) not in kinds:
                raise TypeError(f"{field.name} is {str(value)[:40]!r}")
        for name in ("n_steps", "n_ctx", "batch"):
            if not 1 <= getattr(self, name) <= MOST:
                raise UsageError(f"{name} must be from 1 to {MOST:,}, not {str(getattr(self, name))[:40]}")
        if not (0 < self.learning_rate < math.inf and 0 <= self.floor <= 1):
            raise UsageError(f"the learning rate must be above 0, not {self.learning_rate}")

    @cached_property
    def _starts(self) -> list[int]:
        """Sequences used before each step, and after the last; the batch grows linearly with the tokens seen."""
        starts = [0]
        for _ in range(self.n_steps):
            way = min(1.0, starts[-1] * self.n_ctx / self.ramp_tokens)
            starts.append(starts[-1] + self.ramp_from + int((self.batch - self.ramp_from) * way))
        return starts

    def first(self, step: int) -> int:
        """How many sequences the steps before this one used: step s trains on first(s) up to first(s + 1)."""
        return self._starts[step] if self.ramp_tokens else step * self.batch

    def n_tokens(self, step: int) -> int:
        """Tokens predicted before this step."""
        return self.first(step) * self.n_ctx

    def rate(self, step: int) -> float:
        """The learning rate of a step.

        It rises by the tokens that will have been seen at its end and falls by those seen before it: a first or last
        step at a rate of 0 would be shown for nothing.
        """
        seen = self.n_tokens(step + 1)
        risen = seen / self.warmup_tokens if seen < self.warmup_tokens else self._fallen(self.n_tokens(step))
        return self.learning_rate * risen

    def _fallen(self, n: int) -> float:
        """Which share of the highest rate is left after `n` tokens."""
        if self.schedule == "constant":
            return 1.0
        start, stop = self.warmup_tokens, self.decay_tokens
        if self.schedule == "wsd":  # warm up, stay, and fall at the end (Hu et al. 2024, arXiv 2404.06395)
            stop = self.n_tokens(self.n_steps)
            start = stop - self.decay_tokens
        way = min(1.0, max(0.0, (n - start) / max(1, stop - start)))
        fall = 0.5 * (1 + math.cos(math.pi * way)) if self.schedule == "cosine" else 1 - way
        return self.floor + (1 - self.floor) * fall


def scaled(
    *,
    n_tokens: int,
    n_ctx: int,
    batch_tokens: int,
    learning_rate: float,
    schedule: Schedule = "cosine",
    optimizer: Optimizer = "adamw",
    seed: int = 0,
    growth: tuple[int, int] | None = None,
    n_steps: int | None = None,
) -> Recipe:
    """GPT-3's recipe for a run of `n_tokens`: the rise, the fall and the batch's growth take the same shares of it.

    But the rise is at least 100 steps, or a third of a run shorter than three hundred: 0.125 % of a small run would be
    no rise at all, and after a tenth of 30 steps a nano model ends at a loss of 5.3 instead of 4.2. And a batch below
    32k tokens, where GPT-3's began, does not grow.

    growth: another than GPT-3's, as (sequences in the first batch, tokens until it is whole); (0, 0) is none.
    n_steps: how many steps, whatever the tokens are by the growth; n_tokens is then what they would be without it.
    """
    batch, ramp_from = max(1, round(batch_tokens / n_ctx)), max(1, round(RAMP_FROM / n_ctx))
    ramp = n_tokens * RAMP // TOKENS if batch > ramp_from else 0
    if growth is not None:
        ramp_from, ramp = growth
    n_sequences, used, steps = math.ceil(n_tokens / n_ctx), 0, 0
    while ramp and used * n_ctx < min(ramp, n_tokens) and steps != n_steps:
        used += ramp_from + int((batch - ramp_from) * used * n_ctx / ramp)
        steps += 1
    if n_steps is None:
        n_steps = max(1, steps + math.ceil((n_sequences - used) / batch))
        total = n_tokens if ramp else n_steps * batch * n_ctx
    else:
        total = (used + (n_steps - steps) * batch) * n_ctx
    rise = min(100, n_steps // 3) * min(batch, ramp_from if ramp else batch) * n_ctx
    fall = {"cosine": total * DECAY // TOKENS, "linear": total, "wsd": total // 5, "constant": 0}[schedule]
    return Recipe(
        n_steps=n_steps,
        n_ctx=n_ctx,
        batch=batch,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_tokens=max(rise, total * WARMUP // TOKENS),
        decay_tokens=fall,
        floor=0.0 if schedule in ("linear", "wsd") else 0.1,
        ramp_from=ramp_from if ramp else 0,
        ramp_tokens=ramp,
        optimizer=optimizer,
        seed=seed,
    )
