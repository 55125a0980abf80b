from __future__ import annotations

import random

import pytest

from gptcli.errors import UsageError
from gptcli.records import Chunk
from gptcli.text_stream import TextStream


def run(raws: list[bytes], *stops: str, strip: bool = False) -> tuple[str, list[tuple[int, int, str]], bool]:
    """The whole text; (token fed, token credited, text) of each chunk, -1 for the end; whether a stop was met."""
    stream = TextStream(stops=stops, strip_leading_space=strip)
    seen: list[tuple[int, int, str]] = []
    for index, raw in enumerate(raws):
        seen += [(index, chunk.index, chunk.text) for chunk in stream.feed(index, raw)]
    seen += [(-1, chunk.index, chunk.text) for chunk in stream.finish()]
    assert all(text for _, _, text in seen)
    assert [index for _, index, _ in seen] == sorted(index for _, index, _ in seen)
    return "".join(text for _, _, text in seen), seen, stream.stopped


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The same bytes in tokens of 0 to 4 bytes."""
    raws = []
    while data:
        n = rng.randint(0, 4)
        raws.append(data[:n])
        data = data[n:]
    return raws


def expected(text: str, stops: list[str]) -> str:
    """By the definition: the first character that completes a stop ends the text before the longest such stop."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return text


def test_text_is_released_with_the_token_that_brings_it() -> None:
    assert run([b"Once", b" upon"])[1] == [(0, 0, "Once"), (1, 1, " upon")]


def test_half_a_character_waits_and_belongs_to_the_token_that_ends_it() -> None:
    assert run([b"a\xf0\x9f", b"", b"\x98", b"\x80b"])[1] == [(0, 0, "a"), (3, 3, "\U0001f600b")]


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    assert run([b"a\xe2\x82", b""])[1] == [(0, 0, "a"), (-1, 0, "\ufffd")]


@pytest.mark.parametrize("bad", [b"\x80", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5", b"\xe2\x28"])
def test_bad_bytes_are_replaced_at_once_and_never_stall(bad: bytes) -> None:
    stream = TextStream()
    assert "\ufffd" in "".join(chunk.text for chunk in stream.feed(0, bad + b"x"))


def test_a_stop_is_found_across_tokens_and_ends_everything() -> None:
    text, seen, stopped = run([b"one EN", b"D", b" two"], "END")
    assert (text, stopped) == ("one ", True)
    assert seen == [(0, 0, "one ")]


def test_what_was_held_keeps_its_own_tokens() -> None:
    assert run([b"aE", b"N", b"x"], "END")[1] == [(0, 0, "a"), (2, 0, "E"), (2, 1, "N"), (2, 2, "x")]


def test_what_is_held_at_the_end_is_flushed() -> None:
    text, seen, stopped = run([b"a\n", b"\n"], "\n\n\n")
    assert (text, stopped, seen[-1][0]) == ("a\n\n", False, -1)


def test_a_stop_that_restarts_inside_itself_is_found() -> None:
    assert run([b"a", b"a", b"a", b"b"], "aab")[0] == "a"


@pytest.mark.parametrize("stops", [("lo", "world"), ("world", "lo"), ("o w", "lo")])
def test_the_first_completed_stop_ends_the_text_whatever_the_order(stops: tuple[str, ...]) -> None:
    assert run([b"hello world"], *stops)[0] == "hel"


def test_of_two_stops_completed_together_the_longer_counts() -> None:
    assert run([b"a.\n"], "\n", ".\n")[0] == "a"


def test_a_stop_inside_one_token_releases_only_what_stood_before() -> None:
    assert run([b"yes\nno"], "\n")[1] == [(0, 0, "yes")]


def test_nothing_comes_after_a_stop() -> None:
    stream = TextStream(stops=["x"])
    assert stream.feed(0, b"ax") == (Chunk(index=0, text="a"),)
    assert stream.stopped and stream.feed(1, b"b") == () and stream.finish() == ()


def test_finish_is_done_once() -> None:
    stream = TextStream(stops=["xy"])
    stream.feed(0, b"x")
    assert stream.finish() == (Chunk(index=0, text="x"),)
    assert stream.finish() == ()


def test_one_space_at_the_very_start_is_dropped() -> None:
    assert run([b"", b" ", b" a", b" b"], strip=True)[0] == " a b"
    assert run([b"a b"], strip=True)[0] == "a b"
    assert run([b" a"])[0] == " a"


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(UsageError):
        TextStream(stops=["a", ""])


@pytest.mark.parametrize("seed", range(300))
def test_any_cut_into_tokens_gives_the_same_text(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("aab\n\u00e9\U0001f600") for _ in range(rng.randint(0, 30)))
    data = text.encode()
    if seed % 3 == 0:
        data = bytes(rng.choice(b"ab\n\xc3\xa9\xf0\x9f\x98\x80\xe2\xed\xff") for _ in range(20))
    stops = ["".join(rng.choice("ab\n\u00e9") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
    assert run(cut(data, rng), *stops)[0] == expected(data.decode(errors="replace"), stops)


@pytest.mark.parametrize("seed", range(50))
def test_no_more_is_held_than_could_still_become_a_stop(seed: int) -> None:
    rng = random.Random(seed)
    data = bytes(rng.choice(b"ab\xc3\xa9\xf0\x9f\x98\x80") for _ in range(30))
    stream, given = TextStream(stops=["aba", "abba"]), ""
    for index, raw in enumerate(cut(data, rng)):
        given += "".join(chunk.text for chunk in stream.feed(index, raw))
        data = data[len(raw) :]
        if stream.stopped:
            return
    # all bytes were fed: what is not given may be at most three letters of a stop and one open character
    rest = "".join(chunk.text for chunk in stream.finish())
    assert len(rest) <= 4
