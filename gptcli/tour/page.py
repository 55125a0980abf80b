"""A page of the tour as a record: facts for the text, and what its picture is drawn from. No torch, no rich."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.params import Account
from gptcli.records import Difference, Lesson

if TYPE_CHECKING:
    from gptcli.records_xray import Scan


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token of a text, and what the model gave it; None for those that were given."""

    raw: bytes
    p: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A prompt and its answer."""

    prompt: tuple[Token, ...]
    answer: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OneByOne:
    """The same, to be shown a token a row."""

    prompt: tuple[Token, ...]
    answer: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercises:
    """The training examples of a text; with lessons also what a step of training did to each."""

    pieces: tuple[str, ...]
    guesses: tuple[str, ...] = ()
    lessons: tuple[Lesson, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """The context, and who stands in it."""

    n_ctx: int
    prompt: tuple[str, ...]
    answer: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """The layers: what each holds, and how far it sees (None: all)."""

    windows: tuple[int | None, ...]
    attention: int  # numbers in a layer's attention
    mlp: int
    other: int
    outside: int  # before and after the layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks:
    """Which positions a query sees, as the model's own mask says: rows are queries, columns keys."""

    n_tokens: int
    step: int  # every so many queries and keys are kept
    kinds: tuple[tuple[int | None, tuple[int, ...], tuple[tuple[bool, ...], ...]], ...]  # window, layers, mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Shots:
    """What a growing number of examples does to the answer."""

    prompts: tuple[str, ...]  # for each number of examples, the whole prompt
    counts: tuple[int, ...]
    answer: str  # the one that the examples ask for
    chances: tuple[float, ...]  # of that answer, all its tokens together
    written: tuple[str, ...]  # what the model wrote, greedy


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    account: Account


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    scan: Scan


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    scan: Scan
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    found: Difference


Picture = Written | OneByOne | Exercises | Tracks | Stack | Masks | Shots | Budget | Grid | Track | Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page. `facts` fill the {names} of its text; `command` shows the same alone."""

    key: str
    facts: Mapping[str, str]
    picture: Picture
    command: str
    seconds: float  # that computing it took
