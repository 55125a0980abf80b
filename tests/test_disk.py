"""Files are there whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptcli import disk
from gptcli.disk import replace_text, settle, sweep, whole


def test_what_is_written_becomes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_it_is_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), whole(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_ordinary_permissions(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        replace_text(tmp_path / "a.txt", "text")
        (folder := tmp_path / "new").mkdir(mode=0o700)
        (folder / "b.txt").touch(mode=0o600)
        settle(folder)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "a.txt", folder / "b.txt", folder)]
    assert modes == [mode, mode, mode | (mode & 0o444) >> 2]


def test_a_link_that_somebody_laid_is_not_written_through(tmp_path: Path) -> None:
    """In a folder that others write to, the name of what is written first cannot be guessed."""
    names, target = set[str](), tmp_path / "target"
    target.write_text("somebody's")
    for _ in range(2):
        for name in ("a.txt", "a.txt.tmp", ".a.txt.tmp", *names):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(target)
        with whole(tmp_path / "a.txt") as beside:
            names.add(beside.name)
            assert beside.stat().st_mode & 0o777 == 0o600
            beside.write_text("ours")
        assert (tmp_path / "a.txt").read_text() == "ours" and not (tmp_path / "a.txt").is_symlink()
    assert len(names) == 2 and target.read_text() == "somebody's"


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there already: such folders are on networks, or forbid to be listed."""
    true = disk.flush

    def flush(path: Path) -> None:
        if path.is_dir():
            raise PermissionError(13, "Permission denied")
        true(path)

    monkeypatch.setattr(disk, "flush", flush)
    replace_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path: Path) -> None:
    code = "import os, pathlib, sys; from gptcli.disk import whole\nwith whole(pathlib.Path(sys.argv[1])): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"], check=False)
    (tmp_path / ".b.txt.tmp").touch()
    assert len(os.listdir(tmp_path)) == 2
    sweep(tmp_path / "a.txt")
    assert os.listdir(tmp_path) == [".b.txt.tmp"]
