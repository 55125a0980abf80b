"""Vectors times a matrix, [..., K] x [N, K] -> [..., N]: the place where nearly all time goes.

One token reads every weight once, so the matrix should come from memory at full speed. A product of matrices is made
for many rows and reaches half of it with one. When one token's pass is compiled (compiled.py), the sum is therefore
spelled out: the compiler makes one loop of it that converts, multiplies and adds in float32 while it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)
GROUP = 32  # weights of a row that share a scale, in 4 bits
LANES = 32  # numbers that torch's 8-bit kernel takes at a time: of a row of another length it reads past the end
FEW = 8  # rows of the compiled pass of a few tokens; up to so many, a matrix is multiplied as it lies
MANY = 32  # rows up to which torch's 8-bit kernel is called: each gets what it gets alone
SMALL = 2**16  # numbers of a matrix, below which calling oneDNN costs more than it wins
SWAPPED = 64  # rows up to which oneDNN is given the matrix first
AT_ONCE = 2**20  # numbers of a matrix that are made float32 at a time for a product, 4 MiB
ROUNDED_AT_ONCE = 2**18  # and to be rounded: larger rooms, made and left between what stays, scatter the memory
PARTS, FITS = (1.0, 0.95, 0.9, 0.85, 0.8), 4  # what rounding to 4 bits tries
TINY = 1e-30  # a scale is never 0


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, as_made: bool = False, large: bool = False
) -> Tensor:
    """x W^T + b, in the dtype of x.

    as_made: it need not be contiguous, where that saves putting it in order. large: the matrix is one of a large model.

    oneDNN adds up each sum of a product in one order, however many rows there are, but for a single row. Multiplied as
    two rows are, this gets to the last bit what it gets among many, so that many texts at once are what they are alone
    (alike.py). In half precision that costs nothing; in float32 a tenth of a large model's time, and of a small one's
    more, which does without.
    """
    if not few_rows(x):
        rows = x.numel() // x.shape[-1]
        half = in_half(x, weight)
        if rows == 1 and (half or (large and wants_onednn(x, weight))):
            twice = x.reshape(1, -1).expand(2, -1).contiguous()  # see alike.py
            return linear(twice, weight, bias)[:1].view(*x.shape[:-1], -1)
        if half:  # F.linear would take another kernel for small ones
            return onednn(x, weight, bias)
        if slow(x, rows):
            return in_float32(x, weight, bias)
        if wants_onednn(x, weight):
            y = by_onednn(x.reshape(rows, -1), weight, bias)
            return (y if as_made else y.contiguous()).view(*x.shape[:-1], -1)
        return F.linear(x, weight, bias)
    y = rows_times(x, weight)
    return (y if bias is None else y + bias.float()).to(x.dtype).view(*x.shape[:-1], -1)


def compiling() -> bool:
    """Whether a pass is on its way through the compiler, and not to be trained."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


def few_rows(x: Tensor) -> bool:
    """Whether a pass of one token, or of at most FEW, is being compiled. x: [..., K]"""
    return compiling() and x.numel() <= FEW * x.shape[-1]


@cache
def emulated(dtype: torch.dtype, device: str) -> bool:
    """Whether products in this dtype are made without instructions for it: several times slower than in float32.

    So it is with bfloat16 on processors of no more than AVX2, most of those at home: 6 times, measured at 512 rows.
    """
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device != "cpu" or dtype not in names:
        return False
    return not (torch._C._has_mkldnn and getattr(torch.ops.mkldnn, names[dtype])())


def slow(x: Tensor, rows: int) -> bool:
    """Whether products of so many rows like these are better made in float32: from 8 on, where it is also exacter."""
    if rows < FEW or torch.is_grad_enabled() or torch.compiler.is_compiling():  # the compiler warns of what is kept
        return False
    return emulated(x.dtype, x.device.type)


def in_half(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is in half precision, and oneDNN's."""
    if x.dtype not in HALF or x.dtype != weight.dtype or x.device.type != "cpu" or not x.numel():
        return False
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or emulated(x.dtype, "cpu"))


