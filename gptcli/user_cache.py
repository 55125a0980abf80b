"""What one run computes and a later one finds again: in the user's cache, safe to delete at any time."""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
