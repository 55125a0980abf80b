"""A checkpoint in memory: decoder, tokenizer, and what its folder says of both. Loads and saves Hugging Face layout."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gptcli.ahead import Ahead, read_ahead
from gptcli.compiled import Pass, find
from gptcli.config import Config
from gptcli.disk import flush, settle
from gptcli.errors import BadCheckpoint, GptcliError, UsageError
from gptcli.families import FAMILIES
from gptcli.few import FewTokens
from gptcli.few import find as find_few
from gptcli.layout import Layout, Part, Placement, look, stored_names
from gptcli.memory import check_fits, give_back
from gptcli.model import Decoder
from gptcli.model_choice import chosen_model
from gptcli.quantize import KINDS, Bits, check_kernel, keep, kept, restore, round_head, round_matrix
from gptcli.quantize import size as rounded_size
from gptcli.settings import GENERATION_CONFIG
from gptcli.tokens import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
T = TypeVar("T")
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    GENERATION_CONFIG,
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model ready to run.

    name: as it was asked for; folder: of its config.json. config_json, generation_config: as they were read.
    eos_ids: tokens that end a text. start_id: where a text without a prompt begins; None if the model has no such
    token. notes: what a person should be told.
    """

    name: str
    folder: Path
    family: str
    config: Config
    decoder: Decoder
    tokenizer: Tokenizer
    config_json: dict[str, Any]
    generation_config: dict[str, Any]
    eos_ids: frozenset[int]
    start_id: int | None
    notes: tuple[str, ...] = ()
    _found: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def one_token(self) -> Pass | None:
        """The compiled pass of one token, where `gptcli optimize` has made it, with the weights as they are now."""
        found: Pass | None = self._with_these_weights("one", find)
        return found

    def few_tokens(self) -> FewTokens | None:
        """The same of a few tokens, which gives each the numbers that the pass of one gives it."""
        found: FewTokens | None = self._with_these_weights("few", find_few) if self.one_token() else None
        return found

    def once(self, name: str, find: Callable[[], T]) -> T:
        """What `find` finds of this checkpoint, which is asked for it only once."""
        if name not in self._found:
            self._found[name] = find()
        return cast(T, self._found[name])

    def _with_these_weights(self, name: str, find: Callable[[Decoder], Any]) -> Any:
        """A compiled pass, looked for once, and again when the decoder has got other weights."""
        held = self._found.get(name)
        if name not in self._found or (held and not held.fits()):
            self._found[name] = find(self.decoder)
        return self._found[name]

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.embed.weight.device

    def begins(self, ids: Sequence[int]) -> bool:
        """Whether a start token stands in front of these tokens."""
        return bool(ids) and ids[0] in (self.tokenizer.bos_id, self.start_id)

    @property
    def n_tokens(self) -> int:
        """Tokens that can be chosen: rows of the embedding beyond the tokenizer's own are padding."""
        return min(self.tokenizer.size, self.config.n_vocab)


def load(
    name: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    revision: str | None = None,
    allow_config: Sequence[str] = (),
) -> Checkpoint:
    """Loads a folder, a .safetensors file, a shard index, or a model of the Hugging Face cache by its name.

    Without a name it is the checkpoint that comes with gptcli.
    device "auto" is the first there is of cuda, mps and cpu. dtype "auto" keeps the files' own, but float16 becomes
    float32 on the CPU, which is slow in it or cannot do it. quantize "int8" or "int4" rounds the matrices, see
    quantize.py. revision: branch, tag or commit of a cached model. allow_config: keys of config.json that are not
    understood and accepted all the same.

    Holds the weights once plus one tensor. Raises NotFound, BadCheckpoint, Unsupported, OutOfMemory, and UsageError
    for a device, dtype or rounding that is not known.
    """
    if name is None:
        name = chosen_model({})
    return load_layout(look(name, revision=revision, allow=allow_config), device=device, dtype=dtype, quantize=quantize)


