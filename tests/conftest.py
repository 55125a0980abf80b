"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import torch

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
