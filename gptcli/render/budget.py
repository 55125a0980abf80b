"""What training takes, one figure a line, each with where it comes from; and Lambda's bill beside its arithmetic."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gptcli.budget import YEAR, Budget
from gptcli.paper import LAMBDA
from gptcli.render import theme
from gptcli.render.params import power
from gptcli.render.safe import one_line


def draw(b: Budget) -> RenderableType:
    """One screen."""
    t, default = b.terms, type(b.terms)()
    head = Text.assemble((one_line(b.title), "bold"), "   ", (f"{b.n_params:,} parameters", "bold"))
    rows = _grid()
    _add(rows, "tokens", f"{b.n_tokens:,}", b.tokens_from)
    off = f"; Table D.1 prints {power(b.printed_flops, 2)}" if b.printed_flops else ""
    _add(rows, "FLOPs", power(b.flops, 3), f"6 × {b.n_params:,} × {b.n_tokens:,}{off}")
    dense = f"more for looking back, if every layer saw {b.n_context:,} tokens"
    _add(rows, "attention", f"+{b.attention_dense:.1%}", dense)
    if b.attention != b.attention_dense:
        _add(rows, "", f"+{b.attention:.1%}", "with the windows that its banded layers have")
    printed = f"; Table D.1 prints {b.printed_pf_days:,g}" if b.printed_pf_days else ""
    days = f"{b.pf_days:,.0f}" if b.pf_days >= 100 else f"{b.pf_days:.3g}"
    _add(rows, "compute", f"{days} PF-days", f"of 8.64e19 FLOPs each{printed}")
    whose = ', a V100\'s, "theoretical"' if t.tflops == default.tflops else ""
    speed = f"at {t.tflops:g} TFLOPS{whose}, {t.utilisation:.0%} of them used"
    _add(rows, "one GPU", duration(b.gpu_seconds), speed, strong=True)
    if b.gpu_hours >= 48:
        _add(rows, "", f"{b.gpu_hours:,.0f} hours", "")
    if t.n_gpus > 1:
        _add(rows, f"{t.n_gpus:,} GPUs", duration(b.gpu_seconds / t.n_gpus), "if they lost nothing to each other")
    derived = ", which Lambda's $4.6M implies" if t.price == default.price else ""
    _add(rows, "money", money(b.dollars), f"at ${t.price:.4g} for an hour of one GPU{derived}", strong=True)
    if b.machine and b.machine_seconds is not None:
        m = b.machine
        threads = f" on {m.n_threads} thread{'s' if m.n_threads > 1 else ''}" if m.device == "cpu" else ""
        how = f"at {m.tflops * 1000:,.0f} GFLOPS: {m.side:,}² float32 products, measured just now{threads}"
        _add(rows, "your machine", about(b.machine_seconds), how, strong=True)
    else:
        _add(rows, "your machine", "?", "--measure tells")
    forward = Text.assemble(
        ("one token forward  ", theme.LABEL),
        f"{si(b.forward)}FLOP (2 × N), and {si(b.forward_attention)}FLOP to look back over {b.n_context:,} tokens",
    )
    parts: list[RenderableType] = [head, Text(), rows, Text(), forward]
    if b.printed_flops == LAMBDA.flops:
        parts += [Text(), *_lambda()]
    return Group(*parts)


def _lambda() -> list[RenderableType]:
    """The blog post's own figures, each with the division that gives it."""
    rows, bill = _grid(), LAMBDA
    years = bill.flops / (bill.tflops * 1e12) / YEAR
    slow = bill.flops / (bill.rtx_tflops * 1e12) / YEAR
    _add(rows, "V100", f"{years:,.1f} years", f"{power(bill.flops, 2)} / {bill.tflops:g} TFLOPS; printed {bill.years}")
    _add(
        rows, "", f"{bill.hours:,.0f} hours", f"${bill.dollars / 1e6:g}M for them is ${bill.price:.3f} an hour: derived"
    )
    wrong = f"printed {bill.rtx_years}" + ("" if round(slow) == bill.rtx_years else f", though it is {slow:.0f}")
    _add(rows, "RTX 8000", f"{slow:,.1f} years", f"{power(bill.flops, 2)} / {bill.rtx_tflops:g} TFLOPS; {wrong}")
    said = "Lambda's figures (2020-06-03), from the FLOPs that Table D.1 prints; a year is 365 days"
    return [Text(said, "dim"), rows]


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=theme.LABEL, no_wrap=True, width=12)
    grid.add_column(justify="right", no_wrap=True, min_width=17)
    grid.add_column(style="dim")
    return grid


def _add(grid: Table, name: str, value: str, why: str, *, strong: bool = False) -> None:
    shown = Text(f" {value} ", f"bold {theme.INK} on {theme.ANSWER}") if strong else Text(f"{value} ")
    grid.add_row(name, shown, why)


def scaled(seconds: float) -> tuple[float, str]:
    """The largest unit that it fills."""
    units = ((YEAR, "years"), (86_400, "days"), (3600, "hours"), (60, "minutes"))
    return next(((seconds / size, unit) for size, unit in units if seconds >= size), (seconds, "seconds"))


def duration(seconds: float) -> str:
    """355.9 years, 12.3 days, 4.1 hours, 2.5 minutes, 3.2 seconds."""
    value, unit = scaled(seconds)
    return f"{value:,.1f} {unit}" if value >= 1 else f"{value:.2g} {unit}"


def about(seconds: float) -> str:
    """The same to two digits, for what was measured: 41,000 years."""
    value, unit = scaled(seconds)
    return f"{float(f'{value:.2g}'):,.{0 if value >= 10 else 1}f} {unit}"


def money(dollars: float) -> str:
    """$4.60M, $12,300, $8.20, $0.0031."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if dollars >= size:
            return f"${dollars / size:.2f}{unit}"
    return f"${dollars:,.0f}" if dollars >= 1000 else f"${dollars:.2f}" if dollars >= 1 else f"${dollars:.2g}"


def si(value: float) -> str:
    """349.2 G, with the unit to follow."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f} "


if __name__ == "__main__":
    from rich.console import Console

    from gptcli.budget import Terms, budget
    from gptcli.params import subject

    Console().print(draw(budget(subject("gpt3"), terms=Terms())))
