"""The walk back: a tree from the answer through the heads and MLPs to the words, and what each word gives in all."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.records_xray import Scan, Stop, Walk
from gptcli.render import theme
from gptcli.render.cell import Columns, Flow, chip, exact, fit, label, off, signed, two_sided
from gptcli.render.check import footer
from gptcli.render.heads import called

BAR = 10
MOST_WORDS = 8


def draw(scan: Scan, walk: Walk, *, colour: bool, light: bool = False) -> RenderableType:
    """The tree, the words, their sum beside the model's own number, and the self-check."""
    most = max((abs(stop.value) for stop in walk.stops), default=0.0) or 1.0
    tree = Columns(("", "left"), ("", "right"), ("", "left"), header=False, spare=(2,))
    tree.add_row(_root(scan, walk, colour=colour), Text(signed(walk.score), "bold"))
    for branch, stop in zip(branches(walk.stops), walk.stops, strict=True):
        name = Text.assemble((branch, "dim"))
        name.append_text(_name(scan, stop, colour=colour))
        style = "dim" if stop.name == "others" else ""
        tree.add_row(
            name, Text(signed(stop.value), style), two_sided(stop.value, most, BAR, colour=colour, light=light)
        )
    notes = [
        "a head: from whose state it took; an mlp: it read its own token's",
        "a line is what came by way of the lines it hangs from; those below it are its sum",
        "how looks and gates came to be so is not followed",
    ]
    if any("H" in stop.name and _role(scan, stop) for stop in walk.stops):
        notes.append("previous, duplicate, induction: a head's role, its share of attention (--roles)")
    check = f"walk ✓ {walk.error:.0e}"
    return Group(
        _title(scan, walk, colour=colour), tree, Text(), *_words(scan, walk, colour=colour, light=light), Flow(notes),
        footer(scan, check),
    )  # fmt: skip


def branches(stops: tuple[Stop, ...]) -> list[str]:
    """The lines of the tree in front of each stop: `├─ `, `│  └─ `."""
    drawn, open_below = list[str](), set[int]()  # at which depths another stop follows further down
    for stop in reversed(stops):
        last = stop.depth not in open_below
        trunk = "".join("│  " if depth in open_below else "   " for depth in range(stop.depth))
        drawn.append(trunk + ("└─ " if last else "├─ "))
        open_below = {depth for depth in open_below if depth < stop.depth} | {stop.depth}
    return drawn[::-1]


def _title(scan: Scan, walk: Walk, *, colour: bool) -> Text:
    text = Text.assemble(("whence ", "bold"))
    text.append_text(chip(label(scan, walk.target), theme.ANSWER, colour=colour))
    after = f"  after {label(scan, scan.ids[walk.position])}, position {walk.position}: "
    what = "the logit difference" if walk.rival is not None else "the logit"
    text.append(f"{after}{what}, nats, followed back", "dim")
    return text


def _root(scan: Scan, walk: Walk, *, colour: bool) -> Text:
    text = Text().append_text(chip(label(scan, walk.target), theme.ANSWER, colour=colour))
    if walk.rival is not None:
        text.append(" ahead of ", "dim")
        text.append(label(scan, walk.rival))
    return text


def _name(scan: Scan, stop: Stop, *, colour: bool) -> Text:
    where = f"@{stop.position}"
    if stop.name == "others":
        return Text(f"{stop.n_parts} {'others' if stop.n_parts > 1 else 'other'}", "dim")
    if stop.name in ("place", "constant"):
        return Text.assemble("its place" if stop.name == "place" else "biases and shifts", (f" {where}", "dim"))
    if stop.name.endswith(" mlp"):
        return Text.assemble(stop.name, (f" {where}", "dim"))
    ground = theme.PROMPT if stop.position < scan.n_prompt else theme.ANSWER
    word = chip(label(scan, scan.ids[stop.position]), ground, colour=colour)
    text = Text("the word " if stop.name == "word" else f"{stop.name} from ")
    text.append_text(word).append(where, "dim")
    if stop.name != "word":
        text.append(f" {_role(scan, stop)}".rstrip(), "dim")
    return text


def _role(scan: Scan, stop: Stop) -> str:
    layer, head = stop.name[1:].split("H")
    return called(scan, int(layer), int(head))


def _words(scan: Scan, walk: Walk, *, colour: bool, light: bool) -> list[RenderableType]:
    """What each word gives through all ways, the largest first, and everything up to the model's own number."""
    values = list(walk.words[: walk.position + 1])
    order = sorted(range(len(values)), key=lambda j: -abs(values[j]))
    shown, rest = sorted(order[:MOST_WORDS]), order[MOST_WORDS:]
    rows: list[tuple[Text | str, float, str]] = []
    for j in shown:
        ground = theme.PROMPT if j < scan.n_prompt else theme.ANSWER
        word = Text().append_text(chip(fit(label(scan, scan.ids[j]), 12), ground, colour=colour))
        rows.append((word.append(f"@{j}", "dim"), values[j], ""))
    others = [(f"{len(rest)} other words", sum(values[j] for j in rest))] if rest else []
    if walk.places:
        others.append(("places", sum(walk.places)))
    others += [("biases and shifts", walk.constant), ("rounding", walk.rounding)]
    rows += [(name, x, "dim") for name, x in others if abs(x) >= 0.005]
    most = max(abs(x) for _, x, _ in rows) or 1.0
    table = Columns(("", "left"), ("", "right"), ("", "left"), header=False, spare=(2,))
    for name, x, style in rows:
        table.add_row(Text(name, style) if isinstance(name, str) else name, Text(signed(x), style),
                      two_sided(x, most, BAR, colour=colour, light=light))  # fmt: skip
    total = sum(walk.words) + sum(walk.places) + walk.constant + walk.rounding
    table.add_row(Text("sum", "bold"), Text(exact(total), "bold"), "")
    table.add_row("model", exact(walk.score), off(total - walk.score))
    head = Text.assemble(("through all ways together ", "bold"), ("what each word gives", "dim"))
    return [head, table]
