"""Pictures for the README, made from what the program really writes: python docs/screenshot.py STORIES [NAME ...]

Each shot is a list of command lines. They run as a person would run them, in colour, and rich draws what came. STORIES
is the text that the model of train.svg learns from.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import tempfile
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
    "train.svg": ["gptcli train stories.txt --out DIR --size nano --steps 120 --optimizer muon"],
    "learn.svg": [
        'gptcli examples "Second law of robotics: A robot must obey the orders given it by human beings"',
        'gptcli generate --adapter react "a red button that says stop"',
        "gptcli diff shipped merged",
    ],
    "track.svg": ['gptcli xray "a robot must obey the orders given it" --token -1'],
    "xray.svg": ['gptcli xray "There was a robot. He must obey the" -n 5'],
    "xray-why.svg": ['gptcli xray "There was a robot. He must obey the" --token 8 --ledger'],
    "xray-walk.svg": ['gptcli xray "There was a robot. He must obey the" --walk'],
    "xray-flow.svg": ['gptcli xray "Lily had a red ball. Tom took the" --flow'],
    "xray-strip.svg": ['gptcli "The little robot wanted" --xray -n 10 -t 0'],
    "info.svg": ["gptcli info", 'gptcli tokenize "A robot must obey the orders given it by human beings"'],
    "params.svg": ["gptcli params gpt3", "gptcli params --table"],
    "budget.svg": ["gptcli budget gpt3", "gptcli new gpt3 --meta"],
}
PAGES = (
    *("generate", "examples", "step", "tokens", "budget", "tracks"),
    *("track", "stack", "masks", "xray", "priming", "finetuning"),
)
SHOTS |= {f"tour/{n:02d}-{page}.svg": [f"gptcli tour --page {n}"] for n, page in enumerate(PAGES, 1)}
THEME = TerminalTheme(
    (250, 250, 248),
    (43, 43, 43),
    [(43, 43, 43), (176, 48, 63), (62, 125, 46), (150, 110, 20), (65, 75, 178), (150, 60, 130), (30, 120, 130),
     (110, 110, 110)],
)  # fmt: skip


LIVE = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)+")  # how rich takes a picture back before it draws the next


def seen_on_a_terminal(command: str, folder: Path) -> str:
    """Everything that a terminal of WIDTH columns is sent by one command."""
    master, slave = pty.openpty()
    env = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "COLORTERM": "truecolor",
        "COLORFGBG": "0;15",  # the pictures' background is light
        "TERM": "xterm-256color",
    }
    words = [sys.executable, "-m", *shlex.split(command)]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=folder)
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
    text = data.decode().replace("\r\n", "\n").replace("\x1b[2mloading ...\x1b[0m\r\x1b[K", "")
    return LIVE.split(text)[-1] if LIVE.search(text) else text  # of a live picture the last


def draw(commands: list[str], folder: Path) -> str:
    """One window as SVG, with the fonts that the reader has."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for i, command in enumerate(commands):
        console.print(Text.assemble("\n" * bool(i), ("$ ", "#8d95d7"), (command, "bold")))
        console.print(Text.from_ansi(seen_on_a_terminal(command, folder)), end="")
    svg = console.export_svg(title="gptcli", theme=THEME, font_aspect_ratio=0.61)
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)  # some renderers drop spaces at a text's start
    start, stop = svg.index("@font-face"), svg.rindex("@font-face")
    stop = svg.index("}", stop) + 1
    return svg[:start] + svg[stop:].replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SHOTS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "stories.txt").symlink_to(asked.stories.resolve())
        merge = ["merge", "shipped", "react", "--out", "merged"]
        subprocess.run([sys.executable, "-m", "gptcli", *merge], cwd=folder, check=True)
        for name in asked.names:
            (HERE / name).parent.mkdir(exist_ok=True)
            (HERE / name).write_text(draw(SHOTS[name], folder), encoding="utf-8")
            print(HERE / name)


if __name__ == "__main__":
    main()
