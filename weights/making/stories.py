"""Stories to train on, kept apart from the stories to score on.

    python weights/making/stories.py OUT --score stories.txt --last 200 MORE.jsonl ... --repeat 3

Writes OUT/train.jsonl and OUT/held-out.txt. The last stories of the first file are held out, and a story that shares
more than a fifth of its runs of eight words with any one of them is left out of training, wherever it comes from.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

END = "<|endoftext|>"


def stories(path: Path) -> list[str]:
    """The texts of a .jsonl file, or the parts of a text file; those cut off in the middle are used too."""
    raw = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line)["text"].strip() for line in raw.splitlines() if line.strip()]
    return [part.strip() for part in raw.split(END) if part.strip()]


def runs(text: str, n: int = 8) -> set[tuple[str, ...]]:
    """Its runs of n words, without case and punctuation."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--score", type=Path, required=True)
    parser.add_argument("--last", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=1, help="how often the first file's other stories are shown")
    parser.add_argument("more", nargs="*", type=Path)
    asked = parser.parse_intermixed_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    own = stories(asked.score)
    held_out, own = own[-asked.last :], own[: -asked.last]
    where: dict[tuple[str, ...], set[int]] = {}
    for i, story in enumerate(held_out):
        for run in runs(story):
            where.setdefault(run, set()).add(i)

    def is_near(story: str) -> bool:
        its = runs(story)
        shared = Counter(i for run in its for i in where.get(run, ()))
        return bool(shared) and max(shared.values()) > 0.2 * len(its)

    kept = [story for story in own if not is_near(story)] * asked.repeat
    print(f"{asked.score.name}: {len(kept) // asked.repeat} of {len(own)} kept, {asked.repeat} times")
    for path in asked.more:
        found = stories(path)
        good = [story for story in found if not is_near(story)]
        print(f"{path.name}: {len(good)} of {len(found)} kept")
        kept += good
    random.Random(0).shuffle(kept)
    with (asked.out / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": story}, ensure_ascii=False) + "\n" for story in kept)
    (asked.out / "held-out.txt").write_text(f"\n{END}\n".join(held_out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
