"""python -m benchmarks start MODEL: how long a person waits for the commands that need no tensors."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict

from rich.console import Console
from rich.table import Table

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import typer'": ["-c", "import typer"],
    "gptcli --version": ["-m", "gptcli", "--version"],
    "gptcli --help": ["-m", "gptcli", "--help"],
    "gptcli families": ["-m", "gptcli", "families"],
    "gptcli info": ["-m", "gptcli", "info", "-m", "MODEL"],
    "gptcli tokenize": ["-m", "gptcli", "tokenize", "a robot must obey", "-m", "MODEL"],
    "completion": ["-m", "gptcli"],
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
            subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, env={**os.environ, **more}, check=True
            )
            if i:
                found[name].append(time.perf_counter() - began)
    table = Table("command", "median, ms", "fastest, ms", caption=f"{rounds} interleaved runs", highlight=True)
    for name, times in found.items():
        table.add_row(name, f"{statistics.median(times) * 1e3:.0f}", f"{min(times) * 1e3:.0f}")
    Console().print(table)
