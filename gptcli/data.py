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
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
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
