"""The program itself: exit codes, streams, and what happens when they are closed, full, or not text."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from programs import PROGRAM, environment, gptcli, in_terminal, quick

GREEDY = ("-t", "0", "-q")


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on standard error, and its hint; anything else there fails the test."""
    lines = done.stderr.decode().splitlines()
    assert lines and lines[0].startswith("gptcli: error: "), done.stderr
    assert len(lines) <= 2 and all(line.startswith("hint: ") for line in lines[1:]), done.stderr
    assert b"Traceback" not in done.stderr and done.stdout == b""
    return "\n".join(lines)


# --- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bogus"], "--bogus"),
        (["-n", "many"], "many"),
        (["-n", "-2"], "--max-tokens"),
        (["-t", "-1"], "--temperature"),
        (["-t", "nan"], "--temperature"),
        (["--top-p", "1.5"], "--top-p"),
        (["--min-p", "-0.1"], "--min-p"),
        (["-k", "-1"], "--top-k"),
        (["--repetition-penalty", "0"], "--repetition-penalty"),
        (["--num-samples", "0"], "--num-samples"),
        (["--seed", "x"], "x"),
        (["--stop", ""], "--stop"),
        (["--color", "purple"], "purple"),
        (["--overflow", "panic"], "panic"),
        (["--device", "tpu"], "tpu"),
        (["--dtype", "int3"], "int3"),
        (["--json", "--jsonl"], "exclude each other"),
        (["--logprobs", "-1"], "--logprobs"),
        (["--logit-bias", "7"], "ID=B"),
        (["--logit-bias", "999=1"], "there is no token 999"),
        (["--logit-bias", '" two words"=1'], "not one token"),
        (["-p", "again"], "twice"),
        (["more", "words"], "more"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tiny_gpt2: Path, arguments: list[str], says: str) -> None:
    done = quick("generate", "hello", "-m", tiny_gpt2, *arguments)
    assert done.returncode == 2
    assert says in complaint(done)


def test_a_model_that_is_not_there_is_exit_code_3(tmp_path: Path) -> None:
    done = gptcli("generate", "hello", "-m", tmp_path / "nowhere")
    assert done.returncode == 3 and "nowhere" in complaint(done)


def test_nothing_is_said_where_numpy_is_not_installed(tiny_gpt2: Path) -> None:
    """torch warns of it; it is there for saving alone."""
    program = "import sys; sys.modules['numpy'] = None; from gptcli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "hello", "-m", str(tiny_gpt2), "-n", "3", "-t", "0"],
        capture_output=True, env=environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout and done.stderr == b""


def test_no_model_at_all_is_exit_code_3_and_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli import NotFound, model_choice

    monkeypatch.setattr(model_choice, "shipped", lambda: None)  # as where the wheel was built without weights
    with pytest.raises(NotFound, match="no model is given") as caught:
        model_choice.chosen_model({})
    assert caught.value.exit_code == 3 and "--model" in (caught.value.hint or "")


@pytest.mark.parametrize("command", ["generate", "info"])
def test_a_checkpoint_that_is_not_supported_is_exit_code_4(tmp_path: Path, command: str) -> None:
    folder = tiny.write_gpt2(tmp_path / "model", model_type="mamba")
    done = quick(command, "-m", folder)
    assert done.returncode == 4 and "recurrent state" in complaint(done)


def test_a_checkpoint_that_does_not_fit_is_exit_code_5(tmp_path: Path) -> None:
    """A sparse file of 137 GB, which takes no room on the disk."""
    n, tensors = 1 << 30, tiny.gpt2_tensors()
    folder = tiny.write_gpt2(tmp_path / "model", tensors, vocab_size=n)
    header, end = {}, 0
    for name, tensor in tensors.items():
        shape = [n, 32] if name == "wte.weight" else list(tensor.shape)
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + end)
    done = quick("generate", "hello", "-m", folder)
    assert done.returncode == 5 and "the weights need 137 GB" in complaint(done)


