"""gptcli budget: what it takes to train a decoder. No torch, unless the machine is to be measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.given import refuse_context
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.budget import Budget

ASSUMED = "Assumptions"


def budget(
    what: o.SizeOrModel = None,
    model_option: o.Model = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="N", rich_help_panel=ASSUMED, show_default=False,
            help="Train on so many: 300B, 20M. \\[300B for GPT-3's sizes, else 20 a parameter]",
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops", metavar="X", rich_help_panel=ASSUMED, show_default=False,
            help="Of one GPU. \\[28, a V100's, as Lambda took it]",
        ),
    ] = None,
    utilisation: Annotated[
        float,
        typer.Option(
            "--utilisation", "--utilization", metavar="X", rich_help_panel=ASSUMED,
            help="The share of its speed that training uses, 0 to 1; 0.3 to 0.5 is usual.",
        ),
    ] = 1.0,
    price: Annotated[
        float | None,
        typer.Option(
            "--price", metavar="X", rich_help_panel=ASSUMED, show_default=False,
            help="Dollars for an hour of one GPU. \\[what Lambda's $4.6M implies]",
        ),
    ] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", rich_help_panel=ASSUMED, help="How long it takes on N of them.")
    ] = 1,
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", min=1, rich_help_panel=ASSUMED, show_default=False,
                     help="Tokens that attention looks back on. \\[all it has]"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's speed, and say how long it would take.")
    ] = False,
    device: o.Device = None,
    attention: o.Attention = None,
    window: o.Window = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    color: o.PlainColor = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
) -> None:  # fmt: skip
    """Say what it takes to train a decoder: tokens, FLOPs, petaflop/s-days, GPU-years and money.

    `gptcli budget gpt3` gives the well-known 355 GPU-years and $4.6M, and names what they assume. SIZE is as for
    `gptcli params`; a checkpoint does as well.
    """
    from gptcli.budget import Machine, Terms
    from gptcli.budget import budget as reckon
    from gptcli.catalogue import read_pattern
    from gptcli.params import subject

    if what is not None and model_option is not None:
        raise UsageError("the model is given twice, as an argument and with --model", hint="leave one out")
    settings = settle({"model": model_option, "color": color, "device": device})
    given = {"tflops": tflops, "price": price, "utilisation": utilisation, "n_gpus": gpus}
    terms = Terms(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    n_tokens = o.tokens_of(tokens)
    output = Output()
    if what is None:
        from gptcli.model_choice import chosen_model

        what = chosen_model(settings)
    found = subject(
        what,
        pattern=read_pattern(attention) if attention else None,
        window=window,
        revision=revision,
        allow=allow_config or (),
    )
    refuse_context(context, found.config.n_ctx, found.title)
    machine: Machine | None = None
    if measure:
        from gptcli.checkpoint import pick_device
        from gptcli.speed import measure as measured

        machine = measured(pick_device(settings["device"].value))
    answer = reckon(found, terms=terms, n_tokens=n_tokens, n_context=context, machine=machine)
    if as_json:
        output.json(_json(answer))
        return
    from gptcli.render.budget import draw

    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    output.write(theme.drawn(draw(answer), colour=coloured))


def _json(b: Budget) -> dict[str, Any]:
    derived = ("flops", "pf_days", "gpu_years", "gpu_hours", "dollars", "machine_seconds")
    return dataclasses.asdict(b) | {name: getattr(b, name) for name in derived}
