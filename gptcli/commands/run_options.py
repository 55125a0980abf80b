"""The options that train and finetune share: what a run is, and how it is watched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from gptcli.errors import UsageError

TRAINED, RUN = "Model", "Run"


def count(name: str, text: str, panel: str = RUN) -> Any:
    """An option that counts something of a training run, or of the model that is trained."""
    return typer.Option(name, metavar="N", rich_help_panel=panel, show_default=False, min=1, help=text)


def number(name: str, text: str) -> Any:
    """The same, for numbers that people write as 20M."""
    return typer.Option(name, metavar="N", rich_help_panel=RUN, show_default=False, help=text)


def check_share(share: float) -> None:
    """Raises UsageError unless the share leaves something to train on."""
    if not 0 <= share < 1:
        raise UsageError(f"--validation-share must be 0 or more and below 1, not {share}")


Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Steps = Annotated[int | None, count("--steps", "The same, counted in steps.")]
RunSeed = Annotated[
    int,
    typer.Option("-s", "--seed", metavar="N", min=0, max=2**63 - 1, rich_help_panel=RUN, help="Of everything random."),
]
Validation = Annotated[
    list[str] | None,
    typer.Option("--validation", metavar="FILE", rich_help_panel=RUN, help="Text to validate on; repeatable."),
]
ValidationShare = Annotated[
    float,
    typer.Option(
        "--validation-share", metavar="X", rich_help_panel=RUN, help="Held out of the data, without --validation."
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", "--lr", metavar="X", rich_help_panel=RUN, show_default=False,
        help="At its peak. \\[the size's]",
    ),
]  # fmt: skip
ScheduleName = Annotated[
    Literal["cosine", "linear", "constant", "wsd"] | None,
    typer.Option(
        "--schedule", metavar="NAME", rich_help_panel=RUN, show_default=False,
        help="How the rate falls: cosine (GPT-3's), linear, constant, or wsd, which falls in the last fifth \\[cosine]",
    ),
]  # fmt: skip
OptimizerName = Annotated[
    Literal["adamw", "muon"] | None,
    typer.Option(
        "--optimizer", metavar="NAME", rich_help_panel=RUN, show_default=False,
        help="adamw (GPT-3's), or muon for the matrices, which needs fewer tokens. \\[adamw]",
    ),
]  # fmt: skip
PrecisionName = Annotated[
    Literal["bfloat16", "float32"] | None,
    typer.Option(
        "--precision", metavar="NAME", rich_help_panel=RUN, show_default=False,
        help="Precision of the matrix products. \\[bfloat16 where the machine has it]",
    ),
]  # fmt: skip
MicroBatch = Annotated[
    int | None,
    typer.Option(
        "--micro-batch", metavar="N", min=1, rich_help_panel=RUN, show_default=False,
        help="Sequences computed at once; fewer take less memory.",
    ),
]  # fmt: skip
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile", rich_help_panel=RUN, show_default=False,
        help="Compile the step first. \\[where it pays, and a C++ compiler is there]",
    ),
]  # fmt: skip
SaveEvery = Annotated[
    int | None,
    typer.Option(
        "--save-every",
        metavar="N",
        min=1,
        rich_help_panel=RUN,
        show_default=False,
        help="Save every N steps. \\[every two minutes]",
    ),
]
ValidateEvery = Annotated[
    int | None,
    typer.Option(
        "--validate-every",
        metavar="N",
        min=1,
        rich_help_panel=RUN,
        show_default=False,
        help="Validate every N steps. \\[40 times a run]",
    ),
]
