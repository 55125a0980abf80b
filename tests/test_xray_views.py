"""The views: every width, with colours and without, and tokens that are no plain words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from xray_checks import IDS

from gptcli import Sampling, load
from gptcli.draws import draw_of
from gptcli.generation import prepare
from gptcli.neurons import neurons as neurons_of
from gptcli.occlusion import occlusion
from gptcli.records_xray import Mosaic, Occlusion, Roles, Scan, WhatIf
from gptcli.render import changes, flow, grid, heads, ledger, lengths, neurons, theme, tour, track, versus, walk
from gptcli.render.bars import bar
from gptcli.render.cell import (
    Blocks,
    believed,
    compact,
    fit,
    layers_shown,
    level,
    luminance,
    probability,
    signed,
    smooth,
    texts,
    two_sided,
    vector,
    window,
)
from gptcli.render.check import sizes
from gptcli.scan import roles, run, scan, sources, table
from gptcli.tour import page as page_of
from gptcli.walk import walk as walk_back
from gptcli.whatif import sweep

SGR = re.compile(r"\x1b\[[0-9;]*m")
WILD = ["漢字".encode(), b"\n", b"\t\x1b[2J", b"\xe2\x82", "é\u202e".encode(), b" [bold]", b" ", "👩‍👩‍👧".encode()]


@pytest.fixture(scope="module")
def found(tiny_gpt2: Path) -> Scan:
    return everything(tiny_gpt2)


def everything(folder: Path) -> Scan:
    """A scan with everything in it, whose tokens are wild."""
    checkpoint = load(str(folder))
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
        flow=sources(done.trace),
        neurons=neurons_of(checkpoint, done.trace, 1, 13, made.answers[13], made.rivals[13]),
        occlusion=Occlusion(position=13, target=made.answers[13], neutral=5, loss=loss),
        mosaic=Mosaic(what="heads", how="zero", target=7, rival=8, logprob=table(swept.logprob), lead=table(swept.lead),
                      direct=table(swept.direct), best=table(swept.best)),
        what_if=WhatIf(edits=("L1H2",), how="mean", before=done.ids[14:], after=(*done.ids[14:16], 9), target=7,
                       rival=8, logprob=(-1.0, -2.5), rank=(1, 9), best=(7, 9), kl=0.0002, lead=(1.0, -0.5),
                       direct=-0.75, js=0.0301, moved=0.0879),
    )  # fmt: skip


VIEWS: dict[str, Callable[..., Any]] = {
    "grid": lambda s, **how: grid.draw(s, **how),
    "grid-sub": lambda s, **how: grid.draw(s, between=True, cursor=3, most_rows=2, **how),
    "track": lambda s, **how: track.draw(s, 13, **how),
    "ledger": lambda s, **how: ledger.draw(s, 13, alone=False, **how),
    "ledger-alone": lambda s, **how: ledger.draw(s, 0, alone=True, **how),
    "attention": lambda s, **how: heads.draw(s, 13, head=None, **how),
    "head": lambda s, **how: heads.draw(s, 13, head=(1, 2), **how),
    "weighted": lambda s, **how: heads.draw(s, 13, head=None, weighted=True, **how),
    "head-weighted": lambda s, **how: heads.draw(s, 13, head=(1, 2), weighted=True, **how),
    "roles": lambda s, colour, **_: heads.draw_roles(s, s.roles, colour=colour),
    "walk": lambda s, **how: walk.draw(s, s.walk, **how),
    "flow": lambda s, **how: flow.draw(s, 13, **how),
    "rollout": lambda s, **how: flow.draw(s, 13, rollout=True, **how),
    "neurons": lambda s, **how: neurons.draw(s, s.neurons, **how),
    "norms": lambda s, colour, **_: lengths.draw(s, 13, colour=colour),
    "occlusion": lambda s, **how: changes.draw_occlusion(s, s.occlusion, **how),
    "draw": lambda s, **how: changes.draw_draw(s, s.draw, **how),
    "what-if": lambda s, colour, **_: changes.draw_what_if(s, s.what_if, colour=colour),
    "mosaic": lambda s, colour, **_: changes.draw_mosaic(s, s.mosaic, colour=colour),
    "versus": lambda s, colour, **_: versus.draw(s, s, ("a.xray", "b\x1b.xray"), colour=colour),
}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_fits_its_width_and_cannot_steer_the_terminal(found: Scan, view: str, width: int) -> None:
    plain = theme.drawn(VIEWS[view](found, colour=False), colour=False, width=width)
    coloured = SGR.sub("", theme.drawn(VIEWS[view](found, colour=True), colour=True, width=width))
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
            drawn = theme.drawn(
                VIEWS[view](dataclasses.replace(found, roles=made), colour=False), colour=False, width=200
            )
            assert ("⊥ .50" if view == "roles" else "induction .31") in drawn
    for view in ("ledger", "head", "walk"):
        drawn = theme.drawn(VIEWS[view](dataclasses.replace(found, roles=None), colour=False), colour=False, width=200)
        assert "induction" not in drawn


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_a_head_s_line_of_the_ledger_keeps_value_and_role_and_leaves_out_sources(found: Scan, width: int) -> None:
    """What is left out is among the others, which are named only where there are any."""
    book = next(book for book in found.books if book.against_rival)
    assert book.heads
    for position in (1, 13):
        drawn = theme.drawn(ledger.draw(found, position, alone=False, colour=False), colour=False, width=width)
        lines = [line for line in drawn.splitlines() if re.match(r" *L\d+H\d", line)]
        assert len(lines) == found.n_layer * found.n_head
        for line in lines:
            i, h = map(int, re.findall(r"\d+", line)[:2])
            role = heads.called(found, i, h)
            value, n = book.heads.number(i, h, position), line.count("@")
            assert line.split()[1] == signed(value) and line.endswith(role) and "…" not in line
            assert ("others" in line) == (n > 0 and n < position + 1)
            said = [float(x.replace("−", "-").replace("~", "")) for x in re.findall(r"(?:@\d+|others) (\S+)", line)]
            assert not n or sum(said) == pytest.approx(value, abs=0.005 * (n + 2))
    assert width > 44 or max(line.count("@") for line in lines) < 3


@pytest.mark.parametrize("width", [36, 50, 60, 80, 120])
@pytest.mark.parametrize("view", [track, lengths])
def test_a_column_is_explained_where_it_is_shown(found: Scan, view: Any, width: int) -> None:
    drawn = theme.drawn(view.draw(found, 5, colour=False), colour=False, width=width)
    heading = next(line for line in drawn.splitlines() if "|attn|/|x|" in line or "wrote" in line)
    assert ("cos: of a write" in drawn) == (" cos " in f"{heading} ")


@pytest.mark.parametrize("first", [1.5, 1e4])
@pytest.mark.parametrize("width", [60, 200])
def test_a_mark_outside_the_scale_is_explained_where_it_is_shown(found: Scan, first: float, width: int) -> None:
    states = torch.linspace(1, 2, (found.n_layer + 1) * found.n_positions).view(found.n_layer + 1, -1)
    states[:, 0] = first
    made = dataclasses.replace(found, lengths=dataclasses.replace(found.lengths, states=table(states)))
    drawn = theme.drawn(lengths.draw(made, 5, colour=False), colour=False, width=width)
    assert "⊥ position 0, outside the scale" in drawn if first > 2 and width == 200 else "⊥" not in drawn


def test_sizes_in_footers_have_separators() -> None:
    assert sizes(49152, 49152) == "tokenizer 49,152 = head 49,152"
    assert sizes(49152, 50257).startswith("tokenizer 49,152 < head 50,257:")
    assert sizes(50257, 49152) == "tokenizer 50,257 > head 49,152"


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
        assert "changed: L1H2, L0.mlp" in theme.drawn(view(changed, colour=False), colour=False, width=200)


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


@pytest.mark.parametrize(
    ("light", "grounds"), [(False, ("#000000", "#1b1d21", "#282c34")), (True, ("#ffffff", "#fafaf8", "#eee8d5"))]
)
@pytest.mark.parametrize("view", VIEWS)
def test_all_that_is_drawn_in_a_colour_can_be_read(
    found: Scan, view: str, light: bool, grounds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the terminal's own ground, or on the colour that it stands on; #1b1d21 is that of the files."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    text = theme.drawn(VIEWS[view](found, colour=True, light=light), colour=True, width=160)
    for on in grounds:
        assert least_contrast(text, on) >= 3.0, on


@pytest.mark.parametrize(("colorfgbg", "on"), [("15;0", "#000000"), ("0;15", "#ffffff")])
def test_the_tour_s_x_ray_can_be_read_on_dark_and_on_light(
    found: Scan, colorfgbg: str, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORFGBG", colorfgbg)
    monkeypatch.setenv("COLORTERM", "truecolor")
    for page in (page_of.Grid(scan=found), page_of.Track(scan=found, position=13)):
        assert least_contrast(theme.drawn(tour.picture(page, colour=True), colour=True, width=100), on) >= 3.0


def least_contrast(text: str, ground: str) -> float:
    """Of all that is written in a colour of its own."""
    least, drawn = 21.0, Text.from_ansi(text)
    for span in drawn.spans:
        style = span.style
        assert isinstance(style, Style)
        if style.color and style.color.triplet and drawn.plain[span.start : span.end].strip():
            on = style.bgcolor.triplet.hex if style.bgcolor and style.bgcolor.triplet else ground
            a, b = sorted(luminance(c) for c in (style.color.triplet.hex, on))
            least = min(least, (b + 0.05) / (a + 0.05))
    return least


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


def test_short_lengths_are_never_0_00(found: Scan) -> None:
    """Neither as shares of long vectors nor by themselves; what is 0 is said to be."""
    n = found.lengths
    longer, shorter = (
        dataclasses.replace(n, states=table(torch.tensor(n.states.nested()) * 1000)),
        dataclasses.replace(
            n, **{name: table(torch.tensor(getattr(n, name).nested()) / 1e5) for name in ("attn", "mlp")}
        ),
    )
    for made in (longer, shorter):
        for view in ("norms", "track"):
            drawn = theme.drawn(
                VIEWS[view](dataclasses.replace(found, lengths=made), colour=False), colour=False, width=200
            )
            assert not re.search(r"(?<![\d.+−])0\.00(?!\d)", drawn)
            assert "<.01" in drawn
    assert [compact(x) for x in (0, 1e-9, 0.0049, 0.0051, 0.42, 9.94, 35.2, 704, 24_600)] == [
        "0", "<.01", "<.01", "0.01", "0.42", "9.94", "35.2", "704", "25k",
    ]  # fmt: skip


def test_columns_and_rows_that_are_left_out_are_counted(found: Scan) -> None:
    """With room for all nothing is said."""
    last = found.n_positions - 1
    for name, draw in (
        ("positions", lambda **how: lengths.draw(found, 13, colour=False, **how)),
        ("keys", lambda **how: heads.draw(found, 13, head=(1, 2), colour=False, **how)),
    ):
        for cursor, first, end in ((0, "0", r"\d+"), (last, r"\d+", f"{last}"), (None, r"\d+", r"\d+")):
            drawn = theme.drawn(draw(cursor=cursor), colour=False, width=56)
            assert re.search(rf"{name} {first} to {end} of 0 to {last} \(--at N\)", drawn)
        assert "(--at N)" not in theme.drawn(draw(), colour=False, width=300)
    for every, said in ((1, False), (2, True)):
        drawn = theme.drawn(lengths.draw(found, 13, colour=False, every=every), colour=False, width=300)
        assert ("2 of 3 rows (--every 1: all)" in drawn) == said


def test_queries_of_a_long_text_are_shown_around_the_cursor(tiny_gpt2: Path) -> None:
    checkpoint = load(str(tiny_gpt2))
    done = run(checkpoint, prepare(checkpoint, (IDS * 3)[:50]), max_tokens=0)
    made = scan(checkpoint, done, cells=[49], attention=True)
    said = {None: "queries 10 to 49 of 0 to 49", 0: "queries 0 to 39 of 0 to 49", 25: "queries 5 to 44 of 0 to 49"}
    for cursor, text in said.items():
        drawn = heads.draw(made, 49, head=(0, 0), colour=False, cursor=cursor)
        assert text in theme.drawn(drawn, colour=False, width=300)
        keys = theme.drawn(drawn, colour=False, width=80)
        assert re.search(r"keys \d+ to \d+, " + text, keys)


def test_what_is_left_besides_position_0_is_what_is_there(found: Scan) -> None:
    """After a look was set to 0 a row sums to less than 1."""
    assert found.attention is not None
    patterns = torch.tensor(found.attention.patterns.nested()).half()
    patterns[1, 2, 13, 3:] = 0
    patterns[1, 2, 13, :3] = torch.tensor([0.25, 0.125, 0.0625])
    muted = dataclasses.replace(found, attention=dataclasses.replace(found.attention, patterns=table(patterns)))
    assert "without position 0: 0.19 of its attention is left" in theme.drawn(
        heads.draw(muted, 13, head=(1, 2), colour=False), colour=False, width=100
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("zero", ["set to zero"]),
        ("patch", ["exchanged for what another prompt has there"]),
        ("mean look=0 patch", ["parts set to the mean over", "looks set to 0; the others keep", "patches exchanged"]),
        ("", []),
        ("of later", []),
    ],
)
def test_what_if_says_the_manner_of_each_kind_of_edit(found: Scan, how: str, says: list[str]) -> None:
    assert found.what_if is not None
    drawn = theme.drawn(
        changes.draw_what_if(found, dataclasses.replace(found.what_if, how=how), colour=False), colour=False, width=200
    )
    lines = drawn[: drawn.index(" before …")].splitlines()
    assert len(lines) == (1 if len(says) < 2 else 1 + len(says)) and all(text in drawn for text in says)
    assert says or lines == ["what if L1H2"]


def test_a_changed_run_says_that_parts_became_their_mean(found: Scan) -> None:
    changed = dataclasses.replace(found, edits=("L1H2",))
    assert changed.what_if is not None and changed.what_if.how == "mean"
    zero = dataclasses.replace(changed, what_if=dataclasses.replace(changed.what_if, how="zero"))
    for made, says in ((changed, "changed: L1H2 (mean)"), (zero, "changed: L1H2 │")):
        assert says in theme.drawn(grid.draw(made, colour=False), colour=False, width=300)


def test_an_adapter_and_rounded_weights_are_named_in_every_view(found: Scan) -> None:
    made = dataclasses.replace(found, adapter="re\x1bact", rounding="int4")
    for view in VIEWS.values():
        drawn = theme.drawn(view(made, colour=False), colour=False, width=300)
        assert "adapter re\\x1bact" in drawn and "weights rounded to int4" in drawn


def test_a_vector_s_signs_are_seen_without_colours() -> None:
    assert vector([1.0, -1.0, 0.3, -0.3, 0.0], 32, colour=False).plain == "█⣿▃⣤▁"
    light, dark = (vector([2.0, -2.0, 0.0], 32, colour=True, light=light) for light in (True, False))
    assert [str(span.style) for span in dark.spans] == [theme.PLUS, theme.MINUS, theme.NEUTRAL]
    assert [str(span.style) for span in light.spans][2] == theme.NEUTRAL and light.spans != dark.spans


def test_a_track_says_what_its_vectors_show(found: Scan) -> None:
    for colour, says in ((False, "▁ to █ above 0, ⣀ to ⣿ below"), (True, "blue below 0, orange above")):
        drawn = SGR.sub("", theme.drawn(VIEWS["track"](found, colour=colour), colour=colour, width=100))
        assert f"vector: {says}" in drawn


def test_a_patch_says_why_it_shows_no_direct_effect(found: Scan) -> None:
    """A model without a ledger says so itself, in its last line."""
    assert found.what_if is not None
    says, patched = "a patch has no direct effect of one part to show", dataclasses.replace(found.what_if, direct=None)
    none = dataclasses.replace(found, check=dataclasses.replace(found.check, ledger=None, no_ledger="it is no sum"))
    for made, what_if, said in ((found, found.what_if, False), (found, patched, True), (none, patched, False)):
        drawn = theme.drawn(changes.draw_what_if(made, what_if, colour=False), colour=False, width=100)
        assert (says in drawn) == said and ("direct effect on the lead" in drawn) == (what_if is found.what_if)


def test_files_of_a_view_hold_it_and_fetch_nothing(found: Scan) -> None:
    for form in ("svg", "html"):
        text = theme.exported(grid.draw(found, colour=True), form=form, width=100)
        assert "decided" in text and "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
        assert "\x1b" not in text and "<script" not in text


def test_a_picture_holds_any_text(found: Scan) -> None:
    """What looks like the file's own words, and characters that XML does not allow."""
    wild = dataclasses.replace(found, edits=("a@font-face{b}c", "\ufffe\uffff"))
    for form in ("svg", "html"):
        text = theme.exported(grid.draw(wild, colour=True), form=form, width=200)
        assert "a@font-face{b}c" in text and "\\ufffe\\uffff" in text and "cdnjs" not in text
        assert "@font-face" not in text.replace("a@font-face{b}c", "")
        if form == "svg":
            ElementTree.fromstring(text)
