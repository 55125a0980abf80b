"""One token's pass as machine code: the same scores, the same texts, and nothing believed that is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from programs import gptcli

from gptcli import Checkpoint, Sampling, compiled, generate, load
from gptcli.commands.optimize import has_compiler

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def text(checkpoint: Checkpoint, **wishes: float) -> list[int]:
    sampling = Sampling(**wishes)  # type: ignore[arg-type]
    return [s.id for s in generate(checkpoint, "Once upon a time", sampling=sampling, max_tokens=60, seed=3)]


def test_without_a_compiled_pass_there_is_none() -> None:
    assert load(str(WEIGHTS)).one_token() is None


def test_the_key_is_that_of_the_shape_and_not_of_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = load(str(WEIGHTS)), load(str(WEIGHTS))
    other.decoder.embed.weight.data.mul_(2)
    assert compiled.key(one.decoder) == compiled.key(other.decoder)
    assert compiled.key(one.decoder) != compiled.key(load(str(WEIGHTS), dtype="bfloat16").decoder)
    assert compiled.key(one.decoder) != compiled.key(load(str(WEIGHTS), quantize="int8").decoder)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert compiled.key(one.decoder) != compiled.key(other.decoder) or torch.__version__ == "9.9"


def test_a_file_that_is_no_machine_code_or_not_ours_is_passed_over() -> None:
    checkpoint = load(str(WEIGHTS))
    file = compiled.place(checkpoint.decoder)
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_bytes(b"PK\x03\x04 broken")
    assert compiled.find(checkpoint.decoder) is None
    file.chmod(0o666)
    assert compiled.find(checkpoint.decoder) is None


def test_optimize_without_a_compiler_says_so_in_one_line_and_all_works() -> None:
    done = gptcli("optimize", "shipped", env={**os.environ, "PATH": "/nowhere", "CXX": "/nowhere/g++"})
    assert done.returncode == 0 and not done.stdout
    assert done.stderr.count(b"\n") == 1 and b"no C++ compiler" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("bits", ["none", "int8", "int4"])
def test_optimize_makes_a_pass_with_the_model_s_own_scores_and_texts(bits: str) -> None:
    plain = load(str(WEIGHTS), quantize=bits)
    greedy, drawn = text(plain, temperature=0), text(plain, temperature=0.8)
    done = gptcli("optimize", "shipped", "--quantize", bits, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["largest_difference"] <= (1e-4 if bits == "none" else 0.05) * figures["largest_score"]
    assert Path(figures["file"]).stat().st_mode & 0o077 == 0
    fast = load(str(WEIGHTS), quantize=bits)
    assert fast.one_token() is not None
    if bits == "none":
        assert text(fast, temperature=0) == greedy and text(fast, temperature=0.8) == drawn
        long = [s.id for s in generate(fast, "The", sampling=Sampling(temperature=0), max_tokens=-1, ignore_eos=True)]
        assert len(long) > 400  # over the banded layers' window
        fast.decoder.embed.weight = torch.nn.Parameter(fast.decoder.embed.weight * 2, requires_grad=False)
        plain.decoder.embed.weight = torch.nn.Parameter(plain.decoder.embed.weight * 2, requires_grad=False)
        os.environ["GPTCLI_COMPILED"] = "0"
        try:
            other = text(plain, temperature=0)
        finally:
            del os.environ["GPTCLI_COMPILED"]
        assert text(fast, temperature=0) == other  # the weights as they are now
