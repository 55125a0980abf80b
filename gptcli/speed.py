"""How fast this machine multiplies matrices, measured."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from gptcli.budget import Machine


@torch.inference_mode()
def measure(device: torch.device, *, seconds: float = 1.0, side: int | None = None) -> Machine:
    """The best of training's products in float32 that fit into so many seconds: 2 n^3 FLOPs each."""
    side = side or (1024 if device.type == "cpu" else 8192)
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    best, n, end = float("inf"), 0, time.perf_counter() + seconds
    while n < 3 or time.perf_counter() < end:  # the first ones wake the machine
        start = time.perf_counter()
        product = F.linear(a, b)
        float(product[0, 0])  # waits for a device that works on its own
        best, n = min(best, time.perf_counter() - start), n + 1
    return Machine(device=str(device), tflops=2 * side**3 / best / 1e12, side=side, n_threads=torch.get_num_threads())
