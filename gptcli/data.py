"""Batches: what each step of a training run shows, as a function of (seed, step) alone.

The text is one row of ids. An epoch cuts it into windows of n_ctx + 1, each sharing one id with the next, at an offset
of its own, and shows them in an order of its own. No window reaches over the border to the validation part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gptcli.corpus import Tokens, check_length
from gptcli.errors import BadCheckpoint, GptcliError
from gptcli.pairs import Pair
from gptcli.tokens import Tokenizer

GUARDS = ("\n", "0", "a")  # whatever a text begins with, one of them is not joined to it
IGNORED = -100  # labels that are not learned, as everywhere in this field


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is shown, [B, T], and the right next token at each position, [B, T]; IGNORED where none is asked for."""

    ids: Tensor
    labels: Tensor


class Batches(Protocol):
    """Where training and validation batches come from."""

    def train(self, start: int, stop: int) -> Batch:
        """The sequences numbered start to stop - 1 of the run."""

    def validation(self) -> Sequence[Batch]:
        """The same few batches every time; none if there is no validation part."""


class Windows:
    """Batches out of tokens.bin, which stays on the disk: the file is mapped, and a window is read when it is shown."""

    def __init__(self, folder: Path, tokens: Tokens, *, n_ctx: int, seed: int, n_validation: int = 64) -> None:
        kind = torch.uint16 if tokens.bytes_per_id == 2 else torch.uint32
        path = folder / "tokens.bin"
        if not path.is_file() or path.stat().st_size != tokens.n * tokens.bytes_per_id:
            raise BadCheckpoint(f"{path} is damaged", hint="start again in a new folder")
        if sys.byteorder == "big":
            raise GptcliError("tokens.bin is little-endian, and this machine is not")
        self._ids = torch.from_file(str(path), shared=False, size=tokens.n, dtype=kind)
        self._n_train, self._n_ctx, self._seed, self._n_validation = tokens.n_train, n_ctx, seed, n_validation
        check_length(tokens, n_ctx)
        self.n_windows = (tokens.n_train - 1) // n_ctx
        # one window is given up, so that every offset below n_ctx leaves the same number
        self._slack = n_ctx if self.n_windows > 1 else (tokens.n_train - 1) % n_ctx + 1
        self.n_windows -= self.n_windows > 1
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> tuple[int, Tensor]:
        """(offset, order of the windows) of an epoch."""
        generator = _rng(self._seed, epoch)
        offset = int(torch.randint(self._slack, (), generator=generator))
        return offset, torch.randperm(self.n_windows, generator=generator)

    def start_of(self, sequence: int) -> int:
        """Where in the text the window of the run's n-th sequence begins."""
        epoch, i = divmod(sequence, self.n_windows)
        offset, order = self._order(epoch)
        return offset + int(order[i]) * self._n_ctx

    def _windows(self, starts: Sequence[int]) -> Batch:
        ids = torch.stack([self._ids[s : s + self._n_ctx + 1].to(torch.int64) for s in starts])
        return Batch(ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())

    def train(self, start: int, stop: int) -> Batch:
        return self._windows([self.start_of(i) for i in range(start, stop)])

    def validation(self) -> list[Batch]:
        rest = len(self._ids) - self._n_train - 1
        n = rest // self._n_ctx
        if 1 <= rest < self._n_ctx:  # less than one window: it is shown as it is
            ids = self._ids[self._n_train :].to(torch.int64)[None]
            return [Batch(ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())]
        chosen = torch.linspace(0, n - 1, min(n, self._n_validation)).long().tolist() if n > 0 else []
        starts = [self._n_train + i * self._n_ctx for i in dict.fromkeys(chosen)]
        return [self._windows(starts[i : i + 16]) for i in range(0, len(starts), 16)]


class Pairs:
    """Batches of prompts and completions, each pair a row of its own that ends with the end token; prompts are masked.

    An epoch shows every pair once, in an order of its own. Rows are padded on the right to the longest of the batch.
    """

    def __init__(self, train: Sequence[Encoded], validation: Sequence[Encoded], *, seed: int) -> None:
        self._train, self._validation, self._seed = train, validation, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> Tensor:
        return torch.randperm(len(self._train), generator=_rng(self._seed, epoch))

    def train(self, start: int, stop: int) -> Batch:
        places = (divmod(i, len(self._train)) for i in range(start, stop))
        return padded([self._train[int(self._order(epoch)[i])] for epoch, i in places])

    def validation(self) -> list[Batch]:
        return [padded(self._validation[i : i + 32]) for i in range(0, min(256, len(self._validation)), 32)]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A pair as ids; the first `n_prompt` of them are given."""

    ids: tuple[int, ...]
    n_prompt: int


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, *, end_id: int, start_id: int | None) -> list[Encoded]:
    """The prompt by itself, as `generate` will meet it, and the completion as what follows it.

    An empty prompt begins with the start token, and its completion is a text of its own.
    """
    found = []
    for pair in pairs:
        prompt = tokenizer.encode(pair.prompt)
        if not prompt and start_id is not None:
            prompt = [start_id]
        alone = not pair.prompt
        completion = tokenizer.encode(pair.completion, bos=False) if alone else _continued(tokenizer, pair.completion)
        found.append(Encoded(ids=(*prompt, *completion, end_id), n_prompt=len(prompt)))
    return found


def _continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that follows another: some tokenizers put a space before a text that they get by itself.

    So it is encoded behind another character, whose own ids are then cut off.
    """
    ids = tokenizer.encode(text, bos=False)
    if b"".join(map(tokenizer.raw, ids)) == text.encode():
        return ids
    for guard in GUARDS:
        before, both = tokenizer.encode(guard, bos=False), tokenizer.encode(guard + text, bos=False)
        if both[: len(before)] == before:
            return both[len(before) :]
    return ids


def padded(rows: Sequence[Encoded]) -> Batch:
    """Rows side by side, the shorter ones filled up with what is neither seen nor learned."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        learned = ids[i, max(1, row.n_prompt) : len(row.ids)]
        labels[i, max(1, row.n_prompt) - 1 : len(row.ids) - 1] = learned
    return Batch(ids=ids[:, :-1].contiguous(), labels=labels[:, :-1].contiguous())


def _rng(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
