"""Stories that begin as real ones do, and go on as a model tells them.

    python weights/making/openings.py MODEL stories.txt --last 200 --times 12 --seed 0 > opened.jsonl

Each story but the last ones is begun several times, with a few of its first tokens, and the model goes on from there. A
model that learns from stories told freely meets few of the things that real stories are about; from these it learns how
its teacher would go on among them. Where the model's context is full, the text goes on with `finish.py`'s way, and what
even then has no end is left out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from finish import BATCH, KEPT, told
from stories import stories

from gptcli.checkpoint import load

LENGTHS = (8, 16, 24, 32, 48, 64, 96)  # tokens of an opening


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("stories", type=Path)
    parser.add_argument("--last", type=int, default=200, help="how many are held out, and begin nothing")
    parser.add_argument("--times", type=int, default=12, help="how often each other story is begun")
    parser.add_argument("--temperature", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    model, rng, order = load(asked.model), torch.Generator().manual_seed(asked.seed), random.Random(asked.seed)
    tokenizer, first = model.tokenizer, [model.start_id or 0]
    own = [tokenizer.encode(story, bos=False) for story in stories(asked.stories)[: -asked.last]]
    known = torch.tensor(sorted({i for ids in own for i in ids} | model.eos_ids | set(first)))

    of_length: dict[int, list[list[int]]] = {n: [] for n in LENGTHS}
    for _ in range(asked.times):
        for ids in own:
            n = order.choice([n for n in LENGTHS if n < len(ids) or n == LENGTHS[0]])
            of_length[n].append(ids[:n])
    for rows in of_length.values():
        order.shuffle(rows)
    batches = [rows[i : i + BATCH] for rows in of_length.values() for i in range(0, len(rows), BATCH)]
    order.shuffle(batches)

    t0, n_new, n_told = time.perf_counter(), 0, 0
    open_ends = list[tuple[str, list[int]]]()
    for starts in batches:
        begun = told(model, [first + ids for ids in starts], known, asked.temperature, rng)
        stories_told = [(tokenizer.decode(ids) + rest, end) for ids, (rest, end) in zip(starts, begun, strict=True)]
        if len(open_ends) >= BATCH:
            full, open_ends = open_ends[:BATCH], open_ends[BATCH:]
            rests = told(model, [tail for _, tail in full], known, asked.temperature, rng)
            stories_told += [(text + rest, True) for (text, _), (rest, end) in zip(full, rests, strict=True) if end]
        for text, ended in stories_told:
            if ended:
                n_told += 1
                print(json.dumps({"text": text.strip()}, ensure_ascii=False), flush=True)
            else:
                tail = tokenizer.encode(text, bos=False)[-KEPT:]
                open_ends += [(text, tail)] if len(tail) == KEPT else []
            n_new += len(tokenizer.encode(text, bos=False)) * ended
        rate = n_new / (time.perf_counter() - t0)
        print(f"{n_told} stories, {n_new} tokens, {rate:,.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
