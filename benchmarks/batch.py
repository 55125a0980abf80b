"""python -m benchmarks batch MODEL: many texts at once, beside one at a time and beside transformers' batched generate.

Greedy, end tokens ignored, prompts of one length, so that both do the same work; the same drawn, each text with a seed
of its own, as --num-samples does; and a ragged workload, where texts end at different times: transformers computes each
batch until its longest text has ended, ours fills the rows.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from importlib.util import find_spec

from rich.console import Console
from rich.progress import track
from rich.table import Table

from gptcli import look

BATCHES = (1, 8, 32)
N = 64  # tokens of each text
DRAWN = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}  # our defaults
N_RAGGED = 96  # texts, of 4 to 128 tokens each
PROMPT = "Once upon a time, there was a little robot"
PEERS = ("gptcli", "transformers")
ROUNDED = ("int8", "int4")  # which transformers has not


def run(model: str, *, rounds: int, dtype: str) -> None:
    """Every peer waits in a process of its own and measures when it is its turn; medians."""
    folder = str(look(model).source.folder.resolve())
    works = [*map(str, BATCHES), "drawn", "ragged"]
    found = {
        peer: defaultdict[str, list[float]](list)
        for peer in PEERS
        if find_spec(peer) and (peer == "gptcli" or dtype not in ROUNDED)
    }
    processes = {peer: start(peer, folder, dtype) for peer in found}
    for i in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
        for work in works:
            for peer, process in processes.items():
                speed = ask(process, work)
                if i:  # the first round only warms up
                    found[peer][work].append(speed)
    for process in processes.values():
        process.communicate("")
    Console().print(table(found, works, rounds, dtype))


def start(peer: str, model: str, dtype: str) -> subprocess.Popen[str]:
    """A peer that has loaded the model."""
    command = [sys.executable, "-m", "benchmarks.batch", peer, model, dtype]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n", f"{peer} does not start: {' '.join(command)}"
    return process


def ask(process: subprocess.Popen[str], work: str) -> float:
    """Tokens per second of one piece of work."""
    assert process.stdin and process.stdout
    process.stdin.write(work + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def table(found: dict[str, dict[str, list[float]]], works: list[str], rounds: int, dtype: str) -> Table:
    """Tokens per second of all texts together; in brackets how many times more than with one text."""
    result = Table(
        caption=f"tokens/s, medians of {rounds} interleaved rounds; in brackets times one text. {dtype}, greedy, {N} "
        f"tokens; drawn: {max(BATCHES)} texts at temperature 0.8, top-k 40, top-p 0.95; "
        f"ragged: {N_RAGGED} texts of 4 to 128 tokens, at most {max(BATCHES)} at a time"
    )
    result.add_column("")
    for work in works:
        result.add_column(f"batch {work}" if work.isdigit() else work, justify="right")
    medians = {peer: {w: statistics.median(figures[w]) for w in works} for peer, figures in found.items()}
    for peer, figures in medians.items():
        one = figures[works[0]]
        result.add_row(peer, *(f"{figures[w]:.4g} ({figures[w] / one:.1f}x)" for w in works))
    if len(medians) > 1:
        ours, theirs = medians["gptcli"], medians["transformers"]
        result.add_row("gptcli / transformers", *(f"{ours[w] / theirs[w]:.2f}x" for w in works))
    return result


def lengths_of(work: str) -> list[int]:
    """How many tokens each text gets."""
    number = random.Random(0)
    if work == "ragged":
        return [number.randint(4, 128) for _ in range(N_RAGGED)]
    return [N] * (max(BATCHES) if work == "drawn" else int(work))


def gptcli(model: str, dtype: str, work: str) -> None:
    """One piece of work, timed from outside; the checkpoint stays loaded."""
    from gptcli import Request, Sampling, generate_batch

    sampling = Sampling(**DRAWN) if work == "drawn" else Sampling(temperature=0)
    requests = [
        Request(prompt=PROMPT, sampling=sampling, max_tokens=n, seed=i, ignore_eos=True)
        for i, n in enumerate(lengths_of(work))
    ]
    for _ in generate_batch(_ours(model, dtype), requests, batch=max(BATCHES)):
        pass


def transformers(model: str, dtype: str, work: str) -> None:
    """The same; ragged texts in batches in the order they come, each batch as long as its longest text."""
    loaded, ids = _theirs(model, dtype)
    lengths = lengths_of(work)
    how = {"do_sample": True, **DRAWN} if work == "drawn" else {"do_sample": False}
    for i in range(0, len(lengths), max(BATCHES)):
        some = lengths[i : i + max(BATCHES)]
        given = ids.expand(len(some), -1)
        loaded.generate(
            given, attention_mask=given.new_ones(given.shape), max_new_tokens=max(some), min_new_tokens=max(some),
            pad_token_id=0, **how,
        )  # fmt: skip


_LOADED: dict[str, object] = {}


def _ours(model: str, dtype: str):  # type: ignore[no-untyped-def]
    from gptcli import load

    if model not in _LOADED:
        _LOADED[model] = load(model, quantize=dtype) if dtype in ROUNDED else load(model, dtype=dtype)
    return _LOADED[model]


def _theirs(model: str, dtype: str):  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if model not in _LOADED:
        ids = AutoTokenizer.from_pretrained(model)(PROMPT, return_tensors="pt").input_ids
        _LOADED[model] = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval(), ids
    return _LOADED[model]


WORK = {"gptcli": gptcli, "transformers": transformers}


def main() -> None:
    peer, model, dtype = sys.argv[1:]
    WORK[peer](model, dtype, "1")
    print("ready", flush=True)
    for line in sys.stdin:
        work = line.strip()
        tokens = sum(lengths_of(work))
        began = time.perf_counter()
        WORK[peer](model, dtype, work)
        print(json.dumps(tokens / (time.perf_counter() - began)), flush=True)


if __name__ == "__main__":
    main()
