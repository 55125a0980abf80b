"""train, finetune, merge, diff, examples and score as a person runs them: killed, with a full disk, in a terminal."""

from __future__ import annotations

import json
import math
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny
import torch
from programs import PROGRAM, complaint, environment, gptcli, in_terminal, quick
from rich.cells import cell_len
from rich.text import Text
from safetensors.torch import load_file, save_file

from gptcli import load, look

WORDS = "the cat sat on a red mat and then it ran to the big blue house where a small dog was asleep".split()  # noqa: SIM905
SMALL = ("--size", "nano", "--layers", "2", "--width", "32", "--context", "32", "--vocab", "300",
         "--batch-tokens", "128", "--no-compile")  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts of words in a fixed disorder."""
    g = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (60,), generator=g)) for _ in range(60)]
    file = tmp_path_factory.mktemp("corpus") / "texts.txt"
    file.write_text("\n<|endoftext|>\n".join(texts))
    return file


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    done = gptcli("train", corpus, "--out", out, *SMALL, "--steps", "40", "--optimizer", "muon")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    return out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"the {a} {b}", "completion": f" => {b} {a}"} for a in WORDS for b in WORDS if a != b]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# --- train -----------------------------------------------------------------------------------------------------------


def test_the_result_is_a_model_that_generates(trained: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "loss.svg", "run"} == {
        p.name for p in trained.iterdir()
    } - {"tokenizer_config.json", "generation_config.json"}
    done = quick("the cat", "-m", trained, "-n", "12", "-t", "0")
    assert done.returncode == 0 and any(word in done.stdout.decode() for word in WORDS)
    assert (trained / "loss.svg").read_text().startswith("<svg")


def test_the_layout_is_gpt3_s_as_gpt_neo_spells_it(trained: Path) -> None:
    layout = look(str(trained))
    assert layout.family == "gpt_neo" and layout.config.tied and layout.config.learned_positions
    assert [layer.window for layer in layout.config.layers] == [None, 256]
    values = json.loads((trained / "config.json").read_text())
    assert values["attention_types"] == [[["global", "local"], 1]]


def test_transformers_loads_it_and_has_the_same_logits(trained: Path) -> None:
    from transformers import AutoTokenizer, GPTNeoForCausalLM

    theirs, ours = GPTNeoForCausalLM.from_pretrained(trained, attn_implementation="eager").eval(), load(str(trained))
    ids = ours.tokenizer.encode("the big dog ran and then it sat on the blue mat")
    assert AutoTokenizer.from_pretrained(trained).encode("the big dog ran and then it sat on the blue mat") == ids
    with torch.no_grad():
        expected, found = theirs(torch.tensor([ids])).logits, ours.decoder(torch.tensor([ids]))
    assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_it_learns_and_its_metrics_say_so(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[0]["loss"] == pytest.approx(math.log(300), abs=0.2) and rows[-1]["loss"] < 3.5
    assert rows[-1]["tokens"] == 40 * 128 and rows[-1]["validation"] < 3.8
    assert all(row["grad_norm"] > 0 and row["learning_rate"] > 0 for row in rows)


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lines_of(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_forty_steps_are_twenty_a_kill_and_twenty_more_to_the_bit(corpus: Path, tmp_path: Path, optimizer: str) -> None:
    options = (*SMALL, "--steps", "40", "--optimizer", optimizer, "--save-every", "5")
    assert gptcli("train", corpus, "--out", tmp_path / "whole", *options).returncode == 0
    process = start("train", corpus, "--out", tmp_path / "killed", *options)
    wait_for(lambda: lines_of(tmp_path / "killed" / "metrics.jsonl") >= 20, process)
    process.kill()
    process.communicate()
    done = gptcli("train", "--resume", "--out", tmp_path / "killed")
    assert done.returncode == 0, done.stderr.decode()
    whole, killed = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    )
    for a, b in zip(whole, killed, strict=True):
        assert {**a, "tokens_per_s": 0} == {**b, "tokens_per_s": 0}
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_compiled_run_ends_near_the_one_that_is_not_and_says_nothing_but_its_own_lines(
    corpus: Path, tmp_path: Path
) -> None:
    """What the compiler has to say of our code is no one's to read but ours."""
    options = ("--steps", "4", "--validate-every", "2")
    done = gptcli("train", corpus, "--out", tmp_path / "model", *SMALL[:-1], "--compile", *options)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    assert any(", compiled" in line for line in lines)
    assert all(re.match(r"gptcli: |step \d+/4 ", line) for line in lines), lines
    plain = gptcli("train", corpus, "--out", tmp_path / "plain", *SMALL, *options)
    assert plain.returncode == 0, plain.stderr.decode()
    ends = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("model", "plain")]
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=1e-4)


@pytest.mark.slow
def test_it_can_be_killed_at_any_moment(corpus: Path, tmp_path: Path) -> None:
    """Six times, each a little later: what is there is always a whole model and a run that goes on."""
    out = tmp_path / "model"
    process = start("train", corpus, "--out", out, *SMALL, "--steps", "400", "--save-every", "1")
    wait_for(lambda: (out / "model.safetensors").exists(), process)
    for i in range(6):
        time.sleep(0.03 * i)
        process.kill()
        process.communicate()
        load(str(out))
        newest = (out / "run" / "LATEST").read_text().strip()
        done = int(newest.removeprefix("step-"))
        assert lines_of(out / "metrics.jsonl") >= done > 0
        process = start("train", "--resume", "--out", out)
        wait_for(lambda: lines_of(out / "metrics.jsonl") > done + 1, process)  # noqa: B023
    process.kill()
    process.communicate()


