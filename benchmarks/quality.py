"""python -m benchmarks quality MODEL --text FILE: what rounding costs, in perplexity and in greedy text.

A text with <|endoftext|> in it is scored by documents (the last 200); any other in windows of 512 tokens, spread
evenly over it, each from its own start. SmolLM2-135M as unpacked from the package that carries it was rounded to 4 bits
before, by groups of 32: what int4 costs on that copy flatters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from gptcli import Checkpoint, Sampling, Step, generate, load
from gptcli.corpus import END
from gptcli.score import logprobs_of, score

KINDS = ("float32", "bfloat16", "int8", "int4")
WINDOW, MOST_WINDOWS, DOCUMENTS, N = 512, 100, 200, 100
STORIES = (
    "Once upon a time, there was a little robot",
    "Lily and Tom went to the park. They saw a big",
    "One day, a small bird could not fly. She",
)
PROSE = (
    "The lighthouse on Gull Rock was built in 1871 by",
    "A robot must obey the orders given it by human beings",
    "Water boils at a lower temperature on a mountain because",
)


@dataclass(frozen=True)
class Found:
    """What a kind of weights gives: nats a token on the text, and the greedy answer to each prompt."""

    nats: float
    n_tokens: int
    answers: list[list[Step]]


def run(model: str, *, text: str) -> None:
    """One load of the checkpoint for each kind; the first is what the others are measured by."""
    whole = Path(text).read_text(encoding="utf-8")
    prompts = STORIES if END in whole else PROSE
    found = {}
    for kind in KINDS:
        checkpoint = load(model, quantize=kind) if kind in ("int8", "int4") else load(model, dtype=kind)
        nats, n = nats_of(checkpoint, whole)
        found[kind] = Found(nats, n, [greedy(checkpoint, prompt) for prompt in prompts])
    console = Console()
    console.print(table(found, f"{checkpoint.name}, {Path(text).name}, {found[KINDS[0]].n_tokens:,} tokens"))
    console.print(answers(found, prompts))


def nats_of(checkpoint: Checkpoint, whole: str) -> tuple[float, int]:
    """Nats a token, and how many tokens."""
    if END in whole:
        parts = [part.strip() for part in whole.split(END) if part.strip()]
        scored = list(score(checkpoint, parts[-DOCUMENTS:]))
        return sum(s.nats for s in scored) / (n := sum(len(s.logprobs) for s in scored)), n
    ids = checkpoint.tokenizer.encode(whole, bos=False)
    n = min(WINDOW, checkpoint.config.n_ctx)
    starts = range(0, len(ids) - n, n)
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in list(starts)[:: max(1, len(starts) // MOST_WINDOWS)][:MOST_WINDOWS]:
            window = torch.tensor([ids[start : start + n]])
            x = checkpoint.decoder.stream(window)[0]  # [T, C]
            total -= float(logprobs_of(checkpoint, x[:-1], window[0, 1:]).sum())
            count += n - 1
    return total / count, count


def greedy(checkpoint: Checkpoint, prompt: str) -> list[Step]:
    """The first tokens of the answer."""
    return list(generate(checkpoint, prompt, sampling=Sampling(temperature=0), max_tokens=N, ignore_eos=True))


def table(found: dict[str, Found], title: str) -> Table:
    """Perplexities, each beside the first."""
    result = Table(title=title)
    for heading in ("weights", "perplexity", f"beside {KINDS[0]}"):
        result.add_column(heading, justify="right")
    for kind, f in found.items():
        change = math.expm1(f.nats - found[KINDS[0]].nats)
        result.add_row(kind, f"{math.exp(f.nats):.4f}", "" if kind == KINDS[0] else f"{change:+.2%}")
    return result


def answers(found: dict[str, Found], prompts: tuple[str, ...]) -> Table:
    """Where each greedy text first differs, and how far apart the two best tokens were there without rounding."""
    result = Table(
        title=f"greedy text beside {KINDS[0]}: the first of {N} tokens that differs",
        caption=f"in brackets the margin: by how much {KINDS[0]}'s best token led there, in logits",
    )
    result.add_column("prompt")
    for kind in KINDS[1:]:
        result.add_column(kind, justify="right")
    for i, prompt in enumerate(prompts):
        cells = []
        for kind in KINDS[1:]:
            pairs = zip(found[KINDS[0]].answers[i], found[kind].answers[i], strict=True)
            first = next((ours for ours, theirs in pairs if ours.id != theirs.id), None)
            cells.append("none" if first is None else f"{first.index + 1} ({first.margin:.2f})")
        result.add_row(prompt, *cells)
    return result
