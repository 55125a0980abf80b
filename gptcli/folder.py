"""Finds and reads the files of a checkpoint. Files come from strangers: every one is judged before it is used.

Only the standard library, so that looking at a model costs nothing.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from gptcli.errors import BadCheckpoint, GptcliError, NotFound, Unsupported

CONFIG_LIMIT = 16 << 20  # bytes of a config-like file
HEADER_LIMIT = 25 << 20  # bytes; legal headers of 67 MB exist that take 2 GB and 8 s to read
MOST_TENSORS = 100_000
DEEPEST = 100  # brackets within brackets, where values are walked; json itself stops at about 1,000
BITS = {  # of one element; sub-byte kinds are left out and so refused by name
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 8),
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHIPPED = "shipped"  # what our own checkpoint is called
OTHER_FORMATS = (*PICKLES, ".gguf", ".onnx", ".h5", ".msgpack")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_UNSAFE_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_CONVERT = "convert it with transformers: from_pretrained(FOLDER), then save_pretrained(NEW_FOLDER)"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `offset` counts from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint that was found: what the user called it, the folder of its config.json, its weight files.

    `index` and `listed`: the name of the index that named the files, and which tensor it says is in which of them.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    index: str = ""
    listed: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


# --- where a model is ------------------------------------------------------------------------------------------------


def shipped() -> Path | None:
    """The folder of the checkpoint that comes with the program: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / "config.json").is_file():
            return folder
    return None


def resolve(name: str, *, revision: str | None = None) -> Source:
    """A folder, a .safetensors file, a shard index, or a model of the Hugging Face cache by its name.

    "shipped" is the checkpoint that comes with the program; a folder of that name is ./shipped.
    Raises NotFound if nothing is there, Unsupported for other formats, BadCheckpoint for an unsound folder.
    """
    with _os_errors(name):
        if name == SHIPPED and (home := shipped()):
            return _in_folder(name, home, home=home)
        path = Path(name).expanduser()
        if path.is_dir():
            return _in_folder(name, path, home=path)
        if path.exists():
            return _of_file(name, path)
        return _in_cache(name, revision or "main")


def _of_file(name: str, path: Path) -> Source:
    if not path.is_file():
        raise BadCheckpoint(f"{name} is neither a folder nor a file", hint="name a folder or a .safetensors file")
    if path.name.endswith(".index.json"):
        return _checked(_sharded(name, path, home=path.parent))
    if path.suffix == ".safetensors":
        return _checked(Source(name=name, folder=path.parent, files=(path,)))
    with path.open("rb") as file:
        _refuse_magic(file.read(8), path)
    if path.suffix in OTHER_FORMATS:
        _refuse_format(path)
    raise Unsupported(f"{name} is not a .safetensors file", hint="name a folder with config.json and model.safetensors")


def _in_folder(name: str, folder: Path, *, home: Path) -> Source:
    """`home`: links may lead anywhere within it; in the cache, snapshots link to blobs of the same model."""
    if (folder / WHOLE).exists():  # an index beside it is left over, for transformers too
        return _checked(Source(name=name, folder=folder, files=(folder / WHOLE,)))
    if (folder / INDEX).exists():
        return _checked(_sharded(name, folder / INDEX, home=home))
    files = sorted(
        file for file in folder.glob("*.safetensors") if not file.name.startswith(("consolidated", "adapter"))
    )
    if files:
        return _checked(Source(name=name, folder=folder, files=tuple(files)))
    for file in sorted(folder.iterdir()):
        if file.suffix in OTHER_FORMATS and file.name not in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
            _refuse_format(file)
    if (folder / "adapter_model.safetensors").exists():
        raise Unsupported(f"{name} holds an adapter, not a model", hint="name the model that it was trained from")
    what = "no .safetensors file" if (folder / "config.json").exists() else "neither config.json nor weights"
    raise NotFound(f"{name} holds {what}", hint="a model folder has config.json, model.safetensors and tokenizer.json")


def _checked(source: Source) -> Source:
    if not (source.folder / "config.json").is_file():
        raise BadCheckpoint(f"{source.folder} has no config.json", hint="it says what kind of model the weights are")
    return source


def _refuse_format(path: Path) -> NoReturn:
    if path.suffix in PICKLES:
        raise Unsupported(f"{path.name} is a pickle, which can run code when it is opened: not read", hint=_CONVERT)
    raise Unsupported(f"{path.name}: {path.suffix} files are not read, only .safetensors", hint=_CONVERT)


