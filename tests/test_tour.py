"""The tour: every page computed, in both languages, walked through with keys, and each of its commands run."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from programs import PROGRAM, environment, gptcli, in_terminal
from rich.cells import cell_len
from rich.text import Text
from test_tokens import sentencepiece

from gptcli import load
from gptcli.commands.tour import KEYS
from gptcli.render.theme import drawn
from gptcli.render.tour import draw
from gptcli.tokens import Tokenizer
from gptcli.tour.guide import ASKED, CASE, EXAMPLES, LAW, PAGES, Guide
from gptcli.tour.page import Change, Exercises, Grid, Masks, Shots, Track
from gptcli.tour.texts import LANGUAGES, texts


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide(load())


def names(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


# --- the words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_page_and_leaves_the_same_numbers_open(language: str) -> None:
    ours, english = texts(language), texts("en")
    assert tuple(ours.bodies) == tuple(ours.titles) == KEYS == tuple(PAGES)
    assert ours.words.keys() == english.words.keys()
    for key in KEYS:
        assert names(ours.bodies[key]) == names(english.bodies[key])
        assert names(ours.titles[key]) == names(english.titles[key])
    for word in ours.words:
        assert names(ours.words[word]) == names(english.words[word])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_page_is_filled_and_fits(guide: Guide, language: str, width: int) -> None:
    words = texts(language)
    for i, key in enumerate(KEYS):
        page = guide.page(key)
        assert names(words.bodies[key]) <= page.facts.keys() | {"marks"}
        shown = drawn(draw(page, words, n=i + 1, of=len(KEYS), width=width, colour=False), colour=False, width=width)
        assert "{" not in shown.replace("{{", "") or key not in ("generate", "budget")
        assert max(cell_len(line) for line in shown.splitlines()) <= width, key


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_was_given_and_what_was_written_are_told_apart_without_colour(guide: Guide, language: str) -> None:
    page, words = guide.page("generate"), texts(language)
    for colour, marks in ((True, 0), (False, 2)):  # in the sentence, and between prompt and answer
        shown = drawn(draw(page, words, n=1, of=12, width=100, colour=colour), colour=False, width=100)
        assert shown.count("│") == marks
        assert (words.words["coloured"] in " ".join(shown.split())) == colour


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_nothing_is_changed_by_the_pages_that_train() -> None:
    checkpoint = load()
    before = {name: p.clone() for name, p in checkpoint.decoder.named_parameters()}
    guide = Guide(checkpoint)
    for key in ("step", "finetuning"):
        guide.page(key)
    assert all(torch.equal(p, before[name]) for name, p in checkpoint.decoder.named_parameters())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_numbers_counts_the_matrices_as_params_does(guide: Guide, language: str) -> None:
    counted = gptcli("params").stdout.decode().splitlines()[0]
    n = re.search(r"in (\d+) matrices", counted)[1]  # type: ignore[index]
    shown = drawn(draw(guide.page("budget"), texts(language), n=5, of=12, width=100, colour=False), colour=False)
    assert re.search(rf"\b{n}\b matrices|матрицах \(их {n}\)", " ".join(shown.split()))


def test_the_step_shown_is_a_real_one(guide: Guide) -> None:
    page = guide.page("step")
    picture = page.picture
    assert isinstance(picture, Exercises)
    ids = guide.checkpoint.tokenizer.encode(LAW, bos=False)
    with torch.no_grad():
        rows = guide.checkpoint.decoder(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    loss = -float(rows.gather(1, torch.tensor(ids[1:])[:, None]).mean())
    assert page.facts["before"] == f"{loss:.2f}"
    assert float(page.facts["after"]) < loss
    assert len(picture.lessons) == len(ids) - 1


def test_fine_tuning_moves_numbers_and_counts_them(guide: Guide) -> None:
    page = guide.page("finetuning")
    assert isinstance(page.picture, Change)
    moved = sum(m.n_changed for m in page.picture.found.moved)
    assert page.facts["n_changed"] == f"{moved:,}" and moved > 0.5 * guide.config.n_params()


def test_examples_in_the_prompt_make_their_answer_likelier(guide: Guide) -> None:
    page = guide.page("priming")
    assert isinstance(page.picture, Shots)
    ids = guide.checkpoint.tokenizer.encode("".join(EXAMPLES) + CASE + ASKED)
    n = len(guide.checkpoint.tokenizer.encode(ASKED, bos=False))
    with torch.no_grad():
        rows = guide.checkpoint.decoder(torch.tensor([ids]))[0].log_softmax(-1)
    expected = math.exp(sum(float(rows[len(ids) - n - 1 + i, ids[len(ids) - n + i]]) for i in range(n)))
    assert page.picture.chances[-1] == pytest.approx(expected, rel=1e-4)
    assert page.picture.chances[-1] > 10 * page.picture.chances[0]


def test_an_answer_s_tokens_are_those_that_follow_its_prompt(tmp_path: Path) -> None:
    """Where a tokenizer puts a space in front of every text, an answer by itself would have one too many."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(sentencepiece()), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    checkpoint = load(str(tiny.write_gpt2(tmp_path / "model", vocab_size=tokenizer.size, n_positions=256)))
    guide = Guide(dataclasses.replace(checkpoint, tokenizer=tokenizer))
    page = guide.page("priming")
    whole = tokenizer.encode(CASE + ASKED)
    n = len(whole) - len(tokenizer.encode(CASE))
    assert whole[: len(whole) - n] == tokenizer.encode(CASE) and f" -n {n}" in page.command
    with torch.no_grad():
        rows = checkpoint.decoder(torch.tensor([whole]))[0].log_softmax(-1)
    expected = math.exp(sum(float(rows[i - 1, whole[i]]) for i in range(len(whole) - n, len(whole))))
    assert isinstance(page.picture, Shots) and page.picture.chances[0] == pytest.approx(expected, rel=1e-4)


