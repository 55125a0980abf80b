"""The last line of every view: how the picture proves itself."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.records_xray import Scan
from gptcli.render.cell import Flow
from gptcli.render.safe import one_line


def footer(scan: Scan, *more: str) -> Flow:
    """lens(last) = logits ✓ 0 │ ledger error 2e-07 │ float32 cpu │ start token <s> │ tokenizer 32,000 = head 32,000."""
    c = scan.check
    parts = [f"lens(last) = logits ✓ {_small(max(c.lens, c.emitted or 0.0))}"]
    parts.append(f"no ledger: {c.no_ledger}" if c.ledger is None else f"ledger error ✓ {_small(c.ledger)}")
    parts += [*changed(scan), *more]
    parts.append(f"{c.dtype} {c.device}, read in float32" if c.dtype != "float32" else f"{c.dtype} {c.device}")
    parts += weights(scan.adapter, scan.rounding)
    parts.append(f"start token {one_line(c.start)}" if c.start else "no start token")
    parts.append(sizes(c.n_tokenizer, c.n_head_rows))
    return Flow(parts, between=" │ ")


def changed(scan: Scan) -> list[str]:
    """What was switched off or exchanged in a run, if anything was."""
    to_mean = scan.what_if is not None and "mean" in scan.what_if.how.split()
    return [edits(scan.edits, to_mean=to_mean)] if scan.edits else []


def edits(words: Sequence[str], *, to_mean: bool) -> str:
    """`changed: L3H1, L2.mlp (mean)`."""
    return one_line(f"changed: {', '.join(words)}{' (mean)' * to_mean}")


def weights(adapter: str | None, rounding: str | None) -> list[str]:
    """What was done to the model's own weights before anything was computed."""
    added = [f"adapter {one_line(adapter)}"] if adapter else []
    return added + ([f"weights rounded to {one_line(rounding)}"] if rounding else [])


def sizes(n: int, rows: int) -> str:
    """Whether the head has a row for each token, or more."""
    if n == rows:
        return f"tokenizer {n:,} = head {rows:,}"
    if n < rows:
        return f"tokenizer {n:,} < head {rows:,}: the rest is padding, not shown"
    return f"tokenizer {n:,} > head {rows:,}"


def _small(x: float) -> str:
    return "0" if x == 0 else f"{x:.0e}"
