"""What was really typed: options that would do nothing are refused, not ignored."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from gptcli.errors import UsageError


def refuse_given(ctx: typer.Context, names: Sequence[str], why: str) -> None:
    """Raises UsageError if one of these parameters was given: it would do nothing."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            said = "a prompt" if parameter.name == "prompt" else max(parameter.opts, key=len)
            raise UsageError(f"{why}, and {said} changes nothing there", hint=f"leave out {said}")
