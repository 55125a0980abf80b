"""A decoder that was just built: its stack, its count found in two ways, what it takes."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from gptcli.memory import human
from gptcli.params import Account, closed_form
from gptcli.records import Built
from gptcli.render.params import Stack
from gptcli.render.safe import one_line


def draw(account: Account, built: Built, *, out: str | None = None) -> RenderableType:
    """out: the folder that it was saved to; None for the meta device."""
    c = account.config
    head = Text.assemble((one_line(account.title), "bold"), "   ", (f"{built.n_params:,} parameters", "bold"))
    where = "on the meta device" if out is None else "with random values"
    head.append(f"\nbuilt {where} in {built.seconds:.2f} s: {built.n_tensors:,} tensors in {c.n_layer} layers")
    windows = [layer.window for layer in c.layers if layer.window]
    if windows:
        dense = c.n_layer - len(windows)
        head.append(f"\n{dense} see every earlier token, {len(windows)} the last {min(windows):,}")
    formula = closed_form(c)
    how = f"{formula[0]} = {formula[1]:,}" if formula else f"the shapes of its config: {built.n_expected:,}"
    parts: list[RenderableType] = [
        head,
        Text(),
        Stack(account),
        Text(),
        _true(f"{built.n_params:,} counted on its tensors; {how}"),
    ]
    if built.passed:
        tokens, scores = built.passed
        said = f"a text of {tokens:,} tokens goes through all layers: {tokens:,} × {scores:,} scores, in shape"
        parts.append(_true(f"{said} ({built.pass_seconds:.1f} s)"))
    need = next(n for name, n in account.memory if name == "float32")
    held = f"{human(built.n_bytes)} of memory" + ("" if built.n_bytes else f"; its numbers would take {human(need)}")
    parts.append(_true(f"{held} in float32"))
    if out is not None:
        parts.append(Text(f"\nsaved; now: gptcli generate -m {one_line(out)}"))
    return Group(*parts)


def _true(text: str) -> Text:
    return Text.assemble(("✓ ", "bold"), text)
