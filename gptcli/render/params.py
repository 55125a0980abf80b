"""The budget of matrices: proportional bars, the stack of layers to one scale, memory, and the paper's own table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from gptcli.memory import binary, human
from gptcli.params import Account, Check, KeyCache, Matrix, Recount, proof
from gptcli.render import theme
from gptcli.render.bars import EIGHTHS, bar, percent
from gptcli.render.safe import one_line

INPUT, LAYER, BANDED = theme.PROMPT, theme.ANSWER, theme.LABEL
MOST_CELLS = 600  # of the stack; one with more is not drawn


def draw(account: Account) -> RenderableType:
    """One screen: all numbers, where they are, and what they take."""
    parts: list[RenderableType] = [_head(account), Text(), Parts(account), Text(), Stack(account), Text()]
    parts += [_Memory(account), Text()]
    parts += [_checked(check) for check in account.checks] or [
        Text("counted from the config; there are no tensors to hold it against", "dim")
    ]
    parts += [Text(f"note: {one_line(note)}", "italic") for note in account.notes]
    if account.row:
        off = account.n_params / account.row.params - 1
        parts.append(Text(f"Table D.1 prints {account.row.params / 1e6:,.0f}M: {off:+.3%}", "dim"))
        if why := proof(account.row):
            parts.append(Text(f"! {why}", theme.LABEL))
    return Group(*parts)


def _head(account: Account) -> Text:
    c, n = account.config, account.n_matrices
    head = Text.assemble((one_line(account.title), "bold"), "   ", (f"{account.n_params:,} parameters", "bold"))
    head.append(f" in {n:,} matrices\n")
    share = percent(account.n_in_layer * c.n_layer / account.n_params)
    layers = f"{c.n_layer} layers" if c.n_layer > 1 else "1 layer"
    head.append(f"{layers} of {account.n_in_layer:,} each, {share} of all")
    return head


def _checked(check: Check) -> Text:
    return Text.assemble(("✓ ", "bold"), f"{check.what} = {check.found:,}")


class Parts:
    """One row for each kind of matrix; what does not fit a narrow screen is left out: first shapes, then nothing."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts, total, layers = self._account.parts, self._account.n_params, self._account.config.n_layer
        shapes = {part.does: sides(part.shape) if part.shape else "" for part in parts}
        name = max(len(part.does) for part in parts)
        each = max(len(f"{part.n_each:,}") for part in parts)
        whole, times = len(f"{total:,}"), len(f"× {layers:,}")
        shape = max(map(len, shapes.values()))
        need = name + times + whole + 5 + 8
        wide, wider = options.max_width >= need + shape + 14, options.max_width >= need + shape + each + 28
        room = options.max_width - need - (shape + 2) * wide - (each + 2) * wider
        most = max(part.n for part in parts) / total
        for part in parts:
            row = Text()
            row.append(part.does.ljust(name) + "  ", theme.LABEL)
            if wide:
                row.append(shapes[part.does].rjust(shape) + "  ", "dim")
            if wider:
                row.append((f"{part.n_each:,}" if part.shape else "").rjust(each) + "  ")
            row.append((f"× {part.times:,}" if part.in_layers else "").rjust(times) + "  ")
            row.append(f"{part.n:,}".rjust(whole) + "  ")
            row.append(percent(part.n / total).rjust(5) + "  ")
            row.append(
                bar(part.n / total / most, max(4, min(room, 60))), LAYER if part.in_layers or not part.shape else INPUT
            )
            yield row
        skipped = (shape + 2) * wide + (each + 2) * wider
        yield Text("all of them".ljust(name + skipped + times + 4) + f"{total:,}" + "  100%".rjust(7), "bold")


