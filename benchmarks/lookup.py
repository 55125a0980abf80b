"""python -m benchmarks lookup MODEL: generate with and without --lookup, by turns, to quote a text and for a story."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from gptcli import Checkpoint, Prompt, Sampling, generate, load, prepare
from gptcli import lookup as module

N_TOKENS = 160
STORY = "Once upon a time, there was a little robot who lived by the sea. One morning,"
NOTICE = """The lighthouse on Gull Rock was built in 1871 by two brothers who had never seen the sea before that \
spring. They carried the stones across the sand at low tide, one cart at a time, and finished the tower in eleven \
years. The lamp burned whale oil at first, then kerosene, and since 1934 an electric bulb no larger than a pear.

Every evening at six the keeper climbs the hundred and forty steps, wipes the salt from the glass, and writes the \
weather into a green book. There are ninety-two such books on the shelf. The oldest speaks of a storm that lasted \
nine days, and of a goat that was washed ashore alive and lived in the kitchen until the summer."""
ASK = "Summarise this text in one sentence, and then quote it word for word:"


@dataclass(frozen=True)
class Found:
    """One prompt: decode tokens per second of every round, and what became of the proposals."""

    plain: list[float]
    ahead: list[float]
    n_proposed: int
    n_accepted: int
    n_repeated: int
    equal: bool


def run(model: str, *, rounds: int) -> None:
    """Greedy, in the dtype of the files and in float32 (the same run once, where that is one)."""
    console = Console(soft_wrap=True)
    seen = set[object]()
    for dtype in ("auto", "float32"):
        checkpoint = load(model, dtype=dtype)
        if checkpoint.dtype in seen:
            continue
        seen.add(checkpoint.dtype)
        prompts = {"summarise and quote": prepare(checkpoint, quoting(checkpoint)), "story": prepare(checkpoint, STORY)}
        found = {name: compare(checkpoint, prompt, rounds) for name, prompt in prompts.items()}
        console.print(table(found, f"{checkpoint.name}, {str(checkpoint.dtype).removeprefix('torch.')}", rounds))


def quoting(checkpoint: Checkpoint) -> str:
    """The request in a chat model's own marks; a model that only goes on gets the text and its beginning once more."""
    if checkpoint.tokenizer.id_of("<|im_start|>") is not None:
        return f"<|im_start|>user\n{ASK}\n\n{NOTICE}<|im_end|>\n<|im_start|>assistant\n"
    return f"{NOTICE}\n\n{NOTICE}\n\n{NOTICE[:120]}"


def compare(checkpoint: Checkpoint, prompt: Prompt, rounds: int) -> Found:
    plain, ahead, counters = list[float](), list[float](), list[module.Lookup]()
    equal = True
    for i in range(rounds + 1):  # the first round only warms up
        a, speed = one_run(checkpoint, prompt, lookup=False, counters=counters)
        b, speed_ahead = one_run(checkpoint, prompt, lookup=True, counters=counters)
        equal = equal and a == b
        if i:
            plain.append(speed)
            ahead.append(speed_ahead)
    last = counters[-1]
    return Found(plain, ahead, last.n_proposed, last.n_accepted, last.n_repeated, equal)


def one_run(
    checkpoint: Checkpoint, prompt: Prompt, *, lookup: bool, counters: list[module.Lookup]
) -> tuple[list[int], float]:
    """The tokens, and how many came per second after the first."""

    class Counted(module.Lookup):
        def __init__(self, *rest: object, **more: object) -> None:
            super().__init__(*rest, **more)  # type: ignore[arg-type]
            counters.append(self)

    from gptcli import generation

    original, generation.Lookup = generation.Lookup, Counted  # type: ignore[misc]
    try:
        ids, times = list[int](), list[float]()
        for step in generate(
            checkpoint, prompt, sampling=Sampling(temperature=0), max_tokens=N_TOKENS, ignore_eos=True, lookup=lookup
        ):
            ids.append(step.id)
            times.append(time.perf_counter())
    finally:
        generation.Lookup = original  # type: ignore[misc]
    return ids, (len(times) - 1) / (times[-1] - times[0])


def table(found: dict[str, Found], title: str, rounds: int) -> Table:
    result = Table(title=title, caption=f"greedy, {N_TOKENS} tokens, medians of {rounds} interleaved runs; tokens/s")
    for heading in ("prompt", "plain", "--lookup", "ratio", "accepted of proposed", "done again", "same text"):
        result.add_column(heading, justify="left" if heading == "prompt" else "right")
    for name, f in found.items():
        a, b = statistics.median(f.plain), statistics.median(f.ahead)
        accepted = f"{f.n_accepted}/{f.n_proposed}"
        result.add_row(
            name, f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}x", accepted, str(f.n_repeated), "yes" if f.equal else "NO"
        )
    return result
