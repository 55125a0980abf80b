"""What it takes to train a decoder: FLOPs, petaflop/s-days, GPU-years and money. Free of torch.

FLOPs are 6 N D (Kaplan et al. 2020), as Brown et al. count them in Table D.1: attention over earlier tokens is left
out, so it is said beside (12 L H Q T for each token, Chowdhery et al. 2022). A year has 365 days.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.config import Config
from gptcli.errors import UsageError
from gptcli.paper import LAMBDA, TOKENS
from gptcli.params import Subject

PF_DAY, YEAR, HOUR = 1e15 * 86_400, 365 * 86_400, 3600  # FLOPs; seconds
TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022, arXiv 2203.15556


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the arithmetic assumes of the machines. tflops: of one; utilisation: the share of them that is used."""

    tflops: float = LAMBDA.tflops
    utilisation: float = 1.0
    price: float = LAMBDA.price  # dollars for an hour of one
    n_gpus: int = 1

    def __post_init__(self) -> None:
        for name, value in (("--tflops", self.tflops), ("--price", self.price), ("--gpus", self.n_gpus)):
            if not 0 < value < 1e12:
                raise UsageError(f"{name} must be above 0, not {value:g}")
        if not 0 < self.utilisation <= 1:
            raise UsageError(f"--utilisation must be above 0 and at most 1, not {self.utilisation:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine whose speed was measured, in float32 matrix products."""

    device: str
    tflops: float
    side: int  # of the square matrices
    n_threads: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One training run on paper."""

    title: str
    n_params: int
    n_tokens: int
    tokens_from: str  # why so many
    n_context: int
    terms: Terms
    attention_dense: float  # FLOPs of attention on top, as a share, if every layer saw the whole context
    attention: float  # and with the windows that this decoder has
    forward: float  # FLOPs of one token on the way through, 2 N
    forward_attention: float  # on top, at the end of a full context
    printed_flops: float | None = None  # Table D.1's
    printed_pf_days: float | None = None
    machine: Machine | None = None

    @property
    def flops(self) -> float:
        return 6.0 * self.n_params * self.n_tokens

    @property
    def pf_days(self) -> float:
        return self.flops / PF_DAY

    @property
    def gpu_seconds(self) -> float:
        """Of one GPU alone."""
        return self.flops / (self.terms.tflops * 1e12 * self.terms.utilisation)

    @property
    def gpu_years(self) -> float:
        return self.gpu_seconds / YEAR

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / HOUR

    @property
    def dollars(self) -> float:
        return self.gpu_hours * self.terms.price

    @property
    def machine_seconds(self) -> float | None:
        """On the measured machine, if it did nothing else at that speed."""
        return self.flops / (self.machine.tflops * 1e12) if self.machine else None


def budget(
    found: Subject, *, terms: Terms, n_tokens: int | None = None, n_context: int | None = None,
    machine: Machine | None = None,
) -> Budget:  # fmt: skip
    """What training it would take. n_tokens: None for GPT-3's own 300 billion, or 20 a parameter for all others."""
    c = found.config
    row = found.named.row if found.named else None
    n, context = c.n_params(), n_context or c.n_ctx
    if n_tokens is not None:
        why = "as you say"
    elif row:
        n_tokens, why = TOKENS, "as many as GPT-3 saw (Appendix B)"
    else:
        n_tokens, why = TOKENS_A_PARAMETER * n, f"{TOKENS_A_PARAMETER} for each parameter (Hoffmann et al. 2022)"
    as_printed = row is not None and n_tokens == TOKENS
    return Budget(
        title=found.title,
        n_params=n,
        n_tokens=n_tokens,
        tokens_from=why,
        n_context=context,
        terms=terms,
        attention_dense=attention_flops(c, context, windows=False) / (6.0 * n),
        attention=attention_flops(c, context, windows=True) / (6.0 * n),
        forward=2.0 * n,
        forward_attention=attention_flops(c, context, windows=True) / 3,
        printed_flops=row.flops if row and as_printed else None,
        printed_pf_days=row.pf_days if row and as_printed else None,
        machine=machine,
    )


def attention_flops(c: Config, n_context: int, *, windows: bool) -> float:
    """Scores and sums over earlier tokens, for one token of training: 12 H Q T in each layer; a third of it forward."""
    seen = sum(min(n_context, (layer.window or n_context) if windows else n_context) for layer in c.layers)
    return 12.0 * c.n_head * c.d_head * seen


# --- generation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How fast a machine reads its memory and multiplies matrices, all its parts together."""

    name: str
    read: float  # bytes a second
    flops: float  # a second


H100_NODE = Rates(name="8 x H100", read=8 * 3.35e12, flops=8 * 989e12)  # NVIDIA's data sheet, SXM, bfloat16, dense


def n_read(c: Config) -> int:
    """Parameters that every token reads: all but the tables of which it takes one row. A tied head is read whole."""
    tables = (0 if c.tied else c.n_vocab * c.embed_width) + (c.n_ctx * c.d_model if c.learned_positions else 0)
    return c.n_params() - tables


def step_bytes(c: Config, n_context: int, *, batch: int = 1, weight_bits: int = 16, kv_bits: int = 16) -> float:
    """Memory that one step of `batch` texts reads: the weights once, keys and values of `n_context` tokens for each."""
    return n_read(c) * weight_bits / 8 + batch * c.kv_bytes(n_context, 1) * kv_bits / 8


def step_flops(c: Config, n_context: int, *, batch: int = 1) -> float:
    """What one step of `batch` texts multiplies and adds: 2 for each number read, 4 H D for each token seen."""
    return batch * (2.0 * n_read(c) + attention_flops(c, n_context, windows=True) / 3)


def most_tokens_per_s(
    c: Config, n_context: int, rates: Rates, *, batch: int = 1, weight_bits: int = 16, kv_bits: int = 16
) -> float:
    """No program generates faster on such a machine, all texts together: it must read all that, and multiply it."""
    reading = step_bytes(c, n_context, batch=batch, weight_bits=weight_bits, kv_bits=kv_bits) / rates.read
    return batch / max(reading, step_flops(c, n_context, batch=batch) / rates.flops)
