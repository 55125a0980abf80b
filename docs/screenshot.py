"""Pictures for the README, made from what the program really writes: python docs/screenshot.py

Each shot is a list of command lines. They run as a person would run them, in colour, and rich draws what came.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import select
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).parent
WIDTH = 92
SHOTS = {
    "generate.svg": [
        'gptcli "The little robot wanted" -n 60 --seed 5',
        'gptcli "The little robot wanted" -n 60 --seed 5 --color prob',
    ],
    "xray.svg": ['gptcli xray "There was a robot. He must obey the" -n 5'],
    "xray-why.svg": ['gptcli xray "There was a robot. He must obey the" --token 8 --ledger'],
    "xray-strip.svg": ['gptcli "The little robot wanted" --xray -n 10 -t 0'],
    "info.svg": ["gptcli info", 'gptcli tokenize "A robot must obey the orders given it by human beings"'],
}
THEME = TerminalTheme(
    (250, 250, 248),
    (43, 43, 43),
    [(43, 43, 43), (176, 48, 63), (62, 125, 46), (150, 110, 20), (65, 75, 178), (150, 60, 130), (30, 120, 130),
     (110, 110, 110)],
)  # fmt: skip


def seen_on_a_terminal(command: str, model: str) -> str:
    """Everything that a terminal of WIDTH columns is sent by one command."""
    master, slave = pty.openpty()
    env = {
        **os.environ,
        "GPTCLI_MODEL": model,
        "COLUMNS": str(WIDTH),
        "COLORTERM": "truecolor",
        "COLORFGBG": "0;15",  # the pictures' background is light
        "TERM": "xterm-256color",
    }
    words = [sys.executable, "-m", *shlex.split(command)]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    data = b""
    while True:
        if select.select([master], [], [], 0.2)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the other end has gone
                break
            data += chunk
        elif process.poll() is not None:
            break
    os.close(master)
    return data.decode().replace("\r\n", "\n").replace("\x1b[2mloading ...\x1b[0m\r\x1b[K", "")


def draw(commands: list[str], model: str) -> str:
    """One window as SVG, with the fonts that the reader has."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for i, command in enumerate(commands):
        console.print(Text.assemble("\n" * bool(i), ("$ ", "#8d95d7"), (command, "bold")))
        console.print(Text.from_ansi(seen_on_a_terminal(command, model)), end="")
    svg = console.export_svg(title="gptcli", theme=THEME, font_aspect_ratio=0.61)
    start, stop = svg.index("@font-face"), svg.rindex("@font-face")
    stop = svg.index("}", stop) + 1
    return svg[:start] + svg[stop:].replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="../shared/models/stories15M")
    arguments = parser.parse_args()
    for name, commands in SHOTS.items():
        (HERE / name).write_text(draw(commands, arguments.model), encoding="utf-8")
        print(HERE / name)


if __name__ == "__main__":
    main()
