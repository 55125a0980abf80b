"""One token's pass as machine code: the same scores, the same texts, and nothing believed that is not ours."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tiny
import torch
from programs import gptcli
from zoo import built

from gptcli import Checkpoint, Request, Sampling, compiled, few, generate, load, prepare, start
from gptcli.cache import Cache
from gptcli.commands.optimize import _text
from gptcli.strips import Strips
from gptcli.together import Together

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
    before, config = compiled.key(one.decoder), one.config
    for change in ({"window": 32}, {"scale": 0.35}):
        one.decoder.config = replace(config, layers=tuple(replace(layer, **change) for layer in config.layers))
        assert compiled.key(one.decoder) != before
    one.decoder.config = config
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


def test_optimize_says_speeds_with_separators() -> None:
    numbers = {"compiled_s": 0, "tokens_per_s_before": 4034.4, "tokens_per_s": 12159.3, "together_per_s": 40341.0}
    names = {"model": "m", "quantize": "none", "dtype": "float32", "file": "f"}
    said = _text({**numbers, **names, "largest_difference": 0.0, "largest_score": 1.0, "bytes": 1})
    assert "4,034 -> 12,159 tokens/s" in said and "40,341" in said


def test_optimize_says_in_json_too_that_nothing_was_compiled(tmp_path: Path) -> None:
    short = str(tiny.write_gpt2(tmp_path / "short", n_positions=2))
    none = {"PATH": "/nowhere", "CXX": "/nowhere/g++"}
    for model, env, why in (("shipped", none, "no C++ compiler"), (short, {}, "too short")):
        done = gptcli("optimize", model, "--json", env=env)
        said = json.loads(done.stdout)
        assert done.returncode == 0 and said["model"] == model and said["dtype"] == "float32"
        assert said["compiled"] is False and why in said["reason"] and said["reason"].encode() in done.stderr


def test_a_cache_in_another_user_s_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(type(tmp_path)):  # type: ignore[misc]
        def stat(self, **_: bool) -> os.stat_result:
            raise PermissionError(13, "Permission denied", str(self))

    checkpoint = load(str(WEIGHTS))
    monkeypatch.setattr(compiled, "user_cache", lambda kind: Forbidden(tmp_path / kind))
    assert checkpoint.one_token() is None


def assert_same_with_a_few_at_once(checkpoint: Checkpoint) -> None:
    """`--lookup` and batches take the pass of a few tokens, and no record of any token is another."""
    found = checkpoint.few_tokens()
    assert found is not None and found.fits()
    calls, run = list[str](), found._run
    found._run = lambda kind, *rest: calls.append(kind) or run(kind, *rest)  # type: ignore[func-returns-value,method-assign]
    prompt = "The cat sat. The dog ran. " * 6
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.5)):
        wishes = {"sampling": sampling, "max_tokens": 60, "seed": 1, "ignore_eos": True}
        ahead = list(generate(checkpoint, prompt, lookup=True, **wishes))  # type: ignore[arg-type]
        assert ahead == list(generate(checkpoint, prompt, **wishes))  # type: ignore[arg-type]
    assert "one" in calls
    requests = [
        Request(prompt=prompt[: 9 + 7 * i], sampling=Sampling(), seed=i, max_tokens=9 + i % 5, ignore_eos=True)
        for i in range(11)
    ]
    steps: dict[int, list[int]] = {}
    for number, step in Together(checkpoint, found, 10).run(iter(enumerate(requests))):
        steps.setdefault(number, []).append(step.id)
    for number, request in enumerate(requests):
        values = {f.name: getattr(request, f.name) for f in fields(request)}
        assert steps[number] == [step.id for step in generate(checkpoint, **values)]
    assert "each" in calls


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not compiled.has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("bits", ["none", "int8", "int4"])
def test_optimize_makes_a_pass_with_the_model_s_own_scores_and_texts(bits: str) -> None:
    plain = load(str(WEIGHTS), quantize=bits)
    greedy, drawn = text(plain, temperature=0), text(plain, temperature=0.8)
    done = gptcli(
        *("optimize", "shipped", "--quantize", bits, "--json"),
        env={"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["compiled"] is True
    assert figures["largest_difference"] <= (1e-4 if bits == "none" else 0.05) * figures["largest_score"]
    assert Path(figures["file"]).stat().st_mode & 0o077 == 0
    assert figures["together_per_s"]
    fast = load(str(WEIGHTS), quantize=bits)
    assert fast.one_token() is not None
    assert_same_with_a_few_at_once(fast)
    if bits == "none":
        assert text(fast, temperature=0) == greedy and text(fast, temperature=0.8) == drawn
        long = [s.id for s in generate(fast, "The", sampling=Sampling(temperature=0), max_tokens=-1, ignore_eos=True)]
        assert len(long) > 400  # over the banded layers' window
        begun = start(fast, prepare(fast, "Once upon a time"), max_tokens=60)  # a copy of a cache is laid out as it was
        copied = generate(fast, begun, sampling=Sampling(temperature=0), max_tokens=60)
        assert [s.id for s in copied] == greedy
        assert strips(fast) == [pytest.approx(row, abs=1e-3) for row in strips(plain)]
        held = fast.few_tokens()
        fast.decoder.embed.weight = torch.nn.Parameter(fast.decoder.embed.weight * 2, requires_grad=False)
        plain.decoder.embed.weight = torch.nn.Parameter(plain.decoder.embed.weight * 2, requires_grad=False)
        assert text(fast, temperature=0) == text(plain, temperature=0)  # the weights as they are now
        assert fast.one_token() is not None and plain.one_token() is None
        assert held is not None and not held.fits() and fast.few_tokens() is not held
        assert_same_with_a_few_at_once(fast)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not compiled.has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("name", ["llama-bfloat16", "gemma2", "gptj", "olmo2-bfloat16"])
def test_the_families_pieces_come_out_of_the_compiler_as_they_went_in(
    name: str, zoo_root: Path, tmp_path: Path
) -> None:
    """Shared keys, soft caps, windows, parallel blocks, norms behind: scores and states beside the decoder's own."""
    name, _, kind = name.partition("-")
    folder = built(name, zoo_root)[0]
    if name == "gemma2":  # with room for a few tokens in its windows, and for a text that outgrows these
        folder = shutil.copytree(folder, tmp_path / name)
        values = json.loads((folder / "config.json").read_text())
        values |= {"sliding_window": 24, "max_position_embeddings": 200}
        (folder / "config.json").write_text(json.dumps(values))
    decoder = load(str(folder), dtype=kind or "float32").decoder
    assert few.takes(decoder)
    compiled.make(decoder)
    few.make(decoder)
    one = compiled.find(decoder)
    assert one is not None
    several = few.find(decoder)
    assert several is not None
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    assert few.same(decoder, one, several, ids)
    several._weights[1][0] = several._weights[1][0] * (1 + 2**-7)
    assert not few.same(decoder, one, several, ids)
    exact = load(str(folder)).decoder  # the same numbers in float32: the compiled stream is float32 as well
    for ours, theirs in zip(exact.parameters(), decoder.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    n, error = min(40, decoder.config.n_ctx), 1e-5 if not kind else 0.03  # keys and values are kept in bfloat16
    caches = [Cache(d.config, n, dtype=d.embed.weight.dtype) for d in (exact, decoder)]
    with torch.inference_mode():
        for d, cache in zip((exact, decoder), caches, strict=True):
            d.stream(torch.tensor([[3, 1]]), cache)
        for id in range(5, 3 + n):
            tape = Strips(exact)
            ours = exact.readout(exact.stream(torch.tensor([[id]]), caches[0], tape))[0, -1]
            scores, states = one(id, caches[1])
            assert (scores - ours).abs().max() <= error * ours.abs().max().clamp(min=1)
            assert (states - tape.states).abs().max() <= error * tape.states.abs().max()


def test_a_cache_that_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = gptcli("optimize", "shipped", env={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.decode().startswith("gptcli: error: what was compiled cannot be kept: ")
