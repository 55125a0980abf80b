"""A page of the tour on the screen: a title, a few sentences, one picture, and the command that shows the same."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from gptcli.render import theme
from gptcli.render.bars import bar
from gptcli.render.examples import Guess
from gptcli.render.examples import draw as draw_examples
from gptcli.render.moved import draw as draw_moved
from gptcli.render.params import Parts
from gptcli.render.safe import one_line, safe
from gptcli.render.training import chance
from gptcli.tour.page import (
    Budget,
    Change,
    Exercises,
    Grid,
    Masks,
    OneByOne,
    Page,
    Picture,
    Shots,
    Stack,
    Token,
    Track,
    Tracks,
    Written,
)
from gptcli.tour.texts import Texts

GREEN, PINK = f"{theme.INK} on {theme.PROMPT}", f"{theme.INK} on {theme.ANSWER}"
NEXT, LABEL = f"{theme.INK} on {theme.UNKNOWN}", f"#ffffff on {theme.LABEL}"
MOST_WIDTH = 100  # of a sentence; pictures take what there is


def draw(page: Page, words: Texts, *, n: int, of: int, width: int, colour: bool) -> RenderableType:
    """The whole page, as high as it is."""
    marks = words.words["coloured" if colour else "plain"]
    body = words.bodies[page.key].format(marks=marks, **page.facts)
    lines = textwrap.wrap(body, min(width, MOST_WIDTH))
    number = words.words["page"].format(n=n, of=of)
    title = Text(words.titles[page.key].format(**page.facts), "bold")
    gap = max(1, width - title.cell_len - cell_len(number))
    head = title.append(" " * gap).append(number, "not bold dim")
    shown = picture(page.picture, colour=colour)
    return Group(head, Text(), *(Text(one_line(line)) for line in lines), Text(), shown)


def foot(page: Page, words: Texts) -> Text:
    """The command that produces the picture alone."""
    return Text.assemble(
        (words.words["run"] + " ", "dim"),
        (page.command, theme.LABEL),
        ("   " + words.words["made"].format(seconds=f"{page.seconds:.1f}"), "dim"),
    )


def picture(found: Picture, *, colour: bool) -> RenderableType:
    """What a page shows, in the article's colours."""
    match found:
        case Written():
            return _text(found, colour=colour)
        case OneByOne():
            return _Rows(found)
        case Exercises():
            return _exercises(found)
        case Tracks():
            return _Tracks(found)
        case Stack():
            return _Stack(found)
        case Masks():
            return _Masks(found)
        case Shots():
            return _shots(found)
        case Budget():
            return Parts(found.account)
        case Grid():
            from gptcli.render.grid import draw as draw_grid

            return draw_grid(found.scan, colour=colour, light=theme.light_background())
        case Track():
            from gptcli.render.track import draw as draw_track

            return draw_track(found.scan, found.position, colour=colour, light=theme.light_background())
        case Change():
            return draw_moved(found.found)


def _joined(tokens: Sequence[Token]) -> str:
    return safe(b"".join(token.raw for token in tokens).decode(errors="replace"))


def _text(found: Written, *, colour: bool) -> Text:
    return Text.assemble((_joined(found.prompt), GREEN), "" if colour else "│", (_joined(found.answer), PINK))


def _piece(token: Token) -> str:
    text = one_line(token.raw.decode(errors="replace"))
    return text.replace(" ", "·") if text.strip() != text or not text else text


class _Rows:
    """One token a row: what the model was given, what came, and how sure it was."""

    def __init__(self, found: OneByOne) -> None:
        self._found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        answer = self._found.answer
        longest = max((cell_len(_piece(token)) for token in answer), default=0) + 2
        room = max(16, options.max_width - longest - 26)
        given = _joined(self._found.prompt).replace("\n", "⏎")
        for i, token in enumerate(answer):
            back = _joined(answer[:i]).replace("\n", "⏎")
            row = Text()
            if (cut := cell_len(given) + cell_len(back) - room) > 0:
                row.append("…", "dim")
                cut += 1
            row.append(given[max(0, cut) :], GREEN).append(back[max(0, cut - len(given)) :], PINK)
            row.append(" " * max(0, room - row.cell_len)).append(" → ", "dim").append(f" {_piece(token)} ", NEXT)
            row.append(" " * max(0, room + 3 + longest - row.cell_len))
            p = token.p or 0.0
            row.append(f"{chance(p):>8} ", "dim").append(bar(p, 12), theme.LABEL)
            yield row


def _exercises(found: Exercises) -> RenderableType:
    guesses = [
        Guess(piece=piece, right=row.guess == row.label, p=row.p_guess, p_before=row.p_before, p_after=row.p_after)
        for piece, row in zip(found.guesses, found.lessons, strict=True)
    ]
    return draw_examples(found.pieces, None, guesses, n_all=len(found.pieces) - 1)


