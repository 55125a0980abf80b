"""What `python -m benchmarks` runs, and what stands above it; the figures themselves are measured by hand."""

from __future__ import annotations

import json
import re
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as program
from benchmarks import decode, machine, start, worker, xray

SLOW_START = {
    start.IMPORT: ["-c", "import time; time.sleep(0.3)"],
    start.FIRST: ["-c", "import time; print('a', flush=True); time.sleep(0.6)"],
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(benchmark, model or size) of each that would have run."""
    found = list[tuple[str, str]]()
    for name in program.NAMES:

        def run(model: str = "", *, _name: str = name, **options: Any) -> None:
            found.append((_name, model))

        monkeypatch.setattr(getattr(program, name), "run", run)
    monkeypatch.setattr(program, "heading", lambda: "HEADING")
    return found


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    program.main()
    return capsys.readouterr().out


def test_without_a_name_all_run_under_one_heading(
    ran: list[tuple[str, str]], tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = said(monkeypatch, capsys)
    assert [name for name, _ in ran] == [name for name in program.NAMES if name != "quality"]
    assert page.startswith("HEADING\n") and page.count("HEADING") == 1
    assert page.endswith("\nquality\nleft out: it needs --text FILE, which is scored\n")
    ran.clear()
    assert "left out" not in said(monkeypatch, capsys, str(tiny_gpt2), "--text", "any.txt")
    assert dict(ran) == {name: str(tiny_gpt2) for name in program.NAMES} | {"train": "mini", "scaling": ""}


def test_with_a_name_only_that_runs(
    ran: list[tuple[str, str]], tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("xray", str(tiny_gpt2)), ("train", "nano"), ("train",)):
        assert said(monkeypatch, capsys, *words).startswith("HEADING\n")
    assert ran == [("xray", str(tiny_gpt2)), ("train", "nano"), ("train", "mini")]


@pytest.mark.parametrize(("words", "code"), [(["decoed"], 3), (["decoed", "DIR"], 2), (["quality"], 2)])
def test_a_wrong_name_is_an_error_before_anything_is_measured(
    ran: list[tuple[str, str]], words: list[str], code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        said(monkeypatch, capsys, *words)
    seen = capsys.readouterr()
    assert caught.value.code == code and not ran and "HEADING" not in seen.out
    assert ("--text" if words == ["quality"] else "decoed") in seen.err


def test_the_heading_names_the_machine_and_the_versions_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.Machine(
        threads=2, read_bytes_per_s=2.9e10, float32_flops=2e11, torch_float32_flops=1.5e11, bfloat16_flops=1e11
    )
    monkeypatch.setattr(machine, "measure", lambda: here)
    first, second = machine.heading().splitlines()
    assert (
        first
        == "machine: 2 threads, reads 29.0 GB/s, multiplies 0.2 TFLOP/s in float32 (0.15 by a @ b), 0.1 in bfloat16"
    )
    assert f"torch {version('torch')}, transformers {version('transformers')}" in second
    assert ("ctranslate2" in second) is (find_spec("ctranslate2") is not None)


def test_the_first_word_is_timed_until_it_is_there_and_set_beside_importing_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.COMMANDS[start.IMPORT] == ["-c", "import torch"]
    monkeypatch.setattr(start, "COMMANDS", SLOW_START)
    start.run("any", rounds=1)
    page = capsys.readouterr().out
    assert all(name in page for name in SLOW_START)
    ratio = re.search(r"the first word comes after ([\d.]+) times the time of importing torch", page)
    assert ratio and float(ratio[1]) < 1, "what follows the first byte is not waited for"


def test_the_other_x_ray_is_named_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformer_lens-1.2.3.dist-info").mkdir()
    (tmp_path / "transformer_lens-1.2.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformer-lens\nVersion: 1.2.3\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert xray.their_version(sys.executable) == f"TransformerLens 1.2.3 on torch {version('torch')}"


def test_the_grid_that_memory_is_measured_with_fits_the_model_s_context(tiny_gpt2: Path) -> None:
    assert "for a grid of 63 tokens" in xray.memory(str(tiny_gpt2))


def test_a_model_s_context_is_known_however_its_family_spells_it(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = list[int]()

    def run(ids: list[int], n: int) -> list[float]:
        lengths.append(len(ids))
        return [time.perf_counter() for _ in range(n)]

    monkeypatch.setitem(worker.PEERS, "gptcli", lambda model, kind: ([1, 2, 3], run))
    monkeypatch.setattr(sys, "argv", ["worker", "gptcli", "float32", str(tiny_gpt2), str(tiny_gpt2)])
    worker.main()
    first, figures = capsys.readouterr().out.splitlines()
    assert first == "first" and {"decode", "prefill", "memory"} == json.loads(figures).keys()
    assert lengths == [3, 3, 3, 63, 63, 63]


def test_without_transformers_nothing_is_set_beside_it() -> None:
    ours = {peer: {"decode": [20.0]} for peer in decode.PEERS if peer.name == "gptcli"}
    theirs = {decode.Peer(name="transformers", kind="float32"): {"decode": [10.0]}}
    assert "float32 2.00x" in decode.beside_transformers(ours | theirs)
    assert decode.beside_transformers(ours) == ""
