"""python -m benchmarks decode MODEL: gptcli, transformers, ctranslate2 and llama.cpp on the same checkpoint.

Our rows use the pass that `gptcli optimize` compiles; where it is missing it is made first.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import llama_cpp
from benchmarks.machine import Machine, measure
from benchmarks.worker import N_DECODE, N_PREFILL, PROMPT
from gptcli import look
from gptcli.config import Config
from gptcli.linear import GROUP

COLUMNS = {  # figure -> heading, whether more is better
    "first": ("cold start to\nfirst token, s", False),
    "decode": (f"decode\ntokens/s\n({N_DECODE}, batch 1)", True),
    "prefill": (f"prefill\ntokens/s\n({N_PREFILL})", True),
}
MODULES = {"transformers": "transformers", "ctranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}
BITS = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "int8": 8.0,
    "int4": 4 + 32 / GROUP,
}  # a weight, its share of scales included
CONVERTED = {
    ("ctranslate2", "float32"): "float32",
    ("ctranslate2", "int8"): "int8",
    ("llama.cpp", "float32"): "F32",
    ("llama.cpp", "bfloat16"): "BF16",
    ("llama.cpp", "int8"): "Q8_0",
    ("llama.cpp", "int4"): "Q4_1",
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One row: who computes, and with what weights."""

    name: str
    kind: str

    @property
    def label(self) -> str:
        """With what the peer itself calls its weights."""
        return f"{self.name} {CONVERTED.get((self.name, self.kind), self.kind)}"


PEERS = [
    Peer(name=name, kind=kind)
    for kind, names in {
        "float32": ("gptcli", "transformers", "ctranslate2", "llama.cpp"),
        "bfloat16": ("gptcli", "transformers", "llama.cpp"),
        "int8": ("gptcli", "ctranslate2", "llama.cpp"),
        "int4": ("gptcli", "llama.cpp"),
    }.items()
    for name in names
]
Found = dict[Peer, dict[str, list[float]]]


def run(model: str, *, rounds: int) -> None:
    """Greedy, every run in a process of its own, the peers by turns so that a slow minute hits them all."""
    console = Console()
    layout = look(model)
    folder = str(layout.source.folder.resolve())
    for kind in BITS:
        optimize(folder, kind)
    with tempfile.TemporaryDirectory() as scratch:
        where = {peer: place for peer in PEERS if (place := converted(peer, folder, scratch))}
        found: Found = {peer: defaultdict(list) for peer in where}
        for i in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
            for peer, place in where.items():
                figures = one_run(peer, place, folder)
                for key, value in figures.items() if i else ():  # the first round only warms the disk's cache
                    found[peer][key].append(value)
    machine = measure()
    console.print(f"model: {layout.source.folder.resolve().name}, {layout.config.n_params():,} parameters")
    console.print(table(found, layout.config, machine, rounds))
    if said := beside_transformers(found):
        console.print(said, soft_wrap=True)
    console.print(memory_table(found, layout.config))


def optimize(model: str, kind: str) -> None:
    """What a user does once; nothing where it was done before."""
    subprocess.run([sys.executable, "-m", "gptcli", "optimize", model, *flags(kind)], check=True, stdout=sys.stderr)


def flags(kind: str) -> list[str]:
    """How our command is told of the weights."""
    return ["--quantize", kind] if kind.startswith("int") else ["--dtype", kind]


def converted(peer: Peer, model: str, scratch: str) -> str | None:
    """The checkpoint in the peer's own format; None where it is not installed or has no form for it."""
    if peer.name == "gptcli":
        return model
    if not installed(peer.name):
        return None
    if peer.name == "transformers":
        return model
    place, kind = f"{scratch}/{peer.name}-{peer.kind}", CONVERTED[peer.name, peer.kind]
    try:
        if peer.name == "llama.cpp":
            llama_cpp.convert(model, place, kind)
        else:
            for_ctranslate2(model, place, kind)
    except ValueError:  # a family that it has no form for
        return None
    return place


def installed(peer: str) -> bool:
    """Whether it is here."""
    return find_spec(MODULES[peer]) is not None


