"""What lies in a checkpoint's files and where it belongs: the whole decision, made from headers alone, without torch.

Strict both ways: every tensor is placed, or on the short list of known ballast, or an error that names it; every
parameter is filled exactly once. Nothing is ever initialised at random in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_json import Reader
from gptcli.errors import BadCheckpoint, Unsupported
from gptcli.families import FAMILIES, REFUSED, Family
from gptcli.fixes import Fix
from gptcli.folder import Source, read_headers, resolve
from gptcli.headers import TensorInfo
from gptcli.strict_json import read_object

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # what parameters may be stored as, and bytes of each

PREFIXES = ("_orig_mod.", "module.", "transformer.", "gpt_neox.", "model.", "language_model.", "decoder.")
BALLAST = re.compile(r".*\.(masked_bias|rotary_emb\.inv_freq|causal_mask)|rotary_emb\.inv_freq")
MASK = re.compile(r".*\.(attn|attention)\.bias")  # causal masks that old versions saved; rank 4, unlike a real bias
OTHER_TOWERS = re.compile(r"(vision_tower|vision_model|multi_modal_projector)\..*")

OF_WRAPPERS = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")  # said outside of text_config

RESPONSIBLE = {  # which keys of config.json decide the shape of a parameter
    "embed": "vocab_size, hidden_size",
    "head": "vocab_size, hidden_size",
    "pos_embed": "max_position_embeddings, hidden_size",
    "attn": "num_attention_heads, num_key_value_heads, head_dim, hidden_size",
    "mlp": "intermediate_size, hidden_size",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows `start`..`stop` of a stored tensor are parameter `name`, or its row `row` where heads are stored apart."""

    name: str
    start: int
    stop: int
    row: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One stored tensor: how its spelling is undone, and what it then fills."""

    tensor: TensorInfo
    fix: Fix | None
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint that was looked at and found sound, before any weight was read."""

    source: Source
    family: str
    config: Config
    config_json: dict[str, Any]
    generation_config: dict[str, Any]
    placements: tuple[Placement, ...]
    dtype: str  # what most of the weights are stored as: F64, F32, F16 or BF16
    notes: tuple[str, ...]

    def runs_as(self, device: str = "cpu") -> str:
        """What the weights are loaded as unless told otherwise: CPUs are slow in float16, or cannot compute in it."""
        return "F32" if self.dtype == "F64" or (self.dtype == "F16" and device == "cpu") else self.dtype

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text, as config.json and generation_config.json know them."""
        found = set[int]()
        for values in (self.config_json, self.generation_config):
            ids = values.get("eos_token_id")
            found.update(i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int)
        return frozenset(found)

    @property
    def bos_id(self) -> int | None:
        """The start token, as config.json or generation_config.json knows it."""
        for values in (self.generation_config, self.config_json):
            if type(values.get("bos_token_id")) is int:
                return int(values["bos_token_id"])
        return None


def look(name: str, *, revision: str | None = None, allow: Sequence[str] = ()) -> Layout:
    """Finds a checkpoint, reads its config and its headers, and decides where everything goes.

    revision: branch, tag or commit of a cached model. allow: keys of config.json to accept though they are not
    understood. Raises NotFound, BadCheckpoint, Unsupported.
    """
    source = resolve(name, revision=revision)
    family, config, config_json = read_config(source.folder / "config.json", allow=allow)
    placements, config = place(config, FAMILIES[family], read_headers(source))
    sizes = Counter[str]()
    for placement in placements:
        sizes[placement.tensor.dtype] += placement.tensor.nbytes
    notes = []
    if config.tied and config_json.get("tie_word_embeddings") is False:
        notes.append("config.json says the head is a matrix of its own, but the files have none: the embedding serves")
    return Layout(
        source=source,
        family=family,
        config=config,
        config_json=config_json,
        generation_config=generation_config(source.folder),
        placements=tuple(placements),
        dtype=sizes.most_common(1)[0][0],
        notes=tuple(notes),
    )


def generation_config(folder: Path) -> dict[str, Any]:
    """How the makers of a model or an adapter want it to be run; empty if they do not say."""
    path = folder / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def read_config(path: Path, *, allow: Sequence[str] = ()) -> tuple[str, Config, dict[str, Any]]:
    """(family, Config, config.json as it is) of one config.json; a multimodal wrapper's text part stands for itself."""
    values = read_object(path)
    kind = values.get("model_type")
    if kind == "gemma3" and isinstance(values.get("text_config"), dict):
        outer = {key: values[key] for key in OF_WRAPPERS if values.get(key) is not None}
        values = {**values["text_config"], **outer, "model_type": "gemma3_text"}
        kind = "gemma3_text"
    if not isinstance(kind, str):
        raise BadCheckpoint(f"{path.name}: 'model_type' is missing", hint="it says which family of decoders this is")
    family = FAMILIES.get(kind)
    if family is None:
        reason = REFUSED.get(kind, "this model type is not known")
        raise Unsupported(
            f"{path.name}: model type {kind[:60]!r} is not supported: {reason}", hint="see `gptcli families`"
        )
    if values.get("quantization_config"):
        method = values["quantization_config"]
        method = method.get("quant_method", "") if isinstance(method, dict) else ""
        raise Unsupported(
            f"{path.name}: the weights are quantised ({str(method)[:20] or 'unknown method'})",
            hint="use the original checkpoint in float32, float16 or bfloat16",
        )
    reader = Reader(values, path.name, allow=allow)
    reader.only("is_encoder_decoder", False, "it is not a decoder alone")
    reader.only("is_causal", True, "only causal attention is supported")
    config = family.read(reader)
    reader.finish()
    if isinstance(tied := values.get("tie_word_embeddings"), bool):  # what the files really hold decides in `place`
        config = replace(config, tied=tied)
    return kind, config, values