def test_a_mask_of_a_wide_window_is_thinned_before_it_is_made(guide: Guide) -> None:
    """Whole it would have 40 thousand million cells."""
    layers = tuple(dataclasses.replace(layer, window=100_000) for layer in guide.config.layers[:1])
    wide = Guide(guide.checkpoint)
    wide.config = dataclasses.replace(guide.config, layers=layers, n_ctx=1_000_000)
    page = wide.page("masks")
    assert isinstance(page.picture, Masks)
    ((window, _, mask),) = page.picture.kinds
    assert (page.picture.n_tokens, window) == (200_000, 100_000)
    assert len(mask) == len(mask[0]) <= 48 and page.picture.step * len(mask) >= 200_000
    for i, row in enumerate(mask):
        assert row == tuple(0 <= (i - j) * page.picture.step < 100_000 for j in range(len(mask)))
    for width in (60, 120):
        shown = drawn(draw(page, texts("en"), n=9, of=12, width=width, colour=False), colour=False, width=width)
        assert (
            "200,000 tokens" in " ".join(shown.split()) and max(cell_len(line) for line in shown.splitlines()) <= width
        )


def test_masks_are_those_of_the_model(guide: Guide) -> None:
    picture = guide.page("masks").picture
    assert isinstance(picture, Masks)
    assert {window: layers for window, layers, _ in picture.kinds} == {
        window: tuple(i for i, layer in enumerate(guide.config.layers) if layer.window == window)
        for window in {layer.window for layer in guide.config.layers}
    }
    for window, _, mask in picture.kinds:
        assert len(mask) == len(range(0, picture.n_tokens, picture.step))
        for i in (0, 1, len(mask) // 2, len(mask) - 1):
            for j in (0, i // 2, i, min(i + 1, len(mask) - 1)):
                assert mask[i][j] == (0 <= (i - j) * picture.step < (window or picture.n_tokens))


def test_the_x_ray_pages_carry_their_self_check(guide: Guide) -> None:
    for key in ("track", "xray"):
        picture = guide.page(key).picture
        assert isinstance(picture, Track | Grid)
        assert picture.scan.check.lens <= picture.scan.check.lens_bound
        assert "lens(last) = logits ✓" in drawn(
            draw(guide.page(key), texts("en"), n=1, of=12, width=100, colour=False), colour=False, width=100
        )


# --- in the terminal -------------------------------------------------------------------------------------------------


def walked(size: tuple[int, int], keys: Sequence[bytes | tuple[int, int]], *more: str) -> tuple[list[str], int]:
    """The screens that were drawn, without colour, and the exit code; the next key is pressed when a page is there."""
    import os
    import pty
    import select
    import struct
    import termios
    from fcntl import ioctl

    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "gptcli", "tour", *more], stdin=slave, stdout=slave, stderr=slave,
        env=environment({"COLORTERM": "truecolor"}), start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    seen, waiting = b"", list(keys)
    while True:
        if not select.select([master], [], [], 60)[0]:
            process.kill()
            raise AssertionError(f"nothing came after {seen[-500:]!r}")
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
        if (waiting and seen.endswith(b"q quit\x1b[0m")) or (waiting and b"q quit" in data[-60:]):
            key = waiting.pop(0)
            if isinstance(key, bytes):
                os.write(master, key)
            else:
                ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *key, 0, 0))
    os.close(master)
    screens = seen.decode().split("\x1b[H\x1b[2J")[1:]
    return [Text.from_ansi(screen.replace("\r", "")).plain for screen in screens], process.wait(timeout=30)


