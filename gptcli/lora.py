"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W + scale * B A, where only the narrow A and B are trained.

On the disk an adapter is PEFT's: adapter_config.json and adapter_model.safetensors, in the names and the shapes of the
family's own modules. So where a family fuses q, k and v into one matrix, they share one A here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gptcli.checkpoint import Checkpoint
from gptcli.disk import settle
from gptcli.errors import BadCheckpoint, GptcliError, NotFound, Unsupported, UsageError
from gptcli.families import FAMILIES, Family
from gptcli.fixes import CONV1D, Fix
from gptcli.folder import Source, read_headers
from gptcli.headers import TensorInfo
from gptcli.layout import FLOATS, Part, stored_names, strip
from gptcli.strict_json import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HOLLOW = {  # what PEFT can do and we do not, unless it is switched off: key -> values that switch it off
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "megatron_config": (None, {}),
    "alora_invocation_tokens": (None, []),
}


@dataclass(frozen=True, kw_only=True)
class Rank:
    """An adapter's size: the width of its matrices, what it is multiplied by, and the modules it sits on."""

    r: int
    alpha: float
    targets: tuple[str, ...]  # last parts of the family's own names, such as q_proj
    rslora: bool = False  # scale by sqrt(r), not r (Kalajdzievski 2023)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)


