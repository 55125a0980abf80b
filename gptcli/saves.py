"""What a training run keeps on the disk, so that it can be killed at any moment and go on.

    OUT/                    the model as last saved, in Hugging Face layout; metrics.jsonl; loss.svg
    OUT/run/                what it takes to go on; nothing needs it once the run has ended
        recipe.json         the recipe, and how it was asked for
        tokens.bin ...      the text, see corpus.py
        steps/step-0000100  a save: the model, optimizer.safetensors, state.json, manifest.json last
        LATEST              the name of the newest
        lock                held by the process that trains here

A save is written beside its place, flushed to the disk, and renamed; the two newest are kept. One is trusted only if
every file in its manifest has the size and the sha256 that it had. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptcli.disk import flush, replace_text, settle
from gptcli.errors import BadCheckpoint, GptcliError, NotFound
from gptcli.memory import human
from gptcli.strict_json import read_object

KEEP = 2
LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Save:
    """A save that was verified."""

    folder: Path
    step: int  # steps done
    n_tokens: int  # predicted so far
    skipped: tuple[str, ...] = ()  # newer ones that are damaged, and how

    @property
    def state(self) -> dict[str, Tensor]:
        """What the optimizers remembered, read anew: it is twice as large as the weights, and not held for nothing."""
        with safe_open(self.folder / "optimizer.safetensors", framework="pt", backend="pread") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def write_save(
    run: Path,
    state: Mapping[str, Tensor],
    write_model: Callable[[Path], None],
    *,
    step: int,
    n_tokens: int,
    n_bytes: int,
) -> Path:
    """Writes a save and returns its folder. `n_bytes`: about what it takes; asked for before anything is written.

    Raises GptcliError when the disk is full; the saves before it are as they were.
    """
    steps = run / "steps"
    folder = steps / f"step-{step:07d}"
    temporary = folder.with_suffix(".tmp")
    try:
        steps.mkdir(parents=True, exist_ok=True)
        for left in set(steps.iterdir()) - set(_finished(steps)):  # by a process that was killed while it saved
            shutil.rmtree(left, ignore_errors=True)
        free = shutil.disk_usage(steps).free
        if free < n_bytes:
            raise GptcliError(
                f"a save takes {human(n_bytes)} and {human(free)} are free on the disk of {steps}",
                hint="make room and go on with --resume" + "; the last save is intact" * bool(_finished(steps)),
            )
        write_model(temporary)
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary / "optimizer.safetensors")
        _write(temporary / "state.json", {"step": step, "n_tokens": n_tokens})
        files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())}
        _write(temporary / "manifest.json", {"step": step, "files": files, "versions": versions()})
        settle(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        flush(steps)
        replace_text(run / "LATEST", folder.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GptcliError(
            f"step {step} cannot be saved in {steps}: {reason}", hint="make room and go on with --resume"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _finished(steps)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def newest(run: Path) -> Save | None:
    """The newest save that verifies; None where there is none yet. Raises BadCheckpoint if all are damaged or gone."""
    steps = run / "steps"
    faults = list[str]()
    for folder in reversed(_finished(steps)):
        fault = _fault(folder)
        if fault is None:
            values = read_object(folder / "state.json")
            return Save(folder=folder, step=values["step"], n_tokens=values["n_tokens"], skipped=tuple(faults))
        faults.append(f"{folder.name}: {fault}")
    if faults:
        raise BadCheckpoint(f"no save in {steps} is sound: {'; '.join(faults)}", hint="start again in a new folder")
    if (run / "LATEST").exists():
        raise BadCheckpoint(f"the saves of this run are gone from {steps}", hint="start again in a new folder")
    return None


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder; the system lets go when this one ends, however it ends.

    The folder is made if it is not there. Raises GptcliError where one is training there already.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("w")
    except OSError as error:
        raise GptcliError(f"{run} cannot be written: {error.strerror or error}") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GptcliError(
                f"a process is training in {run.parent} already", hint="wait for it, or stop it"
            ) from None
        except (ImportError, OSError):  # Windows, or a file system that has no locks
            pass
        yield


def clear(run: Path) -> None:
    """Removes what a run that never began has left; not the lock, which is held."""
    for left in run.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != LOCK:
            left.unlink()


def drop_damaged(run: Path, found: Save) -> None:
    """Removes the saves that `newest` had to skip, which would count among the newest that are kept."""
    for folder in _finished(run / "steps"):
        if _step(folder) > found.step:
            shutil.rmtree(folder, ignore_errors=True)


def _finished(steps: Path) -> list[Path]:
    """The saves that were renamed to their place, oldest first."""
    found = steps.iterdir() if steps.is_dir() else ()
    return sorted((p for p in found if re.fullmatch(r"step-\d{7,}", p.name)), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def publish(save: Path, out: Path) -> None:
    """Makes a save's model the one that OUT holds: file by file, each of them whole, the weights last."""
    out.mkdir(parents=True, exist_ok=True)
    own = ("manifest.json", "state.json", "optimizer.safetensors")
    for file in sorted(save.iterdir(), key=lambda p: (p.suffix == ".safetensors", p.name)):
        if file.name in own:
            continue
        beside = out / f".{file.name}.tmp"
        beside.unlink(missing_ok=True)
        if file.suffix != ".safetensors":  # people edit the small files in place; the save is to stay as it is
            shutil.copyfile(file, beside)
        else:
            try:
                os.link(file, beside)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, beside)
        flush(beside)
        beside.replace(out / file.name)
        beside.unlink(missing_ok=True)  # of two names of one file a rename leaves both
    flush(out)


def read_json(path: Path) -> dict[str, Any]:
    """A file of the run. Raises NotFound or BadCheckpoint."""
    if not path.is_file():
        raise NotFound(f"{path} is not there", hint="--resume goes on with the run in --out")
    return read_object(path)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {}
    for name in ("gptcli", "torch", "tokenizers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _fault(folder: Path) -> str | None:
    """What is wrong with a save; None if its manifest verifies."""
    try:
        files = read_object(folder / "manifest.json")["files"]
        for name, expected in files.items():
            path = folder / Path(name).name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes of {expected['size']}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is damaged"
    except (OSError, GptcliError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
