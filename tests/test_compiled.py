"""One token's pass as machine code: the same scores, the same texts, and nothing believed that is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from programs import gptcli
from zoo import built

from gptcli import Checkpoint, Sampling, compiled, generate, load, prepare, start
from gptcli.cache import Cache
from gptcli.strips import Strips

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def text(checkpoint: Checkpoint, **wishes: float) -> list[int]:
    sampling = Sampling(**wishes)  # type: ignore[arg-type]
    return [s.id for s in generate(checkpoint, "Once upon a time", sampling=sampling, max_tokens=60, seed=3)]


def strips(checkpoint: Checkpoint) -> list[tuple[float, ...]]:
    """How each layer stood to each of a few tokens; `read` checks that the last agrees with the model's own scores."""
    tape = Strips(checkpoint.decoder)
    steps = generate(checkpoint, "Once upon a time", sampling=Sampling(temperature=0), max_tokens=9, tape=tape)
    return [tape.read(step.id, step.logprob).logprobs for step in steps]


def test_without_a_compiled_pass_there_is_none() -> None:
    assert load(str(WEIGHTS)).one_token() is None


def test_the_key_is_that_of_the_shape_and_not_of_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = load(str(WEIGHTS)), load(str(WEIGHTS))
    other.decoder.embed.weight.data.mul_(2)
    assert compiled.key(one.decoder) == compiled.key(other.decoder)
    assert compiled.key(one.decoder) != compiled.key(load(str(WEIGHTS), dtype="bfloat16").decoder)
    assert compiled.key(one.decoder) != compiled.key(load(str(WEIGHTS), quantize="int8").decoder)
    before = compiled.key(one.decoder)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert compiled.key(one.decoder) != before


def test_a_file_that_is_no_machine_code_or_not_ours_is_passed_over() -> None:
    checkpoint = load(str(WEIGHTS))
    file = compiled.place(checkpoint.decoder)
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_bytes(b"PK\x03\x04 broken")
    assert compiled.find(checkpoint.decoder) is None
    file.chmod(0o666)
    assert compiled.find(checkpoint.decoder) is None


def test_optimize_without_a_compiler_says_so_in_one_line_and_all_works() -> None:
    done = gptcli("optimize", "shipped", env={"PATH": "/nowhere", "CXX": "/nowhere/g++"})
    assert done.returncode == 0 and not done.stdout
    assert done.stderr.count(b"\n") == 1 and b"no C++ compiler" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not compiled.has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("bits", ["none", "int8", "int4"])
def test_optimize_makes_a_pass_with_the_model_s_own_scores_and_texts(bits: str) -> None:
    plain = load(str(WEIGHTS), quantize=bits)
    greedy, drawn = text(plain, temperature=0), text(plain, temperature=0.8)
    done = gptcli(
        "optimize", "shipped", "--quantize", bits, "--json", env={"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    )
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
        begun = start(fast, prepare(fast, "Once upon a time"), max_tokens=60)  # a copy of a cache is laid out as it was
        copied = generate(fast, begun, sampling=Sampling(temperature=0), max_tokens=60)
        assert [s.id for s in copied] == greedy
        assert strips(fast) == [pytest.approx(row, abs=1e-3) for row in strips(plain)]
        fast.decoder.embed.weight = torch.nn.Parameter(fast.decoder.embed.weight * 2, requires_grad=False)
        plain.decoder.embed.weight = torch.nn.Parameter(plain.decoder.embed.weight * 2, requires_grad=False)
        assert text(fast, temperature=0) == text(plain, temperature=0)  # the weights as they are now
        assert fast.one_token() is not None and plain.one_token() is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not compiled.has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj", "olmo2"])
def test_the_families_pieces_come_out_of_the_compiler_as_they_went_in(name: str, zoo_root: Path) -> None:
    """Shared keys, soft caps, windows, parallel blocks, norms behind: scores and states beside the decoder's own."""
    decoder = load(str(built(name, zoo_root)[0])).decoder
    compiled.make(decoder)
    one = compiled.find(decoder)
    assert one is not None
    n, dtype = min(40, decoder.config.n_ctx), decoder.embed.weight.dtype
    caches = [Cache(decoder.config, n, dtype=dtype) for _ in range(2)]
    with torch.inference_mode():
        for cache in caches:
            decoder.stream(torch.tensor([[3, 1]]), cache)
        for id in range(5, 3 + n):
            tape = Strips(decoder)
            ours = decoder.readout(decoder.stream(torch.tensor([[id]]), caches[0], tape))[0, -1]
            scores, states = one(id, caches[1])
            assert (scores - ours).abs().max() <= 1e-5 * ours.abs().max().clamp(min=1)
            assert (states - tape.states).abs().max() <= 1e-5 * tape.states.abs().max()
