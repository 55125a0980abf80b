"""The views of xray, and how they leave the program: drawn for people, as JSON, SVG or HTML for others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import BadCheckpoint, UsageError
from gptcli.places import Place, check_place, check_position
from gptcli.render import theme
from gptcli.render.output import Output
from gptcli.render.safe import harmless, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gptcli.records_xray import Scan

MALFORMED = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError)  # what a wrong record may lead to
FORMATS = ("text", "json", "ndjson", "svg", "html")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Which views, and how they leave the program."""

    output: Output
    form: str
    width: int | None
    color: str
    views: tuple[str, ...]
    token: int | None
    at: int | None
    every: int | None
    alone: bool
    over_mean: bool  # the ledger over the mean of all scores
    sub: bool
    head: tuple[int, int] | None
    sweep: str | None  # heads or mlps, where their mosaic is asked for
    neurons: int | None  # the layer whose neurons are asked for
    weighted: bool  # attention as what is taken from where
    rollout: bool  # flow by the looks alone

    def check(self, *, n_layer: int, n_head: int, parallel: bool) -> None:
        """Raises UsageError for what a model does not have: that head, or anything between attention and MLP."""
        if self.head is not None:
            place = Place(layer=self.head[0], part="head", head=self.head[1])
            check_place(place, n_layer=n_layer, n_head=n_head)
        if self.neurons is not None:
            check_place(Place(layer=self.neurons, part="mlp"), n_layer=n_layer, n_head=n_head)
        if self.sub and parallel:
            raise UsageError(
                "in this model attention and MLP add at the same time: there is nothing between them",
                hint="leave out --sub",
            )

    def position(self, n: int, n_prompt: int) -> int:
        """The token meant: the last of the prompt unless --token says. Raises UsageError, with the range."""
        if self.at is not None:
            check_position(self.at, n, option="--at")
        return n_prompt - 1 if self.token is None else check_position(self.token, n, option="--token")

    def cells(self, n: int, n_prompt: int) -> Sequence[int] | None:
        """The positions, of n, whose layers have to be read for the views; None: all."""
        if self.form in ("json", "ndjson"):
            return None
        position, shown = self.position(n, n_prompt), set[int]()
        if "grid" in self.views:
            from gptcli.render.grid import at_most

            shown |= {*at_most(n, self._columns(), None if self.at is None else self.at % n)}
        return sorted(shown | {position})

    def scan(self, scan: Scan) -> None:
        """Writes all views to standard output."""
        self.check(n_layer=scan.n_layer, n_head=scan.n_head, parallel=scan.parallel)
        position = self.position(scan.n_positions, scan.n_prompt)
        if self.form in ("json", "ndjson"):
            from gptcli.xray_json import lines, whole

            extra, sub = tuple(v for v in self.views if v not in ("grid", "track")), self.sub
            for name in extra:
                self._kept(scan, name)
            frames = [whole(scan, extra, between=sub)] if self.form == "json" else lines(scan, extra, between=sub)
            for frame in frames:
                self.output.json(frame)
            return
        colour = self.form in ("svg", "html") or theme.wants_colour(self.color, terminal=self.output.is_terminal)
        self._write([self._view(scan, name, position, colour=colour) for name in self.views], colour=colour)

    def replay(self, file: str, *, chosen: bool) -> None:
        """The same of a saved trace. Raises BadCheckpoint for one whose records are of other kinds than they should.

        chosen: whether a view was asked for; if not, a trace of a what-if shows that.
        """
        from gptcli.trace_file import load

        scan = load(file)
        if self.form not in ("json", "ndjson"):  # whose writer escapes what is to be, and keeps what was
            scan = harmless(scan)
        show = self if chosen or scan.what_if is None else replace(self, views=("what_if",))
        try:
            if self.sweep and scan.mosaic and scan.mosaic.what != self.sweep:
                hint = f"gptcli xray {one_line(file)} --sweep {scan.mosaic.what}"
                raise UsageError(f"this trace holds the mosaic of {scan.mosaic.what}, not of {self.sweep}", hint=hint)
            show.scan(scan)
        except MALFORMED as error:
            raise BadCheckpoint(f"{Path(file).name} is malformed: {type(error).__name__}: {error}") from None

    def difference(self, first: str, second: str) -> None:
        """Compares two traces. Raises UsageError for traces of different models, BadCheckpoint as `replay`."""
        from gptcli.trace_file import load

        a, b = (load(file) for file in (first, second))
        if a.fingerprint != b.fingerprint:
            raise UsageError(
                f"{first} is of {a.model} and {second} of {b.model}: traces of different models are not compared",
                hint="make both with one model; its weights, dtype, prompt or edits may differ",
            )
        try:
            if self.form in ("json", "ndjson"):
                from gptcli.xray_json import difference, difference_lines

                for frame in [difference(a, b)] if self.form == "json" else difference_lines(a, b):
                    self.output.json(frame)
                return
            from gptcli.render.versus import draw

            colour = self.form in ("svg", "html") or theme.wants_colour(self.color, terminal=self.output.is_terminal)
            self._write([draw(harmless(a), harmless(b), (first, second), colour=colour)], colour=colour)
        except MALFORMED as error:
            names = f"{Path(first).name} or {Path(second).name}"
            raise BadCheckpoint(f"{names} is malformed: {type(error).__name__}: {error}") from None

    def _write(self, views: list[RenderableType], *, colour: bool) -> None:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        for i, drawn in enumerate(views):
            parts += [Text(), drawn] if i else [drawn]
        if self.form in ("svg", "html"):
            self.output.write(theme.exported(Group(*parts), form=self.form, width=self._columns()))
        else:
            self.output.write(theme.drawn(Group(*parts), colour=colour, width=self.width))

    def _view(self, scan: Scan, name: str, position: int, *, colour: bool) -> RenderableType:
        rows, light = self._most_rows(), theme.light_background() and self.form == "text"
        cursor = self.at if self.at is None else self.at % scan.n_positions
        if name == "grid":  # each view is imported by itself: a replay is to start at once
            from gptcli.render import grid

            return grid.draw(
                scan, colour=colour, cursor=cursor, most_rows=rows, every=self.every, between=self.sub, light=light
            )
        if name == "track":
            from gptcli.render import track

            return track.draw(scan, position, colour=colour, light=light)
        if name == "ledger":
            self._kept(scan, name)
            from gptcli.render import ledger

            return ledger.draw(scan, position, alone=self.alone, over_mean=self.over_mean, colour=colour, light=light)
        if name == "norms":
            from gptcli.render import lengths

            return lengths.draw(scan, position, colour=colour, cursor=cursor, most_rows=rows, every=self.every)
        kept = self._kept(scan, name)
        if name in ("attention", "roles"):
            from gptcli.render import heads

            if name == "roles":
                return heads.draw_roles(scan, kept, colour=colour, every=self.every)
            return heads.draw(
                scan, position, head=self.head, colour=colour, cursor=cursor, most_rows=rows, every=self.every,
                light=light, weighted=self.weighted,
            )  # fmt: skip
        if name == "flow":
            from gptcli.render import flow

            if cursor is not None and cursor > position:
                raise UsageError(
                    f"--at {self.at} is behind position {position}, whose vector holds nothing of later tokens",
                    hint=f"--token {cursor}, or an earlier --at",
                )
            return flow.draw(
                scan, position, rollout=self.rollout, colour=colour, cursor=cursor, most_rows=rows, every=self.every,
                light=light,
            )  # fmt: skip
        if name == "walk":
            from gptcli.render import walk

            return walk.draw(scan, kept, colour=colour, light=light)
        if name == "neurons":
            from gptcli.render import neurons

            return neurons.draw(scan, kept, colour=colour, light=light)
        from gptcli.render import changes

        if name == "occlusion":
            return changes.draw_occlusion(scan, kept, colour=colour, light=light)
        if name == "draw":
            return changes.draw_draw(scan, kept, colour=colour, light=light)
        if name == "mosaic":
            return changes.draw_mosaic(scan, kept, colour=colour, every=self.every)
        return changes.draw_what_if(scan, kept, colour=colour)

    def _kept(self, scan: Scan, name: str) -> Any:
        """What a scan holds for a view. Raises UsageError if it holds nothing, or that of another token."""
        if name == "ledger" and self.over_mean and scan.books and not any(book.over_mean for book in scan.books):
            hint = "make it again with --ledger --over-mean --save FILE"
            raise UsageError("this trace is of a time before --over-mean, and does not hold what it shows", hint=hint)
        if name in ("ledger", "norms"):
            return None
        kept = getattr(scan, name)
        flags = {"draw": "--sampling", "mosaic": f"--sweep {self.sweep}", "neurons": f"--neurons L{self.neurons}"}
        flag = "--rollout" if name == "flow" and self.rollout else flags.get(name, f"--{name}")
        if kept is None:
            hint = f"make it again with {flag} --save FILE"
            raise UsageError(f"this trace does not hold what {flag} shows", hint=hint)
        if name == "attention" and self.weighted and kept.lengths is None:
            hint = "make it again with --attention --save FILE"
            raise UsageError("this trace is of a time before --weighted, and does not hold what it shows", hint=hint)
        if name == "neurons" and kept.layer != self.neurons:
            raise UsageError(
                f"this trace holds the neurons of L{kept.layer}, not of L{self.neurons}",
                hint=f"make it again with {flag} --save FILE",
            )
        if name in ("walk", "neurons", "occlusion", "draw") and self.token is not None:
            position = self.position(scan.n_positions, scan.n_prompt)
            if kept.position != position:
                hint = f"make it again with {flag} --token {self.token} --save FILE"
                raise UsageError(f"this trace holds {flag} of position {kept.position}, not of {position}", hint=hint)
        if name in ("walk", "neurons") and self.alone and kept.rival is not None:
            hint = f"make it again with {flag} --alone --save FILE"
            raise UsageError(f"this trace holds the {name} of a lead, and not of the token alone", hint=hint)
        return kept

    def _columns(self) -> int:
        if self.form in ("svg", "html"):
            return self.width or 110
        return theme.console(colour=False, width=self.width).width

    def _most_rows(self) -> int:
        return max(8, shutil.get_terminal_size().lines - 11) if self.output.is_terminal and self.form == "text" else 42
