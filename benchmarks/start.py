"""python -m benchmarks start MODEL: how long a person waits for the light commands, and for the first word of a text.

The light commands need no tensors; a text needs torch, so its first word is held against importing that.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from gptcli.errors import GptcliError

IMPORT, FIRST = "python -c 'import torch'", "gptcli TEXT, its first word"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import typer'": ["-c", "import typer"],
    "gptcli --version": ["-m", "gptcli", "--version"],
    "gptcli --help": ["-m", "gptcli", "--help"],
    "gptcli families": ["-m", "gptcli", "families"],
    "gptcli info": ["-m", "gptcli", "info", "-m", "MODEL"],
    "gptcli tokenize": ["-m", "gptcli", "tokenize", "a robot must obey", "-m", "MODEL"],
    "completion": ["-m", "gptcli"],
    IMPORT: ["-c", "import torch"],
    FIRST: ["-m", "gptcli", "Once upon a time", "-n", "1", "-t", "0", "-m", "MODEL"],
}


def run(model: str, *, rounds: int) -> None:
    """Every command by turns, in a process of its own."""
    import os

    found = defaultdict[str, list[float]](list)
    for i in range(rounds + 1):
        for name, words in COMMANDS.items():
            more = (
                {"_GPTCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "gptcli "} if name == "completion" else {}
            )
            command = [sys.executable, *(model if word == "MODEL" else word for word in words)]
            began = time.perf_counter()
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, **more},
            ) as process:  # fmt: skip
                assert process.stdout
                if name == FIRST:
                    process.stdout.read(1)
                    seconds = time.perf_counter() - began
                process.stdout.read()
                if process.wait():
                    raise GptcliError(f"{name} ended with {process.returncode}")
            if i:
                found[name].append(seconds if name == FIRST else time.perf_counter() - began)
    table = Table("command", "median, ms", "fastest, ms", caption=f"{rounds} interleaved runs", highlight=True)
    for name, times in found.items():
        table.add_row(name, f"{statistics.median(times) * 1e3:.0f}", f"{min(times) * 1e3:.0f}")
    Console().print(table)
    ratio = statistics.median(found[FIRST]) / statistics.median(found[IMPORT])
    Console().print(f"the first word comes after {ratio:.2f} times the time of importing torch")
