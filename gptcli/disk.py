"""Files that are there whole or not at all: written beside their place, flushed to the disk, and renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def flush(path: Path) -> None:
    """Has the file or the folder on the disk, not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Everything in a new folder on the disk, with ordinary permissions and not the private ones of temporary files."""
    usual = 0o777 & ~_umask()
    for file in folder.iterdir():
        file.chmod(usual & 0o666)
        flush(file)
    folder.chmod(usual)
    flush(folder)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to. What is there in the end becomes the file; after an error it is as it was.

    A process that is killed meanwhile leaves the place behind: see `sweep`.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o666 & ~_umask())
        flush(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    with suppress(OSError):  # of a folder that cannot be opened, or on a file system that does not flush one
        flush(path.parent)


def sweep(path: Path) -> None:
    """Removes what killed processes left of a file that was to be `whole`, where no other writes it now."""
    for left in path.parent.glob(f".{path.name}.????????.tmp"):
        left.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file whole."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
