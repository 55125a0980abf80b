"""Numbers by index without torch and without numpy: what a saved trace holds, read where it lies."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = {"F64": "d", "F32": "f", "F16": "e", "I32": "i", "I64": "q"}  # as safetensors calls them -> as struct does


@dataclass(frozen=True, slots=True)
class Table:
    """Little-endian numbers in row order. table[i, j, k] is a number; with one index fewer, a tuple."""

    kind: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __post_init__(self) -> None:
        if len(self.data) != math.prod(self.shape) * struct.calcsize(KINDS[self.kind]):
            raise ValueError(f"{len(self.data)} bytes are no {self.kind} numbers in the shape {self.shape}")

    def __getitem__(self, index: int | tuple[int, ...]) -> int | float | tuple[int | float, ...]:
        index = (index,) if isinstance(index, int) else index
        return self.number(*index) if len(index) == len(self.shape) else self.row(*index)

    def number(self, *index: int) -> float:
        """One number; all indices given. A whole one is an int."""
        at = self._offset(index)
        found: float = struct.unpack_from("<" + KINDS[self.kind], self.data, at * struct.calcsize(KINDS[self.kind]))[0]
        return found

    def whole(self, *index: int) -> int:
        """The same where the table holds ids or counts."""
        return int(self.number(*index))

    def row(self, *index: int) -> tuple[float, ...]:
        """The last axis at the indices of all others."""
        n = self.shape[-1]
        at = self._offset((*index, 0)) if n else 0
        return struct.unpack_from(f"<{n}{KINDS[self.kind]}", self.data, at * struct.calcsize(KINDS[self.kind]))

    def ids(self, *index: int) -> tuple[int, ...]:
        """The same where the table holds ids."""
        return tuple(int(x) for x in self.row(*index))

    def column(self, *index: int) -> tuple[float, ...]:
        """The first axis at the indices of all others."""
        return tuple(self.number(i, *index) for i in range(self.shape[0]))

    def rows(self) -> Iterator[tuple[float, ...]]:
        """Of a table of two axes, its rows."""
        return (self.row(i) for i in range(self.shape[0]))

    def nested(self) -> list[object]:
        """Lists in lists."""
        return self._nested(())

    def _nested(self, index: tuple[int, ...]) -> list[object]:
        if len(index) == len(self.shape) - 1:
            return list(self.row(*index))
        return [self._nested((*index, i)) for i in range(self.shape[len(index)])]

    def _offset(self, index: tuple[int, ...]) -> int:
        if len(index) != len(self.shape):
            raise IndexError(f"{len(index)} indices for {len(self.shape)} axes")
        at = 0
        for i, n in zip(index, self.shape, strict=True):
            if not -n <= i < n:
                raise IndexError(f"index {i} of an axis of {n}")
            at = at * n + i % n
        return at
