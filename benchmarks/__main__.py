"""python -m benchmarks [NAME] [MODEL] ..."""

from __future__ import annotations

import argparse

import benchmarks
from benchmarks import batch, decode, lookup, quality, scaling, start, train, xray
from benchmarks.machine import heading
from gptcli.errors import GptcliError
from gptcli.folder import shipped

NAMES = ("start", "decode", "batch", "lookup", "xray", "train", "scaling", "quality")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=("all", *NAMES), default="all")
    parser.add_argument("model", nargs="?", default=str(shipped()), help="a checkpoint folder, or for train a size")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, interleaved")
    parser.add_argument("--dtype", help="for scaling and batch: bfloat16 or float32")
    parser.add_argument("--text", help="for quality: what to score")
    arguments = parser.parse_args()
    if arguments.name == "quality" and not arguments.text:
        parser.error("quality needs --text FILE")
    print(heading(), flush=True)
    try:
        for name in NAMES if arguments.name == "all" else (arguments.name,):
            print(f"\n{name}", flush=True)
            _run(name, arguments)
    except GptcliError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error.message}\n")


def _run(name: str, arguments: argparse.Namespace) -> None:
    model, rounds = arguments.model, arguments.rounds
    match name:
        case "start":
            start.run(model, rounds=rounds)
        case "decode":
            decode.run(model, rounds=rounds)
        case "batch":
            batch.run(model, rounds=rounds, dtype=arguments.dtype or "float32")
        case "lookup":
            lookup.run(model, rounds=rounds)
        case "xray":
            xray.run(model, rounds=rounds)
        case "train":  # of a size, where the others take a checkpoint
            train.run(model if arguments.name == "train" and model != str(shipped()) else "mini", rounds=rounds)
        case "scaling":
            scaling.run(rounds=rounds, dtype=arguments.dtype or "bfloat16")
        case _ if arguments.text:
            quality.run(model, text=arguments.text)
        case _:
            print("left out: it needs --text FILE, which is scored")


if __name__ == "__main__":
    main()
