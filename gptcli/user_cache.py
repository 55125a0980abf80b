"""What one run computes and a later one finds again: in the user's cache, safe to delete at any time."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNUSED = 90 * 24 * 3600.0  # seconds after which what was not used is cleared away
NOWHERE = Path(os.devnull)  # no folder: nothing is found in it and nothing can be kept there
SHA256 = re.compile("[0-9a-f]{64}")
FOREIGN = stat.S_IWGRP | stat.S_IWOTH


def user_cache(kind: str) -> Path:
    """$XDG_CACHE_HOME/gptcli/KIND, or in ~/.cache; it need not exist. Nowhere for a user without a home."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # the XDG specification says to ignore a relative one
        try:
            home = Path("~/.cache").expanduser()
        except RuntimeError:  # no HOME and no such user
            home = NOWHERE
    return home / "gptcli" / kind


def is_ours(file: Path) -> bool:
    """Whether it is there, and nobody else can write to it or to its folder: what is kept there is run and believed."""
    try:
        found = [file.stat(), file.parent.stat()]
    except OSError:
        return False
    return os.name == "nt" or all(each.st_uid == os.getuid() and not each.st_mode & FOREIGN for each in found)


def in_use(file: Path) -> Path:
    """Notes that a file of the cache was used today, so that it is not cleared away."""
    with suppress(OSError):
        os.utime(file)
    return file


def digest_of(file: Path) -> str:
    """sha256 of a file's contents, read once and remembered by its place, size and times. Raises OSError."""
    found = file.stat()  # the time of the last change cannot be set back, unlike that of the last write
    known = repr((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    noted = user_cache("digests") / hashlib.sha256(known.encode()).hexdigest()[:32]
    with suppress(OSError, ValueError):
        if is_ours(noted) and SHA256.fullmatch(digest := in_use(noted).read_text(encoding="ascii")):
            return digest
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    with suppress(OSError), written(noted) as made:
        made.write_text(digest, encoding="ascii")
    return digest


def _make_private(folder: Path) -> None:
    """Makes a folder that only this user can write to, or makes it so. Raises OSError where it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if os.name != "nt" and found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "the folder belongs to another user", str(folder))
    if os.name != "nt" and found.st_mode & FOREIGN:
        folder.chmod(0o700)
        _clear(folder, math.inf)  # others may have put there, or exchanged, what is believed from now on


def _clear(folder: Path, before: float) -> None:
    """Removes what nobody has used since then, such as code for earlier versions, and what was never finished."""
    with suppress(OSError):
        for entry in folder.iterdir():
            with suppress(OSError):
                if entry.lstat().st_mtime >= before:
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
    _make_private(file.parent)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".making-") as room:
        made = Path(room) / file.name
        yield made
        made.chmod(0o600)
        made.replace(file)
    _clear(file.parent, time.time() - UNUSED)
