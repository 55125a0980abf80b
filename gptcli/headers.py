"""What a .safetensors file says it holds, every name, shape and offset judged before anything is read.

Only the standard library, so that looking at a model costs nothing.
"""

from __future__ import annotations

import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gptcli.errors import BadCheckpoint, Unsupported
from gptcli.strict_json import lfs_pointer, os_errors, parse_json

HEADER_LIMIT = 25 << 20  # bytes; legal headers of 67 MB exist that take 2 GB and 8 s to read
MOST_TENSORS = 100_000
BITS = {  # of one element; sub-byte kinds are left out and so refused by name
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 8),
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER_FORMATS = (*PICKLES, ".gguf", ".onnx", ".h5", ".msgpack")
UNSAFE_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
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


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of one .safetensors file, every offset checked. Reads the header only."""
    with os_errors(path.name):
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadCheckpoint(f"{path.name} is not a regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            if size == 0:
                raise BadCheckpoint(f"{path.name} is empty", hint="the download went wrong; fetch it again")
            refuse_magic(head, path)
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
    if not name or len(name) > 512 or UNSAFE_NAME.search(name):
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


def refuse_format(path: Path) -> NoReturn:
    if path.suffix in PICKLES:
        raise Unsupported(f"{path.name} is a pickle, which can run code when it is opened: not read", hint=_CONVERT)
    raise Unsupported(f"{path.name}: {path.suffix} files are not read, only .safetensors", hint=_CONVERT)


def refuse_magic(head: bytes, path: Path) -> None:
    """Files that are something else, whatever their name says."""
    if 8 <= int.from_bytes(head, "little") <= HEADER_LIMIT and len(head) == 8:  # the length of a legal header:
        return  # its first byte may look like anything
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise Unsupported(f"{path.name} is a pickle, which can run code when it is opened: not read", hint=_CONVERT)
    if head.startswith(b"GGUF"):
        raise Unsupported(f"{path.name} is a GGUF file, not safetensors", hint=_CONVERT)
    if head.startswith(b"version "):
        raise lfs_pointer(path.name, path.stat().st_size)
    if head.lstrip().startswith(b"<"):
        raise BadCheckpoint(f"{path.name} is a web page, not weights", hint="the download went wrong; fetch it again")
