"""Loading and saving: bits, bytes and permissions."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from zoo import built

from gptcli import BadCheckpoint, OutOfMemory, UsageError, card, load, look, save
from gptcli.checkpoint import Checkpoint


def parameters_equal(a: Checkpoint, b: Checkpoint) -> bool:
    pairs = zip(a.decoder.named_parameters(), b.decoder.named_parameters(), strict=True)
    return all(na == nb and p.dtype == q.dtype and torch.equal(p, q) for (na, p), (nb, q) in pairs)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox-old", "gptj", "gemma2", "olmo2", "stablelm-2", "gpt_bigcode-mha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_save_load_is_bit_exact(kind: str, dtype: torch.dtype, zoo_root: Path, tmp_path: Path) -> None:
    folder, _ = built(kind, zoo_root)
    stored = tmp_path / "stored"
    stored.mkdir()
    for file in folder.iterdir():
        (stored / file.name).write_bytes(file.read_bytes())
    tensors = {name: t.to(dtype) for name, t in load_file(stored / "model.safetensors").items()}
    save_file(tensors, stored / "model.safetensors")
    first = load(str(stored))
    save(first, tmp_path / "saved")
    second = load(str(tmp_path / "saved"))
    assert parameters_equal(first, second)
    written = load_file(tmp_path / "saved" / "model.safetensors")
    ours = {name.removeprefix("gpt_neox.").removeprefix("transformer.").replace("embed_out", "lm_head"): t
            for name, t in tensors.items()}  # fmt: skip
    for name, tensor in written.items():
        stem = name.removeprefix("gpt_neox.").removeprefix("transformer.").replace("embed_out", "lm_head")
        rounded = dtype == torch.float32 and kind == "gemma2" and "norm" in name  # its gains went through 1 + gain
        assert tensor.dtype == dtype, name
        assert torch.allclose(tensor, ours[stem], rtol=0, atol=1.2e-7) if rounded else torch.equal(tensor, ours[stem])


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    tensors = {name: t.bfloat16() for name, t in tiny.gpt2_tensors().items()}
    checkpoint = load(str(tiny.write_gpt2(tmp_path / "model", tensors)))
    assert {p.dtype for p in checkpoint.decoder.parameters()} == {torch.bfloat16}
    assert checkpoint.decoder(torch.tensor([[1, 2, 3]])).dtype == torch.bfloat16


def test_half_precision_becomes_float32_on_the_cpu_unless_asked_for(tmp_path: Path) -> None:
    folder = str(tiny.write_gpt2(tmp_path / "model", {n: t.half() for n, t in tiny.gpt2_tensors().items()}))
    assert load(folder, device="cpu").dtype == torch.float32
    assert load(folder, device="cpu", dtype="float16").dtype == torch.float16


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_card_counts_the_memory_of_the_dtype_that_is_loaded(stored: torch.dtype, tmp_path: Path) -> None:
    folder = str(tiny.write_gpt2(tmp_path / "model", {n: t.to(stored) for n, t in tiny.gpt2_tensors().items()}))
    found, checkpoint = card(look(folder), n_context=10), load(folder, device="cpu")
    assert found.loaded_as == {torch.float32: "F32", torch.bfloat16: "BF16"}[checkpoint.dtype]
    assert found.weight_bytes == sum(p.nbytes for p in checkpoint.decoder.parameters())
    assert found.cache_bytes == checkpoint.config.kv_bytes(10, checkpoint.dtype.itemsize)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "gemma3", "olmo2", "gpt_neox", "phi", "granite"])
def test_bfloat16_agrees_with_the_reference_in_bfloat16(kind: str, zoo_root: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, _ = built(kind, zoo_root)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    ids = torch.tensor([[5, 9, 200, 31, 7, 7, 100]])
    with torch.inference_mode():
        a = load(str(folder), dtype="bfloat16").decoder(ids).float()
        exact, b = load(str(folder)).decoder(ids), theirs(ids).logits.float()
    # both round; ours may be off by no more than the reference is, and half as much again
    assert (a - exact).abs().max() <= 1.5 * (b - exact).abs().max() + 1e-3 * exact.abs().max()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_loading_holds_the_weights_once_and_one_tensor(quantize: str, tmp_path: Path) -> None:
    """Measured as a person would, on the whole process: 201 MB of weights, of which the largest tensor has 67.

    Rounded they are 50 MB: also the first time, most matrices are gone as they were before the last ones come.
    """
    config = {**tiny.CONFIG, "n_embd": 1024, "n_layer": 4, "n_head": 8}
    tensors = tiny.gpt2_tensors(config)
    folder = tiny.write_gpt2(tmp_path / "model", tensors, n_embd=1024, n_layer=4, n_head=8)
    weights = sum(t.numel() * 4 for t in tensors.values())
    largest = max(t.numel() * 4 for t in tensors.values())
    program = """if True:
        import pathlib, re, sys
        from gptcli import load

        def status(key):
            return int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

        load(sys.argv[2], quantize=sys.argv[3])  # everything is imported and warm
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = status("VmRSS")
        model = load(sys.argv[1], quantize=sys.argv[3])
        print(status("VmHWM") - before)
    """
    small = tiny.write_gpt2(tmp_path / "small")
    words = [sys.executable, "-c", program, str(folder), str(small), quantize]
    own = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    if quantize == "none":
        assert weights * 0.8 < int(done.stdout) < weights + 2 * largest + 16e6
    else:
        assert weights / 4 * 0.8 < int(done.stdout) < weights * 0.9


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.memory.free_bytes", lambda: 1000)
    with pytest.raises(OutOfMemory, match="the weights need .* and 1 kB of memory are free"):
        load(str(tiny_gpt2))


def test_a_file_cut_short_after_it_was_looked_at_is_one_error(tiny_gpt2: Path, tmp_path: Path) -> None:
    from gptcli.checkpoint import load_layout
    from gptcli.layout import look

    folder = tiny.write_gpt2(tmp_path / "model")
    layout = look(str(folder))
    os.truncate(folder / "model.safetensors", 50_000)
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        load_layout(layout)


def test_saving_leaves_ordinary_permissions_and_nothing_else(tiny_gpt2: Path, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save(load(str(tiny_gpt2)), tmp_path / "out" / "model")
    finally:
        os.umask(old)
    folder = tmp_path / "out" / "model"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"


def test_saving_never_overwrites(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(UsageError, match="exists already"):
        save(load(str(tiny_gpt2)), tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["precious"]


def test_a_failed_save_leaves_nothing_behind(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoint = load(str(tiny_gpt2))
    monkeypatch.setattr("gptcli.disk.os.fsync", full)
    with pytest.raises(Exception, match="No space left on device"):
        save(checkpoint, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpux", "cuda:x", "cpu:x", "cuda:-1", "cuda:"])
def test_a_device_that_is_not_there_is_a_usage_error(tiny_gpt2: Path, device: str) -> None:
    with pytest.raises(UsageError, match="device"):
        load(str(tiny_gpt2), device=device)


def test_an_unknown_dtype_is_a_usage_error(tiny_gpt2: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        load(str(tiny_gpt2), dtype="int4")
