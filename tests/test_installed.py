"""What pyproject.toml asks for is enough: every kind of command, with the test extras out of reach."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from programs import environment

COMMANDS = [
    ["generate", "a cat", "-n", "2", "-q"],
    ["generate", "a cat", "-n", "2", "-q", "--quantize", "int8"],
    ["score", "a cat sat"],
    ["xray", "a cat", "--save", "a.xray"],
    ["new", "nano", "--out", "new"],
    ["merge", "shipped", "react", "--out", "merged"],
    ["train", "text.txt", "--out", "run", "--size", "nano", "--steps", "2", "--vocab", "300", "--no-compile"],
    ["finetune", "shipped", "text.txt", "--lora", "2", "--steps", "2", "--out", "adapter", "--no-compile"],
    ["diff", "shipped", "merged"],
]
PROGRAM = """
import sys

for name in sys.argv[1].split():
    sys.modules[name] = None  # as if it were not installed
from gptcli.cli import run

for line in sys.stdin.read().splitlines():
    code = run(line.split("\\t"))
    assert code == 0, (line, code)
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> set[str]:
    """The distributions that an installation without extras brings."""
    found, waiting = set[str](), ["gptcli"]
    while waiting:
        name = plain(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            asked = requires(name) or []
        except PackageNotFoundError:  # for another system
            continue
        waiting += [re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0] for each in asked if "extra ==" not in each]
    return found


@pytest.mark.slow
def test_commands_run_on_what_the_package_itself_depends_on(tmp_path: Path) -> None:
    here = packages_distributions()
    others = [name for name, owners in here.items() if not {plain(owner) for owner in owners} & needed()]
    assert "transformers" in others and "torch" not in others
    (tmp_path / "text.txt").write_text("A cat sat on a mat, and a dog sat on a log. " * 200)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, " ".join(others)],
        input="\n".join("\t".join(words) for words in COMMANDS),
        capture_output=True, text=True, cwd=tmp_path, env=environment({"XDG_CACHE_HOME": str(tmp_path / "cache")}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