def strip(name: str) -> str:
    """A tensor's name without the wrappers that training tools and transformers put before it."""
    while True:
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        else:
            return name


def place(config: Config, family: Family, tensors: Mapping[str, TensorInfo]) -> tuple[list[Placement], Config]:
    """Where each stored tensor goes. The head's own matrix is used if it is there, whatever the config says."""
    stripped = {name: strip(name) for name in tensors}
    heads = {f"{stem}.weight" for stem, target in family.names.items() if target == "head"}
    config = replace(config, tied=heads.isdisjoint(stripped.values()))
    expected = config.shapes()
    fixes = family.fixes_for({stripped[name]: info.shape for name, info in tensors.items()})
    placements, unexpected, filled = list[Placement](), list[str](), dict[tuple[str, int | None], str]()
    for name, info in tensors.items():
        if BALLAST.fullmatch(stripped[name]) or OTHER_TOWERS.fullmatch(stripped[name]):
            continue
        if MASK.fullmatch(stripped[name]) and len(info.shape) == 4:
            continue
        stem, _, leaf = stripped[name].rpartition(".")
        pattern, numbers = _pattern(stem)
        target = family.names.get(pattern)
        names = [_number(t, numbers) + f".{leaf}" for t in ((target,) if isinstance(target, str) else target or ())]
        if not names or any(n not in expected for n in names):
            unexpected.append(name)
            continue
        if info.dtype not in FLOATS:
            raise Unsupported(
                f"{info.file.name}: {name} is stored as {info.dtype}; parameters may be {', '.join(FLOATS)}"
            )
        row = int(numbers[1]) if len(numbers) > 1 else None
        placement = _placement(info, fixes.get(pattern), names, expected, row)
        for part in placement.parts:
            if (part.name, row) in filled:
                raise BadCheckpoint(f"{name} and {filled[part.name, row]} are the same parameter")
            filled[part.name, row] = name
        placements.append(placement)
    _complete(config, family, filled, unexpected)
    return placements, config


