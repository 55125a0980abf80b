"""What the machine can do at best: the figures that ours are to be read beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured with torch on all its threads, best of several runs."""

    threads: int
    read_bytes_per_s: float  # a large array summed
    float32_flops: float  # 2048 x 2048 x 2048, or where the dtype is emulated 256 x 256 x 256; by what is faster here
    torch_float32_flops: float  # by torch's own choice, which is MKL
    bfloat16_flops: float

    def __str__(self) -> str:
        return (
            f"machine: {self.threads} threads, reads {self.read_bytes_per_s / 1e9:.1f} GB/s, multiplies "
            f"{self.float32_flops / 1e12:.2g} TFLOP/s in float32 ({self.torch_float32_flops / 1e12:.2g} by a @ b), "
            f"{self.bfloat16_flops / 1e12:.2g} in bfloat16"
        )


def heading() -> str:
    """What every page begins with: the machine's limits, and the versions of what is compared, as far as it is here."""
    found = []
    for name in ("torch", "transformers", "ctranslate2", "llama-cpp-python", "transformer-lens"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return f"{measure()}\ngptcli {version('gptcli')}, {', '.join(found)}"


@cache
def measure() -> Machine:
    """Takes some seconds."""
    import torch

    from gptcli.linear import emulated, linear

    large = torch.ones(1 << 27)  # 512 MB
    seconds = best(lambda: large.sum())
    flops = []
    for dtype in (torch.float32, torch.bfloat16):
        n = 256 if emulated(dtype, "cpu") else 2048  # without instructions for it one large product takes minutes
        a = torch.ones(n, n, dtype=dtype)
        flops.append(2 * n**3 / best(lambda a=a: a @ a))  # type: ignore[misc]
    square, made = torch.ones(2048, 2048), torch.inference_mode()(linear)
    return Machine(
        threads=torch.get_num_threads(),
        read_bytes_per_s=large.nbytes / seconds,
        float32_flops=max(flops[0], 2 * square.shape[0] ** 3 / best(lambda: made(square, square))),
        torch_float32_flops=flops[0],
        bfloat16_flops=flops[1],
    )


def best(work: Callable[[], object], runs: int = 7) -> float:
    """Seconds of the fastest of several runs; no more begin once two seconds are gone."""
    began = time.perf_counter()
    times = list[float]()
    while len(times) <= runs and (not times or time.perf_counter() - began < 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
