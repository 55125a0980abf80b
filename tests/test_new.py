"""gptcli new: GPT-3 itself in shape, and real decoders that have learned nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from conftest import SHARED
from programs import in_terminal, inside
from test_params import EXACT

from gptcli import Decoder, Sampling, generate, load, look
from gptcli.catalogue import named
from gptcli.params import account, subject
from gptcli.records import Built
from gptcli.render import theme
from gptcli.render.built import draw
from gptcli.untrained import on_meta

# --- in shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_a_decoder_on_the_meta_device_holds_exactly_its_numbers_and_no_memory(name: str) -> None:
    found = named(name)
    with torch.device("meta"):
        decoder = Decoder(found.config)
    shapes = {n: tuple(p.shape) for n, p in decoder.named_parameters()}
    assert shapes == found.config.shapes()
    assert sum(p.numel() for p in decoder.parameters()) == EXACT[name]
    assert [block.attn.layer.window for block in decoder.blocks] == [layer.window for layer in found.config.layers]


@pytest.fixture(scope="module")
def built() -> Built:
    return on_meta(named("gpt3").config)


def test_gpt3_itself_is_built_and_a_whole_context_goes_through(built: Built) -> None:
    assert (built.n_params, built.n_expected) == (174_604_259_328, 174_604_259_328)
    assert built.n_tensors == 96 * 16 + 4 and built.n_bytes == 0 and built.passed == (2048, 50_257)
    assert 0 < built.seconds < 60


@pytest.mark.parametrize(
    ("options", "windows"),
    [([], [None, 256] * 2), (["--attention", "banded-dense", "--window", "128"], [128, None] * 2),
     (["--attention", "dense"], [None] * 4)],
)  # fmt: skip
def test_the_pattern_and_the_window_are_options(options: list[str], windows: list[int | None]) -> None:
    code, answer, errors = inside("new", "nano", "--meta", "--json", *options)
    found = json.loads(answer)
    assert (code, errors) == (0, b"") and found["windows"] == windows
    assert found["n_params"] == 1_119_488 and found["n_bytes"] == 0 and found["passed"] == [512, 2048]


def test_the_help_says_that_gpt3_s_own_window_was_never_published() -> None:
    for command in ("new", "params"):
        seen, code = in_terminal(command, "--help", size=(60, 110))
        text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", seen.decode()).split())
        assert code == 0 and text.count("never published") == 2, text


def test_the_picture_fits_the_screen(built: Built) -> None:
    for width in (60, 80, 120):
        text = theme.drawn(draw(account(subject("gpt3")), built), colour=False, width=width)
        assert max(map(len, text.splitlines())) <= width and text.count("▉") == 48
        joined = " ".join(text.split())
        for said in ("174,604,259,328 counted on its tensors", "2,048 × 50,257 scores", "0 bytes of memory", "698 GB"):
            assert said in joined


# --- with random values ----------------------------------------------------------------------------------------------


def test_a_new_decoder_is_saved_and_generates(tmp_path: Path) -> None:
    code, answer, errors = inside("new", "nano", "--out", tmp_path / "a", "--seed", "3")
    assert code == 0 and b"1,119,488" in answer and b"single bytes" in errors
    checkpoint = load(str(tmp_path / "a"))
    steps = list(generate(checkpoint, "a robot", sampling=Sampling(temperature=0), max_tokens=8))
    assert len(steps) == 8 and all(step.id < 257 for step in steps), "rows beyond the tokenizer are never chosen"
    assert checkpoint.family == "gpt_neo" and checkpoint.config == named("nano").saved
    code, answer, _ = inside("generate", "a robot", "-m", tmp_path / "a", "-n", "8", "-t", "0", "-q")
    assert code == 0 and answer.decode() == "".join(step.text for step in steps)


def test_its_values_are_gpt2_s_random_ones_and_the_seed_s(tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert inside("new", "nano", "--out", tmp_path / name, "--seed", seed, "-q")[::2] == (0, b"")
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    weights = dict(load(str(tmp_path / "a")).decoder.named_parameters())
    assert weights["embed.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["blocks.1.mlp.up.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["blocks.1.mlp.down.weight"].std() == pytest.approx(0.02 / 8**0.5, rel=0.02), "4 layers write 8 times"
    assert weights["blocks.1.mlp_norm.weight"].eq(1).all() and weights["blocks.1.mlp.up.bias"].eq(0).all()


def test_transformers_loads_it_and_scores_alike(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert inside("new", "nano", "--out", tmp_path / "a", "--window", "5", "--attention", "banded-dense", "-q")[0] == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a", attn_implementation="eager").eval()
    ours, ids = load(str(tmp_path / "a")), torch.arange(3, 43)[None]
    with torch.inference_mode():
        expected, found = theirs(ids).logits, ours.decoder(ids)
    assert [layer.window for layer in ours.config.layers] == [5, None, 5, None]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_gpt3_s_sizes_are_saved_without_three_biases() -> None:
    """That it is said is among the slow tests, which build it."""
    found = named("gpt3-125m")
    assert found.config.n_params() - found.saved.n_params() == 12 * 3 * 768
    assert found.saved.n_params() == 125_198_592


def test_an_untrained_twin_has_the_shapes_and_the_tokenizer_of_its_model(tiny_gpt2: Path, tmp_path: Path) -> None:
    assert inside("new", tiny_gpt2, "--out", tmp_path / "twin")[0] == 0
    mine, theirs = look(str(tmp_path / "twin")), look(str(tiny_gpt2))
    assert (mine.family, mine.config) == (theirs.family, theirs.config)
    assert (tmp_path / "twin" / "tokenizer.json").read_bytes() == (tiny_gpt2 / "tokenizer.json").read_bytes()
    a, b = (load(str(folder)).decoder.embed.weight for folder in (tmp_path / "twin", tiny_gpt2))
    assert a.shape == b.shape and not torch.equal(a, b)


def test_how_a_model_ends_and_wants_to_be_run_is_its_twin_s_too(tmp_path: Path) -> None:
    model = tiny.write_gpt2(tmp_path / "model")
    wishes = {"eos_token_id": [0, 5], "temperature": 0.5}
    (model / "generation_config.json").write_text(json.dumps(wishes))
    assert inside("new", model, "--out", tmp_path / "twin")[0] == 0
    assert json.loads((tmp_path / "twin" / "generation_config.json").read_text()) == wishes
    assert load(str(tmp_path / "twin")).eos_ids == {0, 5}
    assert inside("new", "nano", "--out", tmp_path / "size", "-q")[0] == 0
    assert json.loads((tmp_path / "size" / "generation_config.json").read_text()) == {
        "bos_token_id": 0, "eos_token_id": 0
    }  # fmt: skip


def test_a_tokenizer_whose_ids_have_a_hole_fits_too(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    last = max(values["model"]["vocab"], key=values["model"]["vocab"].get)
    values["model"]["vocab"][last] = 2048
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert inside("new", "nano", "--out", tmp_path / "a", "--tokenizer", tmp_path)[0] == 0
    assert load(str(tmp_path / "a")).config.n_vocab == 2049


def test_a_larger_tokenizer_widens_the_embedding(tmp_path: Path) -> None:
    folder = SHARED / "tokenizers" / "gpt2"
    if not folder.is_dir():
        pytest.skip("GPT-2's tokenizer is not on this machine")
    code, _, errors = inside("new", "nano", "--out", tmp_path / "a", "--tokenizer", folder)
    assert code == 0 and b"50,257 tokens, more than 2,048" in errors
    checkpoint = load(str(tmp_path / "a"))
    assert checkpoint.config.n_vocab == 50_257 and checkpoint.eos_ids == {50_256}
    assert checkpoint.tokenizer.encode("a robot") == [64, 9379]


def test_a_smaller_tokenizer_leaves_the_size_as_it_is(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path / "tokenizer")
    assert inside("new", "nano", "--out", tmp_path / "a", "--tokenizer", tmp_path / "tokenizer")[0] == 0
    checkpoint = load(str(tmp_path / "a"))
    assert checkpoint.config.n_vocab == 2048 and checkpoint.n_tokens == tiny.N_VOCAB


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["new"], 2, "name a size or a model"),
        (["new", "nano"], 2, "--meta"),
        (["new", "nano", "--meta", "--out", "x"], 2, "--meta"),
        (["new", "nano", "--size", "nano", "--meta"], 2, "twice"),
        (["new", "nanno", "--meta"], 3, "nano"),
        (["new", "nano", "--meta", "--seed", "3"], 2, "--seed changes nothing there"),
        (["new", "nano", "--meta", "--tokenizer", "x"], 2, "--tokenizer changes nothing there"),
        (["new", "gpt3", "--out", "x"], 5, "698 GB"),
        (["new", "nano", "--out", "x", "--tokenizer", "nowhere"], 3, "nowhere"),
        (["new", "nano", "--out", "."], 2, "choose a new folder\n"),
        (["new", "gpt3", "--out", "x"], 5, "--meta builds it"),
        (["new", "nano", "--out", "something/x"], 1, "cannot save to something/x"),
        (["new", "nano", "--out", "x", "--seed", "9" * 23], 2, "--seed"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("")
    found, answer, errors = inside(*arguments)
    lines = [line for line in errors.decode().splitlines() if not line.startswith("gptcli: note: ")]
    assert found == code and not answer and says in errors.decode(), errors
    assert lines[0].startswith("gptcli: error: ") and len(lines) <= 2
    assert {p.name for p in tmp_path.iterdir()} == {"something"}, "nothing is left behind"


@pytest.mark.slow
def test_gpt3_small_is_really_built_and_runs(tmp_path: Path) -> None:
    code, answer, errors = inside("new", "--size", "small", "--out", tmp_path / "a", "--json")
    assert code == 0 and json.loads(answer)["n_params"] == 125_198_592
    assert b"27,648 numbers fewer than GPT-3's 125,226,240" in errors
    assert look(str(tmp_path / "a")).config.n_params() == 125_198_592
    code, answer, _ = inside("generate", "a robot", "-m", tmp_path / "a", "-n", "5", "-t", "0", "-q", "--json")
    assert code == 0 and len(json.loads(answer)["samples"][0]["ids"]) == 5
