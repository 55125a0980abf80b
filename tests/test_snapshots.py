"""The x-ray's views as pictures: drawn from one saved trace, they are to the letter and the colour what is stored.

RENEW_SNAPSHOTS=1 pytest tests/test_snapshots.py   stores them anew; git diff shows what changed, less -R the colours

The trace is stored too, so that no machine's rounding can turn a digit. Where it is missing, renewing makes another.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from itertools import zip_longest
from pathlib import Path

import pytest
from test_strips import drawn as drawn_strips
from test_xray_views import VIEWS, everything

from gptcli.records import Candidate, Prompt, Step
from gptcli.records_xray import Neuron, Neurons, Scan, Sources, Strip
from gptcli.render import theme
from gptcli.tables import Table
from gptcli.trace_file import load as load_trace
from gptcli.trace_file import save as save_trace

SNAPSHOTS = Path(__file__).parent / "snapshots"
RENEW = os.environ.get("RENEW_SNAPSHOTS") == "1"
WIDTHS = (60, 80, 120, 200)
GROUNDS = {  # how a picture is drawn
    "plain.txt": {"colour": False, "light": False},
    "dark.ansi": {"colour": True, "light": False},
    "light.ansi": {"colour": True, "light": True},
}


@pytest.fixture(scope="module")
def trace(tiny_gpt2: Path) -> Scan:
    path = SNAPSHOTS / "wild.xray"
    if RENEW and not path.exists():
        SNAPSHOTS.mkdir(exist_ok=True)
        save_trace(dataclasses.replace(everything(tiny_gpt2), model="tiny", version=""), path)
    found = load_trace(path)
    ids = found.answers  # in a trace they are kept only where they were asked for
    shown = tuple(
        Neuron(index=7 * i, act=act, value=value, raises=ids[i : i + 3])
        for i, (act, value) in enumerate([(2.125, -0.5), (0.25, 0.375), (-0.125, 0.004), (1.0, 0.0)])
    )
    made = Neurons(layer=1, position=13, target=ids[13], rival=found.rivals[13], shown=shown, n_all=60, others=0.0625,
                   bias=-0.03125, write=-0.08975, error=3e-8)  # fmt: skip
    L, T = found.n_layer, found.n_positions

    def shares(*, last: int) -> Table:
        """Of each position in each vector; those from `last` on have none."""
        rows = [[(1 + (i * j + n) % 5) * (j <= min(i, last)) for j in range(T)] for n in range(L) for i in range(T)]
        return Table("F16", (L, T, T), struct.pack(f"<{L * T * T}e", *(x / sum(row) for row in rows for x in row)))

    bias = Table("F32", (L, T), struct.pack(f"<{L * T}f", *(0.125 / (1 + i) for i in range(L * T))))
    flow = Sources(shares=shares(last=T), rollout=shares(last=6), bias=bias, error=2e-8)
    return dataclasses.replace(found, neurons=made, flow=flow)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize(
    "view",
    ["grid", "track", "ledger", "head", "attention", "weighted", "roles", "norms", "walk", "neurons", "flow", "rollout",
     "occlusion", "draw", "what-if", "mosaic", "versus", "strip"],
)  # fmt: skip
def test_a_view_is_drawn_as_it_was(trace: Scan, view: str, ground: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    how, pictures = GROUNDS[ground], []
    for width in WIDTHS:
        picture = (
            strips(trace, width=width, **how)
            if view == "strip"
            else theme.drawn(VIEWS[view](trace, **how), colour=how["colour"], width=width)
        )
        pictures.append(f"=== {width} columns\n{picture}")
    text, stored = "\n".join(pictures), SNAPSHOTS / f"{view}-{ground}"
    if RENEW:
        stored.write_text(text, encoding="utf-8", newline="\n")
    lines = zip_longest(stored.read_text(encoding="utf-8").split("\n"), text.split("\n"))
    for n, (was, now) in enumerate(lines, 1):  # line by line: to compare such texts as a whole takes pytest minutes
        assert was == now, f"{stored.name}, line {n}; if it is meant to be so: {__doc__}"


def strips(scan: Scan, *, width: int, **how: bool) -> str:
    """The strip of each token that the trace's answer has, as generate --xray would have shown it."""
    steps, cells, last = [], scan.cells, scan.n_layer
    for i in range(scan.n_prompt - 1, scan.n_positions):
        id, logprobs, ranks = scan.answers[i], cells.logprob.column(i), cells.rank.column(i)
        best = zip(cells.ids.ids(last, i), cells.logprobs.row(last, i), strict=True)
        top = tuple(Candidate(id=other, raw=scan.pieces[other], logprob=logprob) for other, logprob in best)
        steps.append((
            Step(index=len(steps), id=id, raw=scan.pieces[id], logprob=logprobs[-1], p=1.0, n_kept=1, draw=None,
                 margin=1.0, top=top),
            Strip(logprobs=logprobs, kl=cells.kl.column(i), stands=tuple(rank == 1 for rank in ranks),
                  rank=int(ranks[-1]), error=0.0),
        ))  # fmt: skip
    ids = scan.ids[: scan.n_prompt]
    prompt = Prompt(text="two\nlines", ids=ids, raws=tuple(scan.pieces[id] for id in ids))
    return drawn_strips(prompt, steps, n_layer=scan.n_layer, width=width, **how)
