"""python -m benchmarks NAME [MODEL] ..."""

from __future__ import annotations

import argparse

import benchmarks
from benchmarks import batch, decode, lookup, quality, scaling, start, train, xray
from gptcli.errors import GptcliError
from gptcli.folder import shipped

BENCHMARKS = {
    "decode": decode.run,
    "lookup": lookup.run,
    "start": start.run,
    "train": train.run,
    "xray": xray.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted((*BENCHMARKS, "batch", "quality", "scaling")))
    parser.add_argument("model", nargs="?", default=str(shipped()), help="a checkpoint folder, or for train a size")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, interleaved")
    parser.add_argument("--dtype", help="for scaling and batch: bfloat16 or float32")
    parser.add_argument("--text", help="for quality: what to score")
    arguments = parser.parse_args()
    if arguments.name == "quality" and not arguments.text:
        parser.error("quality needs --text FILE")
    try:
        _run(arguments)
    except GptcliError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error.message}\n")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.name == "train" and arguments.model == str(shipped()):
        arguments.model = "mini"
    if arguments.name == "scaling":
        scaling.run(rounds=arguments.rounds, dtype=arguments.dtype or "bfloat16")
    elif arguments.name == "batch":
        batch.run(arguments.model, rounds=arguments.rounds, dtype=arguments.dtype or "float32")
    elif arguments.name == "quality":
        quality.run(arguments.model, text=arguments.text)
    else:
        BENCHMARKS[arguments.name](arguments.model, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
