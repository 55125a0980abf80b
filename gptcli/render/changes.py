"""What-if, its mosaic, occlusion, and the draw of a token: differences, each said in numbers first."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.records_xray import Draw, Mosaic, Occlusion, Scan, WhatIf
from gptcli.render import theme
from gptcli.render.bars import percent
from gptcli.render.cell import (
    PLUS,
    Columns,
    Flow,
    bar,
    chip,
    fit,
    label,
    probability,
    signed,
    texts,
    tinted,
    two_sided,
)
from gptcli.render.check import footer
from gptcli.render.safe import one_line

HOW = {
    "zero": "set to zero",
    "mean": "set to the mean over the prompt",
    "look": "looks forbidden; the others share what they took",
    "look=0": "looks set to 0; the others keep what they had",
    "looks": "looks forbidden, and looks set to 0 (=0), whose others keep what they had",
}


def draw_what_if(scan: Scan, found: WhatIf, *, colour: bool) -> RenderableType:
    """The text before and after, with what changed marked, and what it did to the first token of the answer."""
    title = Text.assemble(("what if ", "bold"), (one_line(", ".join(found.edits)), "bold"))
    title.append(f"  {HOW.get(found.how, '')}", "dim")
    table = Columns(("", "left"), ("before", "right"), ("after", "right"), ("change", "right"))
    target, rival = label(scan, found.target), label(scan, found.rival)
    p = [math.exp(x) for x in found.logprob]
    change, total = found.logprob[1] - found.logprob[0], found.lead[1] - found.lead[0]
    table.add_row(f"log p of {target}, nats", *(f"{x:.3f}" for x in found.logprob), signed(change, 3))
    table.add_row(f"p of {target}", *map(probability, p), "")
    table.add_row("its rank", *(f"#{r}" for r in found.rank), "moved" if found.rank[0] != found.rank[1] else "")
    flipped = "flipped" if found.best[0] != found.best[1] else "the same"
    table.add_row("best token", *(label(scan, b) for b in found.best), flipped)
    table.add_row(f"lead over {rival}, logits", *(f"{x:+.3f}" for x in found.lead), signed(total, 3))
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
    answers = [Text.assemble((f"{name:>7} … ", "dim"), text) for name, text in _both(scan, found, colour=colour)]
    return Group(title, *answers, Text(), table, *lines, footer(scan))


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
            ground = theme.ANSWER if i in kept else PLUS
            shown = shown if scan.pieces.get(id) else label(scan, id)
            text.append(shown, f"{theme.INK} on {ground}" if colour else "" if i in kept else "underline")
        lines.append((name, text))
    return lines


def draw_mosaic(scan: Scan, found: Mosaic, *, colour: bool) -> RenderableType:
    """Layers up, heads across: the effect on the target; at the side what it sums to, and the direct effect."""
    n = found.lead.shape[1]
    most = max((abs(x) for row in found.logprob.rows() for x in row), default=0.0) or 1.0
    name, rival = label(scan, found.target), label(scan, found.rival)
    title = Text.assemble((f"every {'head' if found.what == 'heads' else 'MLP'} by itself ", "bold"))
    title.append(f"{HOW.get(found.how, '')}: change of log p of {name}, nats", "dim")
    heads = "".join((f"H{h}" if found.what == "heads" else "mlp").rjust(6) + " " for h in range(n))
    lines: list[RenderableType] = [title, Text(f"      {heads}   sum of effects on the lead over {rival}", "dim")]
    lines.append(Text(" " * (6 + 7 * n) + "      total   direct", "dim"))
    for i in reversed(range(scan.n_layer)):
        line = Text.assemble((f"{f'L{i}':>5} ", "dim"))
        for h in range(n):
            x, flips = found.logprob.number(i, h), found.best.whole(i, h) != found.target
            line.append(f"{signed(x) + ('!' if flips else ''):>6}", tinted(x, most) if colour else "")
            line.append(" ")
        line.append(f"     {signed(sum(found.lead.row(i))):>6}", "dim")
        line.append(f"   {signed(sum(found.direct.row(i))):>6}" if found.direct else "   none", "dim")
        lines.append(line)
    notes = [
        "below 0 (blue): without it the token is less likely", "! another token becomes the best",
        "direct: what it wrote itself", "total: with all that follows; effects do not add up to a whole",
    ]  # fmt: skip
    return Group(*lines, Flow(notes), footer(scan))


def draw_occlusion(scan: Scan, found: Occlusion, *, colour: bool) -> RenderableType:
    """Each token with what the answer loses without it."""
    most = max(map(abs, found.loss), default=0.0) or 1.0
    title = Text.assemble(("what ", "bold"))
    title.append_text(chip(label(scan, found.target), theme.ANSWER, colour=colour))
    title.append(" rests on", "bold")
    title.append(f"  loss of log p, nats, when a token is replaced by {label(scan, found.neutral)}", "dim")
    text, lines = Text(overflow="fold"), []
    for i, x in enumerate(found.loss):
        name = label(scan, scan.ids[i])
        text.append(f" {name} ", tinted(x, most) if colour else "")
        line = Text.assemble((f"{i:>4} ", "dim"), fit(name, 16), f" {signed(x):>6} ")
        line.append_text(two_sided(x, most, 14, colour=colour))
        lines.append(line)
    notes = ["right: it spoke for the token", "left: against it", "one token at a time: they do not add up"]
    return Group(title, text, Text(), *lines, Flow(notes), footer(scan))


def draw_draw(scan: Scan, found: Draw, *, colour: bool) -> RenderableType:
    """The distribution as the model had it, after temperature, after the filters, and the number that chose."""
    table = Columns(
        ("", "left"), ("model", "right"), ("", "left"), (f"T {found.temperature:g}", "right"), ("kept", "right"),
        ("", "left"), ("from", "right"), ("to", "right"), ("", "left"), spare=(2, 6, 7),
    )  # fmt: skip
    low = 0.0
    for option in found.options:
        chosen, high = option.id == found.chosen, low + option.kept
        style = f"{theme.INK} on {theme.ANSWER}" if chosen and colour else "bold" if chosen else ""
        arrow = "← the best" if found.draw is None else f"← {found.draw:.4f}"
        table.add_row(
            Text(fit(" " + label(scan, option.id), 14), style or ("" if option.kept else "dim")),
            probability(option.raw), Text(bar(option.raw, 12), theme.LABEL if colour else ""),
            probability(option.warm), probability(option.kept) if option.kept else "cut",
            Text(bar(option.kept, 12), theme.LABEL if colour else ""),
            *((f"{low:.4f}", f"{high:.4f}") if option.kept else ("", "")), Text(arrow if chosen else "", "bold"),
        )  # fmt: skip
        low = high
    drawn = "the best token, no draw" if found.draw is None else f"drawn: {found.draw:.6f}"
    raw = next((option.raw for option in found.options if option.id == found.chosen), 0.0)
    surprise = f"surprise {-math.log2(raw):.2f} bits" if raw else ""
    cut = f"cut: {probability(found.cut)} of the probability" if found.cut else "nothing cut"
    title = Text.assemble((f"how the token at position {found.position + 1} was chosen  ", "bold"))
    title.append(f"temperature {found.temperature:g}, top-k {found.top_k or 'off'}, top-p {found.top_p:g}, ", "dim")
    title.append(f"min-p {found.min_p:g}", "dim")
    notes = Flow([drawn, f"{found.n_kept} tokens kept", cut, surprise])
    return Group(title, table, notes, footer(scan))