def test_weights_that_are_not_numbers_are_exit_code_1_and_the_layer_is_named(tmp_path: Path) -> None:
    tensors = tiny.gpt2_tensors()
    tensors["h.1.mlp.c_proj.bias"][3] = float("nan")
    done = quick("generate", "hello", "-m", tiny.write_gpt2(tmp_path / "model", tensors), "-q")
    assert done.returncode == 1
    assert "the MLP in layer 1 is the first that is not finite" in complaint(done)


def test_a_traceback_is_shown_only_to_those_who_ask_for_it() -> None:
    done = gptcli("generate", "x", "-m", "nowhere", env={"GPTCLI_DEBUG": "1"})
    assert done.returncode == 3 and b"Traceback" in done.stderr


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
    m = ("generate", "hello", "-m", tiny_gpt2, "-n", "20")
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
    done = quick("generate", "-m", tiny_gpt2, "-n", "1", "--json", "--", "--temp")
    assert json.loads(done.stdout)["prompt"]["text"] == "--temp"


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


# --- when a stream is gone -------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_ends_the_program_quietly_with_141(tiny_gpt2: Path) -> None:
    command = [*PROGRAM, "hello", "-m", str(tiny_gpt2), "--overflow", "slide", "-n", "100000", "-s", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment()
    )
    assert process.stdout and process.stderr
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [["families"], ["generate", "--help"], ["info"]])
def test_so_it_does_in_the_other_commands(tiny_gpt2: Path, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = gptcli(*command, stdout=writing, env={"GPTCLI_MODEL": str(tiny_gpt2)})
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "command",
    [["hello", "-q", "-s", "1", "--ignore-eos"], ["info"], ["tokenize", "x"], ["families"], ["hello", "--json"]],
)
def test_a_full_disk_is_one_line(tiny_gpt2: Path, command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = gptcli(*command, stdout=full, env={"GPTCLI_MODEL": str(tiny_gpt2)})
    assert done.returncode == 1
    assert done.stderr == b"gptcli: error: cannot write to standard output: No space left on device\n"


def shell(line: str, model: Path) -> subprocess.CompletedProcess[bytes]:
    program = f"{sys.executable} -m gptcli"
    return subprocess.run(
        ["sh", "-c", line.replace("gptcli", program)], capture_output=True, timeout=120,
        env=environment({"GPTCLI_MODEL": str(model)}),
    )  # fmt: skip


def test_closed_standard_input_is_no_prompt(tiny_gpt2: Path) -> None:
    done = shell("gptcli generate -n 3 -t 0 -q <&-", tiny_gpt2)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout
    done = shell("gptcli generate - -n 3 -t 0 -q <&-", tiny_gpt2)
    assert done.returncode == 2 and "standard input is closed" in complaint(done)


@pytest.mark.parametrize("command", ["hello", "info", "families", "tokenize x"])
def test_closed_standard_output_is_one_line(tiny_gpt2: Path, command: str) -> None:
    done = shell(f"gptcli {command} >&-", tiny_gpt2)
    assert done.returncode == 1 and "standard output is closed" in complaint(done)


def test_closed_standard_error_is_no_obstacle(tiny_gpt2: Path) -> None:
    done = shell("gptcli hello -n 3 -s 1 --stats 2>&-", tiny_gpt2)
    assert done.returncode == 0 and done.stdout


def test_an_interrupt_in_a_pipe_is_exit_code_130_and_keeps_what_was_written(tiny_gpt2: Path) -> None:
    command = [*PROGRAM, "hello", "-m", str(tiny_gpt2), "--overflow", "slide", "-n", "1000000", "--stats", "-s", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment()
    )
    assert process.stdout
    begun = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(begun) == 20 and b"Traceback" not in said and b"answer" in said


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads from /proc when torch is being imported")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_an_interrupt_while_loading_is_exit_code_130_without_a_word(tiny_gpt2: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "hello", "-m", str(tiny_gpt2)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    until = time.monotonic() + 60
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < until:
        time.sleep(0.01)  # torch is being imported from here on, which takes a second and more
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said, said


# --- the terminal ----------------------------------------------------------------------------------------------------

GREEN, PINK = b"48;2;221;242;207", b"48;2;245;195;211"
TRUECOLOR = {"COLORTERM": "truecolor"}


def test_at_a_terminal_the_prompt_is_green_and_the_answer_pink(tiny_gpt2: Path) -> None:
    seen, code = in_terminal("hello", "-m", tiny_gpt2, "-n", "10", *GREEDY, env=TRUECOLOR)
    assert code == 0
    assert seen.index(GREEN) < seen.index(b"hello") < seen.index(PINK)
    assert seen.endswith(b"\r\n")


@pytest.mark.parametrize(
    ("options", "env"),
    [([], {"NO_COLOR": "1"}), (["--color", "never"], {}), ([], {"TERM": "dumb"}), ([], {"CLICOLOR": "0"})],
)
def test_colour_is_left_out_where_it_is_not_wanted(tiny_gpt2: Path, options: list[str], env: dict[str, str]) -> None:
    seen, code = in_terminal("hello", "-m", tiny_gpt2, "-n", "10", *GREEDY, *options, env={**TRUECOLOR, **env})
    assert code == 0 and b"\x1b[38" not in seen and b"\x1b[48" not in seen


def test_the_flag_beats_no_color(tiny_gpt2: Path) -> None:
    done = gptcli("hello", "-m", tiny_gpt2, "-n", "4", *GREEDY, "--color", "always", env={"NO_COLOR": "1", **TRUECOLOR})
    assert PINK in done.stdout and GREEN not in done.stdout  # a pipe gets the prompt only with --echo


def test_color_prob_tints_each_token_by_its_probability(tiny_gpt2: Path) -> None:
    from gptcli.render.theme import SCALE, step

    m = ("hello", "-m", tiny_gpt2, "-n", "12", "-s", "2")
    tokens = json.loads(quick(*m, "--json", "--logprobs", "0").stdout)["samples"][0]["tokens"]
    seen, code = in_terminal(*m, "--color", "prob", env=TRUECOLOR)
    assert code == 0 and b"probability 0" in seen
    colours = []
    for token in tokens:
        rgb = SCALE[step(2.718281828459045 ** token["logprob"])]
        colours.append(";".join(str(int(rgb[i : i + 2], 16)) for i in (1, 3, 5)))
    assert len(set(colours)) > 1
    assert any(f"48;2;{colour}".encode() in seen for colour in colours)
    assert all(b"48;2;" + colour.encode() in seen for colour in colours[:1])


def test_ctrl_c_keeps_the_text_ends_the_line_and_is_exit_code_130(tiny_gpt2: Path) -> None:
    pressed = list[bytes]()

    def after_some_text(seen: bytes) -> bytes | None:
        if len(seen) > 400:
            pressed.append(seen)
            return b"\x03"
        return None

    seen, code = in_terminal(
        "hello", "-m", tiny_gpt2, "--overflow", "slide", "-n", "1000000", "-q", "-s", "1", "--color", "never",
        when=after_some_text,
    )  # fmt: skip
    assert code == 130
    assert pressed and seen.startswith(pressed[0])
    assert seen.endswith(b"\r\n") and b"Traceback" not in seen


def test_a_model_cannot_steer_the_terminal(tiny_gpt2: Path) -> None:
    escape = tiny.vocabulary()[tiny.letters()[0x1B]]
    m = ("hello", "-m", tiny_gpt2, "-n", "3", *GREEDY, "--logit-bias", f"{escape}=1000")
    seen, _ = in_terminal(*m, "--color", "never")
    assert rb"\x1b\x1b\x1b" in seen and b"\x1b" not in seen.replace(b"\x1b[2mloading ...\x1b[0m\r\x1b[K", b"")
    assert gptcli(*m).stdout == b"\x1b\x1b\x1b"  # a pipe gets the bytes


def test_a_bare_call_at_a_terminal_shows_the_help() -> None:
    seen, code = in_terminal()
    assert code == 0 and b"Usage" in seen and b"generate" in seen and b"tokenize" in seen


def test_names_from_files_cannot_steer_the_terminal(tmp_path: Path) -> None:
    folder = tiny.write_gpt2(tmp_path / "model", **{"\x1b]0;owned\x07key": 1})
    seen, code = in_terminal("info", folder)
    assert code == 4 and b"\x1b]0" not in seen and rb"\x1b]0;owned\x07key" in seen


# --- light commands --------------------------------------------------------------------------------------------------

LIGHT = [["--help"], ["--version"], ["generate", "--help"], ["info"], ["info", "--json"], ["tokenize", "hello"],
         ["tokenize", "hello", "--color", "always"], ["families"], ["families", "llama"]]  # fmt: skip


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_never_import_torch(tiny_gpt2: Path, arguments: list[str]) -> None:
    program = (
        "import sys; from gptcli.cli import run; code = run(sys.argv[1:])\n"
        "print(code, sorted({'torch', 'numpy', 'safetensors', 'transformers'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
        env=environment({"GPTCLI_MODEL": str(tiny_gpt2)}),
    )  # fmt: skip
    assert done.stdout and done.stderr == b"0 []\n"


def test_completion_knows_commands_and_options_and_never_imports_torch() -> None:
    env = {"_GPTCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "gptcli "}
    program = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n" \
              "from gptcli.__main__ import main; main()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment(env))
    assert all(name in done.stdout for name in (b"generate", b"info", b"tokenize", b"families"))
    assert done.stderr == b"False\n"
    env["_TYPER_COMPLETE_ARGS"] = "gptcli generate --tem"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment(env))
    assert b"--temperature" in done.stdout