def test_ctrl_c_saves_and_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    process = start("train", corpus, "--out", tmp_path / "m", *SMALL, "--steps", "5000")
    wait_for(lambda: lines_of(tmp_path / "m" / "metrics.jsonl") >= 5, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"--resume" in errors and b"Traceback" not in errors
    assert load(str(tmp_path / "m")).config.n_layer == 2


def test_a_full_disk_is_one_line_and_the_last_save_is_sound(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert gptcli("train", corpus, "--out", out, *SMALL, "--steps", "3").returncode == 0

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = subprocess.run(
        [*PROGRAM, "train", "--resume", "--out", out, "--steps", "6", "-q"], env=environment(), capture_output=True,
        preexec_fn=full,
    )  # fmt: skip
    assert done.returncode == 1
    assert (done.stderr.count(b"\n") == 2 and b"cannot be saved" in done.stderr) or b"cannot save" in done.stderr
    load(str(out))
    assert gptcli("train", "--resume", "--out", out).returncode == 0
    assert lines_of(out / "metrics.jsonl") == 6


def test_a_loss_that_is_no_number_stops_with_its_step(corpus: Path, tmp_path: Path) -> None:
    done = gptcli(
        "train", corpus, "--out", tmp_path / "m", *SMALL, "--steps", "60", "--lr", "1e30", "--save-every", "1"
    )
    assert done.returncode == 1
    assert b"gptcli: error: step 1: the validation loss is nan\n" in done.stderr
    assert b"--resume" not in done.stderr  # there is nothing to go on from
    assert (
        not list((tmp_path / "m" / "run").glob("steps/step-*")) and not (tmp_path / "m" / "model.safetensors").exists()
    )
    for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("every", ["1", "100"], ids=["saved every step", "never saved"])
def test_a_loss_that_is_no_number_names_the_last_good_save(corpus: Path, tmp_path: Path, every: str) -> None:
    """The step at that rate gives numbers that the next one's loss is nan with: that is not saved either."""
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "4", "--save-every", "2").returncode == 0
    weights = (out / "model.safetensors").read_bytes()
    wild = ("--steps", "12", "--lr", "1e30", "--save-every", every, "--validate-every", "100")
    done = quick("train", "--resume", "--out", out, *wild)
    assert done.returncode == 1
    *_, error, hint = done.stderr.decode().splitlines()
    assert error == "gptcli: error: step 6: the loss is nan; the last good save is step 4"
    assert "--resume" in hint and "a lower --learning-rate may help" in hint
    assert (out / "run" / "LATEST").read_text() == "step-0000004\n"
    assert (out / "model.safetensors").read_bytes() == weights and load(str(out)).config.n_layer == 2
    again = quick("train", "--resume", "--out", out, "--lr", "1e-3")
    assert again.returncode == 0 and lines_of(out / "metrics.jsonl") == 12


def test_what_was_saved_and_not_published_is_published_when_the_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "3").returncode == 0
    weights = (out / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "loss.svg", "config.json"):
        (out / name).unlink()
    done = quick("train", "--resume", "--out", out)
    assert done.returncode == 0 and b"all 3 steps are done" in done.stderr
    assert (out / "model.safetensors").read_bytes() == weights and (out / "loss.svg").exists()
    assert quick("train", "--resume", "--out", out, "-q").stderr == b""
    (out / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.5}')  # as people do
    assert quick("train", "--resume", "--out", out, "--steps", "4").returncode == 0


def test_a_folder_that_cannot_be_written_is_one_line(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "2").returncode == 0
    (out / "metrics.jsonl").unlink()
    (out / "metrics.jsonl").mkdir()
    done = quick("train", "--resume", "--out", out, "--steps", "3", "-q")
    assert done.returncode == 1 and b"cannot be written" in done.stderr and done.stderr.count(b"\n") == 2
    assert not list(out.glob(".*.tmp"))


def test_options_that_a_run_began_with_are_refused_when_it_goes_on(trained: Path, tmp_path: Path) -> None:
    kept = (trained / "run" / "recipe.json").read_bytes()
    for words in (["--size", "mini"], ["--layers", "3"], ["--seed", "5"], ["--batch-tokens", "512"]):
        done = quick("train", "--resume", "--out", trained, *words)
        assert done.returncode == 2 and f"{words[0]} changes nothing there".encode() in done.stderr
    for words in (["--lora", "4"], ["--batch", "3"], ["--context", "8"]):
        done = quick("finetune", "--resume", "--out", trained, *words)
        assert done.returncode == 2 and f"{words[0]} changes nothing there".encode() in done.stderr
    assert (trained / "run" / "recipe.json").read_bytes() == kept


def test_a_run_whose_saves_are_gone_is_not_begun_again(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "2").returncode == 0
    for folder in (out / "run" / "steps").iterdir():
        shutil.rmtree(folder)
    weights = (out / "model.safetensors").read_bytes()
    done = quick("train", "--resume", "--out", out, "--steps", "3")
    assert done.returncode == 4 and b"the saves of this run are gone" in done.stderr
    assert (out / "model.safetensors").read_bytes() == weights and lines_of(out / "metrics.jsonl") == 2


def test_a_tokenizer_puts_no_token_in_front_that_was_not_trained(tiny_gpt2: Path, corpus: Path, tmp_path: Path) -> None:
    values = json.loads((tiny_gpt2 / "tokenizer.json").read_text())
    sequence = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": sequence, "pair": sequence,
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    options = [o for o in SMALL if o not in ("--vocab", "300")]
    given = ("--tokenizer", tmp_path / "tokenizer.json")
    done = quick("train", corpus, "--out", tmp_path / "m", *options, "--steps", "1", *given)
    assert done.returncode == 0, done.stderr.decode()
    checkpoint = load(str(tmp_path / "m"))
    assert checkpoint.tokenizer.encode("hello") == load(str(tiny_gpt2)).tokenizer.encode("hello")


