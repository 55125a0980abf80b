"""Fewer bits a weight: how near the rounded model stays, and that what is kept on the disk is never wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from programs import gptcli, in_terminal
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import built

from gptcli import Sampling, generate, load, look, save
from gptcli.errors import OutOfMemory, UsageError
from gptcli.linear import GROUP, Int4, Int8, _in_4_bits
from gptcli.quantize import kept, quantize, size, whole
from gptcli.score import score

WEIGHTS = Path(__file__).parent.parent / "weights"
STORY = (
    "Once upon a time there was a little girl named Lily. She loved to play in the park with her dog. One day the dog "
    'ran away, and Lily was very sad. Her mom said, "Don\'t worry, we will find him." They looked and looked, and at '
    "last they saw him under a big tree. Lily was so happy that she gave him a big hug."
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_8_bits_are_within_half_a_step_of_each_weight(rows: int) -> None:
    g = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(48, 64, generator=g), torch.randn(rows, 64, generator=g)
    rounded = Int8.of(weight, None)
    step = weight.abs().amax(-1, keepdim=True) / 127
    assert bool(((rounded.whole() - weight).abs() <= step * 0.501).all())
    exact = x @ rounded.whole().T
    torch.testing.assert_close(rounded(x), exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_4_bits_are_never_worse_than_16_even_levels() -> None:
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    groups = weight.view(32, -1, GROUP)
    q, scale, middle = _in_4_bits(groups)
    assert bool(((q >= 0) & (q <= 15)).all())
    kept = (q - 8) * scale.float()[..., None] + middle.float()[..., None]
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    naive = ((groups - low) / step).round() * step + low  # in float32, from the least to the greatest
    assert float((kept - groups).square().sum()) < float((naive - groups).square().sum())
    torch.testing.assert_close(Int4.of(weight, None).whole(), kept.flatten(1), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("form", [Int8, Int4])
@pytest.mark.parametrize("at_once", [1, 1000, 10**6])
def test_part_by_part_gives_the_same_numbers_in_little_memory(
    form: type[Int8] | type[Int4], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrix of the scores is the largest there is; copies of it in float32 took more than the model."""
    w = torch.randn(48, 96, generator=torch.Generator().manual_seed(5)).bfloat16()
    whole, wide = form.of(w, None), list[int]()
    float32 = torch.Tensor.float
    to = torch.Tensor.to
    monkeypatch.setattr("gptcli.linear.ROUNDED_AT_ONCE", at_once)
    monkeypatch.setattr(torch.Tensor, "float", lambda t: wide.append(t.numel()) or float32(t))
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *how, **more: wide.append(t.numel()) or to(t, *how, **more))
    parts = form.of(w, None)
    monkeypatch.undo()
    assert torch.equal(parts.weight, whole.weight) and torch.equal(parts.scale, whole.scale)
    assert max(wide) <= max(at_once, 96)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not Int8.of(torch.zeros(16, 32), None).whole().any()
    assert float(Int4.of(torch.zeros(16, 32), None).whole().abs().max()) < 1e-20


