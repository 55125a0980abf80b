"""Real checkpoints, from the command line, against what others get from the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from programs import gptcli

# What llama2.c's own tests expect of stories260K: 200 tokens, greedy, from the start token (MIT, karpathy/llama2.c)
PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\n"
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)
PROMPTS = ("Once upon a time", "The little robot said", "12 + 30 =", "\tdéjà vu: ")


def greedy(folder: Path, prompt: str, n: int, *more: str) -> list[int]:
    """Ids from the command line."""
    done = gptcli(
        "generate", "-m", folder, "-p", prompt, "-n", str(n), "-t", "0", "--dtype", "float32", "--json", *more
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["samples"][0]["ids"])


def reference(folder: Path, prompt: str, n: int) -> list[int]:
    """The same from transformers, until its end token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=n, pad_token_id=0)
    return [int(i) for i in out[0, ids.shape[1] :]]


def test_stories260k_writes_its_published_text(stories260k: Path) -> None:
    done = gptcli("generate", "-m", stories260k, "-n", "200", "-t", "0", "-q")
    assert done.returncode == 0
    assert done.stdout.decode() == PUBLISHED


@pytest.mark.parametrize("prompt", [PROMPTS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PROMPTS[1:])])
def test_stories15m_writes_the_64_tokens_that_transformers_writes(stories15m: Path, prompt: str) -> None:
    found = greedy(stories15m, prompt, 64)
    assert len(found) == 64 and found == reference(stories15m, prompt, 64)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_writes_the_64_tokens_that_transformers_writes(smollm2: Path) -> None:
    for prompt in PROMPTS[:3]:
        found, expected = greedy(smollm2, prompt, 64), reference(smollm2, prompt, 64)
        assert found == expected[: len(found)] and (len(found) == 64 or len(found) == len(expected))