def load_layout(
    layout: Layout,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    ahead: Ahead | None = None,
    on_rounding: Callable[[], None] | None = None,
) -> Checkpoint:
    """Loads what `look` has found.

    ahead: the files' bytes, if they are being read already. on_rounding: called before matrices are rounded whose
    rounded form is kept from then on, which takes longer than loading.
    """
    where = pick_device(device)
    kind = STORED[layout.runs_as(where.type)] if dtype == "auto" else DTYPES.get(dtype)
    if kind is None:
        raise UsageError(f"dtype {dtype!r} is not known", hint=f"choose auto, {', '.join(DTYPES)}")
    if quantize not in ("none", *KINDS):
        raise UsageError(f"quantize {quantize!r} is not known", hint=f"choose none, {', '.join(KINDS)}")
    if quantize == "none" and ahead is None:  # the tokenizer is read meanwhile
        ahead = read_ahead(layout, device=where.type, dtype=dtype)
    whole = layout.config.n_params() * kind.itemsize
    need = whole if quantize == "none" else rounded_size(layout.config, cast(Bits, quantize), kind)
    there = ahead.nbytes if ahead and where.type == "cpu" else 0  # what is read ahead lies in the machine's memory
    check_fits(need - there, where, what="the weights")
    with ThreadPoolExecutor(1) as beside:  # a large vocabulary takes a third of the time that the weights do
        reading = beside.submit(Tokenizer.from_folder, layout.source.folder, n_vocab=layout.config.n_vocab)
        if quantize == "none":
            decoder = _fill(layout, where, kind, ahead=ahead)
        else:
            decoder = _rounded(layout, where, kind, cast(Bits, quantize), on_rounding)
        tokenizer = reading.result()
    give_back()
    eos_ids = layout.eos_ids | tokenizer.eos_ids
    start = tokenizer.bos_id if tokenizer.bos_id is not None else layout.bos_id
    if start is None and len(tokenizer.eos_ids) == 1:  # GPT-2's kind: one token both ends a text and starts the next
        (start,) = tokenizer.eos_ids
    return Checkpoint(
        name=layout.source.name,
        folder=layout.source.folder,
        family=layout.family,
        config=layout.config,
        decoder=decoder,
        tokenizer=tokenizer,
        config_json=layout.config_json,
        generation_config=layout.generation_config,
        eos_ids=frozenset(i for i in eos_ids if i < layout.config.n_vocab),
        start_id=start if start is not None and 0 <= start < layout.config.n_vocab else None,
        notes=layout.notes,
    )


def pick_device(name: str) -> torch.device:
    """auto: the first of cuda, mps, cpu that is there. Raises UsageError for one that is not, or is no name."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    if not re.fullmatch(r"(cpu|mps)(:0)?|cuda(:[0-9]+)?", name):
        raise UsageError(f"device {name!r} is not known", hint="choose auto, cpu, cuda, cuda:N or mps")
    kind, _, index = name.partition(":")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise UsageError(f"device {name!r} is not available here", hint="use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' is not available here", hint="use --device cpu")
    return torch.device(name)


def _fill(
    layout: Layout, device: torch.device, dtype: torch.dtype, bits: Bits | None = None, ahead: Ahead | None = None
) -> Decoder:
    """A decoder whose every parameter comes from the files: built without memory, then filled tensor by tensor.

    bits: matrices are rounded to them as they come, so that no two of them are in memory as they were.
    """
    with torch.device("meta"):
        decoder = Decoder(layout.config)
    for part, tensor in stored_parts(layout, device=device, dtype=dtype, ahead=ahead):
        _assign(decoder, part, tensor)
        if bits and part.name.endswith(".weight"):
            round_matrix(decoder, part.name.removesuffix(".weight"), bits)
    empty = [name for name, parameter in decoder.named_parameters() if parameter.is_meta]
    if empty:
        raise BadCheckpoint(f"{empty[0]} was not filled")
    if bits:
        round_head(decoder)
    return decoder.eval()


def _rounded(
    layout: Layout, device: torch.device, dtype: torch.dtype, bits: Bits, on_rounding: Callable[[], None] | None
) -> Decoder:
    """The same with rounded matrices; found in the user's cache, or rounded now and kept there."""
    check_kernel(bits, device)
    if device.type != "cpu":
        return _fill(layout, device, dtype, bits)
    file = kept(layout, dtype, bits)
    with torch.device("meta"):
        decoder = Decoder(layout.config)
    if restore(decoder, file, dtype):
        return decoder.eval()
    if on_rounding:
        on_rounding()
    decoder = _fill(layout, device, dtype, bits)
    if kept(layout, dtype, bits) == file:  # the weights are still those that were looked at
        keep(decoder, file)
    return decoder


