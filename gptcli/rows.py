"""The KV cache of many texts at once, each of its own length: one row each, and all rows end at the same column.

    row 0   . . . . O n c e   u p o n        a row's text stands at the right; what is left of it is never looked at
    row 1   A   r o b o t   m u s t
    row 2   . . . . . . . T o   b e          one step writes one column, for all rows alike

So a new token costs one write and no gathering, a window is the same columns for all rows, and a text that has ended
makes place for another, which is copied in from the cache in which its prompt was computed.

Rows of different lengths go through attention together, what is left of a text being masked; or, where each text is to
get the very numbers that it gets alone (alike.py), apart, but for neighbours of one length.

    B rows   K kv heads   S columns looked at   D head dim
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from gptcli.cache import SLACK, Cache, Keys
from gptcli.config import Config, Rope
from gptcli.memory import check_fits


class RowKeys:
    """Keys and values of one layer, [B, K, columns, D]; the newest column is before `end`."""

    def __init__(self, k: Tensor, window: int | None) -> None:
        self.k, self.v, self.end = k, torch.zeros_like(k), 0
        self.window = window
        self.longest = 0  # tokens of the longest row
        self.lengths: Tensor | None = None  # tokens of each row with the newest, [B]; None where all are alike
        self.runs: list[tuple[int, int]] | None = None  # apart: neighbours of one length, how many rows, tokens

    @property
    def past(self) -> int:
        """How many columns the next token looks back on."""
        return self.longest if self.window is None else min(self.longest, self.window - 1)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a column and hands back all that a row may see, oldest first. [B, K, 1, D] -> [B, K, S, D]."""
        past = self.past
        if self.end == self.k.shape[2]:
            self._lay(keep=past, end=past)
        first, self.end = self.end - past, self.end + 1
        self.k[:, :, self.end - 1 : self.end], self.v[:, :, self.end - 1 : self.end] = k, v
        return self.k[:, :, first : self.end], self.v[:, :, first : self.end]

    def join(self, row: int, keys: Keys, n: int) -> None:
        """Another text, of n tokens, takes over a row."""
        n = n if self.window is None else min(n, self.window - 1)
        if self.end < n:
            self._lay(keep=self.end, end=n)
        for ours, theirs in ((self.k, keys.k), (self.v, keys.v)):
            ours[row, :, self.end - n : self.end] = theirs[0, :, keys.end - n : keys.end]

    def _lay(self, *, keep: int, end: int) -> None:
        """New buffers, in which the newest columns end at `end`, with as much room behind it."""
        B, K, _, D = self.k.shape
        shape = (B, K, 2 * end + SLACK, D)
        check_fits(2 * B * K * shape[2] * D * self.k.itemsize, self.k.device, what=f"the keys of {B} texts")
        old, self.k, self.v = (self.k, self.v), self.k.new_zeros(shape), self.k.new_zeros(shape)
        for before, now in zip(old, (self.k, self.v), strict=True):
            now[:, :, end - keep : end] = before[:, :, self.end - keep : self.end]
        self.end = end


class Rows:
    """Many texts, as far as they were computed; every step adds one token to each."""

    def __init__(
        self,
        config: Config,
        batch: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype,
        apart: bool = False,
    ) -> None:
        self.lengths, self.apart = [0] * batch, apart
        self.capacity = config.n_ctx
        self.angles: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._device = device
        shape = (batch, config.n_kv_head, 0, config.d_head)
        self.layers = [RowKeys(torch.zeros(shape, device=device, dtype=dtype), layer.window) for layer in config.layers]

    @property
    def n_seen(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    def outgrown(self, n_seen: int) -> bool:
        """Never: a text that would be is not to be put here."""
        return False

    def where(self, T: int) -> Tensor:
        """The position of each row's next token, [B, 1]; gets ready for a pass, of one token a row."""
        if T != 1:
            raise ValueError(f"rows take one token each at a time, not {T}")
        lengths = torch.tensor(self.lengths, device=self._device)
        alike = self.apart or min(self.lengths) == self.n_seen
        runs = [(len(list(some)), n + 1) for n, some in groupby(self.lengths)] if self.apart else None
        for keys in self.layers:
            keys.longest, keys.lengths, keys.runs = self.n_seen, None if alike else lengths + 1, runs
        return lengths[:, None]

    def advance(self, T: int) -> None:
        """T more are seen, in each row."""
        self.lengths = [n + T for n in self.lengths]

    @torch.inference_mode()
    def join(self, row: int, cache: Cache) -> None:
        """The text of `cache`, computed alone, takes over a row."""
        for keys, new in zip(self.layers, cache.layers, strict=True):
            keys.join(row, new, cache.n_seen)
        self.lengths[row] = cache.n_seen

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """One row less: the last one takes its place."""
        last = len(self.lengths) - 1
        for keys in self.layers if row != last else ():
            for t in (keys.k, keys.v):
                t[row] = t[last]
        self.lengths[row] = self.lengths[last]
        self.only(last)

    def only(self, n: int) -> None:
        """The first n rows stay."""
        for keys in self.layers:
            keys.k, keys.v = keys.k[:n], keys.v[:n]
        del self.lengths[n:]