def one_run(peer: Peer, where: str, model: str) -> dict[str, float]:
    """All figures of one peer, in a fresh process; gptcli's cold start is that of the real command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", peer.name, peer.kind, where, model],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    ready = process.stdout.readline()
    first = time.perf_counter() - began
    rest, errors = process.communicate()
    if process.returncode or not ready:
        raise SystemExit(f"{peer.label} failed:\n{errors[-2000:]}")
    if peer.name == "gptcli":
        first = cold_command(model, peer.kind)
    return {"first": first, **json.loads(rest.splitlines()[-1])}


def cold_command(model: str, kind: str) -> float:
    """Seconds from starting `gptcli` to the first byte of its answer."""
    command = [sys.executable, "-m", "gptcli", PROMPT, "-m", model, "-n", "16", "-t", "0", "-q", *flags(kind)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout
    process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.communicate()
    return seconds


def for_ctranslate2(model: str, folder: str, kind: str) -> None:
    """ctranslate2 has a format of its own."""
    import shutil

    from ctranslate2.converters import TransformersConverter

    TransformersConverter(model).convert(folder, quantization=kind)
    shutil.copyfile(f"{model}/tokenizer.json", f"{folder}/tokenizer.json")


def table(found: Found, config: Config, machine: Machine, rounds: int) -> Table:
    """Medians; in brackets how many times better gptcli is with weights of as many bits."""
    result = Table(
        caption=f"medians of {rounds} interleaved runs; in brackets how many times better gptcli does with weights of "
        "as many bits; at most: reading each weight once a token, at the machine's own rate"
    )
    result.add_column("")
    for heading, _ in COLUMNS.values():
        result.add_column(heading, justify="right")
    for heading in ("at most\ntokens/s", "of that"):
        result.add_column(heading, justify="right")
    medians = {peer: {key: statistics.median(figures[key]) for key in COLUMNS} for peer, figures in found.items()}
    for peer, figures in medians.items():
        ours, cells = medians[Peer(name="gptcli", kind=peer.kind)], []
        for key, (_, more_is_better) in COLUMNS.items():
            ratio = ours[key] / figures[key] if more_is_better else figures[key] / ours[key]
            cells.append(f"{figures[key]:.4g}" + (f" ({ratio:.2f}x)" if peer.name != "gptcli" else ""))
        if peer.name == "gptcli":
            most = machine.read_bytes_per_s / weights_read(config, peer.kind)
            cells += [f"{most:.4g}", f"{figures['decode'] / most:.0%}"]
            result.add_section()
        result.add_row(peer.label, *cells)
    return result


def beside_transformers(found: Found) -> str:
    """Our decoding with each kind of weights against transformers' faster one; nothing where that is not installed."""
    speed = {peer: statistics.median(figures["decode"]) for peer, figures in found.items()}
    fastest = max((value for peer, value in speed.items() if peer.name == "transformers"), default=None)
    if fastest is None:
        return ""
    ratios = (f"{kind} {speed[Peer(name='gptcli', kind=kind)] / fastest:.2f}x" for kind in BITS)
    return f"decode, gptcli beside the faster transformers: {', '.join(ratios)}"


def weights_read(config: Config, kind: str) -> float:
    """Bytes of all matrices that one token reads; with 4 bits the scores' matrix has 8."""
    head = config.n_vocab * config.d_model
    rest = config.n_params() - head * (1 if config.tied else 2)
    return (rest * BITS[kind] + head * max(8.0, BITS[kind])) / 8


def memory_table(found: Found, config: Config) -> Table:
    """Peak resident memory of our runs, and what the goal allows: torch, and 15 % more than weights and cache."""
    torch = torch_alone()
    n = min(N_PREFILL, config.n_ctx - 1) + 1
    result = Table(
        title="peak resident memory, MB",
        caption=f"torch: a process that imports it and multiplies two matrices; the cache is of {n} tokens, the "
        "embedding's rows are read one at a time and are mapped or held besides rounded matrices",
    )
    for heading in ("", "torch", "weights", "cache", "torch + 1.15 x\n(weights + cache)", "measured"):
        result.add_column(heading, justify="right")
    for peer, figures in found.items():
        peak = statistics.median(figures["memory"]) / 1e6
        if peer.name != "gptcli":
            result.add_row(peer.label, "", "", "", "", f"{peak:,.0f}")
            continue
        held = weights_read(config, peer.kind) / 1e6
        size = {"float32": 4}.get(peer.kind, 2)
        if peer.kind.startswith("int"):
            held += config.n_vocab * config.d_model * size / 1e6
        cache = config.kv_bytes(n, size) / 1e6
        allowed = torch / 1e6 + 1.15 * (held + cache)
        result.add_row(
            peer.label, f"{torch / 1e6:,.0f}", f"{held:,.0f}", f"{cache:,.0f}", f"{allowed:,.0f}", f"{peak:,.0f}"
        )
    return result


def torch_alone() -> int:
    """Peak bytes of a process that only has torch at work."""
    code = (
        "import torch; a = torch.ones(512, 512); a @ a\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    return 1024 * int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
