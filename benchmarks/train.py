"""python -m benchmarks train: the training loop beside nanoGPT's and transformers', same shape, batch and dtype."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.loops import LOOPS, Shape
from benchmarks.machine import measure

STEPS = 3  # of every turn
NAMES = {
    "gptcli": "gptcli train",
    "nano": "nanoGPT's loop and model",
    "transformers": "a plain loop around transformers' GPT-Neo",
}


def run(size: str, *, rounds: int) -> None:
    """One process for each loop, all alive at once and working by turns, so that a slow minute hits them all."""
    import torch

    from gptcli.presets import size_named
    from gptcli.train import best_precision

    preset, console = size_named(size), Console()
    precision = best_precision(torch.device("cpu"))
    shape = Shape(
        n_layer=preset.n_layer,
        d_model=preset.d_model,
        n_head=preset.n_head,
        n_vocab=preset.n_vocab,
        n_ctx=preset.n_ctx,
        batch=max(1, 8192 // preset.n_ctx),
        bfloat16=precision == "bfloat16",
        compiled=False,
    )
    machine = measure()
    peak = machine.bfloat16_flops if precision == "bfloat16" else machine.float32_flops
    flops = _flops(shape)
    console.print(
        f"model: {shape.n_layer} layers, {shape.d_model} wide, {shape.n_head} heads, vocabulary {shape.n_vocab:,}; "
        f"{shape.batch} x {shape.n_ctx} tokens a step, {precision}; {flops / 1e6:.1f} MFLOP a token "
        f"(6N + 12LHQT): at most {peak / flops:,.0f} tokens/s"
    )
    for compiled in (False, True):
        found = _by_turns(replace(shape, compiled=compiled), rounds)
        console.print(_table(found, rounds, compiled, flops / peak))


def _by_turns(shape: Shape, rounds: int) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.loops"]
    found: dict[str, list[float]] = {name: [] for name in LOOPS}
    processes = {}
    try:
        for name in LOOPS:
            processes[name] = subprocess.Popen(
                [*command, name, json.dumps(asdict(shape))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            _line(processes[name], name)
        for _ in track(range(rounds), "rounds", console=Console(stderr=True), transient=True):
            for name, process in processes.items():
                assert process.stdin
                process.stdin.write(f"{STEPS}\n")
                process.stdin.flush()
                found[name].append(float(_line(process, name)))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def _line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout
    if not (line := process.stdout.readline()):
        raise SystemExit(f"{name} failed: python -m benchmarks.loops {name} SHAPE says why")
    return line


def _flops(shape: Shape) -> float:
    """Of a token: 6N for the parameters, 12LHQT for attention over the whole context (PaLM, appendix B)."""
    n = 12 * shape.n_layer * shape.d_model**2 + (shape.n_vocab + shape.n_ctx) * shape.d_model
    return 6 * n + 12 * shape.n_layer * shape.d_model * shape.n_ctx


def _table(found: dict[str, list[float]], rounds: int, compiled: bool, of_peak: float) -> Table:
    result = Table(caption=f"medians of {rounds} interleaved turns of {STEPS} steps; in brackets gptcli's advantage")
    result.add_column("torch.compile" if compiled else "eager")
    result.add_column("tokens/s", justify="right")
    result.add_column("FLOPs utilisation", justify="right")
    ours = statistics.median(found["gptcli"])
    for name, speeds in found.items():
        speed = statistics.median(speeds)
        ratio = "" if name == "gptcli" else f" ({ours / speed:.2f}x)"
        result.add_row(NAMES[name], f"{speed:,.0f}{ratio}", f"{speed * of_peak:.0%}")
    return result