def _refuse_magic(head: bytes, path: Path) -> None:
    """Files that are something else, whatever their name says."""
    if 8 <= int.from_bytes(head, "little") <= HEADER_LIMIT and len(head) == 8:  # the length of a legal header:
        return  # its first byte may look like anything
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise Unsupported(f"{path.name} is a pickle, which can run code when it is opened: not read", hint=_CONVERT)
    if head.startswith(b"GGUF"):
        raise Unsupported(f"{path.name} is a GGUF file, not safetensors", hint=_CONVERT)
    if head.startswith(b"version "):
        raise _pointer(path.name, path.stat().st_size)
    if head.lstrip().startswith(b"<"):
        raise BadCheckpoint(f"{path.name} is a web page, not weights", hint="the download went wrong; fetch it again")


def _sharded(name: str, index: Path, *, home: Path) -> Source:
    """The files that an index names. It comes from a stranger, so it may only name plain files beside it."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{index.name} has no weight_map")
    names = sorted({file if isinstance(file, str) else "" for file in weight_map.values()})
    inside = home.resolve()
    for file in names:
        bad = "/" in file or "\\" in file or ":" in file or _UNSAFE_NAME.search(file) or file in ("", ".", "..")
        if bad or not file.endswith(".safetensors"):
            raise BadCheckpoint(f"{index.name} names {file[:80]!r}, which is not a .safetensors file beside it")
    missing = [file for file in names if not (index.parent / file).exists()]
    if missing:
        raise BadCheckpoint(
            f"{missing[0]} is missing: {len(names) - len(missing)} of {len(names)} shards are here",
            hint="the download is incomplete; fetch the rest",
        )
    for file in names:
        if not (index.parent / file).resolve().is_relative_to(inside):
            raise BadCheckpoint(f"{file} is a link that leads out of the model's folder")
    files = tuple(index.parent / file for file in names)
    return Source(name=name, folder=index.parent, files=files, index=index.name, listed=weight_map)


def cache_folder() -> Path:
    """Where the Hugging Face cache is, by its own variables."""
    env = os.environ
    if env.get("HF_HUB_CACHE"):
        return Path(env["HF_HUB_CACHE"]).expanduser()
    home = Path(env["HF_HOME"]) if env.get("HF_HOME") else Path(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return home.expanduser() / "hub"


def _in_cache(name: str, revision: str) -> Source:
    cache = cache_folder()
    if re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name) and ".." not in name:
        home = cache / ("models--" + name.replace("/", "--"))
        if home.is_dir():
            return _in_folder(name, _snapshot(name, home, revision), home=home)
        if name.endswith(OTHER_FORMATS) or name.endswith(".safetensors"):
            raise NotFound(f"no such file: {name}")
        known = sorted(p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*"))
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "name a folder, or a model that the cache holds"
        raise NotFound(f"no folder {name}, and no model of this name in the Hugging Face cache ({cache})", hint=hint)
    raise NotFound(f"no such folder or file: {name}", hint="name a folder with config.json and model.safetensors")


def _snapshot(name: str, home: Path, revision: str) -> Path:
    if not re.fullmatch(r"[\w./-]{1,200}", revision) or ".." in revision or revision.startswith("/"):
        raise NotFound(f"{revision!r} is not a revision")
    ref = home / "refs" / revision
    sha = ref.read_text().strip() if ref.is_file() else revision
    if re.fullmatch(r"[0-9a-f]{7,64}", sha):
        found = [p for p in (home / "snapshots").glob("*") if p.name.startswith(sha) and p.is_dir()]
        if len(found) == 1:
            return found[0]
    raise NotFound(
        f"{name} is in the cache, but not its revision {revision}", hint="download it, or leave --revision out"
    )


# --- JSON, strictly --------------------------------------------------------------------------------------------------


def read_json(path: Path, *, limit: int = CONFIG_LIMIT) -> Any:
    """The value in a file: UTF-8, no duplicate keys, no NaN, no huge numbers, no abyss. Raises BadCheckpoint."""
    return parse_json(read_bytes(path, limit=limit), path.name)


def read_object(path: Path, *, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The same, which must be an object."""
    value = read_json(path, limit=limit)
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path.name} must hold a JSON object")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """JSON of a stranger; `where` is how messages call it."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadCheckpoint(f"{where} begins with a byte order mark", hint="save it as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from None
    if not text.strip():
        raise BadCheckpoint(f"{where} is empty")
    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": no_constant}
    try:
        with no_garbage_collection():
            value = json.loads(text, parse_int=_bounded_int, parse_float=_finite, **hooks)
        if len(data) <= CONFIG_LIMIT // 16:  # larger ones are vocabularies and headers, which nobody walks
            _check_depth(value)
    except json.JSONDecodeError as error:
        raise BadCheckpoint(f"{where} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadCheckpoint(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise BadCheckpoint(f"{where}: {error}") from None
    return value


def _check_depth(value: Any) -> None:
    """Raises RecursionError beyond DEEPEST, one level of the value at a time."""
    level, depth = [value], 0
    while level := [child for v in level for child in _inside(v) if type(child) in (dict, list)]:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if type(value) is dict else value if type(value) is list else ()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: an object none of whose keys is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Half the time of reading a large vocabulary would go into looking for cycles, which it cannot have."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def no_constant(name: str) -> NoReturn:
    """For json.loads: NaN, Infinity and -Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not a JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


# --- safetensors headers ---------------------------------------------------------------------------------------------


def read_headers(source: Source) -> dict[str, TensorInfo]:
    """Every tensor of all files. Raises BadCheckpoint for a name in two of them, or an index that tells otherwise."""
    found = dict[str, TensorInfo]()
    for file in source.files:
        for name, info in read_header(file)[0].items():
            if name in found:
                raise BadCheckpoint(f"tensor {name!r} is in {found[name].file.name} and in {file.name}")
            found[name] = info
    if len(source.files) > 1 and source.index:
        for name in sorted(source.listed.keys() | found.keys()):
            listed, held = source.listed.get(name), found[name].file.name if name in found else None
            if listed != held:
                where = f"says {listed}" if listed else "does not list it"
                raise BadCheckpoint(f"tensor {name!r} is in {held or 'no file'}, but {source.index} {where}")
    return found


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of one .safetensors file, every offset checked. Reads the header only."""
    with _os_errors(path.name):
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadCheckpoint(f"{path.name} is not a regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            if size == 0:
                raise BadCheckpoint(f"{path.name} is empty", hint="the download went wrong; fetch it again")
            _refuse_magic(head, path)
            length = int.from_bytes(head, "little")
            if size < 8 or length > HEADER_LIMIT:
                raise BadCheckpoint(f"{path.name} is not a safetensors file, or its header is larger than 25 MB")
            if 8 + length > size:
                raise BadCheckpoint(f"{path.name}: the download is incomplete: {size:,} bytes, its header ends later")
            header = file.read(length)
    if not header.startswith(b"{"):
        raise BadCheckpoint(f"{path.name} is not a safetensors file: its header is not a JSON object")
    value = parse_json(header.rstrip(b" "), f"the header of {path.name}")
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise BadCheckpoint(f"{path.name}: __metadata__ must hold texts only")
    if len(value) > MOST_TENSORS:
        raise BadCheckpoint(f"{path.name} lists {len(value):,} tensors, more than {MOST_TENSORS:,}")
    tensors = {name: _tensor(name, entry, path, 8 + length) for name, entry in value.items()}
    end = 8 + length
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise BadCheckpoint(f"{path.name}: tensors overlap or leave a hole before {info.name!r}")
        end += info.nbytes
    if end > size:
        hint = "fetch the file again"
        raise BadCheckpoint(f"{path.name}: the download is incomplete: {size:,} of {end:,} bytes", hint=hint)
    if end < size:
        raise BadCheckpoint(f"{path.name} has {size - end:,} bytes after its last tensor")
    return tensors, metadata


def _tensor(name: str, entry: Any, path: Path, start: int) -> TensorInfo:
    if not name or len(name) > 512 or _UNSAFE_NAME.search(name):
        raise BadCheckpoint(f"{path.name}: a tensor is called {name[:60]!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadCheckpoint(f"{path.name}: the entry of {name!r} is malformed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise Unsupported(f"{path.name}: {name!r} is stored as {str(dtype)[:20]}, a type that is not read")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < 1 << 60 for n in numbers):
            raise BadCheckpoint(f"{path.name}: the shape or the place of {name!r} is malformed")
    if len(offsets) != 2 or len(shape) > 8:  # before multiplying: the product of a long list is a huge number
        raise BadCheckpoint(f"{path.name}: the shape or the place of {name!r} is malformed")
    nbytes = math.prod(shape) * BITS[dtype] // 8
    if offsets[1] - offsets[0] != nbytes:
        raise BadCheckpoint(f"{path.name}: {name!r} of shape {shape} does not fill the bytes it is given")
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), file=path, offset=start + offsets[0], nbytes=nbytes)


# --- the disk --------------------------------------------------------------------------------------------------------


def read_bytes(path: Path, *, limit: int) -> bytes:
    """All of a small file, which must be a regular one: a pipe would never end."""
    with _os_errors(path.name):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadCheckpoint(f"{path.name} is not a regular file")
        if found.st_size > limit:
            raise BadCheckpoint(f"{path.name} has {found.st_size:,} bytes, more than the {limit:,} it may have")
        data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise _pointer(path.name, len(data))
    return data


def _pointer(name: str, size: int) -> BadCheckpoint:
    return BadCheckpoint(f"{name} is a git-lfs pointer of {size} bytes, not the file", hint="run: git lfs pull")


@contextmanager
def _os_errors(name: str) -> Iterator[None]:
    """Whatever the file system raises becomes one clear line."""
    try:
        yield
    except GptcliError:
        raise
    except FileNotFoundError:
        raise NotFound(f"no such file: {name}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GptcliError(f"cannot read {name[:200]}: {reason}") from None