def _pattern(stem: str) -> tuple[str, list[str]]:
    """layers.3.norm -> layers.*.norm and its numbers; 03 is no number."""
    numbers = re.findall(r"(?<=\.)(0|[1-9]\d{0,8})(?=\.|$)", stem)
    return re.sub(r"(?<=\.)(0|[1-9]\d{0,8})(?=\.|$)", "*", stem), numbers


def _number(target: str, numbers: Sequence[str]) -> str:
    return target.replace("*", numbers[0], 1) if "*" in target else target


def _placement(
    info: TensorInfo, fix: Fix | None, names: Sequence[str], expected: Mapping[str, tuple[int, ...]], row: int | None
) -> Placement:
    shape = fix.shape(info.shape) if fix and len(info.shape) else info.shape
    shapes = [expected[name] for name in names]
    if row is not None:  # heads stored apart
        if row >= shapes[0][0] or shape != shapes[0][1:]:
            raise _mismatch(info, names[0], shapes[0][1:], shape)
        return Placement(tensor=info, fix=fix, parts=(Part(name=names[0], start=0, stop=shape[0], row=row),))
    whole = (sum(s[0] for s in shapes), *shapes[0][1:])
    if shape != whole:
        raise _mismatch(info, names[0], whole, shape)
    parts, start = [], 0
    for name, s in zip(names, shapes, strict=True):
        parts.append(Part(name=name, start=start, stop=start + s[0]))
        start += s[0]
    return Placement(tensor=info, fix=fix, parts=tuple(parts))


def _mismatch(info: TensorInfo, ours: str, expected: tuple[int, ...], found: tuple[int, ...]) -> BadCheckpoint:
    keys = next((keys for part, keys in RESPONSIBLE.items() if part in ours.split(".")), "hidden_size")
    return BadCheckpoint(
        f"{info.file.name}: {info.name} has shape {list(found)}, config.json makes it {list(expected)}",
        hint=f"config.json and the weights do not belong together; look at {keys}",
    )


def _complete(
    config: Config, family: Family, filled: Mapping[tuple[str, int | None], str], unexpected: Sequence[str]
) -> None:
    """Raises unless every tensor was placed and every parameter filled; names the first three."""
    if unexpected:
        raise BadCheckpoint(
            f"the files hold {_first_three(unexpected, 'tensor')} that config.json knows nothing of",
            hint="see num_hidden_layers and the bias switches in config.json, or the model_type",
        )
    missing = [
        name
        for name, (_, parts) in stored_names(config, family).items()
        if any((part.name, part.row) not in filled for part in parts)
    ]
    if missing:
        raise BadCheckpoint(
            f"the files lack {_first_three(missing, 'tensor')}",
            hint="the checkpoint is incomplete, or config.json describes another model",
        )


def _first_three(names: Sequence[str], noun: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{more})"


def stored_names(config: Config, family: Family) -> dict[str, tuple[Fix | None, tuple[Part, ...]]]:
    """The way back: every tensor that saving writes, with the fix to restore and the parts it is joined from."""
    shapes, done = config.shapes(), set[str]()
    result = dict[str, tuple[Fix | None, tuple[Part, ...]]]()
    for stem, target in family.names.items():
        prefix, fix = "" if target == "head" else family.prefix, family.fixes.get(stem)
        for layer in range(config.n_layer) if "*" in stem else (0,):
            theirs = prefix + stem.replace("*", str(layer), 1)
            ours = [t.replace("*", str(layer)) for t in ((target,) if isinstance(target, str) else target)]
            for leaf in ("weight", "bias"):
                names = [f"{name}.{leaf}" for name in ours]
                if any(name not in shapes or name in done for name in names):
                    continue
                done.update(names)
                if "*" in theirs:  # one tensor for each head
                    n_rows, width = shapes[names[0]]
                    for row in range(n_rows):
                        part = Part(name=names[0], start=0, stop=width, row=row)
                        result[f"{theirs.replace('*', str(row))}.{leaf}"] = (fix, (part,))
                else:
                    result[f"{theirs}.{leaf}"] = (fix, tuple(Part(name=n, start=0, stop=shapes[n][0]) for n in names))
    return result
