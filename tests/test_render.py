"""What a terminal is sent."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.style import Style
from rich.text import Text

from gptcli import card, look
from gptcli.records import Chunk, Difference, Moved, Progress, Prompt, Step
from gptcli.render import theme
from gptcli.render.card import draw as draw_card
from gptcli.render.curve import APART, MARK, braille
from gptcli.render.moved import draw as draw_moved
from gptcli.render.output import Output
from gptcli.render.pieces import draw as draw_pieces
from gptcli.render.rosetta import draw_all
from gptcli.render.safe import json_line, one_line, safe
from gptcli.render.stream import TextView, legend, tinted
from gptcli.render.training import History
from gptcli.render.training import draw as draw_panel

SGR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é 漢 😀\n\ttoo", "plain text, é 漢 😀\n\ttoo"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x08c\x7f", "a\\x0db\\x08c\\x7f"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028sep", "line\\u2028sep"),
        ("\udce9", "\\udce9"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_could_steer_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert safe(text) == shown
    assert "\n" not in one_line(text) and "\t" not in one_line(text)
    line = json_line({"text": text})
    assert safe(line) == line and json.loads(line) == {"text": text}


def test_json_has_no_number_that_json_does_not_have() -> None:
    assert json_line({"a": [math.inf, 1.5, (math.nan,)], "é": None}) == '{"a": [null, 1.5, [null]], "é": null}'


def test_a_half_character_at_the_end_of_a_tinted_text_brings_nothing_along() -> None:
    assert "\x1bc" not in tinted(b"", [(b"\xe2\x1bc", 0.5)])


class Screen(io.TextIOWrapper):
    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined,no-any-return]


def step(index: int, text: str, logprob: float = -0.1, of: int | None = None) -> Step:
    chunks = (Chunk(index=index if of is None else of, text=text),) if text else ()
    return Step(
        index=index, id=1, raw=text.encode(), logprob=logprob, p=1.0, n_kept=1, draw=None, margin=1.0, chunks=chunks
    )


PROMPT = Prompt(text="Once\nupon", ids=(1, 2), raws=(b"Once\n", b"upon"))


@pytest.fixture(autouse=True)
def truecolor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")


def show(look: str, *, terminal: bool, echo: bool = True) -> str:
    screen = Screen(terminal)
    view = TextView(Output(screen), look=look, echo=echo)  # type: ignore[arg-type]
    view.begin(PROMPT)
    for one in (step(0, " a"), step(1, "", -2.0), step(2, " time\nlong", -0.01), step(3, "\x1b[2J", -1.0)):
        view.step(one)
    view.end()
    return screen.text


def test_a_pipe_gets_the_text_byte_for_byte() -> None:
    assert show("plain", terminal=False) == "Once\nupon a time\nlong\x1b[2J"
    assert show("plain", terminal=False, echo=False) == " a time\nlong\x1b[2J"


def test_a_terminal_gets_it_made_safe_and_its_line_ended() -> None:
    assert show("plain", terminal=True) == "Once\nupon a time\nlong\\x1b[2J\n"


@pytest.mark.parametrize("look", ["article", "prob"])
def test_colours_change_no_letter_and_never_reach_over_the_end_of_a_line(look: str) -> None:
    text = show(look, terminal=True)
    assert SGR.sub("", text) == "Once\nupon a time\nlong\\x1b[2J\n"
    for line in text.split("\n"):
        assert not line or line.endswith("\x1b[0m")  # a terminal would fill the rest of the line with the background


def test_a_token_that_closes_a_character_late_is_tinted_by_the_token_it_belongs_to() -> None:
    screen = Screen(True)
    view = TextView(Output(screen), look="prob", echo=False)
    view.begin(PROMPT)
    view.step(step(0, "", logprob=-0.001))
    view.step(Step(index=1, id=1, raw=b"", logprob=-9.0, p=1.0, n_kept=1, draw=None, margin=1.0,
                   chunks=(Chunk(index=0, text="é"), Chunk(index=1, text="x"))))  # fmt: skip
    likely, unlikely = (theme.SCALE[i] for i in (-1, 0))
    rgb = [";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) for colour in (likely, unlikely)]
    assert re.search(f"48;2;{rgb[0]}mé.*48;2;{rgb[1]}mx", screen.text)


@pytest.mark.parametrize(
    ("choice", "terminal", "env", "wanted"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("auto", False, {"FORCE_COLOR": "0"}, False),
        ("auto", True, {"CLICOLOR": "0"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_who_decides_about_colour(
    choice: str, terminal: bool, env: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert theme.wants_colour(choice, terminal=terminal) is wanted


def test_the_scale_has_a_step_for_every_probability() -> None:
    assert [theme.step(p) for p in (0.0, 0.099, 0.1, 0.5, 0.999, 1.0)] == [0, 0, 1, 5, 9, 9]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_pictures_fit_their_width(tiny_gpt2: Path, width: int) -> None:
    from gptcli import FAMILIES
    from gptcli.families import REFUSED

    spelled = [(k, f.models, f.prefix, f.names, {n: x.why for n, x in f.fixes.items()}) for k, f in FAMILIES.items()]
    pictures = [
        draw_card(card(look(str(tiny_gpt2))), tensors=True),
        draw_pieces([(1, "<s>"), (9038, "·Once"), (7, "漢")] * 9, [True, False, False] * 9),
        draw_all(spelled, REFUSED),
    ]
    for picture in pictures:
        for line in theme.drawn(picture, colour=False, width=width).splitlines():
            assert len(line) <= width and line == line.rstrip()
            assert "\x1b" not in line


@pytest.mark.parametrize(("width", "shown"), [(40, 2), (60, 2), (62, 3), (100, 4)])
def test_the_table_of_families_leaves_columns_out_rather_than_cut_a_word(width: int, shown: int) -> None:
    from gptcli import FAMILIES

    spelled = [(k, f.models, f.prefix, f.names, {n: x.why for n, x in f.fixes.items()}) for k, f in FAMILIES.items()]
    text = theme.drawn(draw_all(spelled, {}), colour=False, width=width)
    assert "…" not in text and all(word in text for f in FAMILIES.values() for word in f.models.split())
    assert [name in text for name in ("family", "models", "made by", "undone")] == [i < shown for i in range(4)]


def difference(**moved: float) -> Difference:
    """Of a layer whose parts are named with __ for a dot, by how far they moved."""
    parts = [
        Moved(name=f"blocks.0.{part.replace('__', '.')}", shape=(9, 9), n_changed=81, relative=relative, rms_before=1,
              rms_change=1, largest=1)
        for part, relative in moved.items()
    ]  # fmt: skip
    return Difference(before="a", after="b", n_params=81 * len(parts) + 3, moved=tuple(parts))


def test_a_map_of_changes_names_its_columns_apart_and_says_all_numbers_alike() -> None:
    norms = ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm", "attn__q_norm", "attn__k_norm")
    found = difference(**{f"{name}__weight": 0.004 * 7**i for i, name in enumerate(norms)})
    head, row = theme.drawn(draw_moved(found), colour=False, width=80).splitlines()[2:4]
    assert re.split(r" {2,}", head.strip()) == ["norm 1", "post 1", "norm 2", "post 2", "q norm", "k norm"]
    assert row.split()[1:] == ["0.40%", "2.80%", "19.60%", "137.20%", "960.40%", "6723%"]


def test_biases_that_moved_are_named_below_the_map_and_do_not_darken_it() -> None:
    found = difference(
        mlp__up__weight=0.02, mlp__up__bias=0.5, attn__q__bias=0.1, attn__k__bias=0.2, mlp_norm__bias=0.3
    )
    text = theme.drawn(draw_moved(found), colour=False, width=120)
    assert re.findall(r"blocks.0.(\S+.bias) ([\d.]+%)", text.split("no cell")[1].split("numbers")[0]) == [
        ("mlp.up.bias", "50.00%"), ("mlp_norm.bias", "30.00%"), ("attn.k.bias", "20.00%"),
    ]  # fmt: skip
    assert "0 " + " " * 20 + " 2.00%" in SGR.sub("", theme.drawn(draw_moved(found), colour=True, width=120))
    assert "no cell" not in theme.drawn(draw_moved(difference(mlp__up__weight=0.02)), colour=False, width=120)


def test_all_numbers_changed_only_where_all_did() -> None:
    found = difference(**{f"part{i}__weight": 0.1 for i in range(99)})
    assert "8,019 of 8,022 numbers changed (99.9%)" in theme.drawn(draw_moved(found), colour=False)
    whole = dataclasses.replace(found, n_params=8019)
    assert "(100%)" in theme.drawn(draw_moved(whole), colour=False)


@pytest.mark.parametrize("colour", [True, False])
def test_the_scale_of_a_map_is_one_line_and_without_colours_has_no_ramp(colour: bool) -> None:
    text = SGR.sub("", theme.drawn(draw_moved(difference(mlp__up__weight=0.0062)), colour=colour, width=60))
    (line,) = (line for line in text.splitlines() if line.startswith("change"))
    assert line == "change, relative to size" + (": 0 " + " " * 20 + " 0.62%") * colour


def test_the_card_shows_the_budget_of_parameters(tiny_gpt2: Path) -> None:
    text = theme.drawn(draw_card(card(look(str(tiny_gpt2)))), colour=False, width=100)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert 99.5 < sum(shares) < 100.5
    assert "learned" in text and "gpt2 (GPT-2" in text


def test_names_from_a_file_are_not_markup(tiny_gpt2: Path) -> None:
    pieces = [(1, "[bold]x[/bold]"), (2, "[link=http://evil]"), (3, "a[/b]")]
    text = theme.drawn(draw_pieces(pieces, [False] * 3), colour=False, width=100)
    assert all(piece in text for _, piece in pieces)


@pytest.mark.parametrize(("term", "depth", "code"), [
    ("xterm-256color", "truecolor", "48;2;"), ("xterm-256color", "", "48;5;"), ("", "", "48;2;"),
])  # fmt: skip
def test_what_is_written_piece_by_piece_keeps_to_the_terminal_s_colours(
    monkeypatch: pytest.MonkeyPatch, term: str, depth: str, code: str
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLORTERM", depth)
    Style.parse.cache_clear()  # rich remembers what it drew a style as
    for drawn in (legend(), tinted(b"", [(b"a", 0.5)]), theme.painted("x", "#2b2b2b on #ddf2cf")):
        assert code in drawn


def test_a_character_that_shares_a_token_with_the_next_is_not_broken() -> None:
    parts = [(b"\xe3\x81\xae\xe9", 0.5), (b"\xad\x94", 0.5), (b"x\ny", 0.9)]
    assert Text.from_ansi(tinted(b"", parts)).plain == "の魔x\ny"
    assert Text.from_ansi(tinted(b"a\xe9", parts[1:])).plain == "a魔x\ny"
    assert Text.from_ansi(tinted(b"", [(b"a", 0.5), (b"\xe9", 0.5)])).plain == "a\ufffd"


CURVE = [(float(i), 7 - i / 100) for i in range(1, 401)]


def panel(validations: list[tuple[float, float]], width: int, height: int = 40) -> str:
    p = Progress(
        step=400, n_steps=1000, n_tokens=3_276_800, loss=3.0, learning_rate=2.3e-3, grad_norm=0.61, seconds=812.0,
        tokens_per_s=4034.0, validation=validations[-1][1],
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(draw_panel(p, CURVE, validations, None, SimpleNamespace(raw=lambda id: b"x"), 2.0))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_curve_of_a_long_run_has_no_more_points_than_a_screen_can_show() -> None:
    history, n = History(), 100_000
    for i in range(n):
        history.add(i, 7 - 5 * i / n)
    points = history.points
    assert 4096 <= len(points) <= 8192
    assert all(y == pytest.approx(7 - 5 * x / n, abs=1e-9) for x, y in points)
    assert points == sorted(points) and points[-1][0] > n - 32
    short = History()
    for i in range(10):
        short.add(i, i)
    assert short.points == [(i, i) for i in range(10)]


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_the_panel_of_a_training_shows_both_curves_and_all_its_figures_in_every_width(width: int) -> None:
    falling, flat = ([(float(i), y(i)) for i in range(40, 401, 40)] for y in (lambda i: 7 - i / 100, lambda i: 5.0))
    one, other = panel(falling, width), panel(flat, width)
    assert one.count("◆") == other.count("◆") >= 4 and one != other
    rows = [[line.count("◆") for line in text.splitlines() if "validation" not in line] for text in (one, other)]
    assert max(rows[0]) < max(rows[1]) == sum(rows[1]), "a flat row of marks stands in one line"
    for text in (one, other):
        assert all(name in text for name in ("learning rate 2.30e-03", "tokens/s 4,034", "gradient 0.61", "left"))
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("height", [3, 5, 8])
def test_where_both_losses_are_the_same_the_marks_lie_on_the_line(height: int) -> None:
    stairs = [(float(i), 7.0 - i // 40) for i in range(400)]
    bare, marked = (braille(stairs, 53, height, marks) for marks in ((), stairs[20::40]))
    places = [(i, j) for i, line in enumerate(marked) for j, cell in enumerate(line) if cell == MARK]
    assert len(places) == 10 and all(bare[i][j] != " " for i, j in places)


def test_between_marks_of_every_step_the_line_is_seen_and_the_newest_mark_is_there() -> None:
    for points in ((), CURVE):
        lines = braille(points, 53, 5, CURVE)
        columns = sorted(j for line in lines for j, cell in enumerate(line) if cell == MARK)
        assert columns[-1] == 52 and {b - a for a, b in pairwise(columns)} == {APART}
    assert braille([], 4, 2, [(1.0, math.nan)]) == [" " * 4] * 2


def test_a_tall_terminal_has_a_tall_curve_and_a_low_one_the_whole_panel() -> None:
    lines = {height: panel([(400.0, 3.0)], 60, height).count("\n") for height in (18, 24, 50)}
    assert 3 + 3 == lines[18] < lines[24] < lines[50] == 3 + 8