@pytest.mark.parametrize(("bits", "most"), [("int8", 1.01), ("int4", 1.15)])
def test_the_shipped_model_finds_a_story_nearly_as_likely(bits: str, most: float) -> None:
    nats = [sum(s.nats for s in score(load(str(WEIGHTS), quantize=q), [STORY])) for q in ("none", bits)]
    assert nats[1] < nats[0] * most and nats[1] != nats[0]


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_second_load_finds_what_the_first_one_kept_and_answers_the_same(bits: str, tmp_path: Path) -> None:
    first, second = (load(str(WEIGHTS), quantize=bits) for _ in range(2))
    (kept,) = (tmp_path / "cache" / "gptcli" / "quantized").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    for (name, ours), (other, theirs) in zip(
        first.decoder.state_dict().items(), second.decoder.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(first.decoder(ids), second.decoder(ids))


def test_what_is_kept_is_not_used_after_a_file_changes_or_when_it_is_damaged(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model, ignore=shutil.ignore_patterns("making", "react"))
    before = load(str(model), quantize="int8").decoder.state_dict()["blocks.0.mlp.up.weight"].clone()
    (kept,) = (tmp_path / "cache" / "gptcli" / "quantized").iterdir()
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    assert torch.equal(load(str(model), quantize="int8").decoder.state_dict()["blocks.0.mlp.up.weight"], before)
    tensors = load_file(model / "model.safetensors")
    times = (model / "model.safetensors").stat()
    save_file({name: -tensor for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    os.utime(model / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had never been touched
    assert not torch.equal(load(str(model), quantize="int8").decoder.state_dict()["blocks.0.mlp.up.weight"], before)


def test_copies_of_a_model_share_what_is_kept_and_a_touch_makes_nothing_new(tmp_path: Path) -> None:
    places = set[Path]()
    for name in ("one", "two"):
        folder = shutil.copytree(WEIGHTS, tmp_path / name, ignore=shutil.ignore_patterns("making", "react"))
        places.add(kept(look(str(folder)), torch.float32, "int8"))
    os.utime(tmp_path / "two" / "model.safetensors")
    places.add(kept(look(str(tmp_path / "two")), torch.float32, "int8"))
    assert len(places) == 1
    with (tmp_path / "two" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    places.add(kept(look(str(tmp_path / "two")), torch.float32, "int8"))
    assert len(places) == 2


def test_what_is_kept_is_of_this_processor_and_this_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide how the numbers of 4 bits are packed: under others the same bytes are other weights."""
    layout, places = look(str(WEIGHTS)), set[Path]()
    places.add(kept(layout, torch.float32, "int4"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
    places.add(kept(layout, torch.float32, "int4"))
    monkeypatch.setattr(torch, "__version__", "9.9")
    places.add(kept(layout, torch.float32, "int4"))
    assert len(places) == 3


def test_a_kept_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    name = "blocks.0.mlp.up.weight"
    right = load(str(WEIGHTS), quantize="int8").decoder.state_dict()[name].clone()
    (kept,) = (tmp_path / "cache" / "gptcli" / "quantized").iterdir()
    tensors = load_file(kept)
    save_file(tensors | {name: -right}, kept)
    kept.chmod(0o600)
    assert torch.equal(load(str(WEIGHTS), quantize="int8").decoder.state_dict()[name], -right)  # it would be believed
    kept.chmod(0o666)
    assert torch.equal(load(str(WEIGHTS), quantize="int8").decoder.state_dict()[name], right)


def test_whole_matrices_are_the_rounded_numbers() -> None:
    checkpoint = load(str(WEIGHTS))
    quantize(checkpoint.decoder, "int8")
    ids = torch.arange(5, 60)[None]
    packed = checkpoint.decoder(ids)
    whole(checkpoint.decoder)
    assert all(type(m) is not Int8 for m in checkpoint.decoder.modules())
    assert isinstance(checkpoint.decoder.blocks[0].mlp.up, nn.Linear)
    torch.testing.assert_close(checkpoint.decoder(ids), packed, rtol=1e-4, atol=1e-4)


def test_the_command_runs_it_and_looks_into_it(tmp_path: Path) -> None:
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = ("Once upon a time", "-t", "0", "-n", "12", "-q", "-m", "shipped")
    plain, rounded = (
        json.loads(gptcli(*words, "--json", "--logprobs", "0", "--quantize", bits, env=own).stdout)
        for bits in ("none", "int8")
    )
    assert rounded["settings"]["quantize"] == "int8" and len(rounded["samples"][0]["ids"]) == 12
    both = zip(*(answer["samples"][0]["tokens"] for answer in (plain, rounded)), strict=True)
    first = next((a for a, b in both if a["id"] != b["id"]), None)
    assert first is None or first["margin"] < 0.5
    seen = gptcli(*words, "--quantize", "int4", "--xray", env=own)
    assert seen.returncode == 0, seen.stderr


def test_unknown_bits_are_one_clear_line() -> None:
    with pytest.raises(UsageError, match="int3"):
        load(str(WEIGHTS), quantize="int3")
    done = gptcli("hello", "--quantize", "int3")
    assert done.returncode == 2 and b"--quantize must be one of none, int8, int4" in done.stderr


def test_greedy_text_of_8_bits_is_the_float32_text_or_differs_at_a_near_tie() -> None:
    steps = [
        list(
            generate(
                load(str(WEIGHTS), quantize=q), "Once upon a time", sampling=Sampling(temperature=0), max_tokens=100
            )
        )
        for q in ("none", "int8")
    ]
    first = next((a for a, b in zip(*steps, strict=False) if a.id != b.id), None)
    assert first is None or first.margin < 0.5


@pytest.mark.parametrize("name", ["llama", "gemma", "gemma2", "olmo2"])
def test_what_was_kept_is_found_again_in_every_dtype(name: str, zoo_root: Path, tmp_path: Path) -> None:
    """The gains of some families are float32 in any model."""
    folder = str(built(name, zoo_root)[0])
    for dtype in ("float32", "bfloat16"):
        first = load(folder, dtype=dtype, quantize="int8").decoder.state_dict()
        nodes = {file: file.stat().st_ino for file in (tmp_path / "cache" / "gptcli" / "quantized").iterdir()}
        second = load(folder, dtype=dtype, quantize="int8").decoder.state_dict()
        assert all(file.stat().st_ino == node for file, node in nodes.items()), "it was rounded and written again"
        assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)


def test_what_was_kept_is_of_these_layers(zoo_root: Path, tmp_path: Path) -> None:
    """How much of a head is rotary decides in which order the rows of a matrix stand."""
    folder = tmp_path / "model"
    shutil.copytree(built("gptj", zoo_root)[0], folder)
    load(str(folder), quantize="int8")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"rotary_dim": 2 * values["rotary_dim"]}))
    ids = torch.arange(9)[None]
    plain, rounded = (load(str(folder), quantize=q).decoder(ids) for q in ("none", "int8"))
    assert (rounded - plain).abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_8_bits_reach_as_far_as_the_dtype(rows: int, dtype: torch.dtype) -> None:
    """In float16 the whole numbers' product, 127 times a large one, would be past its end."""
    g = torch.Generator().manual_seed(1)
    w, x = torch.randn(32, 1024, generator=g) * 0.05, torch.randn(rows, 1024, generator=g) * 300
    true = x @ w.T
    assert 900 < true.abs().max() < 60_000
    y = Int8.of(w, None)(x.to(dtype))
    assert y.dtype == dtype and (y.float() - true).abs().max() < 0.02 * true.abs().max()


def test_memory_is_asked_for_what_rounding_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for bits in ("int8", "int4"):
        decoder = load(str(WEIGHTS), quantize=bits).decoder
        held = sum(t.nbytes for t in decoder.state_dict().values())
        sizes[bits] = size(decoder.config, bits, torch.float32)
        largest = max(t.nbytes for t in decoder.parameters())
        assert sizes[bits] == pytest.approx(held + largest, rel=0.01)
    whole = load(str(WEIGHTS)).decoder.config.n_params() * 4
    assert sizes["int4"] < sizes["int8"] < whole
    monkeypatch.setattr("gptcli.memory.free_bytes", lambda: (sizes["int8"] + whole) // 2)
    assert load(str(WEIGHTS), quantize="int8")
    with pytest.raises(OutOfMemory, match="the weights need") as error:
        load(str(WEIGHTS))
    assert "--quantize" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head.matrix.weight", lambda t: t[:, :8].contiguous()),
        ("head.matrix.scale", lambda t: t * math.nan),
        ("blocks.0.mlp.up.scale", lambda t: t.double()),
        ("blocks.0.attn_norm.weight", lambda t: t.double()),
        ("blocks.0.mlp.up.bias", lambda t: t[:3].clone()),
    ],
)
def test_a_kept_file_with_other_matrices_than_the_model_s_is_not_used(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    right = load(str(WEIGHTS), quantize="int8").decoder.state_dict()[name].clone()
    (kept,) = (tmp_path / "cache" / "gptcli" / "quantized").iterdir()
    tensors = load_file(kept)
    save_file(tensors | {name: change(tensors[name])}, kept)
    kept.chmod(0o600)
    again = load(str(WEIGHTS), quantize="int8").decoder.state_dict()[name]
    assert again.dtype == right.dtype and torch.equal(again, right)


def test_rounded_weights_are_no_checkpoint_to_save(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rounded weights"):
        save(load(str(WEIGHTS), quantize="int8"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_person_who_waits_for_the_rounding_is_told_so_once(tiny_gpt2: Path, tmp_path: Path) -> None:
    command = ("generate", "hello", "-m", tiny_gpt2, "-n", "1", "--quantize", "int4")
    first, again = (in_terminal(*command, env={"XDG_CACHE_HOME": str(tmp_path)})[0] for _ in range(2))
    assert b"rounding to 4 bits, once ..." in first and b"loading ..." in again
    assert b"rounding" not in again
