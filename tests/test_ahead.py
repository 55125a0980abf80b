"""Reading the weights while torch is imported: the same bytes, the same memory, the same complaints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import torch
from programs import complaint, gptcli
from safetensors.torch import load_file
from zoo import ZOO, Kind, built

from gptcli import BadCheckpoint, OutOfMemory, checkpoint, load, look, memory
from gptcli import ahead as module
from gptcli.ahead import Ahead, fill, read_ahead
from gptcli.checkpoint import load_layout, stored_parts

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system reads into one place at a time")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ZOO, ids=str)
def test_what_is_read_ahead_is_what_the_file_holds(kind: Kind, dtype: torch.dtype, zoo_root: Path) -> None:
    layout = look(str(built(kind.name, zoo_root)[0]))
    ahead = Ahead(placement.tensor for placement in layout.placements)
    one_by_one = stored_parts(layout, dtype=dtype)
    for (part, tensor), (other, expected) in zip(
        stored_parts(layout, dtype=dtype, ahead=ahead), one_by_one, strict=True
    ):
        assert part == other and tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


def test_tensors_that_need_no_change_lie_where_they_were_read(tmp_path: Path) -> None:
    layout = look(str(tiny.write_gpt2(tmp_path / "model")))
    ahead = Ahead(placement.tensor for placement in layout.placements)
    where = {placement.tensor.name: torch.frombuffer(ahead.take(placement.tensor), dtype=torch.float32).data_ptr()
             for placement in layout.placements}  # fmt: skip
    stay = {part.name: tensor.data_ptr() for part, tensor in stored_parts(layout, ahead=ahead)}
    assert stay["embed.weight"] == where["wte.weight"] and stay["embed.weight"] % 4096 == 0
    assert stay["blocks.0.mlp.up.weight"] not in where.values()  # the family stores it the other way round


def test_tensors_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    tensors = tiny.gpt2_tensors() | {"h.0.attn.masked_bias": torch.zeros(1), "h.0.attn.bias": torch.ones(1, 1, 64, 64)}
    layout = look(str(tiny.write_gpt2(tmp_path / "model", tensors)))
    wanted = sum(placement.tensor.nbytes for placement in layout.placements)
    ahead = Ahead(placement.tensor for placement in layout.placements)
    assert wanted <= ahead.nbytes < wanted + len(layout.placements) * module.PAGE
    parts = {part.name: tensor.clone() for part, tensor in stored_parts(layout, ahead=ahead)}
    assert all(torch.equal(parts[part.name], tensor) for part, tensor in stored_parts(layout))


def test_a_read_that_gives_less_than_was_asked_for_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(bytes(range(200)))
    whole, asked = os.preadv, list[int]()

    def seven(handle: int, views: list[memoryview], offset: int) -> int:
        asked.append(sum(map(len, views)))
        return whole(handle, [views[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", seven)
    room = memoryview(bytearray(150))
    with file.open("rb") as opened:
        fill(opened.fileno(), [room[:14], room[14:40], room[40:]], 20)
    assert bytes(room) == bytes(range(20, 170)) and asked[0] == 150 and len(asked) > 20


def test_a_file_that_shrank_since_it_was_looked_at_is_one_line(tmp_path: Path) -> None:
    folder = tiny.write_gpt2(tmp_path / "model")
    layout = look(str(folder))
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    with pytest.raises(BadCheckpoint, match="cannot be read: it ends before its last tensor"):
        list(stored_parts(layout, ahead=Ahead(placement.tensor for placement in layout.placements)))


def test_nothing_is_read_ahead_where_it_would_take_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = look(str(tiny.write_gpt2(tmp_path / "model")))
    assert read_ahead(layout, device="auto", dtype="auto")
    assert read_ahead(layout, device="cpu", dtype="float32")
    assert not read_ahead(layout, device="cpu", dtype="bfloat16")  # half of what is stored
    assert not read_ahead(layout, device="cuda", dtype="auto")
    monkeypatch.setattr(memory, "free_bytes", layout.config.n_params)
    assert not read_ahead(layout, device="cpu", dtype="float32")


def test_a_gpu_is_asked_for_all_of_its_room_whatever_was_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = look(str(tiny.write_gpt2(tmp_path / "model")))
    ahead = read_ahead(layout, device="auto", dtype="auto")
    asked = list[int]()

    def full(need: int, device: torch.device, *, what: str) -> None:
        asked.append(need)
        raise OutOfMemory(what)

    monkeypatch.setattr(checkpoint, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(checkpoint, "check_fits", full)
    with pytest.raises(OutOfMemory):
        load_layout(layout, dtype="float32", ahead=ahead)
    assert asked == [4 * layout.config.n_params()]


def test_pages_of_what_was_converted_go_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tensors = {name: tensor.bfloat16() for name, tensor in tiny.gpt2_tensors().items()}
    layout = look(str(tiny.write_gpt2(folder, tensors)))
    ahead = Ahead(placement.tensor for placement in layout.placements)
    taken = {placement.tensor.name: ahead.take(placement.tensor) for placement in layout.placements}
    assert any(bytes(taken["wte.weight"]))
    list(stored_parts(layout, dtype=torch.float32, ahead=ahead))
    assert not any(bytes(taken["wte.weight"]))  # the kernel gives empty pages for those that it took


def test_a_model_that_is_not_there_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    done = gptcli("generate", "a", "-m", str(tmp_path / "none"), env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 3 and b"no such" in done.stderr
    assert b"import time:" in done.stderr and b" torch\n" not in done.stderr


def test_a_wrong_file_is_one_line_when_it_is_read_ahead(tmp_path: Path) -> None:
    folder = tiny.write_gpt2(tmp_path / "model")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    done = gptcli("generate", "a", "-m", str(folder))
    assert done.returncode == 4 and "incomplete" in complaint(done)


def test_loading_in_another_dtype_gives_the_numbers_of_the_file(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in tiny.gpt2_tensors().items()}
    folder = tiny.write_gpt2(tmp_path / "model", tensors)
    held = dict(load(str(folder), dtype="float32").decoder.named_parameters())
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(held["embed.weight"], stored["wte.weight"].float())
    assert torch.equal(held["blocks.0.mlp.up.weight"], stored["h.0.mlp.c_fc.weight"].float().T)
