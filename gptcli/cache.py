"""The KV cache: keys and values of earlier tokens, so that each new token is computed once.

Buffers are laid out for the whole run at the start. A layer with a window keeps little more than its window.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gptcli.config import Config, Rope

SLACK = 64  # rows beyond the window, so that a banded layer's rows move to the front once in 64 tokens, not every token


class Keys:
    """Keys and values of one layer, [B, K, rows, D]; the newest end at `end`."""

    lengths: Tensor | None = None  # all rows are as long as each other
    runs: list[tuple[int, int]] | None = None  # and need not be told apart

    def __init__(self, k: Tensor, window: int | None) -> None:
        self.k, self.v = k, torch.empty_like(k)
        self.window, self.end = window, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T new ones and hands back all that any of the T may see, oldest first. [B, K, T, D] -> [B, K, S, D]."""
        T, rows = k.shape[2], self.k.shape[2]
        past = self.end if self.window is None else min(self.end, self.window - 1)  # how many the oldest query sees
        if self.end + T > rows:  # only with a window: the rows still visible move to the front
            old_k, old_v = (t[:, :, self.end - past : self.end].clone() for t in (self.k, self.v))
            if past + T > rows:  # more at once than the buffer holds: attend over the whole, keep its tail
                k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
                self.end = rows - SLACK
                self.k[:, :, : self.end], self.v[:, :, : self.end] = k[:, :, -self.end :], v[:, :, -self.end :]
                return k, v
            self.k[:, :, :past], self.v[:, :, :past], self.end = old_k, old_v, past
        first, start, self.end = self.end - past, self.end, self.end + T
        self.k[:, :, start : self.end], self.v[:, :, start : self.end] = k, v
        return self.k[:, :, first : self.end], self.v[:, :, first : self.end]

    def room(self, window: int | None, T: int = 1) -> tuple[Tensor, Tensor]:
        """What T new ones will see, their own places last and not yet filled, [B, K, S, D] twice.

        window: the layer's, which a short run's buffers need not know. T is at most SLACK, and there is room for them.
        """
        past = self.end if window is None else min(self.end, window - 1)
        if self.end + T > self.k.shape[2]:
            for t in (self.k, self.v):
                t[:, :, :past] = t[:, :, self.end - past : self.end].clone()
            self.end = past
        self.end += T
        first = self.end - past - T
        return self.k.narrow(2, first, past + T), self.v.narrow(2, first, past + T)


class Cache:
    """One text, or a batch of texts of equal length, as far as it was computed."""

    def __init__(
        self, config: Config, capacity: int, *, batch: int = 1, device: torch.device | str = "cpu", dtype: torch.dtype
    ) -> None:
        self.capacity, self.n_seen = capacity, 0
        self.device, self.dtype = torch.device(device), dtype
        self.angles: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        self._ropes = {layer.rope for layer in config.layers if layer.rope}
        self.layers = []
        for layer in config.layers:
            window = layer.window if layer.window and layer.window + SLACK < capacity else None
            rows = window + SLACK if window else capacity
            shape = (batch, rows, config.n_kv_head, config.d_head)  # a token's numbers lie together, however many rows
            self.layers.append(Keys(torch.empty(shape, device=device, dtype=dtype).transpose(1, 2), window))

    def where(self, T: int) -> slice:
        """Positions of the next T tokens."""
        return slice(self.n_seen, self.n_seen + T)

    def advance(self, T: int) -> None:
        """T more are seen."""
        self.n_seen += T

    def outgrown(self, n_seen: int) -> bool:
        """Whether a text of this length is computed with other frequencies, so that all of it must be computed anew."""
        return self.n_seen > 0 and any(rope.regime(self.n_seen) != rope.regime(n_seen) for rope in self._ropes)

    def back_to(self, n_seen: int) -> bool:
        """Forgets the newest tokens, so that `n_seen` are left; does nothing and says False where a window moved on."""
        n = self.n_seen - n_seen
        if any(
            keys.end - n < (n_seen if keys.window is None else min(n_seen, keys.window - 1)) for keys in self.layers
        ):
            return False
        self.n_seen = n_seen
        for keys in self.layers:
            keys.end -= n
        return True

    def clear(self) -> None:
        """Forgets the text and keeps the buffers."""
        self.n_seen = 0
        self.angles.clear()
        for keys in self.layers:
            keys.end = 0

    def copy(self) -> Cache:
        """A twin that goes its own way from here."""
        twin = copy.copy(self)
        twin.angles = dict(self.angles)
        twin.layers = [copy.copy(keys) for keys in self.layers]
        for keys in twin.layers:  # what is not filled yet is not touched: a context may be long, and a text short
            keys.k, keys.v = (_copied(t, keys.end) for t in (keys.k, keys.v))
        return twin


def _copied(t: Tensor, end: int) -> Tensor:
    """The first rows in a buffer of the same layout."""
    twin = torch.empty_like(t)
    twin[:, :, :end] = t[:, :, :end]
    return twin
