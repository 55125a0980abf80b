"""Priming: the prompt that examples make, to the letter; what fits; where the answer ends; and that it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment, gptcli, in_terminal, inside

from gptcli import Sampling, generate, load
from gptcli.errors import GptcliError, NotFound, UsageError
from gptcli.pairs import Pair
from gptcli.priming import FORMATS, primed, read_examples
from gptcli.render import theme

FRENCH = [
    Pair(prompt=a, completion=b) for a, b in (("sea otter", "loutre de mer"), ("mint", "menthe"), ("toy", "jouet"))
]


# --- the prompt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "stops"),
    [
        ("arrow", "sea otter => loutre de mer\nmint => menthe\ntoy => jouet\ncheese =>", ("\n",)),
        ("equals", "sea otter = loutre de mer\nmint = menthe\ntoy = jouet\ncheese =", ("\n",)),
        ("qa", "Q: sea otter\n\nA: loutre de mer\n\nQ: mint\n\nA: menthe\n\nQ: toy\n\nA: jouet\n\nQ: cheese\n\nA:",
         ("\n\n", "\nQ:")),
        ("plain", "sea otter\nloutre de mer\n\nmint\nmenthe\n\ntoy\njouet\n\ncheese\n", ("\n\n",)),
    ],
)  # fmt: skip
def test_every_format_to_the_letter(form: str, text: str, stops: tuple[str, ...]) -> None:
    found = primed(FRENCH, "cheese", form=form)
    assert (found.text, found.stops, found.n_used) == (text, stops, 3)


def test_without_examples_the_case_stands_alone_in_its_format() -> None:
    assert [primed([], "cheese", form=form).text for form in FORMATS] == [
        "cheese =>", "cheese =", "Q: cheese\n\nA:", "cheese\n",
    ]  # fmt: skip


def test_spaces_around_a_text_are_the_format_s_own() -> None:
    loose = [Pair(prompt=" mint ", completion=" menthe\n")]
    assert primed(loose, " cheese ", form="arrow").text == "mint => menthe\ncheese =>"


def test_plain_keeps_texts_that_bring_their_own_space() -> None:
    """As `gptcli finetune` reads them: prompt and completion with nothing between."""
    code = [Pair(prompt="a button", completion="\n<button/>"), Pair(prompt="a link", completion="\n<a/>")]
    found = primed(code, "a list", form="plain")
    assert found.text == "a button\n<button/>\n\na link\n<a/>\n\na list"


@pytest.mark.parametrize(
    ("answer", "separator"), [("one", "\n"), ("one\ntwo", "\n\n"), ("one\n\ntwo", "\n###\n"), ("\none\n", "\n")]
)
def test_the_separator_is_one_that_no_text_contains(answer: str, separator: str) -> None:
    found = primed([Pair(prompt="x", completion=answer)], "y", form="arrow")
    assert found.stops == (separator,) and found.text == f"x => {answer.strip()}{separator}y =>"


def test_texts_that_contain_every_separator_are_refused() -> None:
    with pytest.raises(UsageError, match="###"):
        primed([Pair(prompt="x", completion="a\n\nb\n###\nc")], "y", form="arrow")
    with pytest.raises(UsageError, match="haiku"):
        primed(FRENCH, "y", form="haiku")


@pytest.mark.parametrize("n_pairs", [0, 1, 2, 3, 7, 8, 9, 100])
def test_the_newest_examples_that_fit_are_kept(n_pairs: int) -> None:
    pairs = [Pair(prompt=f"case {i:03}", completion="yes") for i in range(n_pairs)]
    line, tail = len("case 000 => yes\n"), len("new =>")
    for room in (0, tail, tail + 1, tail + line, tail + 3 * line - 1, tail + 3 * line, tail + 8 * line, 10**6):
        asked = list[str]()

        def fits(text: str, room: int = room, asked: list[str] = asked) -> bool:
            asked.append(text)
            return len(text) <= room

        found = primed(pairs, "new", form="arrow", fits=fits)
        expected = min(n_pairs, max(0, (room - tail) // line))
        assert found.n_used == expected
        assert found.text == "".join(f"case {i:03} => yes\n" for i in range(n_pairs - expected, n_pairs)) + "new =>"
        assert len(asked) <= 16, "a large file is not tried line by line"


# --- where examples come from ----------------------------------------------------------------------------------------


def test_examples_come_from_both_kinds_of_files_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "mint", "completion": "menthe"}\n')
    (tmp_path / "b.tsv").write_bytes("toy\tjouet\r\n\nsea\u2028otter\tloutre de mer\n".encode())
    (tmp_path / "c.jsonl").write_text('{"description": "lists files", "code": "ls", "more": 1}\n')
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.tsv", "c.jsonl")]
    found = [(pair.prompt, pair.completion) for pair in read_examples(files, ["a => b => c"])]
    assert found == [("mint", "menthe"), ("toy", "jouet"), ("sea\u2028otter", "loutre de mer"), ("lists files", "ls"),
                     ("a", "b => c")]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "error", "says"),
    [
        ("a.tsv", b"one\ttwo\nalone\n", GptcliError, "line 2"),
        ("a.tsv", b"one\ttwo\tthree\n", GptcliError, "line 1"),
        ("a.tsv", b"one\t\n", GptcliError, "line 1"),
        ("a.tsv", b"\n", GptcliError, "no example"),
        ("a.tsv", b"a\tcaf\xe9\n", GptcliError, "0xe9"),
        ("a.jsonl", b'{"prompt": "x"}\n', GptcliError, "completion"),
        ("a.jsonl", b"[1]\n", GptcliError, "line 1"),
        ("a.csv", b"a,b\n", UsageError, ".tsv"),
        ("missing.tsv", None, NotFound, "missing.tsv"),
        ("missing.jsonl", None, NotFound, "missing.jsonl"),
    ],
)
def test_a_file_that_holds_no_examples_is_named_with_its_line(
    tmp_path: Path, name: str, text: bytes | None, error: type[GptcliError], says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(error, match=says):
        read_examples([str(tmp_path / name)])


@pytest.mark.parametrize("text", ["no arrow", "=> x", "x =>", ""])
def test_an_example_without_two_sides_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an example"):
        read_examples([], [text])


# --- the program -----------------------------------------------------------------------------------------------------

TWO = ("--example", "a => b", "--example", "c => d")


def test_show_prompt_prints_the_prompt_and_needs_no_torch(tiny_gpt2: Path) -> None:
    program = (
        "import sys; from gptcli.cli import run; run(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr)"
    )
    words = [sys.executable, "-c", program, "e", "-m", str(tiny_gpt2), *TWO, "-n", "4", "--show-prompt"]
    done = subprocess.run(words, capture_output=True, env=environment(), stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr) == (b"a => b\nc => d\ne =>", b"False\n")
    shown = inside("e", "-m", tiny_gpt2, *TWO, "-n", "4", "--show-prompt", "--format", "qa")
    assert shown == (0, b"Q: a\n\nA: b\n\nQ: c\n\nA: d\n\nQ: e\n\nA:", b"")
    assert inside("just text", "-m", tiny_gpt2, "--show-prompt") == (0, b"just text", b"")
    two = inside("generate", "-m", tiny_gpt2, *TWO, "-n", "4", "--show-prompt", stdin=b"e\nf\n")
    assert two[1] == b"a => b\nc => d\ne =>\n\na => b\nc => d\nf =>"


def test_the_model_is_given_the_prompt_that_is_shown(tiny_gpt2: Path) -> None:
    greedy = ("-m", tiny_gpt2, "-n", "4", "-t", "0", "--seed", "1", "--json")
    shown = inside("e", *greedy, *TWO, "--show-prompt")[1].decode()
    found, plain = json.loads(inside("e", *greedy, *TWO)[1]), json.loads(inside(shown, *greedy, "--stop", "\n")[1])
    assert found["prompt"]["text"] == shown and found["settings"]["stop"] == ["\n"]
    assert found["samples"] == plain["samples"] and found["prompt"] == plain["prompt"]


def test_the_answer_ends_at_the_separator(tiny_gpt2: Path) -> None:
    newline = ("-m", tiny_gpt2, *TWO, "--logit-bias", '"\n"=100', "-t", "0", "--json", "-n", "5")
    found = json.loads(inside("e", *newline)[1])["samples"][0]
    assert (found["finish"], found["text"], len(found["ids"])) == ("stop", "", 1)
    found = json.loads(inside("e", *newline, "--format", "plain", "--stop", "never")[1])["samples"][0]
    assert (found["finish"], found["text"], len(found["ids"])) == ("stop", "", 2)


def test_lines_of_a_pipe_are_answered_in_turn(tiny_gpt2: Path) -> None:
    words = ("-m", tiny_gpt2, *TWO, "-n", "3", "-t", "0", "--logit-bias", '"\n"=-inf')
    done = gptcli("generate", *words, stdin=b"e\n\nhello\r\n")
    alone = [inside("generate", case, *words)[1] for case in ("e", "hello")]
    assert done.stdout == b"".join(one + b"\n" for one in alone) and (done.returncode, done.stderr) == (0, b"")
    assert all(one and not one.endswith(b"\n") for one in alone)
    both = [json.loads(line) for line in inside("hello", *words, "--json", stdin=b"e\n")[1].splitlines()]
    assert [each["prompt"]["text"] for each in both] == ["a => b\nc => d\ne =>", "a => b\nc => d\nhello =>"]
    assert [each["stats"]["generated_tokens"] for each in both] == [3, 3]
    _, answers, errors = inside("generate", "-m", tiny_gpt2, *TWO, "-n", "3", "--stop", "x", stdin=b"e\nf\ng\n")
    assert answers.count(b"\n") == 3 and errors.count(b"seed") == 1, "all have the same seed, and it is said once"


def test_examples_that_do_not_fit_go_oldest_first_and_it_is_said(tiny_gpt2: Path, tmp_path: Path) -> None:
    """The context is 64 tokens, of which the answer is promised 20; one byte is about one token."""
    (tmp_path / "many.tsv").write_text("".join(f"case {i}\tx\n" for i in range(10, 40)))
    words = ("generate", "new", "-m", tiny_gpt2, "--examples", tmp_path / "many.tsv", "-n", "20", "-t", "0", "--json")
    _, answer, errors = inside(*words)
    found = json.loads(answer)
    lines = found["prompt"]["text"].split("\n")
    assert lines[-1] == "new =>" and lines[:-1] == [f"case {i} => x" for i in range(40 - len(lines) + 1, 40)]
    assert 1 < len(lines) < 8 and len(found["prompt"]["ids"]) <= 44 and found["prompt"]["dropped"] == 0
    assert f"the {31 - len(lines)} oldest of 30 examples were left out".encode() in errors
    assert inside(*words, "-q")[2] == b""
    code, answer, errors = inside("x" * 70, "-m", tiny_gpt2, *TWO, "-q")
    assert code == 2 and b"73 tokens" in errors and b"64" in errors and not answer, "a case too long for itself"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "--format", "qa"], "--examples"),
        (["x", *TWO, "--format", "haiku"], "arrow, equals, qa, plain"),
        ([*TWO], "no case to answer"),
        (["x", "--example", "one-sided"], "cheese => fromage"),
    ],
)
def test_priming_that_cannot_be_is_one_line_and_exit_code_2(tiny_gpt2: Path, arguments: list[str], says: str) -> None:
    code, answer, errors = inside("generate", "-m", tiny_gpt2, *arguments)
    lines = errors.decode().splitlines()
    assert code == 2 and says in errors.decode() and not answer
    assert lines[0].startswith("gptcli: error: ") and len(lines) <= 2


def test_at_a_terminal_examples_are_green_and_the_answer_pink(tiny_gpt2: Path) -> None:
    words = ("-n", "3", "-t", "0", "--logit-bias", '"\n"=-inf', "-m", tiny_gpt2)
    seen, code = in_terminal("generate", "e", *TWO, *words, env={"COLORTERM": "truecolor"})
    green, pink = (";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in (theme.PROMPT, theme.ANSWER))
    assert code == 0
    for line in ("a => b", "c => d", "e =>"):
        assert f"48;2;{green}m{line}\x1b".encode() in seen, line
    assert seen.index(f"48;2;{pink}m".encode()) > seen.index(b"e =>")
    shown, _ = in_terminal("generate", "e", *TWO, "--show-prompt", "-m", tiny_gpt2, env={"COLORTERM": "truecolor"})
    assert f"48;2;{green}me =>".encode() in shown and pink.encode() not in shown


# --- that it works ---------------------------------------------------------------------------------------------------

CAPITALS = """France Paris; Italy Rome; Japan Tokyo; Egypt Cairo; Cuba Havana; Portugal Lisbon; Austria Vienna;
Norway Oslo; Sweden Stockholm; Finland Helsinki; Denmark Copenhagen; Poland Warsaw; Hungary
Budapest; Romania Bucharest; Bulgaria Sofia; Serbia Belgrade; Croatia Zagreb; Albania Tirana; Turkey
Ankara; Iran Tehran; Iraq Baghdad; Syria Damascus; Lebanon Beirut; Jordan Amman; Israel Jerusalem;
India Delhi; Pakistan Islamabad; Nepal Kathmandu; Bangladesh Dhaka; Thailand Bangkok; Vietnam Hanoi;
Cambodia Phnom; Indonesia Jakarta; Philippines Manila; Mongolia Ulaanbaatar; Australia Canberra;
Canada Ottawa; Peru Lima; Chile Santiago; Argentina Buenos; Venezuela Caracas; Colombia Bogotá;
Ecuador Quito; Kenya Nairobi; Ethiopia Addis; Ghana Accra; Senegal Dakar; Morocco Rabat; Tunisia
Tunis; Ukraine Kyiv; Spain Madrid; Germany Berlin; Russia Moscow; Greece Athens; China Beijing;
England London"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_model_does_50_tasks_better_with_examples_than_without(smollm2: Path) -> None:
    """The paper's own point (Figure 1.2): six examples before the case, against the same format without any."""
    few, zero = solved(smollm2)
    assert few >= 20 and few > zero + 10, (few, zero)


def solved(folder: Path) -> tuple[int, int]:
    """Of 50 capitals, how many are right with six examples before them, and how many with none."""
    pairs = [(a, b) for a, b in (pair.split() for pair in CAPITALS.replace("\n", " ").split(";"))]
    shots, tasks = pairs[-6:], pairs[:50]
    assert len(tasks) == 50 and not set(shots) & set(tasks)
    words = ("-m", folder, "-t", "0", "-n", "6", "-q", "--json")
    examples = [word for a, b in shots for word in ("--example", f"{a} => {b}")]
    done = gptcli("generate", *words, *examples, stdin="\n".join(a for a, _ in tasks).encode(), timeout=900)
    texts = [json.loads(line)["samples"][0]["text"] for line in done.stdout.splitlines()]
    few = sum(text.split()[:1] == [b] for text, (_, b) in zip(texts, tasks, strict=True))
    checkpoint, zero = load(str(folder)), 0
    for a, b in tasks:
        alone = primed([], a, form="arrow")
        steps = generate(checkpoint, alone.text, sampling=Sampling(temperature=0), max_tokens=6, stop=("\n",))
        zero += "".join(step.text for step in steps).split()[:1] == [b]
    return few, zero
