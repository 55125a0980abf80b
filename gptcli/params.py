"""Where a decoder's numbers are: matrix by matrix, layer by layer, and the memory they take. Free of torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.catalogue import Named, is_named, named
from gptcli.config import Config
from gptcli.errors import CheckFailed, NotFound, UsageError
from gptcli.layout import Layout, look, read_config
from gptcli.paper import BOUND_FLOPS, BOUND_PARAMS, TABLE, TOKENS, Row

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of one number
WORDS = {
    "embed": "embedding",
    "pos_embed": "positions",
    "embed_in": "widening",
    "attn.q": "queries",
    "attn.k": "keys",
    "attn.v": "values",
    "attn.out": "attention out",
    "mlp.gate": "MLP gate",
    "mlp.up": "MLP up",
    "mlp.down": "MLP down",
    "embed_out": "narrowing",
    "head": "head",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """One parameter: its name in model.py, and in words what it does."""

    name: str
    does: str
    shape: tuple[int, ...]

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    @property
    def layer(self) -> int | None:
        return int(self.name.split(".")[1]) if self.name.startswith("blocks.") else None

    @property
    def kind(self) -> str:
        """weights, biases or norms."""
        return "norms" if "norm" in self.name else "biases" if len(self.shape) < 2 else "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Equal matrices, one in each of `times` layers; or all biases, or all norms, whose shapes differ."""

    does: str
    shape: tuple[int, ...] | None
    n_each: int
    times: int
    in_layers: bool

    @property
    def n(self) -> int:
        return self.n_each * self.times


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The same number, found in two ways."""

    what: str
    expected: int
    found: int

    @property
    def holds(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyCache:
    """Memory of the keys and values of one text in bytes: if every layer kept all, and as this decoder keeps them."""

    n_tokens: int
    dense: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Account:
    """The whole budget of one decoder."""

    title: str
    config: Config
    matrices: tuple[Matrix, ...]  # in the order of the forward pass
    parts: tuple[Part, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    memory: tuple[tuple[str, int], ...]  # dtype, bytes of all weights
    caches: tuple[KeyCache, ...]  # in two bytes a number
    row: Row | None = None

    @property
    def n_params(self) -> int:
        return sum(matrix.n for matrix in self.matrices)

    @property
    def n_matrices(self) -> int:
        """Without the vectors: biases and norms."""
        return sum(len(matrix.shape) > 1 for matrix in self.matrices)

    @property
    def n_in_layer(self) -> int:
        return sum(matrix.n for matrix in self.matrices if matrix.layer == 0)

    def of_layer(self, layer: int) -> tuple[Matrix, ...]:
        """All that one layer holds. Raises UsageError."""
        if not 0 <= layer < self.config.n_layer:
            raise UsageError(
                f"there is no layer {layer}", hint=f"{self.title} has layers 0 to {self.config.n_layer - 1}"
            )
        return tuple(matrix for matrix in self.matrices if matrix.layer == layer)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a command is asked about: a decoder of the catalogue, a config.json, or a checkpoint."""

    title: str
    config: Config
    family: str
    spelled: Mapping[str, Any]  # a config.json that saves it
    named: Named | None = None
    layout: Layout | None = None


def subject(
    name: str,
    *,
    pattern: tuple[str, ...] | None = None,
    window: int | None = None,
    revision: str | None = None,
    allow: Sequence[str] = (),
) -> Subject:
    """Finds it by its name. A size wins over a folder of the same name: ./gpt2 is the folder.

    Raises UsageError, NotFound, BadCheckpoint, Unsupported.
    """
    if is_named(name):
        found = named(name, pattern=pattern, window=window)
        return Subject(title=found.title, config=found.config, family=found.family, spelled=found.spelled, named=found)
    if pattern is not None or window is not None:
        raise UsageError("--attention and --window are for sizes; a config.json says its own", hint="see gptcli info")
    path = Path(name)
    file = path / "config.json" if path.is_dir() and not any(path.glob("*.safetensors*")) else path
    if file.suffix == ".json" and not file.name.endswith(".index.json"):
        family, config, spelled = read_config(file, allow=allow)
        title = f"{file.resolve().parent.name}/{file.name} ({family})"
        return Subject(title=title, config=config, family=family, spelled=spelled)
    try:
        layout = look(name, revision=revision, allow=allow)
    except NotFound:
        if path.exists() or not re.fullmatch(r"[\w.-]+", name):
            raise
        named(name)  # a word that is neither in the cache nor a size: says which sizes there are
        raise
    title = layout.source.folder.resolve().name if path.exists() else name
    return Subject(
        title=f"{title} ({layout.family})",
        config=layout.config,
        family=layout.family,
        spelled=layout.config_json,
        layout=layout,
    )


def account(found: Subject, *, contexts: Sequence[int] = ()) -> Account:
    """The budget. contexts: lengths, in tokens, to say the cache for. Raises CheckFailed if two counts differ."""
    c = found.config
    matrices = tuple(Matrix(name=name, does=_does(name), shape=shape) for name, shape in c.shapes().items())
    checks = _checks(found, sum(matrix.n for matrix in matrices))
    for check in checks:
        if not check.holds:
            raise CheckFailed(f"{found.title}: {check.what}: {check.expected:,} expected, {check.found:,} found")
    lengths = sorted({min(n, c.n_ctx) for n in contexts}) or [c.n_ctx >> i for i in (3, 2, 1, 0) if c.n_ctx >> i]
    return Account(
        title=found.title,
        config=c,
        matrices=matrices,
        parts=tuple(_parts(matrices, c.n_layer)),
        checks=checks,
        notes=found.layout.notes if found.layout else (),
        memory=tuple((name, c.n_params() * n_bytes) for name, n_bytes in DTYPES.items()),
        caches=tuple(
            KeyCache(n_tokens=n, dense=2 * c.n_layer * n * c.n_kv_head * c.d_head * 2, kept=c.kv_bytes(n, 2))
            for n in (1, *(n for n in lengths if n > 1))
        ),
        row=found.named.row if found.named else None,
    )


