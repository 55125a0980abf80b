"""python -m benchmarks NAME [MODEL] ..."""

from __future__ import annotations

import argparse

import benchmarks
from benchmarks import decode, start, xray

BENCHMARKS = {"decode": decode.run, "start": start.run, "xray": xray.run}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("model", help="a checkpoint folder")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, interleaved")
    arguments = parser.parse_args()
    BENCHMARKS[arguments.name](arguments.model, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
