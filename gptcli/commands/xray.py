"""gptcli xray: the way of each token through the layers, from a model or from a saved trace."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptcli.commands import options as o
from gptcli.commands.editing import Wanted, refuse_mean_alone, refuse_mean_of_one
from gptcli.commands.given import refuse_given
from gptcli.commands.loading import load_chosen
from gptcli.commands.prompt import read_prompt
from gptcli.commands.views import FORMATS, Show
from gptcli.errors import UsageError
from gptcli.model_choice import adapter_folder
from gptcli.places import read_place
from gptcli.render.output import Output
from gptcli.sampling import Sampling
from gptcli.settings import OPTIONS, settle

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.records import Prompt
    from gptcli.records_xray import Scan
    from gptcli.scan import Run
    from gptcli.trace import Trace
    from gptcli.whatif import Edits

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
            help="The track of token N; with other views, the token they are about.",
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
        int | None, typer.Option("--at", metavar="N", rich_help_panel=VIEW, help="Show the columns around this token.")
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
            "--alone is of the logit itself, --over-mean of its distance from the mean", hint="one of them"
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
    job = _Job(
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
            refuse_given(ctx, (option,), f"no view that was asked for {what}")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is to be computed for one call."""

    checkpoint: Checkpoint
    prompt: Prompt
    max_tokens: int
    rules: Sampling
    seed: int
    top: int
    wanted: Wanted
    bos: bool | None
    sweep: Literal["heads", "mlps"] | None
    mean: bool
    show: Show
    keep: bool

    def scan(self) -> Scan:
        """Runs the text, and whatever the views need beside it."""
        from gptcli.scan import run, scan

        if "flow" in self.show.views:
            from gptcli.flow import check_length

            check_length(self.checkpoint.config, len(self.prompt.ids))
        needs_plain = bool(self.wanted) or self.sweep is not None
        plain = run(self.checkpoint, self.prompt, max_tokens=0) if needs_plain else None
        edits = self._edits(plain.trace) if plain and self.wanted else None
        views = self.show.views
        done = run(
            self.checkpoint, self.prompt, max_tokens=self.max_tokens, sampling=self.rules, seed=self.seed, edits=edits,
            heads=self.keep or bool({"ledger", "attention", "flow", "walk"} & {*views}),
        )  # fmt: skip
        T = done.trace.n_positions
        position = self.show.position(T, len(self.prompt.ids))
        cells = None if self.keep else self.show.cells(T, len(self.prompt.ids))
        every = range(T) if cells is None else cells
        between = every if self.keep or self.show.sub else [position] if "track" in views else []
        found = scan(
            self.checkpoint, done, top=self.top, cells=cells, between=between, heads=self.keep or "ledger" in views,
            over_mean=self.keep or self.show.over_mean or ("ledger" in views and self.show.form in ("json", "ndjson")),
            attention=self.keep or "attention" in views, edits=edits, edited=self.wanted.words,
        )  # fmt: skip
        return self._with_more(found, done, plain, position)

    def _with_more(self, found: Scan, done: Run, plain: Run | None, position: int) -> Scan:
        from gptcli.records_xray import Occlusion
        from gptcli.scan import roles, spelled

        more: dict[str, Any] = {}
        views = self.show.views
        if self.keep or {"roles", "ledger", "walk", "attention"} & {*views}:  # the views that name heads say what for
            more["roles"] = roles(self.checkpoint)
            if "roles" in views and more["roles"] is None:
                raise UsageError("this model's context has no room for two tokens said twice: no roles can be measured")
        if "occlusion" in views or (self.keep and not self.wanted):
            from gptcli.occlusion import neutral_token, occlusion

            target, neutral = found.answers[position], neutral_token(self.checkpoint)
            loss = occlusion(self.checkpoint, done.ids[: position + 1], target, neutral)
            more["occlusion"] = Occlusion(
                position=position, target=target, neutral=neutral, loss=tuple(float(x) for x in loss)
            )
        if "walk" in views or (self.keep and not self.wanted and not found.check.no_ledger):
            from gptcli.walk import walk

            rival = None if self.show.alone else found.rivals[position]
            more["walk"] = walk(done.trace, position, found.answers[position], rival)
        if "flow" in views:
            from gptcli.scan import sources

            more["flow"] = sources(done.trace)
        if self.show.neurons is not None:
            from gptcli.neurons import neurons

            rival = None if self.show.alone else found.rivals[position]
            more["neurons"] = neurons(
                self.checkpoint, done.trace, self.show.neurons, position, found.answers[position], rival
            )
        if done.steps and ("draw" in views or self.keep):
            from gptcli.draws import draw_of

            index = position - len(self.prompt.ids) + 1
            if index not in range(len(done.steps)):
                if "draw" in views:
                    first, last = (len(self.prompt.ids) - 1 + i for i in (0, len(done.steps) - 1))
                    raise UsageError(
                        f"the token after position {position} was not drawn, it was given",
                        hint=f"--token {first} to {last} are the positions whose next token was drawn",
                    )
                index = 0 if index < 0 else len(done.steps) - 1
            more["draw"] = draw_of(self.checkpoint, done, index, self.rules)
        if plain and self.wanted:
            more["what_if"] = self._what_if(done, plain)
        if plain and self.sweep:
            more["mosaic"] = self._mosaic(plain)
        ids = {i for record in more.values() for i in _ids(record)} - found.pieces.keys()
        pieces, special = spelled(self.checkpoint, ids)
        return dataclasses.replace(
            found, **more, pieces={**found.pieces, **pieces}, special={**found.special, **special}
        )

    def _edits(self, plain: Trace) -> Edits:
        return self.wanted.edits(self.checkpoint, self.prompt, plain, bos=self.bos)

    def _best_two(self, plain: Run) -> tuple[int, int]:
        """What the unchanged model says after the prompt, and the best other token."""
        from gptcli.lens import read

        best = read(self.checkpoint.decoder, plain.trace.states[-1:, -1:], top=2, size=self.checkpoint.n_tokens).ids
        return int(best[0, 0, 0]), int(best[0, 0, -1])

    def _what_if(self, done: Run, plain: Run) -> Any:
        from gptcli.records_xray import WhatIf
        from gptcli.scan import run
        from gptcli.whatif import direct_effect, effect

        ck, wanted = self.checkpoint, self.wanted
        target, rival = self._best_two(plain)
        before = run(ck, self.prompt, max_tokens=self.max_tokens, sampling=self.rules, seed=self.seed)
        after = run(ck, self.prompt, max_tokens=0, edits=self._edits(plain.trace))
        direct = None
        if not wanted.patches:
            looks = wanted.looks_in(self.prompt)
            direct = direct_effect(plain.trace, wanted.ablate, target, rival, to_mean=wanted.to_mean, looks=looks)
        e = effect(ck, plain.trace, after.trace, target, rival, direct)
        return WhatIf(
            edits=wanted.words, how=wanted.how, before=before.ids[len(self.prompt.ids) :],
            after=done.ids[len(self.prompt.ids) :], target=target, rival=rival, logprob=e.logprob, rank=e.rank,
            best=e.best, kl=e.kl, lead=e.lead, direct=e.direct, js=e.js,
            moved=e.moved,
        )  # fmt: skip

    def _mosaic(self, plain: Run) -> Any:
        from gptcli.records_xray import Mosaic
        from gptcli.scan import table
        from gptcli.whatif import sweep

        assert self.sweep is not None
        if self.mean:
            refuse_mean_of_one(len(self.prompt.ids))
        target, rival = self._best_two(plain)
        found = sweep(self.checkpoint, plain.trace, self.sweep, target, rival, to_mean=self.mean)
        return Mosaic(
            what=self.sweep, how="mean" if self.mean else "zero", target=target, rival=rival,
            logprob=table(found.logprob.float()), lead=table(found.lead.float()),
            direct=None if found.direct is None else table(found.direct.float()), best=table(found.best),
        )  # fmt: skip


def _ids(record: Any) -> set[int]:
    """Tokens that a record names."""
    names = ("target", "rival", "neutral", "chosen")
    ids = {id for name in names if (id := getattr(record, name, None)) is not None}
    for name in ("before", "after", "best"):
        value = getattr(record, name, ())
        ids |= set(value) if isinstance(value, tuple) else {int(x) for row in value.rows() for x in row}
    ids |= {option.id for option in getattr(record, "options", ())}
    return ids | {id for neuron in getattr(record, "shown", ()) for id in neuron.raises}
