"""python -m benchmarks [NAME] [MODEL] ..."""

from __future__ import annotations

import argparse

import benchmarks
from benchmarks import batch, decode, lookup, quality, scaling, start, train, xray
from benchmarks.machine import heading
from gptcli import look
from gptcli.errors import GptcliError
from gptcli.folder import shipped

NAMES = ("start", "decode", "batch", "lookup", "xray", "train", "scaling", "quality")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="all", help=", ".join(("all", *NAMES)))
    parser.add_argument("model", nargs="?", help="a checkpoint folder, or for train a size")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, interleaved")
    parser.add_argument("--dtype", help="for scaling and batch: bfloat16 or float32; for batch int8 and int4 too")
    parser.add_argument("--text", help="for quality: what to score")
    arguments = parser.parse_args()
    if arguments.name not in ("all", *NAMES):
        if arguments.model:
            parser.error(f"there is no benchmark {arguments.name!r}")
        arguments.name, arguments.model = "all", arguments.name
    if arguments.name == "quality" and not arguments.text:
        parser.error("quality needs --text FILE")
    try:
        if arguments.name != "train":
            look(arguments.model or str(shipped()))  # a name that is wrong is said at once
        print(heading(), flush=True)
        for name in NAMES if arguments.name == "all" else (arguments.name,):
            print(f"\n{name}", flush=True)
            _run(name, arguments)
    except GptcliError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error.message}\n")


def _run(name: str, arguments: argparse.Namespace) -> None:
    model, rounds = arguments.model or str(shipped()), arguments.rounds
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
            train.run((arguments.name == "train" and arguments.model) or "mini", rounds=rounds)
        case "scaling":
            scaling.run(rounds=rounds, dtype=arguments.dtype or "bfloat16")
        case _ if arguments.text:
            quality.run(model, text=arguments.text)
        case _:
            print("left out: it needs --text FILE, which is scored")


if __name__ == "__main__":
    main()
