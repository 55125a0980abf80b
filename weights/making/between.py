"""A model between two: each number is (1 - share) of the first's and share of the second's.

    python weights/making/between.py FIRST SECOND OUT --share 0.8

A model that was trained further on little text knows that text too well; on the way back to what it was there is one
that is better at new text than both (Wortsman et al. 2022, arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gptcli import load, save


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the second, from 0 to 1")
    asked = parser.parse_args()
    one, other = load(asked.first), load(asked.second)
    for a, b in zip(one.decoder.parameters(), other.decoder.parameters(), strict=True):
        b.copy_((1 - asked.share) * a + asked.share * b)
    save(other, asked.out)


if __name__ == "__main__":
    main()