def _does(name: str) -> str:
    stem, _, leaf = name.split(".", 2)[-1].rpartition(".") if name.startswith("blocks.") else name.rpartition(".")
    if "norm" in stem:
        words = {"attn_norm": "norm before attention", "mlp_norm": "norm before the MLP", "final_norm": "last norm"}
        words |= {"attn_out_norm": "norm after attention", "mlp_out_norm": "norm after the MLP"}
        words |= {"attn.q_norm": "norm of queries", "attn.k_norm": "norm of keys"}
        return words[stem] + (", bias" if leaf == "bias" else "")
    return WORDS[stem] + (", bias" if leaf == "bias" else "")


def _parts(matrices: Iterable[Matrix], n_layer: int) -> Iterable[Part]:
    """Matrices in the order of the forward pass, once for all layers; biases and norms of all together at the end."""
    small = dict.fromkeys(("biases", "norms"), 0)
    for matrix in matrices:
        if matrix.kind != "weights":
            small[matrix.kind] += matrix.n
        elif matrix.layer in (None, 0):
            inside = matrix.layer is not None
            yield Part(
                does=matrix.does, shape=matrix.shape, n_each=matrix.n, times=n_layer if inside else 1, in_layers=inside
            )
    for kind, n in small.items():
        if n:
            yield Part(does=kind, shape=None, n_each=n, times=1, in_layers=False)


def _checks(found: Subject, n: int) -> tuple[Check, ...]:
    checks = []
    if closed := closed_form(found.config):
        checks.append(Check(what=closed[0], expected=closed[1], found=n))
    if found.layout:
        stored, files = count_stored(found.layout), len(found.layout.source.files)
        what = f"numbers in the headers of {files} file{'s' if files > 1 else ''}"
        checks.append(Check(what=what, expected=n, found=stored))
    return tuple(checks)


def count_stored(layout: Layout) -> int:
    """Parameters by the tensors' own shapes, without those that a family's files carry and no token ever uses."""
    return sum(
        math.prod(p.fix.shape(p.tensor.shape) if p.fix and p.tensor.shape else p.tensor.shape)
        for p in layout.placements
    )


def closed_form(c: Config) -> tuple[str, int] | None:
    """(formula, its value) for decoders of GPT-2's build, with or without biases on queries, keys and values."""
    d, inner = c.d_model, c.n_head * c.d_head
    built = (
        c.norm == "layer", c.norm_bias, c.norm_weight, c.final_norm, c.learned_positions, c.tied, c.out_bias,
        c.mlp_bias,
        c.norms == ("attn_norm", "mlp_norm"), inner == d, c.n_kv_head == c.n_head, c.d_ff == 4 * d,
        not (c.gated or c.qk_norm or c.head_bias or c.d_embed),
    )  # fmt: skip
    if not all(built):
        return None
    small = 13 if c.qkv_bias else 10
    value = c.n_layer * (12 * d * d + small * d) + (c.n_vocab + c.n_ctx) * d + 2 * d
    return f"L(12d² + {small}d) + (V + T)d + 2d", value


# --- the paper's own table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Recount:
    """One row of the paper beside what a recount gives; `off` is relative to what is printed."""

    row: Row
    params: int
    flops: float

    @property
    def params_off(self) -> float:
        return self.params / self.row.params - 1

    @property
    def flops_off(self) -> float:
        return self.flops / self.row.flops - 1

    @property
    def holds(self) -> bool:
        return abs(self.params_off) <= BOUND_PARAMS and abs(self.flops_off) <= BOUND_FLOPS


def recount() -> tuple[Recount, ...]:
    """Tables 2.1 and D.1, counted again: parameters from the corrected shapes, FLOPs as 6 N D at 300B tokens."""
    found = []
    for row in TABLE:
        n = named(f"gpt3-{row.label}").config.n_params()
        found.append(Recount(row=row, params=n, flops=6.0 * n * TOKENS))
    return tuple(found)


def proof(row: Row) -> str:
    """Why the number that Table 2.1 prints cannot be, and which one is right; empty where nothing is wrong."""
    size = row.corrected
    if row.typo == "n_head":
        return (
            f"{row.label}: Table 2.1 prints {row.n_head} heads of {row.d_head}, which make "
            f"{row.n_head * row.d_head:,} and not its width of {row.d_model:,}; "
            f"{size.n_head} do: {size.n_head} × {row.d_head} = {size.n_head * row.d_head:,}"
        )
    if row.typo == "d_model":
        d = row.d_model
        wrong = row.n_layer * (12 * d * d + 13 * d) + (size.n_vocab + size.n_ctx) * d + 2 * d
        right = named(f"gpt3-{row.label}").config.n_params()
        return (
            f"{row.label}: Table 2.1 prints a width of {d:,}, which gives {wrong / 1e6:,.0f}M parameters; "
            f"D.1 prints {row.params / 1e6:,.0f}M, and {size.d_model:,} = {row.n_head} × {row.d_head} "
            f"gives {right / 1e6:,.0f}M"
        )
    return ""
