"""The weights' bytes, read while torch is being imported: the one waits for files, the other keeps a core busy.

Importing torch takes most of a second; meanwhile a thread has the kernel fill memory from the files, without Python in
between. A tensor that runs in the dtype it is stored in then lies where it stays. Only the standard library.
"""

from __future__ import annotations

import mmap
import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from gptcli.errors import BadCheckpoint, OutOfMemory
from gptcli.headers import BITS, TensorInfo
from gptcli.memory import check_fits

if TYPE_CHECKING:
    from gptcli.layout import Layout

AT_ONCE = 512  # tensors that one call of the kernel fills: each return to Python may wait for the import
PAGE = mmap.PAGESIZE


class Ahead:
    """Bytes of tensors on their way into memory, each in pages of its own."""

    def __init__(self, tensors: Iterable[TensorInfo]) -> None:
        self._place, self.nbytes = dict[tuple[Path, str], int](), 0
        files = defaultdict[Path, list[TensorInfo]](list)
        for info in tensors:
            self._place[info.file, info.name] = self.nbytes
            self.nbytes += pages(info.nbytes)
            files[info.file].append(info)
        self._room = mmap.mmap(-1, max(self.nbytes, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._failure: BadCheckpoint | None = None
        self._thread = Thread(target=self._read, args=(files,), daemon=True)
        self._thread.start()

    def take(self, info: TensorInfo) -> memoryview:
        """The bytes of a tensor, to keep or to `drop`; waits for all of them. Raises BadCheckpoint."""
        self._thread.join()
        if self._failure:
            raise self._failure
        return self._view(info)

    def drop(self, info: TensorInfo) -> None:
        """Nobody needs a tensor's bytes any more: the pages go back to the kernel."""
        if info.nbytes and hasattr(self._room, "madvise"):
            self._room.madvise(mmap.MADV_DONTNEED, self._place[info.file, info.name], pages(info.nbytes))

    def _view(self, info: TensorInfo) -> memoryview:
        start = self._place[info.file, info.name]
        return memoryview(self._room)[start : start + info.nbytes]

    def _read(self, files: dict[Path, list[TensorInfo]]) -> None:
        for file, infos in files.items():
            try:
                self._read_file(file, sorted(infos, key=lambda info: info.offset))
            except (OSError, EOFError) as error:
                self._failure = BadCheckpoint(f"{file.name}: cannot be read: {error}")
                return

    def _read_file(self, file: Path, infos: list[TensorInfo]) -> None:
        """Runs of neighbours are read together. infos: in the order of the file."""
        ends = [info.offset + info.nbytes for info in infos]
        run, gaps = 0, list[int]()
        for i, info in enumerate(infos):
            run += i > 0 and (info.offset != ends[i - 1] or i % AT_ONCE == 0)
            gaps.append(run)
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            for _, some in groupby(range(len(infos)), gaps.__getitem__):
                wanted = [infos[i] for i in some]
                fill(handle, [self._view(info) for info in wanted if info.nbytes], wanted[0].offset)
        finally:
            os.close(handle)


def pages(n_bytes: int) -> int:
    """Bytes of the pages that so many take."""
    return -(-n_bytes // PAGE) * PAGE


def fill(handle: int, views: list[memoryview], offset: int) -> None:
    """Reads a file from `offset` on into one view after the other. Raises EOFError where it ends before they do."""
    while views:
        n = os.preadv(handle, views, offset)  # a system may give less than it was asked for: Linux 2 GiB at a time
        if not n:
            raise EOFError("it ends before its last tensor")
        offset += n
        while views and n >= len(views[0]):
            n -= len(views.pop(0))
        if n:
            views[0] = views[0][n:]


def read_ahead(layout: Layout, *, device: str, dtype: str) -> Ahead | None:
    """Begins to read what `load_layout` will ask for; None where that would take more memory than it saves time.

    So it is with weights that are made narrower as they come, for a GPU that was asked for, and where memory is short.
    device "auto" may turn out to be a GPU, which only torch can tell: it is given the weights from where they lie.
    """
    stored, run = BITS[layout.dtype], {"float32": 32, "bfloat16": 16, "float16": 16}.get(dtype, BITS[layout.runs_as()])
    if device not in ("auto", "cpu") or stored > run or not hasattr(os, "preadv"):
        return None
    try:
        check_fits(layout.config.n_params() * run // 8, what="the weights")
    except OutOfMemory:
        return None  # who loads them says so
    return Ahead(placement.tensor for placement in layout.placements)
