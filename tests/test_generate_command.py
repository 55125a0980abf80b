"""gptcli generate in pipes: the prompt however it comes, and what comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from programs import PROGRAM, complaint, environment, gptcli, quick

GREEDY = ("-t", "0", "-q")

# --- the prompt ------------------------------------------------------------------------------------------------------


def text_of(*arguments: str | Path, stdin: bytes = b"", run: Callable[..., Any] = quick) -> bytes:
    done = run(*arguments, "-n", "8", *GREEDY, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done.stdout


def test_a_prompt_is_the_same_however_it_comes(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("hello on\n")
    m = ("-m", tiny_gpt2)
    expected = text_of("generate", "hello on", *m, run=gptcli)
    assert expected
    assert text_of("hello on", *m) == expected
    assert text_of("generate", "-p", "hello on", *m) == expected
    assert text_of("generate", "-f", tmp_path / "prompt.txt", *m) == expected
    assert text_of("generate", *m, stdin=b"hello on\n") == expected
    assert text_of("generate", "-", *m, stdin=b"hello on\r\n") == expected
    assert text_of(*m, stdin=b"hello on", run=gptcli) == expected


def test_piped_text_comes_before_the_argument_unless_asked_otherwise(tiny_gpt2: Path) -> None:
    def prompt(*more: str) -> str:
        done = quick("generate", "question", "-m", tiny_gpt2, "-n", "1", "--json", *more, stdin=b"context\n")
        return str(json.loads(done.stdout)["prompt"]["text"])

    assert prompt() == "context\nquestion"
    assert prompt("--stdin-last") == "question\ncontext"


def test_escapes_are_read_only_when_asked_for(tiny_gpt2: Path) -> None:
    def prompt(*more: str) -> str:
        done = quick("generate", r"a\tb\n\u00e9\q", "-m", tiny_gpt2, "-n", "1", "--json", *more)
        return str(json.loads(done.stdout)["prompt"]["text"])

    assert prompt() == r"a\tb\n\u00e9\q"
    assert prompt("-e") == "a\tb\né\\q"


def test_without_a_prompt_the_model_starts_from_its_start_token(tiny_gpt2: Path) -> None:
    done = quick("generate", "-m", tiny_gpt2, "-n", "4", "-t", "0", "--json")
    assert json.loads(done.stdout)["prompt"] == {"text": "", "ids": [0], "dropped": 0}
    assert len(json.loads(done.stdout)["samples"][0]["ids"]) == 4


@pytest.mark.parametrize("how", ["stdin", "file", "argument"])
def test_a_prompt_that_is_not_utf8_is_named_with_its_byte_and_place(tiny_gpt2: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9 au lait")
    m = ("-m", tiny_gpt2)
    if how == "stdin":
        done = gptcli("generate", *m, stdin=b"caf\xe9 au lait")
    elif how == "file":
        done = gptcli("generate", *m, "-f", tmp_path / "latin1.txt")
    else:
        done = gptcli("generate", *m, b"caf\xe9 au lait")
    assert done.returncode == 2
    assert "not UTF-8: byte 0xe9 at" in complaint(done) and " 3" in complaint(done)


def test_a_prompt_beyond_the_context_is_an_error_with_the_numbers(tiny_gpt2: Path) -> None:
    done = quick("generate", "w" * 70, "-m", tiny_gpt2)
    assert done.returncode == 2 and "70" in complaint(done) and "64" in complaint(done)


def test_overflow_truncate_drops_the_oldest_and_says_how_many(tiny_gpt2: Path) -> None:
    done = quick("generate", "w" * 70, "-m", tiny_gpt2, "--overflow", "truncate", "-n", "10", "-t", "0")
    assert done.returncode == 0 and b"the 16 oldest tokens of the prompt were dropped" in done.stderr


def test_overflow_slide_goes_on_beyond_the_context(tiny_gpt2: Path) -> None:
    done = quick(
        "generate", "hello", "-m", tiny_gpt2, "--overflow", "slide", "-n", "200", "--ignore-eos", "--json", "-s", "1"
    )
    assert len(json.loads(done.stdout)["samples"][0]["ids"]) == 200
    done = quick("generate", "hello", "-m", tiny_gpt2, "-n", "200", "--ignore-eos", "-s", "1", "--no-stream")
    assert done.returncode == 0 and b"the context of 64 tokens is full" in done.stderr


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_the_model_s_text_and_nothing_else(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "20", "-s", "3")
    plain, as_json = gptcli(*m), json.loads(quick(*m, "--json").stdout)
    assert plain.stdout.decode() == as_json["samples"][0]["text"] != ""
    assert quick(*m, "--no-stream").stdout == plain.stdout
    assert quick(*m, "--echo").stdout == b"hello" + plain.stdout
    assert plain.stderr == b""  # the seed was given, so there is nothing to say


def test_a_random_seed_is_reported_and_gives_the_same_text_again(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "20", "--ignore-eos")
    first, other = gptcli(*m), quick(*m)
    word, seed = first.stderr.decode().removeprefix("gptcli: ").split()
    assert word == "seed" and quick(*m, "-s", seed).stdout == first.stdout != other.stdout
    assert quick(*m, "-q").stderr == b""


def test_text_flows_chunk_by_chunk_and_no_character_is_ever_split(tmp_path: Path) -> None:
    """A model that only ever says é, whose two bytes are two tokens."""
    ids = tiny.vocabulary()
    first, second = ids[tiny.letters()[0xC3]], ids[tiny.letters()[0xA9]]
    tensors = tiny.gpt2_tensors()
    tensors["wte.weight"][:] = 0
    tensors["wpe.weight"] *= 0
    for name in tensors:
        if ".attn." in name or ".mlp." in name:
            tensors[name] *= 0
    tensors["wte.weight"][first, 0], tensors["wte.weight"][second, 1] = 9, 9  # each is followed by the other
    tensors["ln_f.weight"][:], tensors["ln_f.bias"][:] = 0, 0
    tensors["ln_f.weight"][0], tensors["ln_f.weight"][1] = -9, -9
    folder = tiny.write_gpt2(tmp_path / "model", tensors)
    command = [*PROGRAM, "é", "-m", str(folder), *GREEDY, "--overflow", "slide", "-n", "4001"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment())
    assert process.stdout
    chunks = []
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        chunks.append(chunk.decode())  # fails if a character was split
    assert process.wait() == 0
    text = "".join(chunks)
    assert len(chunks) > 3 and text == "é" * 2000 + "\ufffd"


def test_stop_strings_are_found_across_tokens_and_not_shown(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "30", "-s", "3")
    whole = quick(*m).stdout.decode()
    stop = whole[7:10]
    done = json.loads(quick(*m, "--stop", "never", "--stop", stop, "--json").stdout)["samples"][0]
    assert (done["text"], done["finish"]) == (whole[: whole.index(stop)], "stop")


def test_samples_are_the_same_together_and_alone(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "25")
    together = json.loads(quick(*m, "--num-samples", "3", "-s", "40", "--json").stdout)["samples"]
    assert [sample["seed"] for sample in together] == [40, 41, 42]
    assert len({sample["text"] for sample in together}) == 3
    for sample in together:
        assert quick(*m, "-s", str(sample["seed"])).stdout.decode() == sample["text"]


def test_logit_bias_bans_and_forces_tokens_by_id_and_by_text(tiny_gpt2: Path) -> None:
    def ids(*more: str) -> list[int]:
        done = quick("generate", "hello", "-m", tiny_gpt2, "-n", "6", "--json", "-s", "1", *more)
        return list(json.loads(done.stdout)["samples"][0]["ids"])

    vocabulary = tiny.vocabulary()
    assert ids("--logit-bias", '" the"=1000') == [vocabulary["Ġthe"]] * 6
    banned = ids()[0]
    assert banned not in ids("--logit-bias", f"{banned}=-inf", "-t", "0.0001")


def test_the_end_token_ends_a_text_unless_it_is_ignored(tiny_gpt2: Path) -> None:
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "5", "--logit-bias", "0=1000", "--json")
    ended = json.loads(quick(*m).stdout)["samples"][0]
    assert (ended["ids"], ended["text"], ended["finish"]) == ([0], "", "eos")
    went_on = json.loads(quick(*m, "--ignore-eos").stdout)["samples"][0]
    assert (went_on["ids"], went_on["finish"]) == ([0] * 5, "length")


def test_a_text_that_ends_at_once_is_said_so(tiny_gpt2: Path) -> None:
    words = ("hello", "-m", tiny_gpt2, "-n", "3", "-s", "1", "--logit-bias", "0=+1000")
    done = quick(*words)
    assert done.returncode == 0 and done.stdout == b"" and b"note: the model ended the text at once" in done.stderr
    assert b"2 of 2 times the model ended" in quick(*words, "--num-samples", "2").stderr
    assert quick(*words, "-q").stderr == b"" and b"at once" not in quick(*words, "--ignore-eos").stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["tuor"], "tour"), (["help"], "--help"), (["parms"], "params"), (["hello"], ""), (["Tour"], "")],
)
def test_a_word_that_looks_like_a_command_is_a_prompt_with_a_note(
    tiny_gpt2: Path, words: list[str], meant: str
) -> None:
    done = quick(*words, "-m", tiny_gpt2, "-n", "2", "-s", "1")
    assert done.returncode == 0 and done.stdout != b""
    assert (f"did you mean gptcli {meant}?".encode() in done.stderr) if meant else (b"did you mean" not in done.stderr)
    assert quick(*words, "-m", tiny_gpt2, "-n", "2", "-s", "1", "-q").stderr == b""


def test_a_misspelled_command_with_its_arguments_is_an_error_that_names_it() -> None:
    done = quick("trian", "stories.txt", "more.txt")
    assert done.returncode == 2 and complaint(done).endswith("hint: did you mean gptcli train?")


def test_json_lines_can_be_read_along(tiny_gpt2: Path) -> None:
    done = quick("generate", "hello", "-m", tiny_gpt2, "-n", "12", "-s", "2", "--jsonl", "--logprobs", "3")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["prompt", *["token"] * 12, "done", "stats"]
    tokens = lines[1:13]
    assert "".join(token["released"] for token in tokens) == lines[13]["text"]
    for token in tokens:
        assert len(token["top"]) == 3
        assert token["top"][0]["logprob"] >= token["top"][1]["logprob"] >= token["top"][2]["logprob"]
        assert bytes(token["bytes"]).decode("utf-8", "replace") == token["text"]


def test_what_other_tools_call_an_option_is_accepted(tiny_gpt2: Path) -> None:
    m = ("hello", "-m", tiny_gpt2, "-q", "-s", "1")
    theirs = quick(*m, "--temp=0.7", "--n-predict", "6", "--repeat-penalty", "1.2")
    assert theirs.stdout == quick(*m, "-t", "0.7", "-n", "6", "--repetition-penalty", "1.2").stdout != b""
    for prompt in (("-p", "--temp=1"), ("--prompt=--temp",), ("--", "--temp")):
        done = quick("generate", "-m", tiny_gpt2, "-n", "1", "--json", "--stop", "--temp", *prompt)
        answer = json.loads(done.stdout)
        assert answer["prompt"]["text"] == prompt[-1].removeprefix("--prompt=")
        assert "--temp" in answer["settings"]["stop"]


def test_verbose_says_what_each_setting_came_to_and_what_else_was_asked_for(tiny_gpt2: Path) -> None:
    m = ("hello", "-m", tiny_gpt2, "-n", "1", "-v")
    done = quick(*m, "--json", "--logit-bias", "5=1", "--lookup", "--no-bos")
    said, seed = done.stderr.decode().splitlines(), json.loads(done.stdout)["settings"]["seed"]
    for line in (
        "device = auto: cpu (built-in)", "dtype = auto: float32 (built-in)", f"seed = none: {seed} (built-in)",
        "temperature = 0.8 (built-in)", "max_tokens = 1 (flag)", "logit_bias = ['5=1'] (flag)",
        "add_bos = False (flag)", "lookup = True (flag)",
    ):  # fmt: skip
        assert f"gptcli: {line}" in said
    plain = quick(*m, "-s", "1", "--device", "cpu").stderr.decode()
    assert "seed = 1 (flag)" in plain and "device = cpu (flag)" in plain
    assert not any(name in plain for name in ("lookup", "logit_bias", "add_bos", "adapter", "patch", "mean"))


def test_stats_go_to_standard_error(tiny_gpt2: Path) -> None:
    done = quick("generate", "hello", "-m", tiny_gpt2, "-n", "5", *GREEDY[:2], "--stats")
    for word in (b"loaded in", b"first token after", b"prompt 2 tokens", b"answer 5 tokens", b"peak memory"):
        assert word in done.stderr
        assert word not in done.stdout


def test_settings_come_from_flag_environment_file_and_model_in_this_order(tiny_gpt2: Path, tmp_path: Path) -> None:
    folder = tiny.write_gpt2(tmp_path / "model")
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.11, "top_k": 11, "top_p": 0.51, "repetition_penalty": 1.1, "do_sample": True})
    )
    (tmp_path / "config.toml").write_text(f'model = "{folder}"\ntop_k = 12\ntop_p = 0.52\nrepetition_penalty = 1.2\n')
    env = {"GPTCLI_CONFIG": str(tmp_path / "config.toml"), "GPTCLI_TOP_P": "0.53", "GPTCLI_REPETITION_PENALTY": "1.3"}
    done = gptcli("hello", "--repetition-penalty", "1.4", "-n", "2", "--json", env=env)
    settings = json.loads(done.stdout)["settings"]
    assert [settings[k] for k in ("temperature", "top_k", "top_p", "repetition_penalty", "min_p")] == [
        0.11, 12, 0.53, 1.4, 0.0
    ]  # fmt: skip


def test_the_figures_of_cases_that_are_computed_together_are_of_all_of_them(tiny_gpt2: Path) -> None:
    words = (
        "-m",
        tiny_gpt2,
        "--example",
        "a => b",
        "--format",
        "plain",
        "-n",
        "9",
        "-t",
        "0",
        "--ignore-eos",
        "--stats",
    )
    done = quick("generate", *words, "--stats", stdin=b"e\nf\ng\n")
    (line,) = [line for line in done.stderr.decode().splitlines() if "answer" in line]
    n = sum(len(answer) for answer in done.stdout.splitlines())
    assert "answer 27 tokens" in line and n > 0
    assert float(line.split("answer 27 tokens, ")[1].split("/s")[0].replace(",", "")) < 1e6


def test_the_seed_is_told_when_a_later_case_fails(tiny_gpt2: Path) -> None:
    words = ("-m", tiny_gpt2, "--example", "a => b", "-n", "3")
    done = quick("generate", *words, stdin=b"e\n" + b"w" * 70 + b"\n")
    assert done.returncode == 2 and done.stdout
    seed = next(line for line in done.stderr.decode().splitlines() if "seed" in line).split()[-1]
    assert quick("generate", "e", *words, "-s", seed).stdout + b"\n" == done.stdout


@pytest.mark.parametrize("kind", ["--json", "--jsonl"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_there_are_as_many_candidates_as_were_asked_for_with_an_x_ray_too(tiny_gpt2: Path, kind: str, n: int) -> None:
    done = quick(
        "generate", "hello", "-m", tiny_gpt2, "-n", "2", "-t", "0", "--ignore-eos", "--xray", "--logprobs", str(n), kind
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    tokens = rows[0]["samples"][0]["tokens"] if kind == "--json" else [r for r in rows if r["type"] == "token"]
    assert [len(token["top"]) for token in tokens] == [n, n]
    assert all(token["margin"] > 0 for token in tokens)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--json", "--echo"], "--echo changes nothing"),
        (["--xray", "--no-stream"], "--stream changes nothing"),
        (["--xray", "--logprobs", "3"], "--logprobs changes nothing"),
        (["--example", "a => b", "--keep-newline"], "--keep-newline changes nothing"),
        (["--logit-bias", "1" * 5000 + "=1"], "there is no token 1111"),
        (["-e", r"\ud83d"], "half a character, U+D83D"),
        (["-e", r"\U00110000"], "is not a character"),
        (["--overflow", "slide", "--ablate", "L0H0:3/1"], "--overflow slide moves the tokens"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused_in_one_line(
    tiny_gpt2: Path, words: list[str], says: str
) -> None:
    prompt = [] if words[0] == "-e" else ["hello"]
    done = quick(
        "generate", *words[:1], *(words[1:] if prompt else []), *prompt, *([] if prompt else words[1:]), "-m", tiny_gpt2
    )
    assert done.returncode == 2 and says in complaint(done)


def test_two_halves_of_a_character_are_one_as_in_json(tiny_gpt2: Path) -> None:
    done = quick("generate", "-e", r"\ud83d\ude00 \U0001F600", "-m", tiny_gpt2, "-n", "0", "--json")
    assert json.loads(done.stdout)["prompt"]["text"] == "😀 😀"


def test_stop_texts_that_are_not_utf_8_are_refused(tiny_gpt2: Path) -> None:
    done = gptcli("generate", "hello", "-m", tiny_gpt2, b"--stop", b"\xff")
    assert done.returncode == 2 and "--stop must be a list of texts in UTF-8" in complaint(done)


def test_names_of_other_tools_commands_are_prompts_with_a_note_unless_it_shall_be_quiet(tiny_gpt2: Path) -> None:
    words = ("models", "-m", tiny_gpt2, "-n", "2", "-s", "1")
    assert b"did you mean gptcli families?" in gptcli(*words).stderr
    assert gptcli(*words, env={"GPTCLI_QUIET": "1"}).stderr == b""


def test_a_greedy_choice_that_another_machine_may_make_otherwise_is_named(tmp_path: Path) -> None:
    tensors, words = tiny.gpt2_tensors(), ("generate", "hello", "-n", "2", "--ignore-eos")
    folder = tiny.write_gpt2(tmp_path / "model", tensors)
    done = quick(*words, "-m", folder, "-t", "0", "--json")
    assert b"note" not in done.stderr
    best = json.loads(done.stdout)["samples"][0]["ids"][0]
    tensors["wte.weight"][(best + 99) % tiny.N_VOCAB] = tensors["wte.weight"][best]
    tiny.write_gpt2(tmp_path / "tie", tensors)
    said = quick(*words, "-m", tmp_path / "tie", "-t", "0").stderr.decode()
    assert re.search(r"note: (a token was|2 tokens were) the likeliest by less than 0.0001; another machine", said)
    assert not quick(*words, "-m", tmp_path / "tie", "-t", "0", "-q").stderr
    assert b"likeliest" not in quick(*words, "-m", tmp_path / "tie", "-s", "1").stderr


def test_speeds_have_no_exponent(tiny_gpt2: Path) -> None:
    said = quick("generate", "hello " * 20, "-m", tiny_gpt2, "-n", "20", "--stats").stderr.decode()
    assert re.search(r"prompt \d+ tokens, [\d,.]+/s \| answer \d+ tokens, [\d,.]+/s", said) and "e+" not in said


def test_a_home_that_is_not_there_is_no_fault(tiny_gpt2: Path, tmp_path: Path) -> None:
    done = gptcli("generate", "hello", "-m", tiny_gpt2, env={"GPTCLI_CONFIG": "~nosuchuser/config.toml"})
    assert done.returncode == 3 and "no config file ~nosuchuser/config.toml" in complaint(done)
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbfquiet = true\n")
    done = gptcli("generate", "hello", "-m", tiny_gpt2, env={"GPTCLI_CONFIG": str(tmp_path / "config.toml")})
    assert (done.returncode, done.stderr) == (0, b"")
