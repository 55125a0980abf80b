"""The neurons of one layer that put most into an answer, as a sum beside the MLP's own row of the ledger."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.records_xray import Neurons, Scan
from gptcli.render import theme
from gptcli.render.cell import Columns, Legend, chip, exact, label, off, signed, two_sided
from gptcli.render.check import footer

BAR = 8


def draw(scan: Scan, found: Neurons, *, colour: bool, light: bool = False) -> RenderableType:
    """The neurons, the others, the bias, their sum beside what the MLP wrote, and the self-check."""
    most = max((abs(neuron.value) for neuron in found.shown), default=0.0) or 1.0
    table = Columns(
        ("neuron", "right"), ("fires", "right"), ("puts in", "right"), ("", "left"), ("raises", "left"), spare=(3,)
    )
    for neuron in found.shown:
        bar = two_sided(neuron.value, most, BAR, colour=colour, light=light)
        words = "  ".join(label(scan, id) for id in neuron.raises)
        table.add_row(f"L{found.layer}N{neuron.index}", signed(neuron.act), signed(neuron.value), bar, words)
    rest = found.n_all - len(found.shown)
    for name, value in ((f"{rest:,} others", found.others), ("bias", found.bias)):
        if value:
            table.add_row(Text(name, "dim"), "", Text(signed(value), "dim"))
    total = sum(neuron.value for neuron in found.shown) + found.others + found.bias
    table.add_row(Text("sum", "bold"), "", Text(exact(total), "bold"))
    table.add_row(f"L{found.layer} mlp", "", exact(found.write), off(total - found.write))
    legend = Legend(
        table,
        [
            ("fires", "fires: its activation, the gate included"),
            ("puts in", f"puts in: to the {'logit' if found.rival is None else 'logit difference'}, nats"),
            ("raises", "raises: the tokens whose logits its write raises most, whatever the text"),
        ],
    )
    return Group(_title(scan, found, colour=colour), table, legend, footer(scan, f"neurons ✓ {found.error:.0e}"))


def _title(scan: Scan, found: Neurons, *, colour: bool) -> Text:
    text = Text.assemble((f"the neurons of L{found.layer} ", "bold"), "for ")
    text.append_text(chip(label(scan, found.target), theme.ANSWER, colour=colour))
    if found.rival is not None:
        text.append(" and not ", "bold")
        text.append(f" {label(scan, found.rival)} ", "reverse" if colour else "bold")
    text.append(f"  after {label(scan, scan.ids[found.position])}, position {found.position}", "dim")
    return text