@pytest.mark.parametrize("size", [(24, 80), (40, 120)])
def test_keys_go_through_all_pages_forward_and_back(size: tuple[int, int]) -> None:
    right, left = b"\x1b[C", b"\x1b[D"
    screens, code = walked(size, [right, right, left, *[right] * 10, b"q"])
    assert code == 0
    order = [0, 1, 2, 1, *range(2, 12)]
    assert [int(re.search(r"page (\d+) of 12", screen)[1]) - 1 for screen in screens] == order  # type: ignore[index]
    for screen in screens:
        lines = screen.split("\n")
        assert len(lines) <= size[0] and max(map(cell_len, lines)) <= size[1]
        assert "run it alone:" in screen


def test_a_page_that_is_too_high_scrolls() -> None:
    screens, code = walked((24, 80), [b"2", b"j", b"q"])
    assert code == 0 and "correct next token" in screens[1] and "examples from" not in screens[1]
    assert screens[2].split("\n")[1] != screens[1].split("\n")[1]


def test_a_window_that_became_smaller_is_drawn_again() -> None:
    screens, code = walked((40, 120), [(20, 60), b"q"])
    assert code == 0 and len(screens) == 2
    lines = screens[1].split("\n")
    assert "page 1 of 12" in screens[1] and len(lines) <= 20 and max(map(cell_len, lines)) <= 60


def test_the_screen_is_given_back() -> None:
    seen, code = in_terminal("tour", when=lambda seen: b"q" if b"q quit" in seen else None, timeout=60)
    assert code == 0 and seen.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")


def test_ctrl_c_gives_the_screen_back_and_is_130_as_everywhere() -> None:
    seen, code = in_terminal("tour", when=lambda seen: b"\x03" if b"q quit" in seen else None, timeout=60)
    assert code == 130 and seen.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")


def test_in_a_pipe_all_pages_follow_one_another_without_colour() -> None:
    done = gptcli("tour", "--plain")
    text = done.stdout.decode()
    assert done.returncode == 0 and "\x1b" not in text and done.stderr == b""
    assert [int(n) for n in re.findall(r"page (\d+) of 12", text)] == list(range(1, 13))


def test_one_page_by_number_or_name_in_either_language(tiny_gpt2: Path) -> None:
    by_number, by_name = (gptcli("tour", "--page", page, "-m", tiny_gpt2).stdout.decode() for page in ("7", "track"))
    assert re.sub(r"\d\.\d s", "", by_number) == re.sub(r"\d\.\d s", "", by_name) != ""
    assert "страница 9 из 12" in gptcli("tour", "--page", "9", "--lang", "ru", "-m", tiny_gpt2).stdout.decode()
    assert gptcli("tour", "--page", "13").returncode == gptcli("tour", "--lang", "tlh").returncode == 2


def test_any_model_can_be_toured(tiny_gpt2: Path) -> None:
    done = gptcli("tour", "--plain", "-m", tiny_gpt2)
    assert done.returncode == 0 and done.stdout.decode().count("run it alone:") == 12
    assert f"-m {tiny_gpt2}" in done.stdout.decode().replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_the_command_of_each_page_runs(guide: Guide, key: str, tmp_path: Path) -> None:
    """As it stands on the page, by a shell, in a folder with nothing in it."""
    shell = f'gptcli() {{ {shlex.join(PROGRAM)} "$@"; }}; set -e -o pipefail; {guide.page(key).command}'
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, stdin=subprocess.DEVNULL, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_command_of_the_last_page_makes_the_numbers_of_that_page(guide: Guide, tmp_path: Path) -> None:
    page = guide.page("finetuning")
    assert isinstance(page.picture, Change)
    said, name = page.command.replace(" tuned", f" {tmp_path / 'tuned'}"), guide.checkpoint.folder
    tune, _ = said.removeprefix(f'echo "{LAW}" | ').split(" && ")
    done = subprocess.run(
        [*PROGRAM, *shlex.split(tune)[1:]], input=LAW.encode(), env=environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(gptcli("diff", name, tmp_path / "tuned", "--json").stdout)
    moved = {m.name: m.relative for m in page.picture.found.moved}
    assert {m["name"]: m["relative"] for m in found["parameters"]} == pytest.approx(moved, rel=1e-3)
