"""python -m benchmarks NAME [MODEL] ..."""

from __future__ import annotations

import argparse

import benchmarks
from benchmarks import batch, decode, start, train, xray
from gptcli.folder import shipped

BENCHMARKS = {"batch": batch.run, "decode": decode.run, "start": start.run, "train": train.run, "xray": xray.run}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("model", nargs="?", default=str(shipped()), help="a checkpoint folder, or for train a size")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, interleaved")
    arguments = parser.parse_args()
    if arguments.name == "train" and arguments.model == str(shipped()):
        arguments.model = "mini"
    BENCHMARKS[arguments.name](arguments.model, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