class _Tracks:
    """A cell for each position of the context, or for several where they do not fit."""

    def __init__(self, found: Tracks) -> None:
        self._found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        f, width = self._found, options.max_width
        first = Text()
        for pieces, style in ((f.prompt, GREEN), (f.answer, PINK)):
            for piece in pieces:
                word = f" {one_line(piece)} "
                if first.cell_len + cell_len(word) > width - 2:
                    first.append("…", "dim")
                    break
                first.append(word, style).append(" ")
            else:
                continue
            break
        else:
            first.append(" ? ", NEXT)
        yield first
        yield Text()
        rows = 8
        each = max(1, -(-f.n_ctx // (width * rows)))
        used, all_used = len(f.prompt), len(f.prompt) + len(f.answer)
        cells = [(i, min(i + each, f.n_ctx)) for i in range(0, f.n_ctx, each)]
        row = Text()
        for k, (start, _) in enumerate(cells):
            colour = theme.PROMPT if start < used else theme.ANSWER if start < all_used else None
            row.append("█" if colour else "·", colour or "dim")
            if (k + 1) % width == 0:
                yield row
                row = Text()
        if row:
            yield row
        yield Text(f"one cell: {'a position' if each == 1 else f'{each} positions'}, {f.n_ctx:,} in all", "dim")


class _Stack:
    """The layers, the first at the bottom, as the text flows."""

    def __init__(self, found: Stack) -> None:
        self._found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        f = self._found
        n, inside = len(f.windows), f.attention + f.mlp + f.other
        room = max(10, min(48, options.max_width - 34))
        attention = round(room * f.attention / inside)
        shown = list(range(n)) if n <= 12 else [*range(4), -1, *range(n - 4, n)]
        yield Text(f"{'':>6}{'▲':^{room}}", "dim")
        for i in reversed(shown):
            if i < 0:
                yield Text(f"{'':>6}{'⋮':^{room}}", "dim")
                continue
            window = f.windows[i]
            row = Text(f"{f'L{i}':>5} ", "dim")
            row.append("attention"[:attention].center(attention), GREEN if window is None else LABEL)
            row.append("MLP".center(room - attention), PINK)
            row.append(f"  {'dense: sees all' if window is None else f'banded: sees {window:,}'}", "dim")
            yield row
        yield Text(f"{'':>6}{'▲':^{room}}", "dim")
        yield Text(
            f"{n} × {inside:,} (attention {f.attention:,}, MLP {f.mlp:,}, rest {f.other:,}) and {f.outside:,} outside",
            "dim",
        )


class _Masks:
    """Dense and banded attention side by side, by half blocks: a query is half a line, a key half a cell."""

    def __init__(self, found: Masks) -> None:
        self._found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kinds, n = self._found.kinds, self._found.n_tokens
        kept = len(kinds[0][2])
        room = min(24, (options.max_width - 3 * (len(kinds) - 1)) // len(kinds))
        step = max(1, -(-kept // room))
        side = -(-kept // step)
        pictures = [_halves(mask, step) for _, _, mask in kinds]
        heads = [
            ("dense: all before" if window is None else f"banded: the last {window:,}", layers)
            for window, layers, _ in kinds
        ]
        wide = max(side, *(cell_len(head) for head, _ in heads), 12)
        yield Text("   ".join(head.ljust(wide) for head, _ in heads), "bold")
        yield Text("   ".join(_layers(layers, wide).ljust(wide) for _, layers in heads), "dim")
        for rows in zip(*pictures, strict=True):
            line = Text()
            for (window, _, _), row in zip(kinds, rows, strict=True):
                line.append(row.ljust(wide + 3), theme.LABEL if window else "#6aa84f")
            yield line
        step *= self._found.step
        each = "one cell: one key" if step == 1 else f"one cell: {step:,} keys"
        yield Text(f"{each}, two queries above each other; {n:,} tokens", "dim")


def _halves(mask: Sequence[Sequence[bool]], step: int) -> list[str]:
    """Every step-th row and column; two rows in a line."""
    rows = [row[::step] for row in mask[::step]]
    if len(rows) % 2:
        rows.append((False,) * len(rows[0]))
    glyph = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    return [
        "".join(glyph[a, b] for a, b in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]


def _layers(layers: Sequence[int], width: int) -> str:
    text = "layers " + ", ".join(map(str, layers))
    return text if len(text) <= width else f"{len(layers)} layers, L{layers[0]} first"


def _shots(found: Shots) -> RenderableType:
    parts: list[RenderableType] = []
    prompt = Text(safe(found.prompts[-1]), GREEN)
    parts += [prompt.append(safe(found.written[-1]).rstrip("\n"), PINK), Text()]
    longest = max(len(one_line(text)) for text in found.written)
    for n, p, text in zip(found.counts, found.chances, found.written, strict=True):
        row = Text(f"{n} example{'s' if n != 1 else ' '} ", "dim")
        row.append(f" {one_line(text).strip() or '∅'} ", PINK).append(" " * (longest - len(one_line(text).strip()) + 1))
        row.append(f"{chance(p):>8} ", "dim").append(bar(p, 20), theme.LABEL)
        parts.append(row)
    parts.append(Text(f"what it wrote, and the probability of “{found.answer.strip()}”", "dim"))
    return Group(*parts)
