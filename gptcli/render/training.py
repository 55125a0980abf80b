"""A training run on the screen: a line for pipes, a live panel for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptcli.records import Progress


def duration(seconds: float) -> str:
    """1:05:09, 4:31, 0:07."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def line(p: Progress) -> str:
    """One step as one line."""
    done = f"step {p.step}/{p.n_steps}  loss {p.loss:.4f}"
    if p.validation is not None:
        done += f"  validation {p.validation:.4f}"
    done += f"  lr {p.learning_rate:.2e}  norm {p.grad_norm:.2f}  {p.tokens_per_s:,.0f} tokens/s"
    return f"{done}  {duration(p.seconds)}"


class Panel:
    def __init__(self, *a: Any, **k: Any) -> None: ...
    def show(self, p: Progress) -> None: ...
    def close(self) -> None: ...