def weights_digest(decoder: nn.Module) -> str:
    """sha256 of all its numbers as they lie in memory, and of their names: what an adapter was trained beside."""
    digest = hashlib.sha256()
    for name, tensor in decoder.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter. a: [r, in], one for all that the family stores as one; b: [out, r]."""

    def __init__(self, base: nn.Linear, a: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base, self.a, self.scale = base, a, scale
        self.b = nn.Parameter(torch.zeros(base.out_features, a.shape[0], device=a.device, dtype=a.dtype))

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(x, self.a), self.b) * self.scale
        return added + F.linear(x, self.base.weight, self.base.bias)


def targets_of(family: Family) -> tuple[str, ...]:
    """The modules an adapter can sit on: every linear layer of a block, by the last part of its name."""
    return tuple(dict.fromkeys(stem.rpartition(".")[2] for stem, target in family.names.items() if _is_linear(target)))


def _is_linear(target: str | tuple[str, ...]) -> bool:
    first = target if isinstance(target, str) else target[0]
    part = first.split(".")
    return part[0] == "blocks" and part[2] in ("attn", "mlp") and part[-1] not in ("q_norm", "k_norm")


def places(checkpoint: Checkpoint, targets: Sequence[str]) -> dict[str, tuple[Fix | None, tuple[Part, ...]]]:
    """The family's modules that an adapter sits on, by their whole names, with what each is of ours.

    Raises UsageError for a target that the family does not have.
    """
    family = FAMILIES[checkpoint.family]
    known = targets_of(family)
    if unknown := [name for name in targets if name not in known]:
        raise UsageError(
            f"{checkpoint.family} has no linear layer {unknown[0]!r}", hint=f"choose from {', '.join(known)}"
        )
    linear = {stem for stem, target in family.names.items() if _is_linear(target)}
    found = {}
    for name, (fix, parts) in stored_names(checkpoint.config, family).items():
        module, _, leaf = name.rpartition(".")
        is_linear = any(_matches(module.removeprefix(family.prefix), stem) for stem in linear)
        if leaf == "weight" and is_linear and module.rpartition(".")[2] in targets:
            found[module] = (fix, parts)
    return found


def _matches(name: str, stem: str) -> bool:
    """h.3.attn.c_attn and h.*.attn.c_attn."""
    parts, wanted = name.split("."), stem.split(".")
    return len(parts) == len(wanted) and all(w in ("*", p) for p, w in zip(parts, wanted, strict=True))


def attach(checkpoint: Checkpoint, rank: Rank, *, seed: int = 0) -> None:
    """Freezes the decoder and puts a new adapter on it, which changes nothing until it is trained: b is zero.

    A is uniform as in nn.Linear, which is PEFT's start too.
    """
    decoder = checkpoint.decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for _, parts in places(checkpoint, rank.targets).values():
        bases = [decoder.get_submodule(part.name.removesuffix(".weight")) for part in parts]
        assert isinstance(bases[0], nn.Linear)
        width = bases[0].in_features
        values = torch.empty(rank.r, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)
        a = nn.Parameter(values.to(checkpoint.device))
        for part, base in zip(parts, bases, strict=True):
            assert isinstance(base, nn.Linear)
            _put(decoder, part, LoraLinear(base, a, rank.scale))


def _put(decoder: nn.Module, part: Part, module: nn.Module) -> None:
    parent, _, leaf = part.name.removesuffix(".weight").rpartition(".")
    setattr(decoder.get_submodule(parent), leaf, module)


def _at(decoder: nn.Module, part: Part) -> LoraLinear:
    module = decoder.get_submodule(part.name.removesuffix(".weight"))
    assert isinstance(module, LoraLinear)
    return module


def save_adapter(checkpoint: Checkpoint, rank: Rank, folder: Path) -> None:
    """Writes the adapter of a decoder that has one, as PEFT reads it. The folder must not be there yet."""
    tensors = {}
    for name, (fix, parts) in places(checkpoint, rank.targets).items():
        b = torch.cat([_at(checkpoint.decoder, part).b.detach() for part in parts])
        if fix and fix is not CONV1D:  # PEFT's own matrices never lie on their side
            b = fix.save(b, checkpoint.config)
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = _at(checkpoint.decoder, parts[0]).a.detach().cpu().contiguous()
        tensors[f"{key}.lora_B.weight"] = b.cpu().contiguous()
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": checkpoint.name,
        "r": rank.r,
        "lora_alpha": rank.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(rank.targets),
        "bias": "none",
        "fan_in_fan_out": CONV1D in FAMILIES[checkpoint.family].fixes.values(),
        "use_rslora": rank.rslora,
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        settle(folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise GptcliError(f"cannot save to {folder}: {reason}") from error


def read_rank(folder: Path) -> Rank:
    """What adapter_config.json says. Raises NotFound, BadCheckpoint, Unsupported for what is not plain LoRA."""
    if not (folder / CONFIG).is_file():
        raise NotFound(f"no adapter at {folder}: {CONFIG} is not there")
    values = read_object(folder / CONFIG)
    if values.get("peft_type") != "LORA":
        raise Unsupported(f"{CONFIG}: peft_type {str(values.get('peft_type'))[:30]!r} is not LORA")
    for key, hollow in HOLLOW.items():
        if key in values and values[key] not in hollow:
            raise Unsupported(f"{CONFIG}: {key} = {str(values[key])[:60]!r} is not supported")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise Unsupported(f"{CONFIG}: init_lora_weights = {start[:30]!r} changes the base model's own weights")
    r, alpha, targets = values.get("r"), values.get("lora_alpha"), values.get("target_modules")
    if type(r) is not int or not 0 < r <= 1 << 16 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise BadCheckpoint(f"{CONFIG}: r must be a count and lora_alpha a number")
    names = targets if isinstance(targets, list) and all(isinstance(t, str) for t in targets) else []
    short = tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return Rank(r=r, alpha=float(alpha), targets=short, rslora=values.get("use_rslora") is True)


def apply(checkpoint: Checkpoint, folder: Path) -> int:
    """Adds an adapter to the decoder's own weights, in float32 before they are rounded back. Returns its parameters.

    Every tensor is used or named in an error. Raises NotFound, BadCheckpoint, Unsupported; UsageError where the
    decoder is rounded.
    """
    if next(checkpoint.decoder.buffers(), None) is not None:
        raise UsageError("an adapter is added to whole weights, and these are rounded", hint="load the model whole")
    rank, family = read_rank(folder), FAMILIES[checkpoint.family]
    found = _pairs(folder)
    here = places(checkpoint, targets_of(family))
    by_stem = {strip(name): value for name, value in here.items()}
    decoder, n = dict(checkpoint.decoder.named_parameters()), 0
    for module, (a_info, b_info) in found.items():
        place = here.get(module) or by_stem.get(strip(module))
        if place is None:
            raise BadCheckpoint(f"{WEIGHTS}: {module[:120]!r} is not a linear layer of this {checkpoint.family} model")
        fix, parts = place
        rows = sum(decoder[part.name].shape[0] for part in parts)
        width = decoder[parts[0].name].shape[1]
        if a_info.shape != (rank.r, width) or b_info.shape != (rows, rank.r):
            raise BadCheckpoint(
                f"{WEIGHTS}: {module} has shapes {list(a_info.shape)} and {list(b_info.shape)}, "
                f"this model makes them {[rank.r, width]} and {[rows, rank.r]}",
                hint="the adapter was made for another model",
            )
        b = _read(b_info)
        if fix and fix is not CONV1D:
            b = fix.load(b, checkpoint.config)
        delta = ((b @ _read(a_info)) * rank.scale).to(checkpoint.device)  # [rows, width]
        start = 0
        for part in parts:
            weight = decoder[part.name]
            stop = start + weight.shape[0]
            weight.data.copy_(weight.data.float() + delta[start:stop])
            start = stop
        n += math.prod(a_info.shape) + math.prod(b_info.shape)
    return n


def restore(checkpoint: Checkpoint, rank: Rank, folder: Path) -> None:
    """Fills the adapter on a decoder with the numbers of a saved one, so that its training can go on."""
    found = _pairs(folder)
    for module, (fix, parts) in places(checkpoint, rank.targets).items():
        a, b = map(_read, found[module])
        if fix and fix is not CONV1D:
            b = fix.load(b, checkpoint.config)
        _at(checkpoint.decoder, parts[0]).a.data.copy_(a)
        start = 0
        for part in parts:
            own = _at(checkpoint.decoder, part).b
            own.data.copy_(b[start : start + own.shape[0]])
            start += own.shape[0]


def _pairs(folder: Path) -> Mapping[str, tuple[TensorInfo, TensorInfo]]:
    """Module -> its A and B."""
    if not (folder / WEIGHTS).is_file():
        raise NotFound(f"no adapter at {folder}: {WEIGHTS} is not there")
    headers = read_headers(Source(name=folder.name, folder=folder, files=(folder / WEIGHTS,)))
    halves: dict[str, dict[str, TensorInfo]] = {}
    for name, info in headers.items():
        module, _, which = name.removesuffix(".weight").removesuffix(".default").rpartition(".")
        if which not in ("lora_A", "lora_B") or len(info.shape) != 2:
            raise Unsupported(f"{WEIGHTS}: {name[:120]!r} is not part of a plain LoRA adapter")
        if info.dtype not in FLOATS:
            raise Unsupported(f"{WEIGHTS}: {name} is stored as {info.dtype}; adapters may be {', '.join(FLOATS)}")
        halves.setdefault(module.removeprefix("base_model.model."), {})[which] = info
    for module, both in halves.items():
        if len(both) < 2:
            raise BadCheckpoint(f"{WEIGHTS}: {module[:120]!r} has only {next(iter(both))}")
    if not halves:
        raise BadCheckpoint(f"{WEIGHTS} is empty")
    return {module: (both["lora_A"], both["lora_B"]) for module, both in halves.items()}


def _read(info: TensorInfo) -> Tensor:
    try:
        with safe_open(info.file, framework="pt", backend="pread") as stored:
            tensor: Tensor = stored.get_tensor(info.name)
            return tensor.float()
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{info.file.name}: cannot be read: {error}") from error
