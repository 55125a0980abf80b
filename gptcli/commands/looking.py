"""What one call of xray computes: the run, and whatever its views need beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gptcli.commands.editing import Wanted, refuse_mean_of_one
from gptcli.commands.views import Show
from gptcli.errors import UsageError
from gptcli.sampling import Sampling

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.records import Prompt
    from gptcli.records_xray import Scan
    from gptcli.scan import Run
    from gptcli.trace import Trace
    from gptcli.whatif import Edits


@dataclass(frozen=True, kw_only=True)
class Job:
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
