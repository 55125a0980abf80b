"""The program itself: exit codes, streams, and what happens when they are closed, full, or not text."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from programs import PROGRAM, complaint, environment, gptcli, in_terminal, quick

GREEDY = ("-t", "0", "-q")


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


@pytest.mark.parametrize("command", [["families"], ["--help"], ["generate", "--help"], ["--version"], ["info"]])
def test_so_it_does_in_the_other_commands(tiny_gpt2: Path, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = gptcli(*command, stdout=writing, env={"GPTCLI_MODEL": str(tiny_gpt2)})
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        ["hello", "-q", "-s", "1", "--ignore-eos"], ["info"], ["tokenize", "x"], ["families"], ["hello", "--json"],
        ["--help"], ["generate", "--help"], ["--version"],
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    "command", ["hello", "info", "families", "tokenize x", "--help", "generate --help", "--version"]
)
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


@pytest.mark.parametrize(
    "words",
    [("tokenize", "hi", "-m"), ("generate", "hi", "-n", "1", "--adapter"), ("diff", "shipped"), ("xray", "--diff", "x"),
     ("params",), ("examples", "a b c", "-m"), ("train", "x.txt", "--out"), ("train", "--resume", "--out")],
    ids=" ".join,
)  # fmt: skip
def test_a_name_that_is_too_long_is_one_line_and_no_fault_of_ours(words: tuple[str, ...]) -> None:
    done = gptcli(*words, "a" * 300 + (".xray" if words[0] == "xray" else ""))
    said = complaint(done)
    assert done.returncode in (1, 2, 3) and "unexpected" not in said and "fault of gptcli" not in said


def test_it_runs_without_docstrings_and_its_help_in_ascii(tiny_gpt2: Path) -> None:
    assert gptcli("info", tiny_gpt2, env={"PYTHONOPTIMIZE": "2"}).returncode == 0
    done = gptcli("generate", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"--logit-bias" in done.stdout


def test_a_width_that_no_screen_has_is_not_filled_with_blanks() -> None:
    done = gptcli("params", "nano", env={"COLUMNS": "99999999"})
    assert done.returncode == 0 and len(done.stdout) < 1_000_000


def test_memory_that_torch_is_refused_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import gptcli.cli as cli

    def full(name: str | None = None) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(cli, "program", full)
    assert cli.run(["info"]) == 5


def test_a_long_message_breaks_between_words_at_a_terminal_and_nowhere_in_a_pipe() -> None:
    arguments = ("generate", "x", "-m", "no/such-model-as-this")
    piped = gptcli(*arguments).stderr.decode()
    seen, code = in_terminal(*arguments, size=(24, 50))
    shown = seen.decode().rpartition("\x1b[K")[2]  # after "loading ..."
    assert code == 3 and max(map(len, piped.splitlines())) > 50 >= max(map(len, shown.splitlines()))
    assert shown.split() == piped.split()


@pytest.mark.parametrize("columns", ["60", "80"])
def test_help_in_a_narrow_terminal_cuts_no_name_off(columns: str) -> None:
    for command in ("generate", "train"):
        done = gptcli(command, "--help", env={"COLUMNS": columns})
        assert done.returncode == 0 and "--" in done.stdout.decode() and "…" not in done.stdout.decode()


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
    for context, says in (("65", "more than the 64 tokens"), ("0", "--context")):
        assert says in complaint(quick("info", tiny_gpt2, "--context", context))


def test_info_says_in_which_dtype_it_counts_the_memory(tiny_gpt2: Path, tmp_path: Path) -> None:
    half = tiny.write_gpt2(tmp_path / "half", {name: t.half() for name, t in tiny.gpt2_tensors().items()})
    assert "at 64 tokens in F32: weights" in quick("info", tiny_gpt2).stdout.decode()
    assert "at 64 tokens in F32, as the CPU runs F16: weights" in " ".join(quick("info", half).stdout.decode().split())


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


@pytest.mark.parametrize("command", ["tokenize", "examples"])
def test_for_a_text_s_pieces_a_tokenizer_is_enough(tiny_gpt2: Path, tmp_path: Path, command: str) -> None:
    shutil.copyfile(tiny_gpt2 / "tokenizer.json", tmp_path / "tokenizer.json")
    expected = quick(command, "hello the", "-m", tiny_gpt2)
    assert expected.returncode == 0 and expected.stdout
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        assert quick(command, "hello the", "-m", name).stdout == expected.stdout


def test_examples_refuse_a_learning_rate_without_learning(tiny_gpt2: Path) -> None:
    done = quick("examples", "hello the", "-m", tiny_gpt2, "--lr", "0.1")
    assert done.returncode == 2 and done.stdout == b"" and b"--learning-rate changes nothing there" in done.stderr


@pytest.mark.parametrize(("command", "late"), [("generate", False), ("info", True)])
def test_a_process_that_holds_torch_ends_at_once_and_all_it_said_is_there(
    command: str, late: bool, tiny_gpt2: Path
) -> None:
    arguments = ["a", "-n", "3", "--seed", "1", "-m"] if command == "generate" else []
    program = (
        "import atexit, sys; atexit.register(print, 'late', file=sys.stderr); from gptcli.__main__ import main; "
        f"sys.argv = {['gptcli', command, *arguments, str(tiny_gpt2)]!r}; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, env=environment())
    assert done.returncode == 0 and done.stdout
    assert (b"late" in done.stderr) == late
