"""The colours: those of Jay Alammar's article for prompt and answer, a colour-blind-safe scale for probabilities."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.style import Style

PROMPT = "#ddf2cf"
ANSWER = "#f5c3d3"
LABEL = "#8d95d7"
UNKNOWN = "#fde7ef"  # what comes next is not known yet
INK = "#2b2b2b"
PLUS, MINUS = "#e69f00", "#56b4e9"  # Okabe and Ito's orange and sky blue: told apart with any colour vision
NEUTRAL = "#778390"  # can be read on dark and on light
INKS = {  # to write and draw with on the terminal's own ground: on a dark one, on a light one
    "answer": (ANSWER, "#b02a63"),
    "label": (LABEL, "#5058b8"),
    "plus": (PLUS, "#b35900"),
    "minus": (MINUS, "#0072b2"),
}

# cividis (Nunez, Anderton, Renslow 2018), ten steps: readable with any colour vision, and in grey
SCALE = (
    "#00204d", "#00336f", "#39486b", "#575c6d", "#707173", "#8a8779", "#a69d75", "#c4b56c", "#e4cf5b", "#ffea46",
)  # fmt: skip


def ink(name: Literal["answer", "label", "plus", "minus"], *, colour: bool, light: bool) -> str:
    """The colour of that name for a light or a dark ground; without colours the style that changes nothing."""
    return INKS[name][light] if colour else ""


def wants_colour(choice: str, *, terminal: bool) -> bool:
    """--color beats NO_COLOR and CLICOLOR beats nothing: always, never, or auto by the terminal and the environment."""
    if choice in ("always", "never"):
        return choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.environ.get("CLICOLOR") == "0":
        return False
    return terminal or os.environ.get("FORCE_COLOR", "0") not in ("", "0")


def console(*, colour: bool, width: int | None = None) -> Console:
    """A rich console that obeys our decision about colour and draws into memory; pipes get 100 columns."""
    import io

    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(
        file=io.StringIO(),  # its own writes would fail unseen where standard output is full or closed
        force_terminal=colour,
        color_system=colour_system() if colour else None,  # type: ignore[arg-type]  # one of rich's literals
        no_color=not colour,
        width=width or (None if terminal or "COLUMNS" in os.environ else 100),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def colour_system() -> str:
    """What the terminal can show; where nobody says, as in a forced pipe, 24-bit colour."""
    term, depth = os.environ.get("TERM", ""), os.environ.get("COLORTERM", "").strip().lower()
    if depth in ("truecolor", "24bit") or not term:
        return "truecolor"
    return "256" if "256color" in term or "kitty" in term else "standard" if sys.stdout.isatty() else "truecolor"


def painted(text: str, style: Style | str) -> str:
    """A text in a style, for what is written piece by piece, in colours that the terminal can show."""
    from rich.color import ColorSystem
    from rich.style import Style

    names = {"truecolor": "TRUECOLOR", "256": "EIGHT_BIT", "standard": "STANDARD"}
    style = Style.parse(style) if isinstance(style, str) else style
    return style.render(text, color_system=ColorSystem[names[colour_system()]])


def step(p: float) -> int:
    """Which step of SCALE shows probability p."""
    return min(len(SCALE) - 1, max(0, int(p * len(SCALE))))


def shade(p: float) -> Style:
    """Background by probability, with ink that can be read on it."""
    from rich.style import Style

    return Style(bgcolor=SCALE[step(p)], color="#ffffff" if step(p) < 5 else "#000000")


def light_background() -> bool:
    """Whether the terminal says that its background is light (COLORFGBG, as rxvt, konsole and others set it)."""
    return os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")


def exported(renderable: object, *, form: str, width: int) -> str:
    """A renderable as one SVG or HTML file, in the fonts that the reader has, without anything fetched."""
    import io

    from rich.console import Console
    from rich.terminal_theme import TerminalTheme

    ansi = [(43, 43, 43), (176, 48, 63), (62, 125, 46), (150, 110, 20), (65, 75, 178), (150, 60, 130), (30, 120, 130),
            (160, 160, 160)]  # fmt: skip
    dark = TerminalTheme((27, 29, 33), (222, 222, 220), ansi)
    view = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False,
        markup=False, emoji=False,
    )  # fmt: skip
    view.print(renderable)
    fonts = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
    if form == "html":
        page = view.export_html(theme=dark, inline_styles=True)
        return page.replace(
            "font-family:Menlo,'DejaVu Sans Mono',consolas,'Courier New',monospace", f"font-family:{fonts}"
        )
    svg = view.export_svg(title="gptcli xray", theme=dark, font_aspect_ratio=0.61)
    start, stop = svg.index("@font-face"), svg.rindex("@font-face", 0, svg.index("</style>"))
    stop = svg.index("}", stop) + 1
    svg = svg[:start] + svg[stop:].replace("Fira Code", fonts)
    svg = re.sub(r"<!--.*?-->", "", svg, count=1)
    return svg.replace("<svg ", '<svg xml:space="preserve" ', 1)


def drawn(renderable: object, *, colour: bool, width: int | None = None) -> str:
    """A renderable as text: with colours for people, without for pipes; no line is padded to the right."""
    view = console(colour=colour, width=width)
    with view.capture() as capture:
        view.print(renderable)
    return "".join(line.rstrip(" ") + "\n" for line in capture.get().splitlines())
