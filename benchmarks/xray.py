"""python -m benchmarks xray MODEL: what looking costs, beside not looking, and beside TransformerLens.

strip    generate --xray and plain decode, by turns, in one process
grid     128 tokens with top-5, entropy and KL of every layer, and the plain pass plus one product of all states
process  `gptcli xray` from start to end, and TransformerLens doing the same (run_with_cache, lens at every layer)
replay   a saved trace, from start to end, and `python -c pass`
memory   a grid of 512 tokens, or as many as the model takes: what it takes on top of the loaded model
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

PROMPT = "Once upon a time, there was a little robot"
N_STRIP, N_GRID, N_MEMORY = 48, 128, 512


def run(model: str, *, rounds: int) -> None:
    """float32. GPTCLI_TRANSFORMER_LENS names the other's Python where it lives in an environment of its own."""
    console = Console(highlight=False, soft_wrap=True)
    for line in (*inside(model, rounds), *outside(model, rounds), memory(model)):
        console.print(line)


def inside(model: str, rounds: int) -> list[str]:
    """The strip and the grid, in this process."""
    import torch

    from gptcli import Sampling, generate, load
    from gptcli.lens import end_of, read, scores
    from gptcli.scan import run as run_text
    from gptcli.scan import scan
    from gptcli.strips import Strips

    checkpoint = load(model, dtype="float32")
    decoder, ids = checkpoint.decoder, checkpoint.tokenizer.encode(PROMPT)
    greedy = Sampling(temperature=0)

    def plain() -> float:
        times = [
            time.perf_counter() for _ in generate(checkpoint, ids, sampling=greedy, max_tokens=N_STRIP, ignore_eos=True)
        ]
        return (len(times) - 1) / (times[-1] - times[0])

    def watched() -> float:
        tape, times = Strips(decoder), []
        for step in generate(checkpoint, ids, sampling=greedy, max_tokens=N_STRIP, ignore_eos=True, tape=tape, top=4):
            tape.read(step.id, step.logprob)
            times.append(time.perf_counter())
        return (len(times) - 1) / (times[-1] - times[0])

    long = [ids[1 + i % (len(ids) - 1)] for i in range(N_GRID)]
    text, prompt = torch.tensor([long]), _prompt(checkpoint, long)

    @torch.inference_mode()
    def bare() -> float:
        began = time.perf_counter()
        states = torch.cat([decoder.stream(text)[0]] * (checkpoint.config.n_layer + 1))
        for part in torch.split(states, 256):
            scores(end_of(decoder), part)
        return time.perf_counter() - began

    @torch.inference_mode()
    def grid() -> float:
        began = time.perf_counter()
        done = run_text(checkpoint, prompt, max_tokens=0)
        read(decoder, done.trace.states, top=5, size=checkpoint.n_tokens)
        return time.perf_counter() - began

    @torch.inference_mode()
    def whole() -> float:
        began = time.perf_counter()
        scan(checkpoint, run_text(checkpoint, prompt, max_tokens=0))
        return time.perf_counter() - began

    found = by_turns([plain, watched, bare, grid, whole], rounds)
    a, b, c, d, e = (statistics.median(times) for times in found)
    return [
        f"strip: {b:.1f} tokens/s beside {a:.1f} without, {b / a:.2f} of it ({N_STRIP} tokens)",
        f"grid: {d:.2f} s beside {c:.2f} s for the plain pass and one product, {d / c:.2f} times ({N_GRID} tokens); "
        f"with ledger, norms and all self-checks {e:.2f} s, {e / c:.2f} times",
    ]


