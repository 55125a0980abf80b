"""Files of strangers: each fault is one sentence that names it, and nothing is run or allocated on the way."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny

from gptcli.errors import BadCheckpoint, GptcliError, NotFound, Unsupported
from gptcli.folder import read_headers, resolve
from gptcli.headers import read_header
from gptcli.strict_json import parse_json, read_object


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A .safetensors file with this header, whatever is wrong with it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int = 0, stop: int = 8, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"__metadata__": {"format": "pt"}, "a": entry()}, bytes(8))
    tensors, metadata = read_header(path)
    assert (tensors["a"].shape, tensors["a"].nbytes, metadata) == ((2,), 8, {"format": "pt"})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04" + bytes(40), "pickle"),
        (b"\x80\x02}q\x00." + bytes(40), "pickle"),
        (b"GGUF" + bytes(40), "GGUF"),
        (b"\x01", "not a safetensors file"),
        (struct.pack("<Q", 1 << 40) + b"{}", "header is larger than 25 MB"),
        (struct.pack("<Q", 500) + b"{}", "incomplete"),
        (struct.pack("<Q", 4) + b"[{}]", "not a JSON object"),
        (struct.pack("<Q", 4) + b"{\xff\xff}", "not UTF-8"),
        (struct.pack("<Q", 2) + b"{]", "not JSON"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=says):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "size", "says"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "overlap"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "hole"),
        ({"a": entry(4, 12)}, 12, "hole"),
        ({"a": entry()}, 6, "incomplete: .* of"),
        ({"a": entry()}, 9, "1 bytes after its last tensor"),
        ({"a": entry(0, 4)}, 4, "does not fill"),
        ({"a": entry(0, 8, (1 << 40, 1 << 40))}, 8, "does not fill"),
        ({"a": entry(0, 8, (-2,))}, 8, "malformed"),
        ({"a": entry(0, 8, (1,) * 8 + (2,))}, 8, "malformed"),
        ({"a": entry(0, 8, ((1 << 60) - 1,) * 50_000)}, 8, "malformed"),
        ({"a": {**entry(), "data_offsets": [0]}}, 8, "malformed"),
        ({"a": {**entry(), "shape": [True, 2]}}, 8, "malformed"),
        ({"a": {**entry(), "shape": "2"}}, 8, "malformed"),
        ({"a": {**entry(), "more": 1}}, 8, "malformed"),
        ({"a": [1, 2]}, 8, "malformed"),
        ({"a": entry(dtype="F4")}, 8, "stored as F4"),
        ({"a": entry(dtype="__import__")}, 8, "stored as __import__"),
        ({"": entry()}, 8, "a tensor is called ''"),
        ({"a\x1b]0;owned\x07": entry()}, 8, r"a tensor is called 'a\\x1b"),
        ({"a\u202eb": entry()}, 8, "a tensor is called"),
        ({"a": entry(), "__metadata__": {"k": 1}}, 8, "__metadata__"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
         b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "'a' is there twice"),
    ],
)  # fmt: skip
def test_poisoned_headers_are_refused(tmp_path: Path, header: Any, size: int, says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        read_header(write(tmp_path / "x.safetensors", header, bytes(size)))


def test_a_header_of_a_million_tensors_is_refused_quickly(tmp_path: Path) -> None:
    header = {str(i): entry(0, 0, (0,)) for i in range(100_001)}
    with pytest.raises(BadCheckpoint, match="more than 100,000"):
        read_header(write(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "Infinity is not a JSON number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("\ufeff{}", "byte order mark"),
        ("", "is empty"),
        ("{'a': 1}", "line 1, column 2"),
    ],
)
def test_hostile_json_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        parse_json(text.encode(), "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_git_lfs_pointer_in_place_of_json_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadCheckpoint, match=f"{name} is a git-lfs pointer of 63 bytes") as error:
        read_object(tmp_path / name)
    assert error.value.hint == "run: git lfs pull"


def test_brackets_in_strings_are_no_nesting() -> None:
    assert parse_json(json.dumps({"a": "[" * 500}).encode(), "x") == {"a": "[" * 500}


# --- where a model is ------------------------------------------------------------------------------------------------


def test_a_folder_a_file_and_an_index_name_the_same_model(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "model-1-of-1.safetensors", {"a": entry()}, bytes(8))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}}))
    for name in (tmp_path, index, tmp_path / "model-1-of-1.safetensors"):
        assert [file.name for file in resolve(str(name)).files] == ["model-1-of-1.safetensors"]


@pytest.mark.parametrize(
    "shard",
    ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "C:x.safetensors", "x.bin", "", "..", 7,
     "a\\b.safetensors", "a\x1b.safetensors"],
)  # fmt: skip
def test_an_index_may_only_name_files_beside_it(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(BadCheckpoint, match="not a .safetensors file beside it"):
        resolve(str(tmp_path))


def test_a_shard_that_links_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write(tmp_path / "elsewhere.safetensors", {"a": entry()}, bytes(8))
    (folder / "x.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    with pytest.raises(BadCheckpoint, match="leads out"):
        resolve(str(folder))


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "1.safetensors", {"a": entry()}, bytes(8))
    weight_map = {"a": "1.safetensors", "b": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadCheckpoint, match="2.safetensors is missing: 1 of 2 shards"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("second", "weight_map", "says"),
    [
        ("a", {"a": "1.safetensors", "z": "2.safetensors"}, "'a' is in 1.safetensors and in 2.safetensors"),
        ("b", {"a": "1.safetensors", "z": "2.safetensors"}, "'b' is in 2.safetensors, but .* does not list it"),
        ("b", {"a": "2.safetensors", "b": "1.safetensors"}, "'a' is in 1.safetensors, but .* says 2.safetensors"),
        ("b", {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}, "'c' is in no file"),
    ],
)
def test_an_index_that_tells_otherwise_than_its_files_is_refused(
    tmp_path: Path, second: str, weight_map: dict[str, str], says: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "1.safetensors", {"a": entry()}, bytes(8))
    write(tmp_path / "2.safetensors", {second: entry()}, bytes(8))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadCheckpoint, match=says):
        read_headers(resolve(str(tmp_path)))


def test_an_index_of_another_name_is_the_one_that_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", {name: entry()}, bytes(8))
    index = tmp_path / "model.alt.safetensors.index.json"
    weight_map = {"a": "a.safetensors", "b": "b.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert read_headers(resolve(str(index))).keys() == {"a", "b"}
    index.write_text(json.dumps({"weight_map": weight_map | {"c": "b.safetensors"}}))
    with pytest.raises(BadCheckpoint, match=f"'c' is in no file, but {index.name} says b.safetensors"):
        read_headers(resolve(str(index)))


def test_a_whole_file_counts_whatever_index_was_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "model.safetensors", {"a": entry()}, bytes(8))
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert read_headers(resolve(str(tmp_path)))["a"].file == tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "x.gguf", "model.onnx"])
def test_other_formats_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    for where in (tmp_path, tmp_path / name):
        with pytest.raises(Unsupported) as error:
            resolve(str(where))
        assert "convert it with transformers" in error.value.hint


def test_nothing_there_is_told_apart_from_half_of_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder nowhere"):
        resolve("nowhere")
    with pytest.raises(NotFound, match="neither config.json nor weights"):
        resolve(str(tmp_path))
    write(tmp_path / "model.safetensors", {"a": entry()}, bytes(8))
    with pytest.raises(BadCheckpoint, match="has no config.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "org/../../etc", "\x1b[31m"])
def test_strange_names_are_not_found(name: str) -> None:
    with pytest.raises(GptcliError):
        resolve(name)


def test_a_pipe_or_a_device_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint):
        resolve(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        read_headers(resolve(str(tmp_path)))


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with one model, laid out as huggingface_hub does: snapshots link to blobs."""
    home = tmp_path / "hub" / "models--roneneldan--TinyStories-33M"
    snapshot = home / "snapshots" / ("0123abcd" * 5)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abcd" * 5)
    (home / "blobs").mkdir()
    tiny.write_gpt2(tmp_path / "made")
    for file in sorted((tmp_path / "made").iterdir()):
        blob = home / "blobs" / ("b" + file.name)
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_model_of_the_cache_is_found_by_its_name(hub: Path) -> None:
    assert resolve("roneneldan/TinyStories-33M").folder == hub
    assert resolve("roneneldan/TinyStories-33M", revision="0123abcd").folder == hub
    assert read_headers(resolve("roneneldan/TinyStories-33M"))


def test_the_cache_is_where_its_variables_say(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hub.parents[2].parent
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(root))
    assert resolve("roneneldan/TinyStories-33M").folder == hub


def test_a_misspelt_name_is_answered_with_the_nearest(hub: Path) -> None:
    with pytest.raises(NotFound) as error:
        resolve("roneneldan/TinyStorys-33M")
    assert error.value.hint == "did you mean roneneldan/TinyStories-33M?"


@pytest.mark.parametrize("revision", ["v9", "../../..", "/etc", "a" * 300])
def test_an_unknown_revision_is_not_found(hub: Path, revision: str) -> None:
    with pytest.raises(NotFound, match="revision"):
        resolve("roneneldan/TinyStories-33M", revision=revision)