@cache
def held_back(device: str) -> bool:
    """Whether F.linear leaves half of the processor unused in float32, where it is MKL's.

    MKL keeps to AVX2 on AMD's processors. oneDNN, which torch has too, takes AVX-512 there, and half the time; also of
    one row, where the matrix comes from memory, two thirds.
    """
    if device != "cpu" or not torch._C._has_mkldnn:
        return False
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_f")) and str(has.get("cpu_name")).startswith("AMD")


def wants_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is better made by oneDNN than by F.linear; for one that is small, it is not."""
    if not x.numel() or weight.numel() < SMALL or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if not (x.dtype == weight.dtype == torch.float32 and held_back(x.device.type)):
        return False
    return not torch.is_autocast_enabled("cpu")  # that knows F.linear alone


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, by oneDNN's product. [R, K], [N, K] -> [R, N], of few rows not contiguous."""
    if len(x) > SWAPPED:
        # oneDNN keeps what it made for each number of rows, a megabyte or so: let there be four to each doubling
        step = 1 << (len(x).bit_length() - 3)
        return onednn(F.pad(x, (0, 0, 0, -len(x) % step)), weight, bias)[: len(x)]
    # the matrix stands where the vectors should: there it is read as it lies, and not put in another order first
    y = onednn(weight, x, None).T
    return y if bias is None else y.add_(bias)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, as oneDNN has it."""
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    return product(x, weight, bias, "none", [], "")


def in_float32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, where products in their dtype are slow: in float32, a part of the matrix after the other."""
    rows, y = x.float(), x.new_empty(*x.shape[:-1], len(weight))
    parts = in_parts(weight, AT_ONCE)
    room = weight.new_empty(len(weight[parts[0]]), weight.shape[1], dtype=torch.float32)
    for part in parts:
        wide = room[: len(weight[part])].copy_(weight[part])
        y[..., part] = F.linear(rows, wide, None if bias is None else bias[part].float())
    return y


def in_parts(weight: Tensor, numbers: int) -> list[slice]:
    """The rows of a matrix, so many at a time that they hold no more numbers; at least one. All but the last alike."""
    n = max(1, numbers // weight.shape[1])
    return [slice(i, i + n) for i in range(0, len(weight), n)]


def stored(x: Tensor) -> Tensor:
    """x in float32, computed once before a loop that reads it again and again: the compiler would do it in the loop."""
    y = x.float().contiguous()
    return y.as_strided(y.shape, y.stride())


def exact(model: nn.Module) -> bool:
    """Whether all its numbers are float32; others meet kernels that round, and round otherwise for several rows."""
    return all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())


def rows_times(x: Tensor, weight: Tensor) -> Tensor:
    """The sum spelled out, in float32, one loop over the matrix for all rows of x. [..., K], [N, K] -> [R, N].

    A single row has two halves of the matrix in that loop, which adds the one while it waits for the other.
    """
    (N, K), rows = weight.shape, stored(x.reshape(-1, x.shape[-1]))
    if len(rows) > 1:
        return torch.stack([(weight.float() * row).sum(-1) for row in rows])
    halves = weight.view(2, N // 2, K) if N % 2 == 0 else weight[None]
    return torch.cat([(half.float() * rows[0]).sum(-1) for half in halves])[None]


class Linear(nn.Linear):
    """torch's own, except in the pass of one token or of a few."""

    large = False  # whether the model is

    def reset_parameters(self) -> None:
        """Without memory there is nothing to draw; torch would take a third of a millisecond for it."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, large=self.large)


class Int8(nn.Module):
    """A matrix in 8 bits, and one scale for each row of it: w = q * scale.

    The vectors stay as they are; but torch's kernel for a few of them takes them, and the scales, in bfloat16.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.scale = nn.Buffer(weight), nn.Buffer(scale)  # [N, K], int8; [N], float32
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Int8:
        """Rounds a matrix, [N, K]."""
        q, scale = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight), dtype=torch.float32)
        for rows in in_parts(weight, ROUNDED_AT_ONCE):
            w = weight[rows].to(torch.float32, copy=True)
            scale[rows] = torch.maximum(w.amax(-1), -w.amin(-1)).clamp(min=TINY) / 127
            q[rows] = w.div_(scale[rows, None]).round_()
        return cls(q, scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if few_rows(x):
            y = rows_times(x, self.weight) * self.scale
        elif len(rows) <= MANY and x.device.type == "cpu" and rows.shape[1] % LANES == 0:
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale.bfloat16())
        elif slow(rows, len(rows)):
            y = in_float32(rows.float(), self.weight) * self.scale
        else:  # whole numbers up to 127 are exact in every dtype, and so are they over 128: float16 ends at 65,504
            part = 128.0 if x.dtype == torch.float16 else 1.0
            q = self.weight.to(x.dtype) if part == 1 else self.weight.to(x.dtype).div_(part)
            y = F.linear(rows, q) * (self.scale * part).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def whole(self) -> Tensor:
        """The matrix that it stands for, float32, [N, K]."""
        return self.weight.float() * self.scale[:, None]