def by_turns(works: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """What each gives, the first round left out."""
    found: list[list[float]] = [[] for _ in works]
    for i in range(rounds + 1):
        for work, values in zip(works, found, strict=True):
            value = work()
            if i:
                values.append(value)
    return found


def _prompt(checkpoint: object, ids: list[int]) -> object:
    from gptcli.generation import prepare

    return prepare(checkpoint, ids)  # type: ignore[arg-type]


THEIRS = """
import sys, torch
from transformer_lens.model_bridge import TransformerBridge
model, text = sys.argv[1:3]
bridge = TransformerBridge.boot_transformers(model, device="cpu", dtype=torch.float32)
tokens = bridge.to_tokens(text)
with torch.inference_mode():
    logits, cache = bridge.run_with_cache(tokens)
    final = logits[0].log_softmax(-1)
    for layer in range(bridge.cfg.n_layers):
        scores = bridge.unembed(bridge.ln_final(cache["blocks.%d.hook_out" % layer]))[0].log_softmax(-1)
        scores.topk(5, -1), -(scores.exp() * scores).sum(-1), (final.exp() * (final - scores)).sum(-1)
print(scores.shape, float((scores - final).abs().max()))
"""


def outside(model: str, rounds: int) -> list[str]:
    """Whole processes."""
    text = " ".join([PROMPT] * 8)
    ours = [sys.executable, "-m", "gptcli", "xray", text, "-m", model, "-n", "0", "--dtype", "float32"]
    with tempfile.TemporaryDirectory() as folder:
        trace = str(Path(folder) / "run.xray")
        subprocess.run([*ours, "--save", trace], capture_output=True, check=True, stdin=subprocess.DEVNULL)
        commands = {
            "ours": ours,
            "replay": [sys.executable, "-m", "gptcli", "xray", trace],
            "python": [sys.executable, "-c", "pass"],
        }
        theirs = os.environ.get("GPTCLI_TRANSFORMER_LENS", sys.executable if find_spec("transformer_lens") else "")
        if theirs:
            commands["theirs"] = [theirs, "-c", THEIRS, model, text]
        found = by_turns([lambda c=c: seconds(c) for c in commands.values()], rounds)  # type: ignore[misc]
    medians = {name: statistics.median(times) for name, times in zip(commands, found, strict=True)}
    lines = [f"replay: {medians['replay'] * 1e3:.0f} ms (python -c pass: {medians['python'] * 1e3:.0f} ms)"]
    said = f"process: {medians['ours']:.1f} s"
    if "theirs" in medians:
        times = medians["theirs"] / medians["ours"]
        said += f" beside {medians['theirs']:.1f} s of {their_version(theirs)}, {times:.1f} times faster"
    return [*lines, said]


def their_version(python: str) -> str:
    """TransformerLens's and its torch's: its environment may be another than the one that the heading is about."""
    code = "from importlib.metadata import version as v; print(v('transformer-lens'), 'on torch', v('torch'))"
    return "TransformerLens " + subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def seconds(command: list[str]) -> float:
    """From start to end."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True)
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


MEMORY = """
import json, sys, torch
from gptcli import load
from gptcli.generation import prepare
from gptcli.scan import run, scan

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024

checkpoint = load(sys.argv[1])
own = sum(p.nbytes for p in checkpoint.decoder.parameters())
loaded = peak()
n = min(int(sys.argv[2]), checkpoint.config.n_ctx - 1)
ids = [1 + i % (checkpoint.n_tokens - 1) for i in range(n)]
scan(checkpoint, run(checkpoint, prepare(checkpoint, ids), max_tokens=0, heads=False))
print(json.dumps({"n": n, "own": own, "more": peak() - loaded, "dtype": str(checkpoint.dtype)}))
"""


def memory(model: str) -> str:
    """In the files' own dtype."""
    command = [sys.executable, "-c", MEMORY, model, str(N_MEMORY)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    f = json.loads(done.stdout.splitlines()[-1])
    return (
        f"memory: {f['more'] / 1e6:.0f} MB for a grid of {f['n']} tokens beside the model's own "
        f"{f['own'] / 1e6:.0f} MB ({f['dtype']}): {1 + f['more'] / f['own']:.2f} times the model in all"
    )
