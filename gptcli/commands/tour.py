"""gptcli tour: the article, page by page, on a real model."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.commands import options as o
from gptcli.commands.loading import load_chosen
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.tour.guide import Guide
    from gptcli.tour.texts import Texts

KEYS = (  # the pages, in their order
    *("generate", "examples", "step", "tokens", "budget", "tracks"),
    *("track", "stack", "masks", "xray", "priming", "finetuning"),
)
ON, BACK = (
    ("\x1b[C", "\x1bOC", "\x1b[6~", " ", "\r", "\n", "n", "l"),
    ("\x1b[D", "\x1bOD", "\x1b[5~", "\x7f", "\b", "b", "p", "h"),
)
DOWN, UP = ("\x1b[B", "\x1bOB", "j"), ("\x1b[A", "\x1bOA", "k")
FIRST, LAST = ("\x1b[H", "\x1b[1~", "g"), ("\x1b[F", "\x1b[4~", "G")
RESIZED = "resized"  # no key is called so
QUIT = ("q", "Q", "\x1b", "\x04")


def tour(
    model: o.Model = None,
    page: Annotated[
        str | None,
        typer.Option("--page", metavar="N", help=f"Only this one, by number or name: {', '.join(KEYS)}."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="All pages one after another, without colour or keys.")
    ] = False,
    lang: Annotated[str, typer.Option("--lang", metavar="NAME", help="en or ru.")] = "en",
    color: o.PlainColor = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
) -> None:
    """Walk through Jay Alammar's "How GPT3 Works", page by page; every number is computed on your model meanwhile.

    Arrow keys go forward and back. Each page names the command that shows the same alone.
    """
    from gptcli.tour.texts import texts

    flags = {"model": model, "color": color, "device": device, "dtype": dtype}
    words, chosen = texts(lang), _chosen(page)
    output = Output()
    coloured = not plain and theme.wants_colour(settle(flags)["color"].value, terminal=output.is_terminal)
    checkpoint, settings = load_chosen(flags, revision=revision)
    from gptcli.tour.guide import Guide

    named = settings["model"].value
    guide = Guide(checkpoint, name=None if named is None else str(named))
    by_keys = output.is_terminal and sys.stdin is not None and sys.stdin.isatty() and not plain and page is None
    if by_keys and os.environ.get("TERM") != "dumb":
        _Walk(guide, words, output, coloured=coloured).run()
        return
    for i in [chosen] if chosen is not None else range(len(KEYS)):
        text = _page(guide, words, i, coloured=coloured, width=None)
        if i and chosen is None:
            output.line()
        output.write(text)


def _chosen(page: str | None) -> int | None:
    if page is None:
        return None
    if page in KEYS:
        return KEYS.index(page)
    if not (page.isdecimal() and 1 <= int(page) <= len(KEYS)):
        raise UsageError(f"there is no page {page!r}", hint=f"--page is from 1 to {len(KEYS)}, or {', '.join(KEYS)}")
    return int(page) - 1


def _page(guide: Guide, words: Texts, i: int, *, coloured: bool, width: int | None) -> str:
    """One page and its command as text."""
    from rich.console import Group
    from rich.text import Text

    from gptcli.render.tour import draw, foot

    made = guide.page(KEYS[i])
    view = theme.console(colour=coloured, width=width)
    shown = draw(made, words, n=i + 1, of=len(KEYS), width=view.width, colour=coloured)
    return theme.drawn(Group(shown, Text(), foot(made, words)), colour=coloured, width=width)


@contextmanager
def _keys(resized: Callable[[], bool]) -> Iterator[Iterator[str]]:
    """The keys as they are pressed, also those pressed while a page was being computed; Ctrl-C stays Ctrl-C.

    resized: whether the window is another than what was drawn; that comes as a key too.
    """
    try:
        import termios
        import tty
    except ImportError:  # not on Windows, where a key pressed early is lost
        yield iter(typer.getchar, "")
        return
    from select import select

    def pressed() -> Iterator[str]:
        while True:
            if select([fd], [], [], 0.2)[0]:
                data = os.read(fd, 64).decode(errors="ignore")
                if not data:
                    raise EOFError
                yield from re.findall(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|.", data, re.DOTALL)
            if resized():
                yield RESIZED

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSADRAIN)
        yield pressed()
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Walk:
    """The tour in a terminal: the other screen, a page at a time, a page that is too high scrolls."""

    def __init__(self, guide: Guide, words: Texts, output: Output, *, coloured: bool) -> None:
        self._guide, self._words, self._output, self._coloured = guide, words, output, coloured
        self._at = self._top = 0
        self._size = (0, 0)  # of the window, columns and rows, when it was last drawn

    def run(self) -> None:
        self._output.write("\x1b[?1049h\x1b[?25l")
        try:
            with _keys(lambda: get_terminal_size((80, 24)) != self._size) as keys:
                self._follow(keys)
        except EOFError:
            return
        finally:
            self._output.write("\x1b[?25h\x1b[?1049l")

    def _follow(self, keys: Iterator[str]) -> None:
        while True:
            height = self._show()
            key = next(keys)
            if key in QUIT:
                return
            if key in ON or key in LAST:
                if self._at == len(KEYS) - 1 and key in ON:
                    return
                self._go(len(KEYS) - 1 if key in LAST else self._at + 1)
            elif key in BACK or key in FIRST:
                self._go(0 if key in FIRST else self._at - 1)
            elif key in DOWN:
                self._top += max(1, height // 2)
            elif key in UP:
                self._top -= max(1, height // 2)
            elif key.isdecimal() and key != "0":
                self._go(int(key) - 1)

    def _go(self, to: int) -> None:
        self._at, self._top = min(max(0, to), len(KEYS) - 1), 0

    def _show(self) -> int:
        """Draws the page in the window there is now; returns how many lines of it are seen."""
        from gptcli.render.tour import draw, foot

        self._size = columns, rows = (*get_terminal_size((80, 24)),)
        self._output.write(f"\x1b[{rows};1H\x1b[2K\x1b[2m...\x1b[0m")
        page = self._guide.page(KEYS[self._at])
        shown = draw(page, self._words, n=self._at + 1, of=len(KEYS), width=columns, colour=self._coloured)
        lines = theme.drawn(shown, colour=self._coloured, width=columns).splitlines()
        below = theme.drawn(foot(page, self._words), colour=self._coloured, width=columns).splitlines()
        room = max(3, rows - len(below) - 2)
        self._top = min(max(0, self._top), max(0, len(lines) - room))
        more = f"   ↓ {len(lines) - room - self._top}" if len(lines) > room + self._top else ""
        keys = f"{self._words.words['keys']}{more}"[: columns - 1]
        seen = lines[self._top : self._top + room]
        screen = [*seen, *[""] * (room - len(seen)), "", *below, f"\x1b[2m{keys}\x1b[0m"]
        self._output.write("\x1b[H\x1b[2J" + "\r\n".join(screen[:rows]))
        return room
