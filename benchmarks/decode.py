"""python -m benchmarks decode MODEL: one table for gptcli, transformers and ctranslate2 on the same checkpoint."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import measure
from benchmarks.worker import N_DECODE, N_PREFILL, PEERS, PROMPT
from gptcli import look

COLUMNS = {  # figure -> heading, whether more is better
    "first": ("cold start to\nfirst token, s", False),
    "decode": (f"decode\ntokens/s\n({N_DECODE}, batch 1)", True),
    "prefill": (f"prefill\ntokens/s\n({N_PREFILL})", True),
    "memory": ("peak memory\nMB", False),
}


def run(model: str, *, rounds: int) -> None:
    """float32, greedy, every run in a process of its own, the peers by turns so that a slow minute hits them all."""
    console = Console()
    layout = look(model)
    peers = [peer for peer in PEERS if find_spec(peer)]
    found: dict[str, dict[str, list[float]]] = {peer: defaultdict(list) for peer in peers}
    with tempfile.TemporaryDirectory() as folder:
        where = dict.fromkeys(peers, model)
        if "ctranslate2" in peers:
            where["ctranslate2"] = f"{folder}/ctranslate2"
            try:
                convert(model, where["ctranslate2"])
            except ValueError:  # a family that it has no form for
                peers.remove("ctranslate2")
                del found["ctranslate2"]
        for i in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
            for peer in peers:
                figures = one_run(peer, where[peer], model)
                for key, value in figures.items() if i else ():  # the first round only warms the disk's cache
                    found[peer][key].append(value)
    machine = measure()
    console.print(str(machine))
    weights = 4 * layout.config.n_params()
    limit = machine.read_bytes_per_s / weights
    console.print(
        f"model: {layout.source.folder.resolve().name}, {layout.config.n_params():,} parameters, float32; to read them "
        f"once a token takes {weights / machine.read_bytes_per_s * 1e3:.1f} ms: at most {limit:.0f} tokens/s"
    )
    console.print(table(found, rounds))


def one_run(peer: str, where: str, model: str) -> dict[str, float]:
    """All figures of one peer, in a fresh process; gptcli's cold start is that of the real command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", peer, where, model],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    ready = process.stdout.readline()
    first = time.perf_counter() - began
    rest, errors = process.communicate()
    if process.returncode or not ready:
        raise SystemExit(f"{peer} failed:\n{errors[-2000:]}")
    if peer == "gptcli":
        first = cold_command(model)
    figures = json.loads(rest.splitlines()[-1])
    return {"first": first, **figures, "memory": figures["memory"] / 1e6}


def cold_command(model: str) -> float:
    """Seconds from starting `gptcli` to the first byte of its answer."""
    command = [sys.executable, "-m", "gptcli", PROMPT, "-m", model, "-n", "16", "-t", "0", "-q", "--dtype", "float32"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout
    process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.communicate()
    return seconds


def convert(model: str, folder: str) -> None:
    """ctranslate2 has a format of its own."""
    import shutil

    from ctranslate2.converters import TransformersConverter

    TransformersConverter(model).convert(folder, quantization="float32")
    shutil.copyfile(f"{model}/tokenizer.json", f"{folder}/tokenizer.json")


def table(found: dict[str, dict[str, list[float]]], rounds: int) -> Table:
    """Medians, and in brackets how many times better than the peer gptcli is."""
    result = Table(caption=f"medians of {rounds} interleaved runs; in brackets gptcli's advantage over this peer")
    result.add_column("")
    for heading, _ in COLUMNS.values():
        result.add_column(heading, justify="right")
    ours = {key: statistics.median(values) for key, values in found["gptcli"].items()}
    for peer, figures in found.items():
        cells = []
        for key, (_, more_is_better) in COLUMNS.items():
            value = statistics.median(figures[key])
            ratio = ours[key] / value if more_is_better else value / ours[key]
            cells.append(f"{value:.4g}" + (f" ({ratio:.2f}x)" if peer != "gptcli" else ""))
        result.add_row(peer, *cells)
    return result
