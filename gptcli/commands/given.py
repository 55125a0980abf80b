"""What was really typed: options that would do nothing, or less than they say, are refused and not ignored."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from gptcli.errors import UsageError


def refuse_given(ctx: typer.Context, names: Sequence[str], why: str, *, hint: str = "") -> None:
    """Raises UsageError if one of these parameters was given: it would do nothing. hint: instead of leaving it out."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            said = "a prompt" if parameter.name == "prompt" else max(parameter.opts, key=len)
            raise UsageError(f"{why}, and {said} changes nothing there", hint=hint or f"leave out {said}")


def refuse_context(n_context: int | None, n_ctx: int, name: str) -> None:
    """Raises UsageError for a --context of more tokens than the model can look back on."""
    if n_context is not None and n_context > n_ctx:
        raise UsageError(f"--context {n_context} is more than the {n_ctx} tokens that {name} reads")
