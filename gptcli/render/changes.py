"""What-if, its mosaic, occlusion, and the draw of a token: differences, each said in numbers first."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.records_xray import Draw, Mosaic, Occlusion, Scan, WhatIf
from gptcli.render import theme
from gptcli.render.bars import bar, percent
from gptcli.render.cell import (
    Blocks,
    Columns,
    Flow,
    chip,
    compact,
    fit,
    label,
    layers_shown,
    probability,
    rows_cut,
    signed,
    texts,
    tinted,
    two_sided,
)
from gptcli.render.check import footer
from gptcli.render.safe import one_line

HOW = {
    "zero": "set to zero",
    "mean": "set to the mean over the prompt but its first token",
    "look": "looks forbidden; the others share what they took",
    "look=0": "looks set to 0; the others keep what they had",
    "looks": "looks forbidden, and looks set to 0 (=0), whose others keep what they had",
    "patch": "exchanged for what another prompt has there",
}
SEVERAL = {"zero": "parts", "mean": "parts", "patch": "patches"}  # what is said to be so, where not all is


def draw_what_if(scan: Scan, found: WhatIf, *, colour: bool) -> RenderableType:
    """The text before and after, with what changed marked, and what it did to the first token of the answer."""
    title = Text.assemble(("what if ", "bold"), (one_line(", ".join(found.edits)), "bold"))
    how, manners = [word for word in found.how.split() if word in HOW], list[Text]()
    if len(how) == 1:
        title.append(f"  {HOW[how[0]]}", "dim")
    else:
        manners = [Text(f"{SEVERAL.get(word, '')} {HOW[word]}".lstrip(), "dim") for word in how]
    table = Columns(("", "left"), ("before", "right"), ("after", "right"), ("change", "right"))
    target, rival = label(scan, found.target), label(scan, found.rival)
    p = [math.exp(x) for x in found.logprob]
    change, total = found.logprob[1] - found.logprob[0], found.lead[1] - found.lead[0]
    table.add_row(f"log p of {target}, nats", *(signed(x, 3) for x in found.logprob), signed(change, 3))
    table.add_row(f"p of {target}", *map(probability, p), "")
    table.add_row("its rank", *(f"#{r}" for r in found.rank), "moved" if found.rank[0] != found.rank[1] else "")
    flipped = "flipped" if found.best[0] != found.best[1] else "the same"
    table.add_row("best token", *(label(scan, b) for b in found.best), flipped)
    table.add_row(f"lead over {rival}, logits", *(signed(x, 3) for x in found.lead), signed(total, 3))
    apart = Text(f"KL(before || after) {_nats(found.kl)} nats")
    if found.js is not None and found.moved is not None:
        apart.append(f", Jensen-Shannon {_nats(found.js)} of {math.log(2):.3f} at most, ")
        apart.append(f"{percent(found.moved)} of the probability moved", "bold")
    lines = [apart]
    if found.direct is not None:
        line = Text.assemble("direct effect on the lead ", (signed(found.direct, 3), "bold"))
        line.append_text(Text.assemble(", total ", (signed(total, 3), "bold")))
        line.append("  (between them: what later layers made of it; effects do not add up)", "dim")
        lines.append(line)
    elif scan.check.ledger is not None:  # then it is None because of a patch
        lines.append(Text("a patch has no direct effect of one part to show", "dim"))
    answers = [Text.assemble((f"{name:>7} … ", "dim"), text) for name, text in _both(scan, found, colour=colour)]
    return Group(title, *manners, *answers, Text(), table, *lines, footer(scan))


def _nats(x: float) -> str:
    return f"{x:.3f}" if x >= 0.001 else "<.001"


def _both(scan: Scan, found: WhatIf, *, colour: bool) -> list[tuple[str, Text]]:
    """Both answers; what is only in one of them is marked."""
    from difflib import SequenceMatcher  # here: it takes 30 ms

    blocks = SequenceMatcher(None, found.before, found.after, autojunk=False).get_matching_blocks()
    kept_before = {block.a + k for block in blocks for k in range(block.size)}
    kept_after = {block.b + k for block in blocks for k in range(block.size)}
    lines = []
    for name, ids, kept in (("before", found.before, kept_before), ("after", found.after, kept_after)):
        text = Text(overflow="fold")
        for i, (id, shown) in enumerate(zip(ids, texts(scan, ids), strict=True)):
            ground = theme.ANSWER if i in kept else theme.PLUS
            shown = shown if scan.pieces.get(id) else label(scan, id)
            if not colour and i not in kept:  # the brackets stand around what changed side by side
                shown = "[" * (i == 0 or i - 1 in kept) + shown + "]" * (i + 1 == len(ids) or i + 1 in kept)
            text.append(shown, f"{theme.INK} on {ground}" if colour else "")
        lines.append((name, text))
    return lines


def draw_mosaic(scan: Scan, found: Mosaic, *, colour: bool, every: int | None = None) -> RenderableType:
    """Layers up, heads across: the effect on the target; at the side what it sums to, and the direct effect."""
    n = found.lead.shape[1]
    most = max((abs(x) for row in found.logprob.rows() for x in row), default=0.0) or 1.0
    name, rival = label(scan, found.target), label(scan, found.rival)
    title = Text.assemble((f"every {'head' if found.what == 'heads' else 'MLP'} by itself ", "bold"))
    title.append(f"{HOW.get(found.how, '')}: change of log p of {name}, nats", "dim")
    layers = layers_shown(scan.n_layer, scan.n_layer, every)

    def said(layer: int, head: int) -> str:
        flips = found.best.whole(layer, head) != found.target
        return signed(found.logprob.number(layer, head)) + "!" * flips

    width = max(6, *(len(said(i, h)) for i in layers for h in range(n)))

    def cell(layer: int, head: int) -> Text:
        style = tinted(found.logprob.number(layer, head), most) if colour else ""
        return Text(said(layer, head).rjust(width), style)

    def sums(layer: int) -> str:
        direct = signed(sum(found.direct.row(layer))) if found.direct else "none"
        return f" {signed(sum(found.lead.row(layer))):>8} {direct:>8}"

    names = [f"H{h}" if found.what == "heads" else "mlp" for h in range(n)]
    side = (f" {'total':>8} {'direct':>8}", sums)
    notes = [
        "below 0 (blue): without it the token is less likely", "! another token becomes the best",
        f"total, direct: a row's effects on the lead over {rival}", "direct: what it wrote itself",
        "total: with all that follows; effects do not add up to a whole", rows_cut(layers, scan.n_layer, "layers"),
    ]  # fmt: skip
    return Group(title, Blocks(names, layers, cell, width=width, right=True, side=side), Flow(notes), footer(scan))


def draw_occlusion(scan: Scan, found: Occlusion, *, colour: bool, light: bool = False) -> RenderableType:
    """Each token with what the answer loses without it."""
    most = max(map(abs, found.loss), default=0.0) or 1.0
    title = Text.assemble(("what ", "bold"))
    title.append_text(chip(label(scan, found.target), theme.ANSWER, colour=colour))
    title.append(" rests on", "bold")
    title.append(f"  loss of log p, nats, when a token is replaced by {label(scan, found.neutral)}", "dim")
    text = Text(overflow="fold")
    table = Columns(("", "right"), ("", "left"), ("", "right"), ("", "left"), header=False, spare=(3,))
    for i, x in enumerate(found.loss):
        name = label(scan, scan.ids[i])
        text.append(f" {name} ", tinted(x, most) if colour else "")
        bar = two_sided(x, most, 14, colour=colour, light=light)
        table.add_row(Text(str(i), "dim"), fit(name, 16), signed(x), bar)
    notes = ["right: it spoke for the token", "left: against it", "one token at a time: they do not add up"]
    return Group(title, text, Text(), table, Flow(notes), footer(scan))


def draw_draw(scan: Scan, found: Draw, *, colour: bool, light: bool = False) -> RenderableType:
    """The distribution as the model had it, after temperature, after the filters, and the number that chose."""
    greedy, bars = found.draw is None, theme.ink("label", colour=colour, light=light)
    table = Columns(
        ("", "left"), ("model", "right"), ("", "left"), ("" if greedy else f"T {found.temperature:g}", "right"),
        ("taken" if greedy else "kept", "right"), ("", "left"), ("" if greedy else "from", "right"),
        ("" if greedy else "to", "right"), ("", "left"), spare=(2, 6, 7),
    )  # fmt: skip
    low, above = 0.0, 0
    for option in found.options:
        chosen = option.id == found.chosen
        if option.rank is not None and option.rank > above + 1:
            table.add_row(Text(f" {option.rank - above - 1:,} more kept", "dim"))
        above, low = option.rank or above + 1, low if option.before is None else option.before
        high = low + option.kept
        style = f"{theme.INK} on {theme.ANSWER}" if chosen and colour else "bold" if chosen else ""
        arrow = "← the best" if found.draw is None else f"← {found.draw:.4f}"
        table.add_row(
            Text(fit(" " + label(scan, option.id), 14), style or ("" if option.kept else "dim")),
            probability(option.raw), Text(bar(option.raw, 12), bars),
            "" if greedy else probability(option.warm),
            probability(option.kept) if option.kept else "" if greedy else "cut",
            Text(bar(option.kept, 12), bars),
            *((f"{low:.4f}", f"{high:.4f}") if option.kept and not greedy else ("", "")),
            Text(arrow if chosen else "", "bold"),
        )  # fmt: skip
        low = high
    if found.n_kept > above and not greedy:
        table.add_row(Text(f" {found.n_kept - above:,} more kept", "dim"))
    drawn = "no draw: the best token is taken, whatever the others are" if greedy else f"drawn: {found.draw:.6f}"
    raw = next((option.raw for option in found.options if option.id == found.chosen), 0.0)
    surprise = f"surprise {compact(-math.log2(raw))} bits" if raw else ""
    cut = f"cut: {probability(found.cut)} of the probability" if found.cut else "nothing cut"
    title = Text.assemble((f"how the token at position {found.position + 1} was chosen  ", "bold"))
    filters = f", top-k {found.top_k or 'off'}, top-p {found.top_p:g}, min-p {found.min_p:g}"
    title.append(f"temperature {found.temperature:g}{'' if greedy else filters}", "dim")
    kept = f"{found.n_kept:,} token{'s' * (found.n_kept != 1)} kept"
    notes = Flow([drawn, surprise] if greedy else [drawn, kept, cut, surprise])
    return Group(title, table, notes, footer(scan))
