"""A checkpoint's card: one screen, no torch."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gptcli.memory import human
from gptcli.records import Card
from gptcli.render import theme
from gptcli.render.safe import one_line

BAR = 24  # cells for the largest part of the budget


def draw(card: Card, *, tensors: bool = False) -> RenderableType:
    """The card, and on request every tensor."""
    head = Text()
    head.append(one_line(card.name), "bold")
    head.append(f"   {card.n_params:,} parameters", "bold")
    head.append(f"   {card.dtype}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style=theme.LABEL, no_wrap=True)
    facts.add_column()
    for name, value in (
        ("family", f"{card.family} ({card.models})"),
        ("stack", f"{card.n_layer} layers, {card.d_model} wide, MLP {card.d_ff:,}"),
        ("heads", f"{card.n_head} of {card.d_head}, {card.n_kv_head} for keys and values"),
        ("vocabulary", f"{card.n_vocab:,} tokens"),
        ("context", f"{card.n_ctx:,} tokens"),
        *card.traits,
    ):
        facts.add_row(name, value)
    total = card.weight_bytes + card.cache_bytes
    each = f"weights {human(card.weight_bytes)}, cache {human(card.cache_bytes)}"
    kind = card.loaded_as if card.loaded_as == card.dtype else f"{card.loaded_as}, as the CPU runs {card.dtype}"
    memory = f"{human(total)} at {card.n_context:,} tokens in {kind}: {each}"
    facts.add_row("memory", memory)
    facts.add_row(
        "files",
        one_line(", ".join(card.files[:3])) + (f" and {len(card.files) - 3} more" if len(card.files) > 3 else ""),
    )
    parts: list[RenderableType] = [head, Text(), facts, Text(), _budget(card)]
    parts.extend(Text(f"note: {one_line(note)}", "italic") for note in card.notes)
    if tensors:
        parts.extend((Text(), _tensors(card)))
    return Group(*parts)


def _budget(card: Card) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=theme.LABEL, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    most = max(n for _, n in card.budget)
    for part, n in card.budget:
        eighths = round(n / most * BAR * 8)
        bar = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
        share = n / card.n_params
        table.add_row(part, f"{n:,}", f"{share:.1%}" if share >= 0.001 else "<0.1%", Text(bar or "▏", theme.ANSWER))
    return table


def _tensors(card: Card) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style=theme.LABEL, overflow="fold")
    for tensor in card.tensors:
        shape = " x ".join(map(str, tensor.shape))
        fills = ", ".join(name.removesuffix(".weight") for name in tensor.fills)
        table.add_row(one_line(tensor.name), shape, tensor.dtype, fills)
    return table


if __name__ == "__main__":
    from rich.console import Console

    parts = (("embedding", 38_597_376), ("positions", 786_432), ("attention", 28_348_416), ("MLP", 56_669_184))
    card = Card(
        name="demo", folder=".", family="gpt2", models="GPT-2", n_params=124_439_808, dtype="F32", n_layer=12,
        budget=(*parts, ("norms", 38_400)), d_model=768, n_head=12, n_kv_head=12, d_head=64, d_ff=3072, n_vocab=50257,
        n_ctx=1024, traits=(("positions", "learned"),), n_context=1024, loaded_as="F32",
        weight_bytes=497_759_232, cache_bytes=75_497_472, files=("model.safetensors",), tensors=(), notes=(),
    )  # fmt: skip
    Console().print(draw(card))
