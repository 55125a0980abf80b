"""Finds the files of a checkpoint. Files come from strangers: every one is judged before it is used.

Only the standard library, so that looking at a model costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from gptcli.errors import BadCheckpoint, NotFound, Unsupported
from gptcli.headers import OTHER_FORMATS, UNSAFE_NAME, TensorInfo, read_header, refuse_format, refuse_magic
from gptcli.strict_json import os_errors, read_object

SHIPPED = "shipped"  # what our own checkpoint is called
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


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
    with os_errors(name):
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
        refuse_magic(file.read(8), path)
    if path.suffix in OTHER_FORMATS:
        refuse_format(path)
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
            refuse_format(file)
    if (folder / "adapter_model.safetensors").exists():
        raise Unsupported(f"{name} holds an adapter, not a model", hint="name the model that it was trained from")
    what = "no .safetensors file" if (folder / "config.json").exists() else "neither config.json nor weights"
    raise NotFound(f"{name} holds {what}", hint="a model folder has config.json, model.safetensors and tokenizer.json")


def _checked(source: Source) -> Source:
    if not (source.folder / "config.json").is_file():
        raise BadCheckpoint(f"{source.folder} has no config.json", hint="it says what kind of model the weights are")
    return source


def _sharded(name: str, index: Path, *, home: Path) -> Source:
    """The files that an index names. It comes from a stranger, so it may only name plain files beside it."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{index.name} has no weight_map")
    names = sorted({file if isinstance(file, str) else "" for file in weight_map.values()})
    inside = home.resolve()
    for file in names:
        bad = "/" in file or "\\" in file or ":" in file or UNSAFE_NAME.search(file) or file in ("", ".", "..")
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
        if name.endswith((*OTHER_FORMATS, ".safetensors")):
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