class Stack:
    """Everything to one scale, from the embedding to the last norm: a layer is a cell or several."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        account = self._account
        c, layer = account.config, account.n_in_layer
        outside = [part for part in account.parts if part.shape and not part.in_layers]
        before = sum(p.n for p in outside if p.does != "head") / layer
        after = sum(p.n for p in outside if p.does == "head") / layer
        whole = before + c.n_layer + after
        if whole > MOST_CELLS:
            return
        cell = max(1, int(options.max_width / whole))
        cells = list[Text]()
        _extend(cells, before * cell)
        windows = [each.window for each in c.layers]
        for window in windows:
            ink, glyph = (LAYER, "█") if window is None else (BANDED, "█" if console.color_system else "▒")
            body = glyph * (cell - 1) + ("▉" if glyph == "█" else "▒")
            cells.extend(Text(character, ink) for character in body)
        _extend(cells, after * cell)
        lines = -(-len(cells) // options.max_width)
        even = -(-len(cells) // lines)  # lines of one length
        for start in range(0, len(cells), even):
            yield Text.assemble(*cells[start : start + even])
        yield from _legend(
            account, windows, one="one cell" if cell == 1 else f"{cell} cells", colour=bool(console.color_system)
        )


def _extend(cells: list[Text], width: float) -> None:
    cells.extend(Text(character, INPUT) for character in (bar(1, 1) * int(width)))
    if eighths := round(width % 1 * 8):
        cells.append(Text("█" if eighths == 8 else EIGHTHS[eighths], INPUT))


def _legend(account: Account, windows: Sequence[int | None], *, one: str, colour: bool) -> Iterator[Text]:
    n_banded = sum(window is not None for window in windows)
    inputs = "words and positions to vectors" if account.config.learned_positions else "words to vectors"
    items = [("█", INPUT, inputs)]
    if n_banded < len(windows):
        items.append(("█", LAYER, "a dense layer" if n_banded else "a layer"))
    if n_banded:
        seen = min(window for window in windows if window)
        items.append(("█" if colour else "▒", BANDED, f"a banded one, which sees {seen:,} tokens"))
    line = Text()
    for i, (glyph, ink, meaning) in enumerate(items):
        line.append("  " * bool(i)).append(glyph, ink).append(f" {meaning}", "dim")
    yield line
    yield Text(f"{one}: a layer, {account.n_in_layer:,} numbers", "dim")
    if account.row and n_banded:
        yield Text("how many tokens GPT-3's own bands see, and which kind comes first, was never published", "dim")


class _Memory:
    def __init__(self, account: Account) -> None:
        self._account = account

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        account = self._account
        sizes = {size: [name for name, n in account.memory if n == size] for _, size in account.memory}
        said = ", ".join(f"{human(size)} in {' or '.join(names)}" for size, names in sizes.items())
        yield Text.assemble(("weights  ", theme.LABEL), said)
        yield from _caches(
            account.caches, options.max_width, windows=any(layer.window for layer in account.config.layers)
        )


def _caches(caches: Sequence[KeyCache], width: int, *, windows: bool) -> Iterator[RenderableType]:
    yield Text.assemble(
        ("cache    ", theme.LABEL),
        f"{binary(caches[0].dense)} a token in float16",
        ("; banded layers keep their window only" if windows else "", "dim"),
    )
    most, room = caches[-1].dense, max(8, min(40, width - 42 - 10 * windows))
    for found in caches[1:]:
        row = Text(f"{found.n_tokens:>9,} tokens  {binary(found.kept):>9}")
        if windows:
            row.append(f" of {binary(found.dense):>9}", "dim")
        kept = bar(found.kept / most, room)
        row.append("  ").append(kept, LAYER)
        rest = round(found.dense / most * room) - len(kept)
        row.append("░" * rest, BANDED)
        yield row


def draw_layer(account: Account, layer: int) -> RenderableType:
    """Every matrix and vector of one layer."""
    matrices = account.of_layer(layer)
    window = account.config.layers[layer].window
    kind = (
        "dense: every earlier token is visible" if window is None else f"banded: the last {window:,} tokens are visible"
    )
    total = sum(matrix.n for matrix in matrices)
    head = Text.assemble(
        (one_line(account.title), "bold"), "   ", (f"layer {layer} of 0 to {account.config.n_layer - 1}", "bold"),
        f"\n{total:,} numbers, {percent(total / account.n_params)} of all; {kind}",
    )  # fmt: skip
    return Group(head, Text(), _Rows(matrices, total))


class _Rows:
    def __init__(self, matrices: Sequence[Matrix], total: int) -> None:
        self._matrices, self._total = matrices, total

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [m.name.split(".", 2)[2] for m in self._matrices]
        name, does = max(map(len, names)), max(len(m.does) for m in self._matrices)
        shape, count = max(len(sides(m.shape)) for m in self._matrices), max(len(f"{m.n:,}") for m in self._matrices)
        need = name + shape + count + 5 + 8
        wide = options.max_width >= need + does + 10
        room = max(4, min(48, options.max_width - need - (does + 2) * wide))
        most = max(m.n for m in self._matrices)
        for short, m in zip(names, self._matrices, strict=True):
            row = Text.assemble((short.ljust(name) + "  ", theme.LABEL))
            if wide:
                row.append(m.does.ljust(does) + "  ", "dim")
            row.append(sides(m.shape).rjust(shape) + "  ", "dim")
            row.append(f"{m.n:,}".rjust(count) + "  " + percent(m.n / self._total).rjust(5) + "  ", "")
            row.append(bar(m.n / most, room), LAYER)
            yield row


def sides(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{side:,}" for side in shape)


# --- Table 2.1 and Table D.1 -----------------------------------------------------------------------------------------


def draw_table(found: Sequence[Recount]) -> RenderableType:
    """What the paper prints, what a recount gives, and the difference; the two typos beside their corrections."""
    proofs = [Text.assemble(("! ", theme.LABEL), proof(each.row)) for each in found if each.row.typo]
    most_n = max(abs(each.params_off) for each in found)
    most_f = max(abs(each.flops_off) for each in found)
    note = f"all {len(found)} rows: parameters within {most_n:.2%} of D.1, FLOPs (6 × N × 300B) within {most_f:.2%}"
    return Group(
        Text("GPT-3's sizes, as Brown et al. (2020) print them, and counted again", "bold"), Text(), _Table(found),
        Text(), *proofs, Text.assemble(("✓ ", "bold"), note),
    )  # fmt: skip


class _Table:
    def __init__(self, found: Sequence[Recount]) -> None:
        self._found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=theme.LABEL)
        columns = ["", "width", "heads", "D.1", "recount", "off"]
        for column, need in (("layers", 76), ("FLOPs", 102), ("6ND", 102), ("off ", 102), ("PF-days", 112),
                             ("batch", 126), ("rate", 126)):  # fmt: skip
            if width >= need:
                columns.insert(1 if column == "layers" else len(columns), column)
        for column in columns:
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        for each in self._found:
            cells = _cells(each, narrow="layers" not in columns)
            table.add_row(*(cells[column] for column in columns))
        yield table


def _cells(each: Recount, *, narrow: bool) -> dict[str, Text]:
    row, size = each.row, each.row.corrected
    return {
        "": Text(row.label, "bold"),
        "layers": Text(str(row.n_layer)),
        "width": _printed(row.d_model, size.d_model),
        "heads": _printed(row.n_head, size.n_head),
        "D.1": Text(f"{row.params / 1e6:,.0f}M"),
        "recount": Text(f"{each.params / 1e6:,.1f}M" if narrow else f"{each.params:,}"),
        "off": Text(f"{each.params_off:+.2%}", "dim"),
        "FLOPs": Text(power(row.flops, 2)),
        "6ND": Text(power(each.flops, 3)),
        "off ": Text(f"{each.flops_off:+.2%}", "dim"),
        "PF-days": Text(f"{row.pf_days:,g}"),
        "batch": Text(f"{row.batch_tokens / 1e6:g}M"),
        "rate": Text(f"{row.learning_rate:.1e}".replace("e-0", "e-")),
    }


def power(value: float, digits: int) -> str:
    """3.14e23, without the plus sign that nobody writes."""
    return f"{value:.{digits}e}".replace("e+", "e")


def _printed(printed: int, right: int) -> Text:
    """A wrong number struck out, with the right one behind it: 24 → 16."""
    if printed == right:
        return Text(f"{right:,}")
    return Text.assemble((f"{printed:,}", "strike"), " → ", (f"{right:,}", f"bold {theme.LABEL}"))


if __name__ == "__main__":
    from gptcli.params import account, recount, subject

    Console().print(draw(account(subject("gpt3"))))
    Console().print(draw_layer(account(subject("gpt2")), 3))
    Console().print(draw_table(recount()))
