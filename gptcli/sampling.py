"""How the next token is drawn, as checked numbers. Free of torch, because the command line builds it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from gptcli.errors import UsageError

MOST = sys.float_info.max


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The numbers that an option takes, both ends included; nan and infinity are in no range."""

    low: float
    high: float = MOST
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind}, {self.low} or more" if self.high == MOST else f"{kind} from {self.low} to {self.high}"


# The outer bounds of penalties and biases only keep float32 logits from overflowing.
RANGES = {
    "temperature": Range(low=0),
    "top_k": Range(low=0, whole=True),
    "top_p": Range(low=0, high=1),
    "min_p": Range(low=0, high=1),
    "repetition_penalty": Range(low=0.01, high=100),
    "repeat_last_n": Range(low=-1, whole=True),
    "presence_penalty": Range(low=-100, high=100),
    "frequency_penalty": Range(low=-100, high=100),
}
BIAS = Range(low=-10_000, high=10_000)  # far beyond any logit
IDS = Range(low=0, whole=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Every number between a row of logits and the token drawn from it; UsageError for one outside its range."""

    temperature: float = 0.8  # 0 takes the best token
    top_k: int = 40  # 0 is off
    top_p: float = 0.95  # 1 is off
    min_p: float = 0.0  # 0 is off
    repetition_penalty: float = 1.0  # 1 is off
    repeat_last_n: int = -1  # how far back repetition_penalty looks: -1 is the whole context, 0 is off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added); -inf forbids, two for one id add up

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name} must be {allowed}, not {value!r}")
        for id, bias in self.logit_bias:
            if id not in IDS:
                raise UsageError(f"logit_bias names a token by its id, a whole number, 0 or more, not {id!r}")
            if bias != -math.inf and bias not in BIAS:
                raise UsageError(f"logit_bias of token {id} must be -inf or {BIAS}, not {bias!r}")

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken without any draw."""
        return self.temperature == 0