def stored_parts(
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ahead: Ahead | None = None,
) -> Iterator[tuple[Part, Tensor]]:
    """What the files hold of each parameter, in our spelling, one tensor at a time. Raises BadCheckpoint."""
    for placement, stored in _stored(layout) if ahead is None else _ahead(layout, ahead):
        tensor = stored.to(device=device, dtype=dtype)
        if placement.fix:
            tensor = placement.fix.load(tensor, layout.config)
        for part in placement.parts:
            yield part, tensor[part.start : part.stop]
        copied = all(part.row is not None for part in placement.parts)
        if ahead and (copied or tensor.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr()):
            del stored
            ahead.drop(placement.tensor)


def _ahead(layout: Layout, ahead: Ahead) -> Iterator[tuple[Placement, Tensor]]:
    """Each stored tensor, in memory that was filled before."""
    for placement in layout.placements:
        info = placement.tensor
        view, kind = ahead.take(info), STORED[info.dtype]
        flat = torch.frombuffer(view, dtype=kind) if info.nbytes else torch.empty(0, dtype=kind)
        yield placement, flat.view(info.shape)


def _stored(layout: Layout) -> Iterator[tuple[Placement, Tensor]]:
    """Each stored tensor, read now."""
    by_file = defaultdict[Path, list[Placement]](list)
    for placement in layout.placements:
        by_file[placement.tensor.file].append(placement)
    for file, placements in by_file.items():
        try:
            # pread: a file that shrinks while it is read fails with an error; a mapped one would kill the process
            with safe_open(file, framework="pt", backend="pread") as stored:
                for placement in placements:
                    yield placement, stored.get_tensor(placement.tensor.name)
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"{file.name}: cannot be read: {error}") from error


def _assign(decoder: Decoder, part: Part, tensor: Tensor) -> None:
    path, _, leaf = part.name.rpartition(".")
    module = decoder.get_submodule(path)
    if part.row is None:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        return
    parameter = getattr(module, leaf)
    if parameter.is_meta:  # the first of the heads that are stored apart
        parameter = nn.Parameter(tensor.new_empty(parameter.shape), requires_grad=False)
        setattr(module, leaf, parameter)
    parameter.data[part.row] = tensor


def save(checkpoint: Checkpoint, folder: Path | str) -> None:
    """Writes Hugging Face layout, spelled as the family does; transformers loads it. The folder must be new or empty.

    Either the whole folder appears or nothing does: it is written beside, flushed to the disk, and renamed. Raises
    UsageError for a folder that is not empty, or for rounded weights, and GptcliError where the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already", hint="choose a new folder")
    config, family = checkpoint.config, FAMILIES[checkpoint.family]
    parameters = dict(checkpoint.decoder.named_parameters())
    if any(True for _ in checkpoint.decoder.buffers()):
        raise UsageError("rounded weights are no checkpoint to save", hint="load it without quantize")
    tensors = {}
    for name, (fix, parts) in stored_names(config, family).items():
        rows = [parameters[p.name] if p.row is None else parameters[p.name][p.row] for p in parts]
        tensor = rows[0].detach() if len(rows) == 1 else torch.cat([row.detach() for row in rows])
        tensor = fix.save(tensor, config) if fix else tensor
        tensors[name] = tensor.to("cpu", checkpoint.dtype).contiguous()
    spelled = dict(checkpoint.config_json)
    spelled.pop("torch_dtype", None)
    spelled |= {"dtype": str(checkpoint.dtype).removeprefix("torch."), "tie_word_embeddings": config.tied}
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(spelled, indent=2) + "\n", encoding="utf-8")
        if checkpoint.generation_config:
            wishes = json.dumps(checkpoint.generation_config, indent=2) + "\n"
            (temporary / GENERATION_CONFIG).write_text(wishes, encoding="utf-8")
        for companion in COMPANIONS:
            if companion != GENERATION_CONFIG and (checkpoint.folder / companion).is_file():
                shutil.copyfile(checkpoint.folder / companion, temporary / companion)
        settle(temporary)
        temporary.replace(folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise GptcliError(f"cannot save to {folder}: {reason}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