def test_info_says_what_a_checkpoint_is(tiny_gpt2: Path) -> None:
    done = quick("info", tiny_gpt2, "--json")
    card = json.loads(done.stdout)
    assert card["family"] == "gpt2" and card["n_layer"] == 2 and card["n_ctx"] == 64
    assert card["n_params"] == sum(t.numel() for t in tiny.gpt2_tensors().values())
    assert sum(n for _, n in card["budget"]) == card["n_params"]
    assert card["weight_bytes"] == 4 * card["n_params"] and card["cache_bytes"] == 2 * 2 * 32 * 64 * 4
    plain = quick("info", tiny_gpt2, "--context", "10", "--tensors").stdout.decode()
    assert f"{card['n_params']:,} parameters" in plain and "at 10 tokens" in plain and "h.1.mlp.c_proj.weight" in plain
    assert quick("inspect", tiny_gpt2).stdout == quick("info", tiny_gpt2).stdout


def test_tokenize_shows_ids_and_pieces(tiny_gpt2: Path) -> None:
    m = ("-m", tiny_gpt2)
    ids = quick("tokenize", "hello the\n", *m, "--ids").stdout.decode().split()
    vocabulary = tiny.vocabulary()
    assert list(map(int, ids)) == [vocabulary[p] for p in ("hell", "o", "Ġthe", "Ċ")]
    lines = quick("tokenize", *m, stdin=b"hello the\n", ).stdout.decode().splitlines()  # fmt: skip
    assert [line.split("\t")[1] for line in lines] == ["hell", "o", "·the"]
    tokens = json.loads(quick("tokenize", "é", *m, "--json").stdout)["tokens"]
    assert b"".join(bytes(token["bytes"]) for token in tokens) == "é".encode()


def test_families_prints_the_table_of_families_and_their_spelling() -> None:
    from gptcli import FAMILIES
    from gptcli.families import REFUSED

    text = quick("families").stdout.decode()
    assert all(name in text for name in (*FAMILIES, *REFUSED))
    assert "h.*.attn.c_attn" in text and "transposed" in text
    one = quick("families", "qwen3").stdout.decode()
    assert "model.layers.*.self_attn.q_norm" in one and "blocks.*.attn.q_norm" in one
    assert json.loads(quick("families", "--json").stdout).keys() == FAMILIES.keys()
    assert quick("families", "mamba").returncode == 2
