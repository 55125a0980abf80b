"""The views: every width, with colours and without, and tokens that are no plain words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from xray_checks import IDS

from gptcli import Sampling, load
from gptcli.draws import draw_of
from gptcli.generation import prepare
from gptcli.occlusion import occlusion
from gptcli.records_xray import Mosaic, Occlusion, Roles, Scan, WhatIf
from gptcli.render import changes, grid, heads, ledger, lengths, theme, track, versus, walk
from gptcli.render.cell import (
    Blocks,
    bar,
    believed,
    fit,
    layers_shown,
    level,
    luminance,
    probability,
    signed,
    smooth,
    texts,
    two_sided,
    window,
)
from gptcli.scan import roles, run, scan, table
from gptcli.walk import walk as walk_back
from gptcli.whatif import sweep

SGR = re.compile(r"\x1b\[[0-9;]*m")
WILD = ["漢字".encode(), b"\n", b"\t\x1b[2J", b"\xe2\x82", "é\u202e".encode(), b" [bold]", b" ", "👩‍👩‍👧".encode()]


@pytest.fixture(scope="module")
def found(tiny_gpt2: Path) -> Scan:
    """A scan with everything in it, whose tokens are wild."""
    checkpoint = load(str(tiny_gpt2))
    sampling = Sampling(temperature=1.0)
    done = run(checkpoint, prepare(checkpoint, IDS[:14]), max_tokens=5, sampling=sampling)
    made = scan(checkpoint, done, heads=True, attention=True, between=range(done.trace.n_positions))
    loss = tuple(float(x) for x in occlusion(checkpoint, done.ids[:14], made.answers[13], 5))
    swept = sweep(
        checkpoint, run(checkpoint, prepare(checkpoint, IDS[:14]), max_tokens=0).trace, "heads", 7, 8, to_mean=False
    )
    assert swept.direct is not None
    pieces = {id: WILD[i % len(WILD)] if i % 3 else raw for i, (id, raw) in enumerate(made.pieces.items())}
    return dataclasses.replace(
        made, pieces=pieces, roles=roles(checkpoint, n=8), draw=draw_of(checkpoint, done, 2, sampling),
        walk=walk_back(done.trace, 16, made.answers[16], made.rivals[16]),
        occlusion=Occlusion(position=13, target=made.answers[13], neutral=5, loss=loss),
        mosaic=Mosaic(what="heads", how="zero", target=7, rival=8, logprob=table(swept.logprob), lead=table(swept.lead),
                      direct=table(swept.direct), best=table(swept.best)),
        what_if=WhatIf(edits=("L1H2",), how="mean", before=done.ids[14:], after=(*done.ids[14:16], 9), target=7,
                       rival=8, logprob=(-1.0, -2.5), rank=(1, 9), best=(7, 9), kl=0.0002, lead=(1.0, -0.5),
                       direct=-0.75, js=0.0301, moved=0.0879),
    )  # fmt: skip


VIEWS: dict[str, Callable[..., Any]] = {
    "grid": lambda s, colour: grid.draw(s, colour=colour),
    "grid-sub": lambda s, colour: grid.draw(s, colour=colour, between=True, cursor=3, most_rows=2),
    "track": lambda s, colour: track.draw(s, 13, colour=colour),
    "ledger": lambda s, colour: ledger.draw(s, 13, alone=False, colour=colour),
    "ledger-alone": lambda s, colour: ledger.draw(s, 0, alone=True, colour=colour),
    "attention": lambda s, colour: heads.draw(s, 13, head=None, colour=colour),
    "head": lambda s, colour: heads.draw(s, 13, head=(1, 2), colour=colour),
    "roles": lambda s, colour: heads.draw_roles(s, s.roles, colour=colour),
    "walk": lambda s, colour: walk.draw(s, s.walk, colour=colour),
    "norms": lambda s, colour: lengths.draw(s, 13, colour=colour),
    "occlusion": lambda s, colour: changes.draw_occlusion(s, s.occlusion, colour=colour),
    "draw": lambda s, colour: changes.draw_draw(s, s.draw, colour=colour),
    "what-if": lambda s, colour: changes.draw_what_if(s, s.what_if, colour=colour),
    "mosaic": lambda s, colour: changes.draw_mosaic(s, s.mosaic, colour=colour),
    "versus": lambda s, colour: versus.draw(s, s, ("a.xray", "b\x1b.xray"), colour=colour),
}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_fits_its_width_and_cannot_steer_the_terminal(found: Scan, view: str, width: int) -> None:
    plain = theme.drawn(VIEWS[view](found, False), colour=False, width=width)
    coloured = SGR.sub("", theme.drawn(VIEWS[view](found, True), colour=True, width=width))
    for text in (plain, coloured):
        for line in text.splitlines():
            assert cell_len(line) <= width, line
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", line), line
    assert "lens(last) = logits ✓" in plain and "ledger error ✓" in plain
    assert "0.00 " not in plain.replace("+0.00", "").replace("−0.00", "")  # <.01 is said so


def test_heads_that_have_a_role_are_called_by_it(found: Scan) -> None:
    """Where a head rests is no role; without a measurement there is none."""
    L, H = found.n_layer, found.n_head
    share = {"previous": 0.1, "duplicate": 0.05, "induction": 0.31, "sink": 0.5}
    made = Roles(n_tokens=8, **{name: table(torch.full((L, H), x)) for name, x in share.items()})
    for views in (("ledger", "head", "walk"), ("roles",)):
        for view in views:
            drawn = theme.drawn(VIEWS[view](dataclasses.replace(found, roles=made), False), colour=False, width=200)
            assert ("⊥ .50" if view == "roles" else "induction .31") in drawn
    for view in ("ledger", "head", "walk"):
        drawn = theme.drawn(VIEWS[view](dataclasses.replace(found, roles=None), False), colour=False, width=200)
        assert "induction" not in drawn


@pytest.mark.parametrize("width", [36, 50, 60, 80, 120])
@pytest.mark.parametrize("view", [track, lengths])
def test_a_column_is_explained_where_it_is_shown(found: Scan, view: Any, width: int) -> None:
    drawn = theme.drawn(view.draw(found, 5, colour=False), colour=False, width=width)
    heading = next(line for line in drawn.splitlines() if "|attn|/|x|" in line or "wrote" in line)
    assert ("cos: of a write" in drawn) == (" cos " in f"{heading} ")


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("cursor", [None, 0, 9, 25])
def test_only_the_columns_that_are_shown_are_read(tiny_gpt2: Path, width: int, cursor: int | None) -> None:
    """The picture is that of a scan of all positions, down to its legend."""
    checkpoint = load(str(tiny_gpt2))
    done = run(checkpoint, prepare(checkpoint, (IDS * 2)[:26]), max_tokens=3)
    T = done.trace.n_positions
    at = [*grid.at_most(T, width, cursor)]
    part, everything = scan(checkpoint, done, cells=at, between=at), scan(checkpoint, done, between=range(T))
    assert part.cells.positions == tuple(at) and len(everything.cells.positions) == T
    for colour, legend in ((False, "p: ▁"), (True, "p 0 ")):
        pictures = [
            theme.drawn(grid.draw(s, colour=colour, cursor=cursor, between=True), colour=colour, width=width)
            for s in (part, everything)
        ]
        rows = [picture[: picture.index(legend)] for picture in pictures]
        assert rows[0] == rows[1] and rows[0].count("L1 attn") == 1


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_grid_s_columns_stand_under_each_other(found: Scan, width: int) -> None:
    lines = theme.drawn(grid.draw(found, colour=False), colour=False, width=width).splitlines()
    rows = [line for line in lines if re.match(r" *(answer|decided|L\d|emb|token) ", line)]
    assert [row.split()[0] for row in rows] == ["answer", "decided", "L1", "L0", "emb", "token"]
    path = [[_column(row, at) for at in _columns_of(row, "╮│╰")] for row in rows]
    assert path[0] and all(columns == path[0] for columns in path)  # one pink line for each token fed back
    n_shown = int(re.search(r"positions (\d+) to (\d+)", " ".join(lines))[1]) if "positions" in " ".join(lines) else 0
    assert len(path[0]) == min(4, found.n_positions - n_shown - 1)


def _columns_of(row: str, glyphs: str) -> list[int]:
    return [i for i, character in enumerate(row) if character in glyphs]


def _column(row: str, index: int) -> int:
    return cell_len(row[:index])


def test_without_colours_glyphs_say_it(found: Scan) -> None:
    text = theme.drawn(grid.draw(found, colour=False), colour=False, width=400)
    rows = [line for line in text.splitlines() if re.match(r" *(L\d|emb) ", line)]
    n_decided = sum(depth < len(found.cells.rows) for depth in found.depth)
    assert sum(row.count("◆") for row in rows) == n_decided
    standing = sum(max(0, len(found.cells.rows) - 1 - depth) for depth in found.depth)
    assert sum(row.count("●") for row in rows) == standing
    far = sum(
        found.cells.kl.number(r, i) >= 3 and r < found.depth[i]
        for r in range(len(found.cells.rows)) for i in range(found.n_positions)
    )  # fmt: skip
    assert sum(row.count("~") for row in rows) == far


def test_each_token_is_decided_once(found: Scan) -> None:
    """The rows between attention and MLP have numbers of their own, and no mark."""
    for between in (False, True):
        drawn = theme.drawn(grid.draw(found, colour=False, between=between), colour=False, width=400)
        rows = [line for line in drawn.splitlines() if re.match(r" *(L\d+|L\d+ attn|emb) ", line)]
        marked = [line for line in rows if "◆" in line]
        assert sum(line.count("◆") for line in rows) == sum(d <= found.n_layer for d in found.depth)
        assert not any("attn" in line for line in marked)


def test_a_mark_on_a_row_above_others_that_are_not_shown_is_explained(found: Scan) -> None:
    said = "decided here or in a row below it that is not shown"
    for every in (None, 1, 2):
        drawn = theme.drawn(grid.draw(found, colour=False, every=every), colour=False, width=200)
        assert (said in drawn) == (every == 2) and "decided here" in drawn


def test_a_run_that_was_changed_says_so_in_every_view(found: Scan) -> None:
    changed = dataclasses.replace(found, edits=("L1H2", "L0.mlp"))
    for view in VIEWS.values():
        assert "changed: L1H2, L0.mlp" in theme.drawn(view(changed, False), colour=False, width=200)


def test_what_changed_is_marked_without_colours(found: Scan) -> None:
    assert found.what_if is not None
    plain = dataclasses.replace(found, pieces={i: f" t{i}".encode() for i in found.pieces} | {9: b" nine"})
    before, after = found.what_if.before, found.what_if.after
    drawn = theme.drawn(changes.draw_what_if(plain, found.what_if, colour=False), colour=False, width=200)
    same = "".join(f" t{i}" for i in before[:2])
    assert f"before … {same}[{''.join(f' t{i}' for i in before[2:])}]" in drawn and after[2] == 9
    assert f"after … {same}[ nine]" in drawn
    first = theme.drawn(grid.draw(plain, colour=False), colour=False, width=200).splitlines()[0]
    assert first.index("│") == len("".join(f" t{i}" for i in found.ids[: found.n_prompt]))


def test_many_heads_stand_in_blocks_and_numbers_above_their_columns(found: Scan) -> None:
    names = [f"H{h}" for h in range(12)]
    blocks = Blocks(
        names, range(2), lambda i, h: Text(f"{i}:{h}".rjust(6)), width=6, right=True, side=(" total", "  {}".format)
    )
    lines = theme.drawn(blocks, colour=False, width=60).splitlines()
    assert [line.split() for line in lines] == [
        names[:7], ["L1", *(f"1:{h}" for h in range(7))], ["L0", *(f"0:{h}" for h in range(7))],
        [*names[7:], "total"], ["L1", *(f"1:{h}" for h in range(7, 12)), "1"],
        ["L0", *(f"0:{h}" for h in range(7, 12)), "0"],
    ]  # fmt: skip
    assert max(map(len, lines)) <= 60 and lines[0].index("H6") + 2 == lines[1].index("1:6") + 3
    shown = [line.split() for line in theme.drawn(blocks, colour=False, width=27).splitlines()]
    assert shown[-3:] == [["total"], ["L1", "1"], ["L0", "0"]]  # where the sums have no room they stand alone
    ruler = heads.ruler(range(93, 123))
    assert [ruler[3 * (n - 93) :].split()[0] for n in (95, 100, 115, 120)] == ["95", "100", "115", "120"]
    assert heads.ruler(range(1, 4)) == " 1  2  3 "


def test_characters_that_tokens_share_are_whole_in_the_text(found: Scan) -> None:
    a, b = found.ids[0], found.ids[1]
    halves = dataclasses.replace(
        found, ids=(a, b, *found.ids[2:]), pieces={**found.pieces, a: b"x\xf0\x9f", b: b"\x98\x80y"}
    )
    assert texts(halves, (a, b)) == ["x", "😀y"] and texts(halves, (a,)) == ["x�"] and texts(halves, ()) == []
    assert "x😀y" in theme.drawn(grid.draw(halves, colour=False), colour=False, width=100).splitlines()[0]


def test_stacks_keep_their_ends_and_windows_their_cursor() -> None:
    assert layers_shown(7, 10) == list(range(7))
    for n, most in ((31, 12), (81, 20), (13, 2), (25, 8)):
        shown = layers_shown(n, most)
        assert shown[0] == 0 and shown[-1] == n - 1 and len(shown) <= most and shown == sorted(set(shown))
        assert len({b - a for a, b in pairwise(shown[1:])}) <= 1
    assert layers_shown(9, 2, every=5) == [0, 3, 8] and layers_shown(9, 2, every=1) == list(range(9))
    assert layers_shown(9, 40, every=7) == [0, 1, 8] and layers_shown(1, 2, every=3) == [0]
    assert window(20, 6, None) == range(14, 20) and window(20, 6, 0) == range(6) and 10 in window(20, 6, 10)
    assert window(3, 9, None) == range(3) and window(5, 0, 2) == range(2, 3)


def test_numbers_are_said_with_what_they_mean() -> None:
    assert [probability(p) for p in (0, 0.004, 0.01, 0.5, 1.0)] == ["<.01", "<.01", "0.01", "0.50", "1.00"]
    assert [signed(x) for x in (0.0, 0.001, -0.001, -1.5, 2)] == ["0", "~0", "~0", "−1.50", "+2.00"]
    assert [level(p) for p in (0, 0.13, 0.99, 1.0)] == ["▁", "▂", "█", "█"]
    assert bar(0, 8) == "" and bar(1e-9, 8) == "▏" and bar(0.5, 8) == "████" and bar(2, 3) == "███"
    assert [two_sided(x, 1.0, 4, colour=False).plain for x in (-1, 0, 0.5, 9)] == [
        "████│    ", "    │    ", "    │██  ", "    │████",
    ]  # fmt: skip
    assert [cell_len(fit(text, 5)) for text in ("", "abc", "abcdefgh", "漢字漢字", "a漢字漢")] == [5] * 5
    assert fit("abcdefgh", 5) == "abcd…" and fit("ab", 5) == "ab   "


@pytest.mark.parametrize("light", [False, True])
def test_ink_can_be_read_on_every_cell(light: bool) -> None:
    for p in (i / 20 for i in range(21)):
        for kl in (0.0, 0.3, 1.0, 3.0, 30.0):
            style = believed(p, kl, light=light)
            assert isinstance(style, Style) and style.bgcolor and style.color
            a, b = sorted(luminance(c.name) for c in (style.bgcolor, style.color))
            assert (b + 0.05) / (a + 0.05) >= (4.5 if kl < 0.5 else 3.0), (p, kl)
    grey = [luminance(smooth(p / 50)) for p in range(51)]
    assert all(a < b for a, b in pairwise(grey))  # brighter means likelier, in grey too


def test_files_of_a_view_hold_it_and_fetch_nothing(found: Scan) -> None:
    for form in ("svg", "html"):
        text = theme.exported(grid.draw(found, colour=True), form=form, width=100)
        assert "decided" in text and "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
        assert "\x1b" not in text and "<script" not in text
