"""One peer in a process of its own: python -m benchmarks.worker PEER KIND WHERE MODEL

KIND, of the weights: float32, bfloat16, int8 or int4. Writes `first` when the first token of a cold start is there,
then one JSON line of figures.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROMPT = "Once upon a time, there was a little robot"
N_DECODE, N_PREFILL = 128, 512
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Run = Callable[[list[int], int], list[float]]  # (prompt, n) -> the times at which n new tokens were there


def gptcli(model: str, kind: str) -> tuple[list[int], Run]:
    from gptcli import Sampling, generate, load

    checkpoint = load(model, quantize=kind) if kind in ("int8", "int4") else load(model, dtype=kind)

    def run(ids: list[int], n: int) -> list[float]:
        greedy = Sampling(temperature=0)
        steps = generate(checkpoint, ids, sampling=greedy, max_tokens=n, ignore_eos=True)
        return [time.perf_counter() for _ in steps]

    return checkpoint.tokenizer.encode(PROMPT), run


def transformers(model: str, kind: str) -> tuple[list[int], Run]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, kind)).eval()

    class Clock:
        def __init__(self) -> None:
            self.times = list[float]()

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(ids: list[int], n: int) -> list[float]:
        clock, given = Clock(), torch.tensor([ids])
        loaded.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=n, min_new_tokens=n,
            pad_token_id=0, streamer=clock,
        )  # fmt: skip
        return clock.times[1:]  # the first call hands over the prompt

    return AutoTokenizer.from_pretrained(model)(PROMPT).input_ids, run


def ctranslate2(model: str, kind: str) -> tuple[list[int], Run]:
    import ctranslate2 as library
    from tokenizers import Tokenizer

    generator = library.Generator(model, device="cpu", compute_type=kind, intra_threads=THREADS)
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))

    def run(ids: list[int], n: int) -> list[float]:
        times = list[float]()

        def clock(step: object) -> bool:
            times.append(time.perf_counter())
            return False

        pieces = [tokenizer.id_to_token(i) for i in ids]
        generator.generate_batch(
            [pieces], max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False, callback=clock,
            end_token=[],
        )  # fmt: skip
        return times

    return tokenizer.encode(PROMPT).ids, run


def llama_cpp(file: str, kind: str) -> tuple[list[int], Run]:
    from tokenizers import Tokenizer

    from benchmarks.llama_cpp import load

    tokenizer = Tokenizer.from_file(str(Path(sys.argv[4]) / "tokenizer.json"))
    return tokenizer.encode(PROMPT).ids, load(file, n_ctx=N_PREFILL + N_DECODE, threads=THREADS)


PEERS = {"gptcli": gptcli, "transformers": transformers, "ctranslate2": ctranslate2, "llama.cpp": llama_cpp}


def main() -> None:
    from gptcli import look

    peer, kind, where, model = sys.argv[1:]
    ids, run = PEERS[peer](where, kind)
    run(ids, 1)
    print("first", flush=True)
    run(ids, 8)
    times = run(ids, N_DECODE)
    long = [ids[1 + i % (len(ids) - 1)] for i in range(min(N_PREFILL, look(model).config.n_ctx - 1))]
    prefill = []
    for _ in range(3):
        began = time.perf_counter()
        prefill.append(run(long, 1)[0] - began)
    print(
        json.dumps(
            {
                "decode": (len(times) - 1) / (times[-1] - times[0]),
                "prefill": len(long) / sorted(prefill)[1],
                "memory": _peak_memory(),
            }
        ),
        flush=True,
    )


def _peak_memory() -> int:
    """VmHWM and not ru_maxrss, which a child inherits from whoever started it. Bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
