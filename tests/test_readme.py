"""The README's commands are those that are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import gptcli
from gptcli import FAMILIES
from gptcli.cli import program, with_default

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(python3 .*)\n```", README)


def test_two_commands_do_all_the_set_up() -> None:
    install, test = COMMANDS
    assert "gptcli " in install.rpartition("&&")[2]
    assert test.endswith("&& pytest")


def test_ci_runs_the_test_command_exactly_as_it_is_printed() -> None:
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("fails", ["python3", "pip", "pytest"])
def test_ci_ends_where_a_part_of_the_test_command_fails(fails: str, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "said").touch()
    shutil.copyfile(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    makes = 'mkdir -p .venv/bin && : > .venv/bin/activate && echo "$*" >> said'
    for name in ("python3", "pip", "pytest", "ruff", "mypy"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{'exit 3' if name == fails else makes}\n")
        program.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", str(tmp_path / ".ci" / "run")], env=env, capture_output=True, timeout=60)
    assert done.returncode and "slow" not in (tmp_path / "said").read_text()


def test_constraints_pin_everything_that_is_installed_by_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["test"], *extras["bench"]]
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {re.match(r"[\w-]+", name)[0] for name in named} <= set(pinned)  # type: ignore[index]


def test_every_option_of_a_command_that_is_printed_is_known_to_it() -> None:
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    printed = [line.partition("gptcli ")[2].partition("  #")[0] for line in blocks.splitlines() if "gptcli " in line]
    commands = get_command(program()).commands  # type: ignore[attr-defined]
    seen = set[str]()
    for text in printed:
        words = with_default(shlex.split(text.partition(" # ")[0]))
        name = words[0] if words[0] in commands else "generate"
        known = {option for p in commands[name].params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        given = {re.split("=", word)[0] for word in words[1:] if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert given <= known, (text, given - known)
        seen.add(name)
    assert len(seen) > 12 and len(printed) > 40


def test_every_family_is_listed() -> None:
    listed = README.partition("## What runs")[2].partition(":")[0].replace("\n", " ").split(",")
    assert [name.strip() for name in listed] == list(FAMILIES)


def test_every_module_has_its_line() -> None:
    tree = README.partition("## Where things are")[2]
    for path in Path(gptcli.__file__).parent.glob("[!_]*.py"):
        if path.name not in ("errors.py", "memory.py", "model_choice.py"):  # their names say it
            assert path.name in tree, path.name


def test_pictures_that_are_shown_are_there() -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README):
        assert (ROOT / name).read_text().startswith("<svg")