class Int4(nn.Module):
    """A matrix in 4 bits; each 32 weights of a row share a scale and a middle: w = (q - 8) * scale + middle."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)  # packed as its kernel reads it, uint8
        self.scale = nn.Buffer(scale)  # scales and middles, [K/32, N, 2], bfloat16
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Int4:
        """Rounds a matrix, [N, K]."""
        (N, K), q = weight.shape, torch.empty_like(weight, dtype=torch.int32)
        scale = weight.new_empty(K // GROUP, N, 2, dtype=torch.bfloat16)
        for rows in in_parts(weight, ROUNDED_AT_ONCE):
            levels, *line = _in_4_bits(weight[rows].float().view(-1, K // GROUP, GROUP))
            q[rows] = levels.view(-1, K).int()
            scale[:, rows] = torch.stack(line, -1).transpose(0, 1)
        return cls(torch._convert_weight_to_int4pack_for_cpu(q, 1), scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scale)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def whole(self) -> Tensor:
        """The matrix that it stands for, float32, [N, K]: its kernel alone knows the order, so it multiplies a one."""
        one = torch.eye(self.scale.shape[0] * GROUP, dtype=torch.bfloat16)
        return torch._weight_int4pack_mm_for_cpu(one, self.weight, GROUP, self.scale).T.float().contiguous()

    @staticmethod
    def fits(rows: int, columns: int) -> bool:
        """Whether the kernel has a form for such a matrix."""
        return rows % 16 == 0 and columns % GROUP == 0


def _in_4_bits(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 16 levels of each group that fit it best: q, scale, middle; w is about (q - 8) * scale + middle.

    Tried are the range from least to greatest and parts of it (what is cut off errs more, and the rest less), and after
    each the line through the levels that it led to, by least squares. [N, G, 32] -> [N, G, 32], bfloat16 [N, G] twice.
    """
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    best = (torch.zeros_like(w), torch.zeros_like(low), torch.zeros_like(low))
    least = torch.full_like(low, torch.inf)
    for part in PARTS:
        scale = (high - low) * (part / 15)
        middle = (high + low) / 2 + scale / 2  # q from 0 to 15 has its own middle at 7.5
        for _ in range(FITS):
            scale, middle = scale.clamp(min=TINY).bfloat16().float(), middle.bfloat16().float()
            q = ((w - middle) / scale + 8).round_().clamp_(0, 15)
            error = ((q - 8) * scale + middle - w).square().sum(-1, keepdim=True)
            better = error < least
            best = (
                torch.where(better, q, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, middle, best[2]),
            )
            least = torch.minimum(error, least)
            off = q - q.mean(-1, keepdim=True)
            scale = (off * w).sum(-1, keepdim=True) / off.square().sum(-1, keepdim=True).clamp(min=TINY)
            middle = w.mean(-1, keepdim=True) - (q.mean(-1, keepdim=True) - 8) * scale
    q, scale, middle = best
    return q, scale[..., 0].bfloat16(), middle[..., 0].bfloat16()
