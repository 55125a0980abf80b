"""What a run keeps can be killed, damaged and filled up: the last good save is always there."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from gptcli.errors import BadCheckpoint, GptcliError, NotFound
from gptcli.saves import alone, drop_damaged, newest, publish, read_json, write_save

STATE = {"a:exp_avg": torch.arange(6.0).view(2, 3), "a:step": torch.tensor(4.0)}


def model(text: str) -> object:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(text)
        (folder / "config.json").write_text("{}")

    return write


def saved(run: Path, step: int, text: str = "weights") -> Path:
    return write_save(run, STATE, model(text), step=step, n_tokens=step * 10, n_bytes=1000)  # type: ignore[arg-type]


def test_a_save_comes_back_as_it_was(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    found = newest(tmp_path)
    assert found and (found.step, found.n_tokens) == (5, 50)
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)
    assert (tmp_path / "LATEST").read_text() == "step-0000005\n"


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saved(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["step-0000002", "step-0000003"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "manifest is no JSON"])
def test_a_damaged_save_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    saved(tmp_path, 1)
    folder = saved(tmp_path, 2)
    file = folder / "model.safetensors"
    if damage == "truncated":
        file.write_text("weigh")
    elif damage == "flipped":
        file.write_text("wEights")
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("[" * 9000)
    found = newest(tmp_path)
    assert found and found.step == 1 and len(found.skipped) == 1 and "step-0000002: " in found.skipped[0]


def test_if_all_are_damaged_it_says_what_is_wrong(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    (folder / "model.safetensors").write_text("x")
    with pytest.raises(BadCheckpoint, match=r"step-0000002: model.safetensors has 1 bytes of 7"):
        newest(tmp_path)


def test_what_a_killed_process_left_is_no_save_and_goes(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for name in ("step-0000002.tmp", ".step-0000002.tmp.x7f"):
        (tmp_path / "steps" / name).mkdir()
    found = newest(tmp_path)
    assert found and found.step == 1
    saved(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["step-0000001", "step-0000002"]


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(GptcliError, match="a save takes .* are free on the disk"):
        write_save(tmp_path, STATE, model("x"), step=2, n_tokens=0, n_bytes=1 << 60)  # type: ignore[arg-type]
    found = newest(tmp_path)
    assert found and found.step == 1


def test_a_write_that_fails_leaves_the_last_save(tmp_path: Path) -> None:
    saved(tmp_path, 1)

    def full(folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(GptcliError, match="step 2 cannot be saved in .*: No space left on device"):
        write_save(tmp_path, STATE, full, step=2, n_tokens=0, n_bytes=10)
    found = newest(tmp_path)
    assert found and found.step == 1
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["step-0000001"]


def test_the_published_model_is_whole_and_outlives_its_save(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (1, 2, 3, 4):
        publish(saved(out / "run", step, f"weights {step}"), out)
    assert (out / "model.safetensors").read_text() == "weights 4"
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json", "run"}


def test_a_published_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a name that was renamed too soon holds nothing."""
    save, out, flushed = saved(tmp_path / "run", 1), tmp_path / "out", dict[str, set[str]]()
    monkeypatch.setattr("gptcli.saves.flush", lambda path: flushed.update({path.name: {p.name for p in out.iterdir()}}))
    publish(save, out)
    for name in ("config.json", "model.safetensors"):
        assert f".{name}.tmp" in flushed and name not in flushed[f".{name}.tmp"] and name in flushed["out"]


def test_a_published_file_that_is_edited_leaves_the_save_as_it_was(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", 1)
    publish(folder, tmp_path)
    (tmp_path / "config.json").write_text('{"another": 1}')
    found = newest(tmp_path / "run")
    assert found and found.step == 1 and not found.skipped
    shutil.rmtree(folder)
    with pytest.raises(BadCheckpoint, match="the saves of this run are gone"):
        newest(tmp_path / "run")


def test_no_file_of_a_save_is_a_pickle(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    names = {p.name for p in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "optimizer.safetensors", "state.json", "manifest.json"}
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == names - {"manifest.json"}


def test_a_run_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="recipe.json is not there"):
        read_json(tmp_path / "recipe.json")


def test_what_the_optimizers_remembered_is_not_held_in_memory(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    found = newest(tmp_path)
    assert found and found.state is not found.state
    assert not [value for value in vars(found).values() if isinstance(value, dict)]


def test_the_folder_of_a_run_is_held_once_and_let_go(tmp_path: Path) -> None:
    run = tmp_path / "m" / "run"
    with alone(run), pytest.raises(GptcliError, match="a process is training in .*m already"), alone(run):
        pass
    with alone(run):
        pass


def test_a_file_system_without_locks_is_trained_on_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()

    def none(*words: object) -> None:
        asked.append(words)
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with alone(tmp_path / "run"):
        saved(tmp_path / "run", 1)
    assert len(asked) == 1 and newest(tmp_path / "run")


def test_the_newest_is_the_one_with_the_most_steps_however_many_digits(tmp_path: Path) -> None:
    for step in (9_999_998, 9_999_999, 10_000_000):
        saved(tmp_path, step)
    found = newest(tmp_path)
    assert found is not None and found.step == 10_000_000
    assert {p.name for p in (tmp_path / "steps").iterdir()} == {"step-9999999", "step-10000000"}


def test_a_run_that_fell_back_keeps_its_two_newest_sound_saves(tmp_path: Path) -> None:
    for step in (100, 200):
        saved(tmp_path, step)
    (tmp_path / "steps" / "step-0000200" / "model.safetensors").write_text("x")
    found = newest(tmp_path)
    assert found and found.step == 100
    drop_damaged(tmp_path, found)
    saved(tmp_path, 150)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["step-0000100", "step-0000150"]
