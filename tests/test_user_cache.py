"""The user's cache: written whole, believed only if nobody else can have written it, cleared of what nobody uses."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from gptcli.user_cache import UNUSED, digest_of, in_use, is_ours, user_cache, written

DAY = 24 * 3600.0


def aged(file: Path, days: float) -> Path:
    file.write_bytes(b"old")
    then = time.time() - days * DAY
    os.utime(file, (then, then))
    return file


def test_it_lies_where_xdg_says_and_a_relative_place_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache("compiled") == Path("/somewhere/gptcli/compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert user_cache("compiled") == Path.home() / ".cache/gptcli/compiled"


def test_a_digest_is_read_once_and_never_believed_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "weights"
    file.write_bytes(b"numbers")
    right = hashlib.sha256(b"numbers").hexdigest()
    assert digest_of(file) == right
    (noted,) = (tmp_path / "gptcli" / "digests").iterdir()
    noted.write_text("0" * 64)
    assert digest_of(file) == "0" * 64  # so it is read from there
    noted.chmod(0o666)
    assert digest_of(file) == right
    noted.write_text("no digest")
    assert digest_of(file) == right
    file.write_bytes(b"NUMBERS")
    assert digest_of(file) == hashlib.sha256(b"NUMBERS").hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # where no folder can be
    assert digest_of(file) == hashlib.sha256(b"NUMBERS").hexdigest()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "a.bin"
    with pytest.raises(ZeroDivisionError), written(file) as made:
        made.write_bytes(b"half")
        raise ZeroDivisionError
    assert not file.exists() and not [*file.parent.iterdir()]
    with written(file) as made:
        made.write_bytes(b"whole")
        assert not file.exists()
    assert file.read_bytes() == b"whole" and [*file.parent.iterdir()] == [file]
    assert is_ours(file)
    file.chmod(0o666)
    assert not is_ours(file)


def test_a_user_without_a_home_has_no_cache_and_no_folder_called_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    file = user_cache("compiled") / "a.bin"
    assert not is_ours(file)
    with pytest.raises(OSError), written(file):
        pytest.fail("there is nowhere to write to")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_others_could_write_to_becomes_private_and_loses_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    folder.chmod(0o770)
    (folder / "exchanged").write_bytes(b"old")
    with written(folder / "a.bin") as made:
        made.write_bytes(b"new")
    assert is_ours(folder / "a.bin") and [*folder.iterdir()] == [folder / "a.bin"]


def test_a_folder_of_another_user_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user"), written(tmp_path / "a.bin"):
        pytest.fail("it would not be believed")


def test_what_nobody_has_used_for_long_goes_when_something_new_comes(tmp_path: Path) -> None:
    stale, fresh, used = (aged(tmp_path / name, days) for name, days in (("a", 91), ("b", 89), ("c", 91)))
    unfinished = tmp_path / ".making-x"
    unfinished.mkdir()
    (unfinished / "part").write_bytes(b"1")
    then = time.time() - UNUSED - DAY
    os.utime(unfinished, (then, then))
    outside = aged(tmp_path.parent / f"{tmp_path.name}-outside", 0)
    link = tmp_path / "link"
    link.symlink_to(outside)
    os.utime(link, (then, then), follow_symlinks=False)
    in_use(used)
    with written(tmp_path / "new") as made:
        made.write_bytes(b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b", "c", "new"]
    assert fresh.exists() and not stale.exists()
    assert outside.read_bytes() == b"old"  # a link goes, not what it leads to
