"""Finish the stories that were cut off when they were sampled, with the model that began them.

    python weights/making/finish.py MODEL SAMPLED.jsonl ... > finished.jsonl

A line with `"complete": false` was cut at the end of a sentence when the model's context was full. Its last 96 tokens
are a context with room for 160 more: the model goes on from there, a batch of stories at a time, until it ends them.
Stories that even then have no end are left out; complete ones pass as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gptcli.cache import Cache
from gptcli.checkpoint import Checkpoint, load

BATCH, KEPT = 256, 96


@torch.inference_mode()
def told(
    model: Checkpoint, starts: Sequence[Sequence[int]], known: torch.Tensor, temperature: float, rng: torch.Generator
) -> list[tuple[str, bool]]:
    """What follows each of the starts, all of one length, and whether the story ended within the model's context.

    Only the `known` ids are drawn: of 32,000 these stories use 8,000, and fewer scores take less time.
    """
    capacity, stop = model.config.n_ctx, {*model.eos_ids, model.start_id}
    cache = Cache(model.config, capacity, batch=len(starts), dtype=model.dtype)
    written: list[list[int]] = [[] for _ in starts]
    done = [False] * len(starts)
    ids, head = torch.tensor(starts), model.decoder.embed.weight[known]
    assert model.config.tied and model.decoder.final_norm
    while cache.n_seen + ids.shape[1] <= capacity and not all(done):
        x = model.decoder.final_norm(model.decoder.stream(ids, cache)[:, -1])
        chances = ((x @ head.T) / temperature).softmax(-1).cumsum(-1)
        drawn = torch.rand(len(starts), 1, generator=rng) * chances[:, -1:]
        ids = known[torch.searchsorted(chances, drawn).clamp(max=len(known) - 1)]
        for i, new in enumerate(ids[:, 0].tolist()):
            done[i] = done[i] or new in stop
            if not done[i]:
                written[i].append(new)
    raw = model.tokenizer.raw
    return [(b"".join(map(raw, row)).decode(errors="replace"), end) for row, end in zip(written, done, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("sampled", nargs="+", type=Path)
    parser.add_argument("--temperature", type=float, default=0.95)
    asked = parser.parse_args()
    model, rng = load(asked.model), torch.Generator().manual_seed(0)
    open_ends = list[tuple[str, list[int]]]()
    for path in asked.sampled:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("complete", True):
                print(json.dumps({"text": row["text"]}, ensure_ascii=False))
                continue
            ids = model.tokenizer.encode(row["text"], bos=False)
            if len(ids) >= KEPT:
                open_ends.append((row["text"], ids[-KEPT:]))
    known = torch.tensor(sorted({i for _, tail in open_ends for i in tail} | model.eos_ids | {model.start_id or 0}))
    n = 0
    for i in range(0, len(open_ends), BATCH):
        batch = open_ends[i : i + BATCH]
        rests = told(model, [tail for _, tail in batch], known, asked.temperature, rng)
        for (text, _), (rest, ended) in zip(batch, rests, strict=True):
            if ended:
                n += 1
                print(json.dumps({"text": (text + rest).strip()}, ensure_ascii=False))
        print(f"{i + len(batch)} of {len(open_ends)} continued, {n} finished", file=sys.stderr)


if __name__ == "__main__":
    main()