def test_the_file_that_was_named_is_tuned(trained: Path, corpus: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(trained, both, ignore=shutil.ignore_patterns("run"))
    tensors = {name: torch.full_like(tensor, 0.0625) for name, tensor in load_file(both / "model.safetensors").items()}
    save_file(tensors, both / "other.safetensors", {"format": "pt"})
    words = ("finetune", both / "other.safetensors", corpus, "--out", tmp_path / "m", "--steps", "1", "--lr", "1e-12")
    done = quick(*words)
    assert done.returncode == 0, done.stderr.decode()
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert all(torch.allclose(tensor, torch.full_like(tensor, 0.0625), atol=1e-6) for tensor in found.values())


def test_a_merged_model_is_run_as_its_adapter_asks(trained: Path, pairs: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert quick("finetune", trained, pairs, "--out", adapter, "--lora", "2", "--steps", "1").returncode == 0
    (adapter / "generation_config.json").write_text('{"do_sample": false}')
    (tmp_path / "base").mkdir()
    shutil.copytree(trained, tmp_path / "base", ignore=shutil.ignore_patterns("run"), dirs_exist_ok=True)
    (tmp_path / "base" / "added_tokens.json").write_text('{"<|endoftext|>": 0}')
    assert quick("merge", tmp_path / "base", adapter, "--out", merged).returncode == 0
    values = json.loads((merged / "generation_config.json").read_text())
    assert values["do_sample"] is False and values["eos_token_id"] == 0
    assert (merged / "added_tokens.json").read_text() == '{"<|endoftext|>": 0}'


def test_standard_input_is_a_corpus_too(corpus: Path, tmp_path: Path) -> None:
    done = gptcli("train", "-", "--out", tmp_path / "m", *SMALL, "--steps", "2", stdin=corpus.read_bytes())
    assert done.returncode == 0, done.stderr.decode()
    assert gptcli("train", "--resume", "--out", tmp_path / "m", "--steps", "3").returncode == 0


def test_json_lines_on_stdin_are_read_as_such(corpus: Path, trained: Path, pairs: Path, tmp_path: Path) -> None:
    texts = corpus.read_text().split("<|endoftext|>")
    lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()
    for name, data in (("t", corpus.read_bytes()), ("j", lines)):
        assert quick("train", "-", "--out", tmp_path / name, *SMALL, "--steps", "1", stdin=data).returncode == 0
    kept = [(tmp_path / name / "run" / "tokens.bin").read_bytes() for name in "tj"]
    assert kept[0] == kept[1]
    words = ("--out", tmp_path / "p", "--lora", "2", "--steps", "1")
    assert quick("finetune", trained, "-", *words, stdin=pairs.read_bytes()).returncode == 0
    shown = (tmp_path / "p" / "run" / "train.jsonl").read_text()
    assert shown and shown.splitlines() == pairs.read_text().splitlines()[: shown.count("\n")]
    mixed = quick("finetune", trained, "-", corpus, "--out", tmp_path / "m", "--steps", "1", stdin=pairs.read_bytes())
    assert mixed.returncode == 2 and b"some files hold pairs and others text" in mixed.stderr


def test_a_tokenizer_that_is_there_is_used(trained: Path, corpus: Path, tmp_path: Path) -> None:
    done = quick("train", corpus, "--out", tmp_path / "m", *SMALL, "--tokenizer", trained)
    assert done.returncode == 2 and b"--vocab is for a new tokenizer" in done.stderr
    options = [o for o in SMALL if o not in ("--vocab", "300")]
    done = quick("train", corpus, "--out", tmp_path / "m", *options, "--steps", "1", "--tokenizer", trained)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((tmp_path / "m" / "tokenizer.json").read_text()) == json.loads(
        (trained / "tokenizer.json").read_text()
    )


def test_bad_input_gets_clear_words(corpus: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("the cat sat")
    for arguments, code, words in (
        (["train", tmp_path / "empty.txt", "--out", tmp_path / "a", *SMALL], 1, "the corpus is empty"),
        (["train", corpus, tmp_path / "gone.txt", corpus, "--out", tmp_path / "b"], 3, "gone.txt"),
        (["train", tmp_path / "short.txt", "--out", tmp_path / "c", *SMALL], 2, "fewer than one context of 32"),
        (["train", corpus, "--out", trained], 2, "exists already"),
        (["train", corpus], 2, "--out DIR is missing"),
        (["train", "--out", tmp_path / "d"], 2, "nothing to train on"),
        (["train", corpus, "--out", tmp_path / "e", "--size", "huge"], 2, "size 'huge' is not known"),
        (["train", corpus, "--out", tmp_path / "f", "--heads", "5"], 2, "does not divide into 5 heads"),
        (["train", corpus, "--out", tmp_path / "g", "--tokens", "many"], 2, "--tokens must be a count"),
        (["train", corpus, "--out", tmp_path / "i", "--device", "cuda:99"], 2, "'cuda:99' is not available"),
        (
            ["train", corpus, "--out", tmp_path / "j", *SMALL, "--lr", "0"],
            2,
            "--learning-rate must be a number above 0",
        ),
        (["train", corpus, "--out", tmp_path / "k", "--validation", "-"], 2, "validation text cannot come from stdin"),
        (
            ["train", corpus, "--out", tmp_path / "l", *SMALL, "--validation", tmp_path / "empty.txt"],
            1,
            "the validation texts are empty",
        ),
        (["train", "--resume", "--out", tmp_path / "h"], 3, "recipe.json is not there"),
        (["train", "--resume", "--out", trained, "--optimizer", "adamw"], 2, "its state is of no use to adamw"),
        (["finetune", "--resume", "--out", trained], 2, "is one of gptcli train"),
    ):
        done = quick(*arguments)  # type: ignore[arg-type]
        errors = done.stderr.decode()
        assert done.returncode == code, (arguments, errors)
        assert words in errors.splitlines()[-2 if "hint:" in errors else -1], errors
        early = "cuda" in words or "--learning-rate" in words  # and not after minutes of work
        assert not (early and "learning a vocabulary" in errors)
        assert "Traceback" not in errors


def test_a_changed_tokenizer_is_found_before_it_does_harm(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "2").returncode == 0
    tokenizer = out / "run" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"cot"') + " ")
    done = quick("train", "--resume", "--out", out, "--steps", "3")
    assert done.returncode == 4 and b"is not the tokenizer that tokens.bin was made with" in done.stderr


def test_what_is_gone_from_a_run_s_folder_is_said_in_one_line(
    corpus: Path, trained: Path, pairs: Path, tmp_path: Path
) -> None:
    begun = {"train": [corpus, *SMALL], "finetune": [trained, pairs, "--no-compile"]}
    for command, file in (("train", "tokenizer.json"), ("train", "tokens.json"), ("finetune", "train.jsonl")):
        out = tmp_path / file
        assert quick(command, *begun[command], "--out", out, "--steps", "1").returncode == 0
        (out / "run" / file).unlink()
        done = quick(command, "--resume", "--out", out, "--steps", "2")
        assert done.returncode == 3 and file in complaint(done)


def test_in_a_terminal_a_panel_shows_the_step_as_the_article_draws_it(corpus: Path, tmp_path: Path) -> None:
    seen, code = in_terminal("train", corpus, "--out", tmp_path / "m", *SMALL, "--steps", "40", size=(30, 100))
    text = seen.decode()
    assert code == 0
    for word in ("step 40/40", "left", "loss", "tokens/s", "shown", "guess", "right", "before step ", "after it"):
        assert word in text, word
    assert "Traceback" not in text


def test_in_a_pipe_there_are_plain_lines(corpus: Path, tmp_path: Path) -> None:
    done = gptcli("train", corpus, "--out", tmp_path / "m", *SMALL, "--steps", "6", "--validate-every", "2")
    lines = done.stderr.decode().splitlines()
    assert sum(line.startswith("step ") for line in lines) >= 3
    assert "\x1b" not in done.stderr.decode()
    assert gptcli("train", corpus, "--out", tmp_path / "q", *SMALL, "--steps", "1", "-q").stderr == b""


def test_a_run_ends_with_what_was_saved_and_what_runs_it(corpus: Path, trained: Path, tmp_path: Path) -> None:
    commands = {
        "a model": ("train", corpus, *SMALL),
        "tuned": ("finetune", trained, corpus, "--no-compile"),
        "adapter": ("finetune", trained, corpus, "--no-compile", "--lora", "2"),
    }
    for name, command in commands.items():
        out = tmp_path / name
        said = quick(*command, "--out", out, "--steps", "1").stderr.decode().splitlines()[-1]
        saved, _, run = said.partition("; now: ")
        assert saved == f"gptcli: saved in {out}"
        assert shlex.split(run) == [
            "gptcli",
            "generate",
            "-m",
            *([str(trained), "--adapter"] * (name == "adapter")),
            str(out),
        ]
        assert quick(*shlex.split(run)[1:], "hello", "-n", "1").returncode == 0


def test_a_text_that_gives_a_smaller_vocabulary_than_asked_for_is_said_to(corpus: Path, tmp_path: Path) -> None:
    for n, fewer in (("300", False), ("2000", True)):
        out = tmp_path / n
        done = quick("train", corpus, "--out", out, *SMALL, "--vocab", n, "--steps", "1")
        said = f"gptcli: the text gives no more than {look(str(out)).config.n_vocab} tokens"
        assert done.returncode == 0 and (said in done.stderr.decode().splitlines()) == fewer


# --- finetune, adapters ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_weights_learn_the_completions(trained: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = gptcli("finetune", trained, pairs, "--out", out, "--epochs", "12", "--lr", "1e-2", "--optimizer", "muon")
    assert done.returncode == 0, done.stderr.decode()
    answer = gptcli("the cat dog", "-m", out, "-t", "0", "-n", "10")
    assert answer.stdout == b" => dog cat"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["validation"] < 0.3 * rows[0]["loss"]


@pytest.mark.slow
def test_an_adapter_is_trained_resumed_run_and_merged(trained: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    options = ("--lora", "4", "--steps", "30", "--batch", "8", "--save-every", "10", "--lr", "2e-2")
    done = gptcli("finetune", trained, pairs, "--out", tmp_path / "whole", *options)
    assert done.returncode == 0, done.stderr.decode()
    process = start("finetune", trained, pairs, "--out", out, *options)
    wait_for(lambda: lines_of(out / "metrics.jsonl") >= 13, process)
    process.kill()
    process.communicate()
    refused = gptcli("finetune", "--resume", "--out", out, "--epochs", "4")
    assert refused.returncode == 2 and b"--steps instead of --epochs" in refused.stderr
    assert gptcli("finetune", "--resume", "--out", out).returncode == 0
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "whole", out))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert gptcli("merge", trained, out, "--out", tmp_path / "merged").returncode == 0
    adapted = gptcli("the cat dog", "-m", trained, "--adapter", out, "-t", "0", "-n", "10")
    assert adapted.stdout == gptcli("the cat dog", "-m", tmp_path / "merged", "-t", "0", "-n", "10").stdout
    assert adapted.stdout != gptcli("the cat dog", "-m", trained, "-t", "0", "-n", "10").stdout
    changed = json.loads(gptcli("diff", trained, out, "--json").stdout)
    again = json.loads(gptcli("diff", trained, tmp_path / "merged", "--json").stdout)
    for one, two in zip(changed["parameters"], again["parameters"], strict=True):
        assert one["relative"] == pytest.approx(two["relative"], rel=1e-5)


@pytest.mark.slow
def test_an_adapter_of_our_own_model_names_its_folder_which_others_can_find(pairs: Path, tmp_path: Path) -> None:
    done = quick("finetune", "shipped", pairs, "--out", tmp_path / "a", "--lora", "1", "--steps", "1", "--batch", "1")
    assert done.returncode == 0, done.stderr.decode()
    base = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (Path(base) / "config.json").is_file()


def test_an_adapter_goes_on_only_beside_the_weights_it_was_begun_on(trained: Path, pairs: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(trained, base)
    done = quick("finetune", base, pairs, "--out", out, "--lora", "2", "--steps", "2")
    assert done.returncode == 0, done.stderr.decode()
    tensors = load_file(base / "model.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, base / "model.safetensors")
    said = complaint(quick("finetune", "--resume", "--out", out, "--steps", "4"))
    assert "not those that this adapter was begun on" in said
    shutil.copyfile(trained / "model.safetensors", base / "model.safetensors")
    done = quick("finetune", "--resume", "--out", out, "--steps", "4")
    assert done.returncode == 0, done.stderr.decode()


def test_a_text_can_be_tuned_on_too(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("asleep asleep asleep red red red " * 60)
    done = quick("finetune", trained, tmp_path / "text.txt", "--out", tmp_path / "m", "--steps", "30", "--lr", "3e-3")
    assert done.returncode == 0, done.stderr.decode()
    assert b"red red" in quick("red red", "-m", tmp_path / "m", "-t", "0", "-n", "8", "--echo").stdout
    (tmp_path / "short.txt").write_text("the cat sat on a red mat")  # shorter than the context: one sequence
    done = quick("finetune", trained, tmp_path / "short.txt", "--out", tmp_path / "n", "--steps", "2")
    assert done.returncode == 0 and b"2 steps of 16 sequences" in done.stderr, done.stderr.decode()


def test_a_tuning_can_be_made_longer_and_told_to_end(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """At a constant rate for as long as one likes, then down towards zero over the last fifth."""
    out = tmp_path / "m"
    done = quick("finetune", trained, corpus, "--out", out, "--steps", "4", "--schedule", "constant", "--lr", "1e-3")
    assert done.returncode == 0, done.stderr.decode()
    done = quick("finetune", "--resume", "--out", out, "--steps", "10", "--schedule", "wsd")
    assert done.returncode == 0, done.stderr.decode()
    rates = [json.loads(line)["learning_rate"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rates[4:8] == pytest.approx([1e-3] * 4) and rates[8:] == pytest.approx([1e-3, 5e-4])
    kept = json.loads((out / "run" / "recipe.json").read_text())
    assert kept["recipe"]["n_steps"] == 10 and kept["recipe"]["weight_decay"] == 0.1
    refused = quick("finetune", "--resume", "--out", out, "--optimizer", "muon")
    assert refused.returncode == 2 and b"its state is of no use to muon" in refused.stderr


@pytest.mark.parametrize("quiet", [True, False])
def test_pairs_that_are_too_long_are_left_out_and_told_of(
    trained: Path, pairs: Path, tmp_path: Path, quiet: bool
) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "the cat", "completion": " sat" * 40}))
    words = ("--out", tmp_path / "a", "--lora", "2", "--steps", "1", "--validation-share", "0")
    done = quick("finetune", trained, pairs, tmp_path / "more.jsonl", *words, *(["-q"] if quiet else []))
    assert done.returncode == 0 and (b"1 of 459 pairs are longer than the context" in done.stderr) is not quiet
    assert (done.stderr == b"") is quiet
    assert "sat sat" not in (tmp_path / "a" / "run" / "train.jsonl").read_text()


def test_finetune_refuses_with_clear_words(trained: Path, corpus: Path, pairs: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": ""}\n')
    for arguments, code, words in (
        ([trained, bad, "--out", tmp_path / "a"], 1, 'line 2: there is no "completion"'),
        ([trained, pairs, "--out", tmp_path / "b", "--lora", "2", "--lora-targets", "q_proj,nope"], 2, "'nope'"),
        ([trained, pairs, corpus, "--out", tmp_path / "c"], 2, "some files hold pairs and others text"),
        ([tmp_path / "none", pairs, "--out", tmp_path / "d"], 3, "no"),
        ([trained, pairs, "--out", tmp_path / "e", "--lora-alpha", "3"], 2, "are for an adapter"),
        ([trained, "--out", tmp_path / "f"], 2, "finetune needs a model and data"),
        ([trained, pairs, "--out", tmp_path / "g", "--fields", "x"], 2, "is not two names"),
        ([trained, corpus, "--out", tmp_path / "h", "--context", "33"], 2, "more than the 32 tokens"),
        ([trained, corpus, "--out", tmp_path / "i", "--epochs", "nan"], 2, "--epochs must be a number above 0"),
        ([trained, corpus, "--out", tmp_path / "i", "--epochs", "inf"], 2, "--epochs must be a number above 0"),
        ([trained, corpus, "--out", tmp_path / "i", "--epochs", "2", "--steps", "3"], 2, "say the same"),
        (
            [trained, pairs, "--out", tmp_path / "i", "--lora", "2", "--lora-alpha", "nan"],
            2,
            "must be a number and not",
        ),
        ([trained, pairs, "--out", tmp_path / "i", "--lora", "2", "--lora-targets", ","], 2, "names no layer"),
    ):
        done = quick("finetune", *arguments)  # type: ignore[arg-type]
        errors = done.stderr.decode()
        assert done.returncode == code, (arguments, errors)
        assert words in errors and "Traceback" not in errors


def test_an_adapter_for_another_model_is_refused(trained: Path, pairs: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    assert quick("finetune", trained, pairs, "--out", tmp_path / "a", "--lora", "2", "--steps", "1").returncode == 0
    done = quick("x", "-m", tiny_gpt2, "--adapter", tmp_path / "a")
    assert done.returncode == 4 and b"is not a linear layer of this gpt2 model" in done.stderr
    done = quick("x", "-m", tiny_gpt2, "--adapter", "nothing-like-it")
    assert done.returncode == 3 and b"no adapter nothing-like-it" in done.stderr


# --- diff ------------------------------------------------------------------------------------------------------------


def test_diff_measures_each_matrix(tiny_gpt2: Path, tmp_path: Path) -> None:
    tensors = tiny.gpt2_tensors()
    before = tensors["h.1.mlp.c_fc.weight"].clone()
    tensors["h.1.mlp.c_fc.weight"][3, 5] += 0.5
    tiny.write_gpt2(tmp_path / "b", tensors)
    found = json.loads(quick("diff", tiny_gpt2, tmp_path / "b", "--json").stdout)
    moved = [p for p in found["parameters"] if p["changed"]]
    assert [p["name"] for p in moved] == ["blocks.1.mlp.up.weight"]
    assert moved[0]["changed"] == 1 and moved[0]["layer"] == 1
    assert moved[0]["relative"] == pytest.approx(0.5 / float(before.norm()), rel=1e-5)
    assert moved[0]["largest"] == pytest.approx(0.5, rel=1e-5)
    text = quick("diff", tiny_gpt2, tmp_path / "b").stdout.decode()
    n = sum(t.numel() for t in tensors.values())
    assert f"1 of {n:,} numbers changed" in text
    assert "blocks.1.mlp.up moved most" in text
    same = gptcli("diff", tiny_gpt2, tiny_gpt2, env={"COLUMNS": "300"}).stdout.decode()
    assert "are the same, number for number" in same


def test_diff_of_two_shapes_names_the_first(tiny_gpt2: Path, trained: Path, tmp_path: Path) -> None:
    wider = tiny.CONFIG | {"n_positions": 32}
    tensors = tiny.gpt2_tensors(wider)
    tiny.write_gpt2(tmp_path / "b", tensors, n_positions=32)
    done = quick("diff", tiny_gpt2, tmp_path / "b")
    assert done.returncode == 2 and b"pos_embed.weight has shape [64, 32]" in done.stderr
    done = quick("diff", tiny_gpt2, trained)
    assert done.returncode == 2 and b"nothing to compare" in done.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_map_fits_the_terminal(
    tiny_gpt2: Path, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: t + 0.01 for name, t in tiny.gpt2_tensors().items()}
    tiny.write_gpt2(tmp_path / "b", tensors)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = quick("diff", tiny_gpt2, tmp_path / "b").stdout.decode().splitlines()
    assert max(map(len, lines[2:-2])) <= width
    assert any("L1" in line for line in lines) and any("embed" in line for line in lines)


# --- examples, score -------------------------------------------------------------------------------------------------


def test_examples_are_the_article_s_table(tiny_gpt2: Path) -> None:
    done = quick("examples", "hello the", "-m", tiny_gpt2)
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert rows == [["1", "hell", "o"], ["2", "hell o", "·the"]]
    found = [
        json.loads(line) for line in quick("examples", "hello the", "-m", tiny_gpt2, "--jsonl").stdout.splitlines()
    ]
    assert found[1]["features_text"] == "hello" and found[1]["label_text"] == " the" and len(found) == 2
    done = quick("examples", "a b c d e", "-m", tiny_gpt2, "--window", "2", "-n", "3")
    assert done.stdout.decode().splitlines()[-1].split("\t")[0] == "3"
    assert quick("examples", "h", "-m", tiny_gpt2).returncode == 2


def test_a_step_of_training_shows_each_guess_and_its_error_before_and_after(tiny_gpt2: Path) -> None:
    done = quick("examples", "hello the hello", "-m", tiny_gpt2, "--learn", "--lr", "0.01", "--jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    decoder = load(str(tiny_gpt2)).decoder
    ids = torch.tensor([*rows[-1]["features"], rows[-1]["label"]])
    with torch.no_grad():
        p = decoder(ids[None, :-1])[0].softmax(-1)
    assert [row["guess"] for row in rows] == p.argmax(-1).tolist()
    assert [row["p_before"] for row in rows] == pytest.approx(p.gather(1, ids[1:, None])[:, 0].tolist(), rel=1e-5)
    # Adam's first step moves every number by the rate, against the sign of its gradient; decay takes a thousandth
    decoder.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(decoder(ids[None, :-1])[0], ids[1:])
    loss.backward()
    with torch.no_grad():
        for p_ in decoder.parameters():
            if p_.ndim >= 2:
                p_ *= 1 - 0.01 * 0.1
            p_ -= 0.01 * p_.grad.sign()
        after = decoder(ids[None, :-1])[0].softmax(-1).gather(1, ids[1:, None])[:, 0]
    assert [row["p_after"] for row in rows] == pytest.approx(after.tolist(), rel=0.05)
    assert sum(row["p_after"] > row["p_before"] for row in rows) > len(rows) / 2


def test_learning_from_a_text_longer_than_the_context_is_refused(tiny_gpt2: Path) -> None:
    done = quick("examples", "x" * 80, "-m", tiny_gpt2, "--learn")
    assert done.returncode == 2 and b"--learn shows 65 tokens at most, not 80" in done.stderr


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("more", [(), ("--learn",)])
def test_examples_fit_the_terminal(tiny_gpt2: Path, width: int, more: tuple[str, ...]) -> None:
    text = "the hello the hello the hello " * 2
    seen, code = in_terminal("examples", text, "-m", tiny_gpt2, *more, size=(60, width))
    lines = Text.from_ansi(seen.decode().replace("\r", "")).plain.split("\n")
    assert code == 0 and "correct" in lines[0] and max(map(cell_len, lines)) <= width


def test_a_validation_file_is_not_trained_on_and_no_file_twice(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    parts = corpus.read_text().split("<|endoftext|>")
    (folder / "a.txt").write_text("<|endoftext|>".join(parts[:40]))
    (folder / "b.txt").write_text("<|endoftext|>".join(parts[40:]))
    words = ("--out", tmp_path / "m", *SMALL, "--steps", "1", "--validation", folder / "b.txt")
    assert quick("train", folder, folder / "a.txt", *words).returncode == 0
    kept = json.loads((tmp_path / "m" / "run" / "recipe.json").read_text())
    assert kept["files"] == [str(folder / "a.txt")]
    refused = quick("train", folder / "b.txt", "--out", tmp_path / "n", *words[2:])
    assert refused.returncode == 2 and b"is given to train on and to validate on" in refused.stderr


def test_a_run_that_cannot_go_on_keeps_the_recipe_it_had(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    shutil.copytree(trained, out)
    before = (out / "run" / "recipe.json").read_bytes()
    assert quick("train", "--resume", "--out", out, "--steps", "50", "--device", "cuda:99").returncode == 2
    shorter = quick("train", "--resume", "--out", out, "--steps", "3")
    assert shorter.returncode == 0 and b"40 steps are done already" in shorter.stderr
    assert (out / "run" / "recipe.json").read_bytes() == before
    assert b"all 40 steps are done" in quick("train", "--resume", "--out", out).stderr


def test_two_processes_do_not_train_in_one_folder(trained: Path, tmp_path: Path) -> None:
    from gptcli.saves import alone

    shutil.copytree(trained, tmp_path / "m")
    with alone(tmp_path / "m" / "run"):
        done = gptcli("train", "--resume", "--out", tmp_path / "m", "--steps", "41")
    assert done.returncode == 1 and "is training in" in complaint(done)
    assert gptcli("train", "--resume", "--out", tmp_path / "m", "--steps", "41").returncode == 0


@pytest.mark.parametrize("words", [["train"], ["finetune", "MODEL"]], ids=["train", "finetune"])
def test_what_another_process_prepares_is_not_thrown_away(
    trained: Path, corpus: Path, tmp_path: Path, words: list[str]
) -> None:
    """Turning a large text into tokens takes minutes; there is no recipe.json before it has ended."""
    from gptcli.saves import alone

    run, command = tmp_path / "m" / "run", [trained if word == "MODEL" else word for word in words]
    options = SMALL if words == ["train"] else ()
    with alone(run):
        (run / "tokens.bin.tmp").write_text("half of it")
        done = quick(*command, corpus, "--out", tmp_path / "m", *options, "--steps", "1", "-q")
        assert done.returncode == 1 and "is training in" in complaint(done)
        assert (run / "tokens.bin.tmp").exists()
    done = quick(*command, corpus, "--out", tmp_path / "m", *options, "--steps", "1", "-q")
    assert done.returncode == 0 and not (run / "tokens.bin.tmp").exists(), done.stderr


def test_a_step_is_not_compiled_where_nothing_can(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.compiled.has_compiler", lambda: False)
    shutil.copytree(trained, tmp_path / "m")
    options = [o for o in SMALL if o != "--no-compile"]
    for words in (
        ["train", corpus, "--out", tmp_path / "a", *options, "--compile"],
        ["finetune", trained, corpus, "--out", tmp_path / "b", "--compile"],
        ["train", "--resume", "--out", tmp_path / "m", "--steps", "41", "--compile"],
    ):
        done = quick(*words)
        assert done.returncode == 2 and "there is no C++ compiler" in complaint(done)
    assert quick("train", "--resume", "--out", tmp_path / "m", "--steps", "41").returncode == 0


def test_what_memory_cannot_train_is_refused_before_anything_is_made(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * load(str(trained)).config.n_params()
    shutil.copytree(trained, tmp_path / "m")
    recipe = (tmp_path / "m" / "run" / "recipe.json").read_bytes()
    monkeypatch.setattr("gptcli.memory.free_bytes", lambda: 2 * size)
    for words, way_out in (
        (["train", corpus, "--out", tmp_path / "a", *SMALL], "choose a smaller --size"),
        (["finetune", trained, corpus, "--out", tmp_path / "b"], "--lora RANK takes a quarter of it"),
        (["train", "--resume", "--out", tmp_path / "m", "--steps", "41"], "on a larger machine"),
    ):
        done = quick(*words)
        assert done.returncode == 5 and complaint(done).endswith(way_out), done.stderr
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert (tmp_path / "m" / "run" / "recipe.json").read_bytes() == recipe
    assert quick("finetune", trained, corpus, "--out", tmp_path / "c", "--lora", "2", "--steps", "1").returncode == 0
    monkeypatch.setattr("gptcli.memory.free_bytes", lambda: 4 * size)  # exactly: a tied head is not counted twice
    assert quick("train", corpus, "--out", tmp_path / "d", *SMALL, "--steps", "1").returncode == 0


def test_an_adapter_s_save_asks_for_its_own_room_alone(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    from gptcli import saves

    really = saves.write_save
    monkeypatch.setattr(
        saves, "write_save", lambda *a, n_bytes, **b: (asked.append(n_bytes), really(*a, n_bytes=n_bytes, **b))[1]
    )
    assert quick("finetune", trained, corpus, "--out", tmp_path / "c", "--lora", "2", "--steps", "1").returncode == 0
    assert quick("finetune", trained, corpus, "--out", tmp_path / "d", "--steps", "1").returncode == 0
    n = load(str(trained)).config.n_params()
    assert asked[0] < 4 * n + (8 << 20) and asked[1] == 12 * n + (8 << 20)


def test_settings_count_when_an_adapter_is_merged(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick("finetune", trained, corpus, "--out", tmp_path / "c", "--lora", "2", "--steps", "1").returncode == 0
    monkeypatch.setenv("GPTCLI_QUIET", "1")
    monkeypatch.setenv("GPTCLI_DTYPE", "bfloat16")
    done = quick("merge", trained, tmp_path / "c", "--out", tmp_path / "m")
    assert (done.returncode, done.stderr) == (0, b"")
    assert {t.dtype for t in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_tokenizer_whose_ids_have_a_hole_is_used(corpus: Path, tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    last = max(values["model"]["vocab"], key=values["model"]["vocab"].get)
    values["model"]["vocab"][last] += 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    options = [o for o in SMALL if o not in ("--vocab", "300")]
    done = quick("train", corpus, "--out", tmp_path / "m", *options, "--steps", "1", "--tokenizer", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert load(str(tmp_path / "m")).config.n_vocab == tiny.N_VOCAB + 5


def test_how_long_to_train_is_said_once_and_checked_before_anything_is_made(corpus: Path, tmp_path: Path) -> None:
    done = quick("train", corpus, "--out", tmp_path / "m", *SMALL, "--steps", "2", "--tokens", "5k")
    assert done.returncode == 2 and "--tokens and --steps say the same" in complaint(done)
    assert not (tmp_path / "m").exists()


def test_diff_knows_the_adapters_that_come_along_by_name(
    trained: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    assert quick("finetune", trained, pairs, "--out", home / "mine", "--lora", "2", "--steps", "1").returncode == 0
    monkeypatch.setattr("gptcli.model_choice.shipped", lambda: home)
    monkeypatch.chdir(tmp_path)
    by_name, by_folder = (json.loads(quick("diff", trained, b, "--json").stdout) for b in ("mine", home / "mine"))
    assert by_name["parameters"] == by_folder["parameters"] and any(p["changed"] for p in by_name["parameters"])
    shutil.copytree(trained, tmp_path / "mine", ignore=shutil.ignore_patterns("run"))
    model = json.loads(quick("diff", trained, "mine", "--json").stdout)
    assert not any(p["changed"] for p in model["parameters"]), "a model in this folder comes before it"


def test_the_context_of_pairs_can_be_made_shorter(trained: Path, pairs: Path, corpus: Path, tmp_path: Path) -> None:
    words = ("--out", tmp_path / "a", "--lora", "2", "--steps", "1", "--context", "12")
    done = quick("finetune", trained, pairs, *words)
    assert b"pairs are longer than the context" in done.stderr
    longest = int(re.search(rb"sequences of up to (\d+) tokens", done.stderr)[1])  # type: ignore[index]
    assert done.returncode == 0 and longest <= 13
    done = quick("finetune", trained, corpus, "--out", tmp_path / "b", "--fields", "a,b")
    assert done.returncode == 2 and "--fields is for pairs" in complaint(done)


@pytest.mark.parametrize("command", ["train", "finetune"])
@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_cannot_begin_leaves_nothing(command: str, there: bool, tmp_path: Path, trained: Path) -> None:
    (tmp_path / "empty.txt").touch()
    out = tmp_path / "new"
    if there:
        out.mkdir()
    model = [trained] if command == "finetune" else []
    done = quick(command, *model, tmp_path / "empty.txt", "--out", out)
    assert done.returncode == 1 and b"gptcli: error: " in done.stderr
    assert out.is_dir() == there and not (there and any(out.iterdir()))


@pytest.mark.parametrize("command", ["train", "finetune"])
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_folder_that_happens_to_be_named_run_is_left_alone(
    command: str, kind: str, tmp_path: Path, trained: Path, corpus: Path
) -> None:
    out, own = tmp_path / "project", tmp_path / "own"
    for folder in (out, own):
        folder.mkdir()
    if kind == "folder":
        own = out / "run"
        own.mkdir()
    elif kind == "link":
        (out / "run").symlink_to(own)
    else:
        (out / "run").touch()
    (own / "thesis.txt").write_text("years of work")
    model = [trained] if command == "finetune" else []
    said = complaint(quick(command, *model, corpus, "--out", out))
    assert "exists already" in said and (own / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "9" * 21], "n_steps must be from 1 to 1,000,000,000,000"),
        (["--layers", "1000000"], "'num_layers' is '1000000', expected an integer from 1 to 10000"),
        (["--context", "1000000000000"], "no such model can be made"),
    ],
)
def test_a_size_that_cannot_be_is_a_wrong_option_and_leaves_nothing(
    words: list[str], says: str, corpus: Path, tmp_path: Path
) -> None:
    done = quick("train", corpus, "--out", tmp_path / "m", *SMALL, *words, "-q")
    assert done.returncode == 2 and says in complaint(done)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "line",
    ["null", "3", "[]", "{}", '{"step": 1}', '{"step": "x", "loss": 1}', "[" * 5000, '{"step": 1, "loss": 1e308}'],
)
def test_metrics_that_are_none_of_ours_do_not_stop_a_run(line: str, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "2").returncode == 0
    (out / "metrics.jsonl").write_text(line + "\n")
    done = quick("train", "--resume", "--out", out, "--steps", "3")
    assert done.returncode == 0, done.stderr.decode()


def test_a_recipe_with_a_number_of_another_kind_is_one_line(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "2").returncode == 0
    kept = json.loads((out / "run" / "recipe.json").read_text())
    kept["recipe"]["micro_batch"] = "4"
    (out / "run" / "recipe.json").write_text(json.dumps(kept))
    done = quick("train", "--resume", "--out", out, "--steps", "3")
    assert done.returncode == 4 and "is not a recipe: micro_batch is '4'" in complaint(done)


def test_the_curve_of_a_folder_with_a_wild_name_is_an_xml_that_can_be_read(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "o\x1b]0;hi\x07x"
    assert quick("train", corpus, "--out", out, *SMALL, "--steps", "2").returncode == 0
    ElementTree.parse(out / "loss.svg")
    assert not set("\x1b\x07") & set((out / "loss.svg").read_text())


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_standard_input_that_is_closed_is_one_line(command: str, trained: Path, tmp_path: Path) -> None:
    words = [*([trained] if command == "finetune" else []), "-", "--out", tmp_path / "m"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM, command, *words],
        env=environment(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2 and "standard input is closed" in complaint(done)


def test_a_tokenizer_that_the_library_cannot_use_is_one_line(trained: Path, corpus: Path, tmp_path: Path) -> None:
    values = json.loads((trained / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"truncation": "x"}))
    done = quick("train", corpus, "--out", tmp_path / "m", "--tokenizer", tmp_path / "tokenizer.json", "--steps", "1")
    assert done.returncode == 4 and "the tokenizers library cannot use it" in complaint(done)


def test_a_run_that_goes_on_counts_what_is_left(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    begun = quick("train", corpus, "--out", out, *SMALL, "--steps", "6")
    longer = quick("train", "--resume", "--out", out, "--steps", "9")
    said = [re.search(r"(\d+) steps of 4 x 32 tokens, ([\d.]+) passes", run.stderr.decode()) for run in (begun, longer)]
    assert said[0] and said[1] and (said[0][1], said[1][1]) == ("6", "3")
    assert float(said[1][2]) == pytest.approx(float(said[0][2]) / 2, abs=0.01)
