"""What one run computes and a later one finds again: in the user's cache, safe to delete at any time."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNUSED = 90 * 24 * 3600.0  # seconds after which what was not used is cleared away


def user_cache(kind: str) -> Path:
    """$XDG_CACHE_HOME/gptcli/KIND, or in ~/.cache; it need not exist."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification says to ignore a relative one
    return (home if home.is_absolute() else Path("~/.cache").expanduser()) / "gptcli" / kind


def is_ours(file: Path) -> bool:
    """Whether it is there, and nobody else can write to it or to its folder: what is kept there is run and believed."""
    try:
        found = [file.stat(), file.parent.stat()]
    except OSError:
        return False
    foreign = stat.S_IWGRP | stat.S_IWOTH
    return os.name == "nt" or all(each.st_uid == os.getuid() and not each.st_mode & foreign for each in found)


def in_use(file: Path) -> Path:
    """Notes that a file of the cache was used today, so that it is not cleared away."""
    with suppress(OSError):
        os.utime(file)
    return file


def clear_unused(folder: Path) -> None:
    """Removes what nobody has used for a long time, such as code for earlier versions, and what was never finished."""
    limit = time.time() - UNUSED
    with suppress(OSError):
        for entry in folder.iterdir():
            with suppress(OSError):
                if entry.lstat().st_mtime >= limit:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """A path to write to; what is there in the end becomes the file, for this user alone, whole or not at all.

    What lies in the same folder unused makes room.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".making-") as room:
        made = Path(room) / file.name
        yield made
        made.chmod(0o600)
        made.replace(file)
    clear_unused(file.parent)
