"""The checkpoint that comes with the program: it is what its README says, and it runs without being named."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from programs import environment, gptcli, in_terminal

from gptcli import Checkpoint, Sampling, generate, load
from gptcli.pairs import Pair
from gptcli.priming import primed

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights"
README = (WEIGHTS / "README.md").read_text(encoding="utf-8")
REACT = runpy.run_path(str(WEIGHTS / "making" / "react.py"))

# Written for this test, so that no corpus has it.
STORY = (
    "Once upon a time, there was a little girl named Anna. She had a small red boat. One day, Anna took her boat to "
    "the pond near her house. She put the boat in the water and it began to move. A big duck saw the boat and wanted "
    'to play with it. "Hello, duck," said Anna. "Do you want to play with me?" The duck was very happy. They played '
    "together all day, and Anna and the duck became good friends."
)


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load()


@pytest.fixture(scope="module")
def with_react() -> Checkpoint:
    from gptcli.lora import apply

    checkpoint = load(str(WEIGHTS))
    apply(checkpoint, WEIGHTS / "react")
    return checkpoint


def test_generate_runs_it_when_no_model_is_named() -> None:
    done = gptcli("Once upon a time", "--seed", "1", "-n", "40")
    assert done.returncode == 0 and len(done.stdout.split()) > 20 and done.stderr == b""
    assert done.stdout == gptcli("Once upon a time", "--seed", "1", "-n", "40", "-m", WEIGHTS).stdout


def test_it_has_a_name_that_every_command_takes(tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()  # a folder of that name is ./shipped
    done = gptcli("generate", "Once upon a time", "-n", "4", "-t", "0", "--json", "-m", "shipped", cwd=tmp_path)
    assert json.loads(done.stdout)["model"] == "shipped"
    assert gptcli("generate", "hi", "-m", "./shipped", cwd=tmp_path).returncode == 3
    assert b"the same, number for number" in gptcli("diff", "shipped", WEIGHTS).stdout


def test_other_commands_run_it_too() -> None:
    assert b"gpt_neo" in gptcli("info").stdout
    assert gptcli("tokenize", "a robot").returncode == 0
    assert gptcli("examples", "a robot must obey").returncode == 0
    assert b"bits per byte" in gptcli("score", "Once upon a time").stdout


def test_it_has_gpt_3_s_layout_and_a_stack_to_look_at(shipped: Checkpoint) -> None:
    c = shipped.config
    assert shipped.family == "gpt_neo" and c.learned_positions and c.norms == ("attn_norm", "mlp_norm")
    assert 8 <= c.n_layer <= 12 and c.n_ctx >= 512
    assert [layer.window is None for layer in c.layers] == [i % 2 == 0 for i in range(c.n_layer)]
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 40 * 2**20
    assert sum(path.stat().st_size for path in (WEIGHTS / "react").iterdir()) <= 5 * 2**20


def test_code_is_not_spelled_byte_by_byte(shipped: Checkpoint) -> None:
    code = '<button style={{ background: "red" }}>stop</button>'
    assert len(shipped.tokenizer.encode(code)) <= len(code) / 2.5


def test_transformers_loads_it_as_gpt_neo_with_the_same_logits(shipped: Checkpoint) -> None:
    from transformers import AutoTokenizer, GPTNeoForCausalLM

    ids = AutoTokenizer.from_pretrained(WEIGHTS)(STORY, return_tensors="pt").input_ids
    assert ids[0].tolist() == shipped.tokenizer.encode(STORY)
    # long enough that the banded layers no longer see the beginning
    ids = ids.repeat(1, 1 + 400 // ids.shape[1])[:, :400]
    model = GPTNeoForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = model(ids).logits, shipped.decoder(ids)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_it_finds_a_story_likely_and_a_shuffled_one_not() -> None:
    told = json.loads(gptcli("score", STORY, "--json").stdout)["bits_per_byte"]
    shuffled = json.loads(gptcli("score", " ".join(sorted(STORY.split())), "--json").stdout)["bits_per_byte"]
    assert told < 0.75 and shuffled > 2 * told


@pytest.mark.slow
def test_its_readme_s_score_is_what_score_gives() -> None:
    stories = SHARED / "corpora" / "tinystories" / "stories.txt"
    if not stories.exists():
        pytest.skip("the stories that it is scored on are not on this machine")
    written = re.search(r"\*\*(\d\.\d+) bits per byte\*\*", README)
    assert written
    done = gptcli("score", "-f", stories, "--documents", "--last", "200", "--json")
    assert json.loads(done.stdout)["bits_per_byte"] == pytest.approx(float(written[1]), abs=0.001)


# --- the React adapter -----------------------------------------------------------------------------------------------


def answer(checkpoint: Checkpoint, description: str, stop: tuple[str, ...] = ()) -> str:
    steps = generate(checkpoint, description, sampling=Sampling(temperature=0), max_tokens=300, stop=stop)
    return "".join(step.text for step in steps)


def test_react_answers_the_article_s_example() -> None:
    done = gptcli("generate", "--adapter", "react", "a red button that says stop")
    assert done.stdout.decode() == '\n<button style={{ background: "red" }}>stop</button>'


def test_at_a_terminal_the_description_is_green_and_the_code_pink() -> None:
    seen, code = in_terminal(
        "generate", "--adapter", "react", "a red button that says stop", env={"COLORTERM": "truecolor"}
    )
    assert code == 0 and seen.index(b"48;2;221;242;207") < seen.index(b"stop") < seen.index(b"48;2;245;195;211")


def test_the_adapter_is_peft_s_and_names_no_place_of_one_machine() -> None:
    config = json.loads((WEIGHTS / "react" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and not Path(config["base_model_name_or_path"]).is_absolute()


@pytest.mark.parametrize(("n", "at_least"), [(25, 22), pytest.param(500, 475, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_held_out_descriptions_give_the_right_code(with_react: Checkpoint, n: int, at_least: int) -> None:
    """At least 95 % of 500; the few of the quick run could miss three and still be from such a model."""
    pairs = [pair for pair, _ in zip(REACT["made"](1, held_out=True), range(n), strict=False)]
    found = [answer(with_react, description).strip() for description, _ in pairs]
    assert all(REACT["parses"](code) for code in found)
    assert sum(code == right for code, (_, right) in zip(found, pairs, strict=True)) >= at_least


def test_held_out_components_are_in_no_training_set() -> None:
    shown = {code for (_, code), _ in zip(REACT["made"](0, held_out=False), range(5000), strict=False)}
    asked = {code for (_, code), _ in zip(REACT["made"](1, held_out=True), range(500), strict=False)}
    assert not shown & asked


def right_after_examples(checkpoint: Checkpoint, n_examples: int, *, wrong_house: bool = False) -> int:
    """Of 50 held-out components, each of a house of its own, how many are written as the examples show.

    Wrong house: the examples are another task's, so that what they show is not what is asked for.
    """
    r = random.Random(1)
    tasks = [REACT["made_in_house"](r, 4, held_out=True) for _ in range(50)]
    right = 0
    for i, (*shown, (case, code)) in enumerate(tasks):
        examples = tasks[i - 1][:3] if wrong_house else shown
        pairs = [Pair(prompt=said, completion=written) for said, written in examples[:n_examples]]
        prompt = primed(pairs, case, form="arrow")
        right += answer(checkpoint, prompt.text, prompt.stops).strip() == code
    return right


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_react_does_50_tasks_better_with_examples_than_without(with_react: Checkpoint) -> None:
    """What a house calls its components no description says; the names, too, are in no training row."""
    few = right_after_examples(with_react, 3)
    zero = right_after_examples(with_react, 0)
    misled = right_after_examples(with_react, 3, wrong_house=True)
    assert few >= 25 and few > zero + 20 and few > misled + 20, (few, zero, misled)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_examples_that_show_nothing_new_change_nothing(with_react: Checkpoint) -> None:
    pairs = [pair for pair, _ in zip(REACT["made"](1, held_out=True), range(53), strict=False)]
    shots = [Pair(prompt=said, completion=code) for said, code in pairs[50:]]
    prompts = [primed(shots, case, form="arrow") for case, _ in pairs[:50]]
    found = [answer(with_react, prompt.text, prompt.stops).strip() for prompt in prompts]
    assert sum(code == right for code, (_, right) in zip(found, pairs, strict=False)) >= 40


def test_rows_with_examples_are_prompts_of_generate_and_hold_no_held_out_house() -> None:
    rows = [row for row, _ in zip(REACT["made_with_examples"](0), range(2000), strict=False)]
    names = {name for _, code in rows for name in re.findall(r"^ <([A-Z]\w+) \w+=", code)}
    r = random.Random(1)
    asked = {REACT["house"](r, held_out=True)[0] for _ in range(200)}
    assert len(names) > 500 and not names & asked
    for prompt, code in rows:
        assert prompt.endswith(" =>") and code.startswith(" ") and REACT["parses"](code.strip())
        assert len(names & set(re.findall(r"<(\w+)", prompt))) <= 1, "one house in a row"


def test_a_row_with_examples_to_the_letter() -> None:
    prompt, code = next(row for row in REACT["made_with_examples"](5) if row[1].startswith(" <H"))
    assert prompt == (
        'a purple paragraph saying paint => <HelloPet color="purple">paint</HelloPet>\n'
        "a blue paragraph with the text run =>"
    )
    assert code == ' <HelloPet color="blue">run</HelloPet>'


@pytest.mark.parametrize(
    "code",
    [
        "<p>one", "<p>one</b>", "<p><b>one</p></b>", "<p style={{ color: 1 }>x</p>", "<p", "x }", "<img src=\"a />",
        "function A() { return <p>x</p>; ", "<></p>", "<p>a</p></p>",
    ],
)  # fmt: skip
def test_the_check_for_parsing_refuses_what_does_not_parse(code: str) -> None:
    assert not REACT["parses"](code)


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_carries_the_weights_and_runs_on_them(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], capture_output=True, text=True)
    if done.returncode and "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("the build backend cannot be fetched")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    # what it depends on is taken from here; our own editable install comes after the wheel's files
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import gptcli; print(gptcli.__file__)"], capture_output=True, text=True, cwd=tmp_path
    )
    assert where.stdout.startswith(str(site))
    assert not (site / "gptcli" / "weights" / "making").exists()
    env = environment({key: os.environ[key] for key in ("PATH",)})
    for more in ((), ("--adapter", "react")):
        done = subprocess.run(
            [python, "-m", "gptcli", "generate", "a cat", "-n", "8", "-t", "0", *more],
            capture_output=True, text=True, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout, done.stderr
