"""gptcli xray: the way of each token through the layers, from a model or from a saved trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gptcli.commands import options as o
from gptcli.commands.editing import Wanted, refuse_mean_alone
from gptcli.commands.given import refuse_given
from gptcli.commands.loading import load_chosen
from gptcli.commands.looking import Job
from gptcli.commands.prompt import read_prompt
from gptcli.commands.views import FORMATS, Show
from gptcli.errors import UsageError
from gptcli.model_choice import adapter_folder
from gptcli.places import read_place
from gptcli.render.output import Output
from gptcli.sampling import Sampling
from gptcli.settings import OPTIONS, settle

# what the making of a trace depends on, and what only single views do
MAKING = (
    "file", "model", "adapter", "device", "dtype", "quantize", "revision", "allow_config", "bos", "max_tokens", "top",
    "mean", "save", "temperature", "top_k", "top_p", "min_p", "seed",
)  # fmt: skip
VIEWING = (
    "token", "grid", "ledger", "alone", "over_mean", "attention", "head", "weighted", "roles", "norms", "occlusion",
    "walk", "flow", "rollout", "neurons", "sampling", "sub", "at", "every", "ablate", "patch", "sweep",
)  # fmt: skip
# what only some views look at: which, and what the others have not
ONLY = {
    "token": (
        ("track", "ledger", "norms", "attention", "head", "flow", "walk", "neurons", "occlusion", "draw"),
        "is of one token",
    ),
    "at": (("grid", "norms", "head", "flow"), "has columns of tokens"),
    "weighted": (("attention", "head"), "shows where heads look"),
    "rollout": (("flow",), "says of which tokens a vector is made"),
    "every": (("grid", "norms", "attention", "flow", "roles", "mosaic"), "leaves out layers"),
    "sub": (("grid", "track"), "has rows between attention and MLP"),
}
VIEW, IF = "What to show", "What if"
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def view(name: str, text: str) -> Any:
    """A flag that asks for a view."""
    return typer.Option(name, rich_help_panel=VIEW, help=text)


def xray(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", show_default=False, help="A text, - for stdin, or a saved .xray file."),
    ] = None,
    file: o.File = None,
    model: o.Model = None,
    adapter: o.Adapter = None,
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", metavar="N", min=0, help="Tokens of answer to write.")
    ] = 6,
    token: Annotated[
        int | None,
        typer.Option(
            "--token",
            metavar="N",
            rich_help_panel=VIEW,
            help="The track of token N; with other views, the token they are about. "
            "-1 is the last of prompt and answer.",
        ),
    ] = None,
    grid: Annotated[bool, view("--grid", "The elevator: tokens across, layers up. The default.")] = False,
    ledger: Annotated[bool, view("--ledger", "Why this token and not the next best: what each part wrote.")] = False,
    alone: Annotated[
        bool, view("--alone", "Ledger, walk or neurons of the token's own logit, not of its lead over a rival.")
    ] = False,
    over_mean: Annotated[
        bool, view("--over-mean", "Ledger of how far the token's logit is above the mean of all tokens'.")
    ] = False,
    attention: Annotated[bool, view("--attention", "Where each head looks.")] = False,
    head: Annotated[
        str | None, typer.Option("--head", metavar="L5H2", rich_help_panel=VIEW, help="One head's whole pattern.")
    ] = None,
    weighted: Annotated[
        bool, view("--weighted", "Attention as what heads take from where: looks times lengths of what they add.")
    ] = False,
    roles: Annotated[bool, view("--roles", "What heads are for, measured on random tokens said twice.")] = False,
    norms: Annotated[
        bool, view("--norms", "How long the vectors are, and which way writes point beside them.")
    ] = False,
    occlusion: Annotated[bool, view("--occlusion", "Which tokens of the text the answer rests on.")] = False,
    walk: Annotated[
        bool, view("--walk", "Where the token came from: back through heads and MLPs to the words.")
    ] = False,
    flow: Annotated[bool, view("--flow", "Of which tokens the vector is made, layer after layer.")] = False,
    rollout: Annotated[
        bool, view("--rollout", "Flow by where heads look alone, whatever they take: a heuristic.")
    ] = False,
    neurons: Annotated[
        str | None,
        typer.Option(
            "--neurons", metavar="L5", rich_help_panel=VIEW, help="What a layer's neurons put in, one by one."
        ),
    ] = None,
    sampling: Annotated[bool, view("--sampling", "How the token was drawn: temperature, filters, number.")] = False,
    sub: Annotated[bool, view("--sub", "Rows between attention and MLP too.")] = False,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="N", rich_help_panel=VIEW, help="Show the columns around this token; -1 is the last."
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option("--every", metavar="N", min=1, rich_help_panel=VIEW, help="Every Nth layer. \\[what fits]"),
    ] = None,
    top: Annotated[
        int,
        typer.Option("--top", metavar="K", min=2, max=50, rich_help_panel=VIEW, help="Candidates kept in each cell."),
    ] = 5,
    ablate: o.Ablate = None,
    patch: o.Patch = None,
    mean: o.Mean = False,
    sweep: Annotated[
        Literal["heads", "mlps"] | None,
        typer.Option("--sweep", metavar="WHAT", rich_help_panel=IF, help="Each switched off by itself: heads or mlps."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Keep all of it as a .xray file.", show_default=False)
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--diff", metavar="A B", help="Compare two saved traces.", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help=f"{', '.join(FORMATS)}.")] = "text",
    width: Annotated[
        int | None, typer.Option("--width", metavar="N", min=40, help="Columns. \\[the terminal's]", show_default=False)
    ] = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    seed: o.XraySeed = None,
    color: o.PlainColor = None,
    bos: o.Bos = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
) -> None:
    """Look into the model while it writes: every token's way through the layers, with numbers that add up.

    The answer is greedy unless a sampling option is given. A trace made with --save shows its views again, without
    the model: gptcli xray run.xray --ledger. It holds walk, occlusion and sampling for one token only, the one that
    --token named or else the last of the prompt; and flow, neurons, a sweep or a what-if only if you asked for them.
    """
    flags = {k: v for k, v in locals().items() if k in OPTIONS and k != "max_tokens"}
    if form not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, not {form!r}")
    wanted = Wanted.read(ablate, patch, mean=mean)
    refuse_mean_alone(wanted, mean=mean, sweep=sweep is not None)
    one_head = None if head is None else read_place(head, option="--head")
    if one_head and one_head.part != "head":
        raise UsageError(f"--head {head!r} is not a head", hint="for example --head L5H2")
    layer = None if neurons is None else read_place(neurons, option="--neurons")
    if layer and layer.part not in ("layer", "mlp"):
        raise UsageError(f"--neurons {neurons!r} is not a layer", hint=f"for example --neurons L{layer.layer}")
    if alone and over_mean:
        raise UsageError(
            "--alone is of the logit itself, --over-mean of its distance from the mean", hint="leave out one of them"
        )
    asked = {
        "grid": grid, "ledger": ledger or over_mean or (alone and not walk and not neurons),
        "attention": attention or head is not None, "roles": roles, "norms": norms, "occlusion": occlusion,
        "walk": walk, "flow": flow or rollout, "neurons": neurons is not None, "draw": sampling,
        "mosaic": sweep is not None,
    }  # fmt: skip
    views = [name for name, on in asked.items() if on]
    if wanted and (
        whole := [
            "--rollout" if name == "flow" and not flow else f"--{name}"
            for name in ("roles", "occlusion", "walk", "flow", "neurons")
            if asked[name]
        ]
        + ["--sweep"] * bool(sweep)
    ):
        hint = f"leave out {whole[0]}, or --ablate and --patch"
        raise UsageError(f"{whole[0]} is of the model as it is, and not of one with parts switched off", hint=hint)
    chosen = bool(views) or sub or any(n is not None for n in (token, at, every))
    if wanted and not chosen:
        views = ["what_if"]
    views = views or (["track"] if token is not None else ["grid"])
    settings = settle(flags)
    output = Output()
    show = Show(
        output=output, form=form, width=width, color=settings["color"].value, views=tuple(views), token=token, at=at,
        every=every, alone=alone, over_mean=over_mean,
        sub=sub, head=(one_head.layer, one_head.head) if one_head else None, sweep=sweep,
        neurons=layer.layer if layer else None, weighted=weighted,
        rollout=rollout,
    )  # fmt: skip
    if diff is not None:
        refuse_given(ctx, ("prompt", *MAKING, *VIEWING), "--diff compares what two traces hold")
        show.difference(*diff)
        return
    refuse_unused(ctx, show)
    if prompt is not None and is_trace(prompt):
        if wanted:
            raise UsageError("a saved trace has no model to change", hint="give a prompt with --ablate or --patch")
        refuse_given(ctx, MAKING, "a saved trace is shown as it was made")
        show.replay(prompt, chosen=chosen)
        return
    if save is not None and not is_trace(str(save)):
        raise UsageError(f"--save {save}: the name of a trace ends in .xray", hint=f"--save {save}.xray")
    text = read_prompt(prompt, None, file)
    checkpoint, settings = load_chosen(
        flags, adapter=adapter, revision=revision, allow=allow_config or (), rounded="whole"
    )
    c, bits = checkpoint.config, settings["quantize"].value
    wanted.check(c.n_layer, c.n_head)
    show.check(n_layer=c.n_layer, n_head=c.n_head, parallel=c.parallel)
    drawn = sampling or any(flags[name] is not None for name in SAMPLING)
    rules = Sampling(**{name: settings[name].value for name in SAMPLING}) if drawn else Sampling(temperature=0)
    if sampling and not max_tokens:
        raise UsageError("--sampling shows how a token was drawn, and none is", hint="leave out -n 0")
    from gptcli.generation import prepare

    made = prepare(checkpoint, text, max_tokens=max_tokens, bos=bos)
    job = Job(
        checkpoint=checkpoint, prompt=made, max_tokens=max_tokens, rules=rules, seed=settings["seed"].value or 0,
        top=top, wanted=wanted, bos=bos, sweep=sweep, show=show, keep=save is not None, mean=mean,
    )  # fmt: skip
    found = dataclasses.replace(
        job.scan(), adapter=adapter and adapter_folder(adapter).resolve().name,
        rounding=None if bits == "none" else bits,
    )  # fmt: skip
    if save is not None:
        from gptcli.trace_file import save as save_trace

        save_trace(found, save)
    show.scan(found)


def is_trace(name: str) -> bool:
    """Whether a saved trace is meant, and not a text."""
    return name.endswith(".xray") and Path(name).suffix == ".xray"


def refuse_unused(ctx: typer.Context, show: Show) -> None:
    """Raises UsageError for an option that does nothing to any of the views; --token says what a trace keeps, too."""
    if show.form in ("json", "ndjson"):
        refuse_given(ctx, ("at", "every"), f"--format {show.form} holds all tokens and layers")
        refuse_given(ctx, ("weighted",), f"--format {show.form} holds looks and lengths")
        return
    views = {"head" if name == "attention" and show.head else name for name in show.views}
    saves = ctx.params.get("save") is not None
    for option, (able, what) in ONLY.items():
        if not (views & {*able} or (option == "token" and saves)):
            hint = "add --attention" if option == "weighted" else ""
            refuse_given(ctx, (option,), f"no view that was asked for {what}", hint=hint)
