"""gptcli xray as a person or a script runs it: views, what-if, files, formats, and one line for what cannot be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from programs import gptcli, in_terminal
from test_xray_views import least_contrast
from zoo import built

from gptcli import load
from gptcli.cli import run
from gptcli.lora import Rank, attach, save_adapter

Call = Callable[..., tuple[int, str, str]]
TEXT = "hello there"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The program in this process: (exit code, standard output, standard error)."""
    for name in ("COLUMNS", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.setattr("sys.stdin", None)

    def call(*words: str | Path) -> tuple[int, str, str]:
        code = run(["xray", *map(str, words)])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def saved(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace from the command line, with a sweep and a profile of the heads in it."""
    path = tmp_path_factory.mktemp("traces") / "run.xray"
    done = gptcli("xray", TEXT, "-m", tiny_gpt2, "-n", "4", "--roles", "--sweep", "heads", "--save", path)
    assert done.returncode == 0, done.stderr
    assert b"every head by itself" in done.stdout and b"what the heads do" in done.stdout
    return path


def test_the_default_is_the_elevator(call: Call, tiny_gpt2: Path) -> None:
    code, out, err = call(TEXT, "-m", tiny_gpt2, "-n", "2")
    assert code == 0 and err == ""
    rows = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert [r for r in rows if r in ("answer", "decided", "L1", "L0", "emb", "token")] == [
        "answer", "decided", "L1", "L0", "emb", "token",
    ]  # fmt: skip
    assert "lens(last) = logits ✓" in out and "start token" in out and "tokenizer 267 = head 267" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "decided"),
        (["--token", "-1"], "the track of"),
        (["--ledger"], "and not"),
        (["--alone", "--token", "2"], "what each part wrote (logit, nats)"),
        (["--over-mean"], "what each part wrote (logit over the mean of all, nats)"),
        (["--attention"], "where the heads look"),
        (["--head", "L1H3"], "L1H3 from"),
        (["--norms"], "how long the vectors are"),
        (["--occlusion"], "rests on"),
        (["--sampling"], "was chosen"),
        (["--roles"], "what the heads do"),
        (["--sweep", "heads"], "every head by itself"),
        (["--sub"], "L1 attn"),
    ],
)
def test_a_saved_trace_shows_every_view_without_its_model(call: Call, saved: Path, flags: list[str], says: str) -> None:
    code, out, err = call(saved, *flags)
    assert code == 0 and says in out, err


def test_a_saved_what_if_is_shown_again(call: Call, tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "off.xray"
    code, live, _ = call(TEXT, "-m", tiny_gpt2, "-n", "3", "--ablate", "L0H1", "--save", path)
    assert code == 0 and "what if L0H1" in live and call(path)[1] == live
    assert "decided" in call(path, "--grid")[1]
    assert json.loads(call(path, "--format", "json")[1])["what_if"]["edits"] == ["L0H1"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ablate", "L0"], "a saved trace has no model to change"),
        (["--sweep", "mlps"], "this trace holds the mosaic of heads, not of mlps"),
        (["--walk", "--token", "1"], "this trace holds --walk of position"),
        (["--occlusion", "--token", "0", "--format", "json"], "this trace holds --occlusion of position"),
        (["--walk", "--alone"], "the walk of a lead, and not of the token alone"),
        (["--alone", "--over-mean"], "--alone is of the logit itself"),
        (["--flow"], "this trace does not hold what --flow shows"),
        (["--save", "copy.xray"], "--save changes nothing there"),
        (["-f", "notes.txt"], "--file changes nothing there"),
        (["-n", "3"], "--max-tokens changes nothing there"),
        (["-t", "0.5"], "--temperature changes nothing there"),
        (["--quantize", "int8"], "--quantize changes nothing there"),
        (["--walk", "--at", "1"], "--at changes nothing there"),
    ],
)
def test_what_a_saved_trace_cannot_show_is_refused(call: Call, saved: Path, flags: list[str], says: str) -> None:
    code, out, err = call(saved, *flags)
    assert code == 2 and out == "" and says in err and "hint: " in err


def test_a_given_token_was_not_drawn(call: Call, tiny_gpt2: Path) -> None:
    code, out, err = call(TEXT, "-m", tiny_gpt2, "-n", "2", "--sampling", "--token", "0")
    assert code == 2 and out == "" and "was not drawn, it was given" in err and "--token " in err


def test_every_takes_every_so_many_layers(call: Call, tmp_path: Path) -> None:
    deep = tiny.write_gpt2(tmp_path / "deep", n_layer=9)
    for flags in ([], ["--sub"]):
        out = call(TEXT, "-m", deep, "-n", "0", "--every", "3", *flags)[1]
        rows = [line[:8].strip() for line in out.splitlines()]
        assert [r for r in rows if r in ("emb", *(f"L{i}" for i in range(9)))] == ["L8", "L5", "L2", "emb"]
    for flags in (["--attention"], ["--roles"], ["--sweep", "mlps"], ["--sweep", "heads"]):
        out = call(TEXT, "-m", deep, "-n", "0", "--every", "3", *flags, "--width", "200")[1]
        rows = [line[:6].strip() for line in out.splitlines()]
        assert [r for r in rows if r in {f"L{i}" for i in range(9)}] == ["L8", "L5", "L2", "L0"]
        assert "4 of 9 layers (--every 1: all)" in out
        assert "--every 1" not in call(TEXT, "-m", deep, "-n", "0", *flags, "--width", "200")[1]


def test_a_pattern_is_shown_around_the_token_that_at_names(call: Call, tiny_gpt2: Path) -> None:
    words = ["a robot must obey the orders given", "-m", tiny_gpt2, "-n", "0", "--head", "L1H0", "--width", "60"]
    at_end, at_start = (call(*words, *flags)[1] for flags in ([], ["--at", "1"]))
    assert re.search(r"keys 0 to \d+ of 0 to ", at_start) and not re.search(r"keys 0 to \d+ of 0 to ", at_end)
    assert at_start.splitlines()[0] == at_end.splitlines()[0]  # it is of the same token


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ledger", "--at", "0"], "has columns of tokens, and --at"),
        (["--token", "1", "--at", "0"], "has columns of tokens, and --at"),
        (["--attention", "--at", "0"], "has columns of tokens, and --at"),
        (["--walk", "--every", "1"], "leaves out layers, and --every"),
        (["--head", "L1H0", "--every", "1"], "leaves out layers, and --every"),
        (["--occlusion", "--sub"], "has rows between attention and MLP, and --sub"),
        (["--sweep", "mlps", "--token", "0"], "is of one token, and --token"),
        (["--at", "0", "--format", "json"], "holds all tokens and layers, and --at"),
        (["--every", "2", "--format", "ndjson"], "holds all tokens and layers, and --every"),
    ],
)
def test_an_option_that_no_view_heeds_is_refused(
    call: Call, saved: Path, tiny_gpt2: Path, flags: list[str], says: str
) -> None:
    option = says.split()[-1]
    for words in ([TEXT, "-m", tiny_gpt2, "-n", "0"], [saved]):
        code, out, err = call(*words, *flags)
        assert code == 2 and out == "" and f"{says} changes nothing there" in err
        assert err.splitlines()[1] == f"hint: leave out {option}"


def test_an_option_that_one_of_several_views_heeds_is_taken(call: Call, tiny_gpt2: Path, tmp_path: Path) -> None:
    words = [TEXT, "-m", str(tiny_gpt2), "-n", "0"]
    for flags in (
        ["--ledger", "--grid", "--at", "0", "--every", "1", "--sub"],
        ["--ledger", "--sub", "--format", "json"],
        ["--sweep", "mlps", "--token", "0", "--save", str(tmp_path / "of-one.xray")],
    ):
        assert call(*words, *flags)[0] == 0


def test_there_is_nothing_between_attention_and_mlp_that_add_at_the_same_time(
    call: Call, zoo_root: Path, tmp_path: Path
) -> None:
    parallel = built("gptj", zoo_root)[0]
    assert call(TEXT, "-m", parallel, "-n", "0", "--save", tmp_path / "parallel.xray")[0] == 0
    for words in ([TEXT, "-m", parallel, "-n", "0"], [tmp_path / "parallel.xray"]):
        code, out, err = call(*words, "--sub")
        assert code == 2 and out == "" and "nothing between them" in err and err.count("\n") == 2


def test_rounded_weights_and_adapters_are_looked_into_and_named(
    call: Call, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting counts as in generate, so that both see the same model."""
    words = [TEXT, "-m", str(tiny_gpt2), "-n", "1"]
    plain = json.loads(call(*words, "--format", "json")[1])
    assert plain["adapter"] is plain["rounding"] is None
    flagged = call(*words, "--quantize", "int8", "--format", "json")[1]
    monkeypatch.setenv("GPTCLI_QUANTIZE", "int8")
    assert call(*words, "--format", "json")[1] == flagged
    found = json.loads(flagged)
    assert found["rounding"] == "int8" and found["tokens"][0]["rows"] != plain["tokens"][0]["rows"]
    monkeypatch.delenv("GPTCLI_QUANTIZE")
    adapter = tmp_path / "tuned"
    checkpoint, rank = load(str(tiny_gpt2)), Rank(r=2, alpha=4, targets=("c_attn",))
    attach(checkpoint, rank)
    save_adapter(checkpoint, rank, adapter)
    path, before = tmp_path / "run.xray", tmp_path / "plain.xray"
    assert call(*words, "--save", before)[0] == 0
    code, live, _ = call(*words, "--adapter", adapter, "--quantize", "int8", "--save", path, "--width", "200")
    assert code == 0 and "adapter tuned │ weights rounded to int8" in live
    assert call(path, "--width", "200")[1] == live
    said = call("--diff", before, path, "--width", "200")[1].splitlines()
    assert ", adapter tuned, weights rounded to int8, " in said[1] and "adapter" not in said[0]


def test_what_if_names_the_manner_of_each_kind_of_edit(call: Call, tiny_gpt2: Path) -> None:
    words = [TEXT, "-m", str(tiny_gpt2), "-n", "1", "--ablate", "L0H1", "--ablate", "L1H0:-1/0=0"]
    for more, how in (
        ([], "zero look=0"),
        (["--mean", "--ablate", "L1H0:-1/1"], "mean looks"),
        (["--patch", "other words@L0:-1"], "zero look=0 patch"),
    ):
        assert json.loads(call(*words, *more, "--format", "json")[1])["what_if"]["how"] == how
    alone = [TEXT, "-m", str(tiny_gpt2), "-n", "1", "--patch", "other words@L0:-1"]
    assert "exchanged for what another prompt has there" in call(*alone)[1]


def test_json_of_a_saved_trace_is_that_of_the_live_one(call: Call, tiny_gpt2: Path, tmp_path: Path) -> None:
    """Rows between attention and MLP come with --sub, and without it from neither."""
    path, words = tmp_path / "run.xray", [TEXT, "-m", str(tiny_gpt2), "-n", "2"]
    assert call(*words, "--save", path)[0] == 0
    for flags in ([], ["--sub"], ["--ledger"]):
        live = call(*words, *flags, "--format", "json")[1]
        assert call(path, *flags, "--format", "json")[1] == live
        assert ("between" in json.loads(live)["tokens"][0]) == (flags == ["--sub"])


def test_another_prompt_begins_as_this_one_does(call: Call, tiny_gpt2: Path) -> None:
    """Without a start token the first token of the other prompt is its first word."""
    words = [TEXT, "-m", str(tiny_gpt2), "-n", "0", "--format", "json"]
    found = [
        json.loads(call(*words, bos, "--patch", f"{word}@L0:0")[1])["what_if"]
        for bos in ("--add-bos", "--no-bos")
        for word in ("other", "quite")
    ]
    assert found[0]["kl"] == found[1]["kl"] == 0  # the start token for the start token
    assert found[2]["kl"] > 0 and found[2]["kl"] != found[3]["kl"]


@pytest.mark.parametrize("what", ["heads", "mlps"])
def test_a_hint_is_a_command_line_that_works(call: Call, tiny_gpt2: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / "plain.xray"
    assert call(TEXT, "-m", tiny_gpt2, "-n", "1", "--save", path)[0] == 0
    code, out, err = call(path, "--sweep", what)
    assert code == 2 and out == "" and f"does not hold what --sweep {what} shows" in err
    hinted = err.splitlines()[-1].removeprefix("hint: make it again with ").replace("FILE", str(path)).split()
    assert call(TEXT, "-m", tiny_gpt2, "-n", "1", *hinted)[0] == 0
    assert call(path, "--sweep", what)[0] == 0


def test_a_trace_knows_its_seed(call: Call, tiny_gpt2: Path, tmp_path: Path) -> None:
    """Where something was drawn with it."""
    for flags, seed in (([], None), (["-t", "1"], 0), (["-t", "1", "-s", "7"], 7), (["-t", "1", "-n", "0"], None)):
        path = tmp_path / "run.xray"
        words = [TEXT, "-m", str(tiny_gpt2), "-n", "2", "--save", str(path), *flags, "--format", "json"]
        live = json.loads(call(*words)[1])
        assert live["seed"] == seed and json.loads(call(path, "--format", "json")[1])["seed"] == seed


def test_a_plain_trace_holds_walk_occlusion_and_sampling_of_one_token(
    call: Call, tiny_gpt2: Path, tmp_path: Path
) -> None:
    """And an edited one neither walk nor occlusion, which are of the model as it is."""
    views = ["--walk", "--occlusion", "--sampling"]
    for flags, held in (([], views), (["--ablate", "L0H1"], ["--sampling"]), (["-n", "0"], views[:2])):
        path = tmp_path / "run.xray"
        assert call(TEXT, "-m", tiny_gpt2, "-n", "2", "--save", path, *flags)[0] == 0
        assert [view for view in views if call(path, view)[0] == 0] == held


@pytest.mark.parametrize("flags", [["--token", "1"], ["--ledger"], ["--attention"], ["--occlusion"], ["--norms"], []])
def test_a_replay_is_what_was_shown(call: Call, tiny_gpt2: Path, saved: Path, flags: list[str]) -> None:
    code, live, _ = call(TEXT, "-m", tiny_gpt2, "-n", "4", *flags)
    assert code == 0 and call(saved, *flags)[1] == live


def test_what_if_is_answered_as_a_difference(call: Call, tiny_gpt2: Path) -> None:
    code, out, _ = call(TEXT, "-m", tiny_gpt2, "-n", "3", "--ablate", "L0H1", "--ablate", "L1.mlp", "--mean")
    assert code == 0 and "what if L0H1, L1.mlp" in out and "mean over the prompt" in out
    assert "KL(before || after)" in out and "direct effect" in out and "before …" in out and "after …" in out
    code, out, _ = call(TEXT, "-m", tiny_gpt2, "-n", "3", "--patch", "other words@L0:-1", "--format", "json")
    assert code == 0
    said = call(TEXT, "-m", tiny_gpt2, "-n", "3", "--patch", "other words@L0:-1")[1]
    assert "a patch has no direct effect of one part to show" in said
    found = json.loads(out)["what_if"]
    assert found["edits"] == ['"other words"@L0:-1'] and found["kl"] > 0 and found["direct"] is None


def test_a_view_beside_an_edit_is_of_the_edited_model(call: Call, tiny_gpt2: Path) -> None:
    plain = json.loads(call(TEXT, "-m", tiny_gpt2, "-n", "1", "--format", "json")[1])
    code, out, _ = call(TEXT, "-m", tiny_gpt2, "-n", "1", "--format", "json", "--grid", "--ablate", "L1")
    edited = json.loads(out)
    assert code == 0 and edited["edits"] == ["L1"]
    for a, b in zip(plain["tokens"][:-1], edited["tokens"][:-1], strict=True):
        before, off = ([[t["id"] for t in row["top"]] for row in token["rows"]] for token in (a, b))
        assert before[:2] == off[:2] and off[2] == off[1]  # as if layer 1 were not there
    assert plain["tokens"][-2]["rows"][2]["logprob"] != edited["tokens"][-2]["rows"][2]["logprob"]


def test_every_edit_of_another_prompt_at_the_last_layer_is_its_answer(call: Call, tiny_gpt2: Path) -> None:
    other = json.loads(call("the other one", "-m", tiny_gpt2, "-n", "0", "--format", "json")[1])
    code, out, _ = call(TEXT, "-m", tiny_gpt2, "-n", "1", "--format", "json", "--patch", "the other one@L1:-1")
    found = json.loads(out)["what_if"]
    assert code == 0 and found["after"][0] == other["tokens"][-1]["answer"]["id"]


def test_json_and_ndjson_and_files(call: Call, tiny_gpt2: Path, saved: Path) -> None:
    done = gptcli("xray", "-", "-m", tiny_gpt2, "-n", "1", "--format", "ndjson", stdin=TEXT.encode() + b"\n")
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and frames[0]["type"] == "meta" and frames[-1]["type"] == "done"
    assert "".join(f["text"] for f in frames if f.get("given")) == TEXT
    one = json.loads(call(saved, "--format", "json", "--ledger", "--norms")[1])
    assert one["check"]["lens"] <= one["check"]["lens_bound"] and {"ledger", "norms", "tokens"} <= one.keys()
    assert call(saved, "--format", "svg")[1].startswith("<svg ")
    assert call(saved, "--format", "html")[1].startswith("<!DOCTYPE html>")


def test_two_traces_are_compared(call: Call, tiny_gpt2: Path, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.xray"
    assert call(TEXT, "-m", tiny_gpt2, "-n", "4", "--grid", "--ablate", "L0H2", "--save", other)[0] == 0
    code, out, _ = call("--diff", saved, other)
    assert code == 0 and "changed: L0H2" in out and "Δlog p" in out
    assert "none" in call("--diff", saved, saved)[1]
    one = json.loads(call("--diff", saved, other, "--format", "json")[1])
    head, *frames = map(json.loads, call("--diff", saved, other, "--format", "ndjson")[1].splitlines())
    assert one["b"]["edits"] == head["b"]["edits"] == ["L0H2"] and len(one["tokens"]) == len(frames) > 0
    assert frames[0]["type"] == "token" and frames[0]["a"]["answer"]["id"] == one["tokens"][0]["a"]["answer"]["id"]
    code, out, err = call("--diff", saved, other, "--ledger")
    assert code == 2 and out == "" and "--ledger changes nothing there" in err
    third = tmp_path / "third.xray"
    assert call("quite other", "-m", tiny_gpt2, "-n", "0", "--no-bos", "--save", third)[0] == 0
    assert "there is nothing to compare" in call("--diff", saved, third)[1]
    copy = tiny.write_gpt2(tmp_path / "copy", transformers_version="5.0.0")
    assert call(TEXT, "-m", copy, "-n", "4", "--save", tmp_path / "copy.xray")[0] == 0
    assert call("--diff", saved, tmp_path / "copy.xray")[0] == 0
    deep = tiny.write_gpt2(tmp_path / "deep", n_layer=3)
    assert call(TEXT, "-m", deep, "-n", "0", "--save", tmp_path / "deep.xray")[0] == 0
    code, out, err = call("--diff", saved, tmp_path / "deep.xray")
    assert code == 2 and out == "" and "traces of different models are not compared" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--ablate", "L2H0"], 2, "there is no layer 2: this model's are L0 to L1"),
        (["--ablate", "L1H4"], 2, "there is no head 4 in layer 1: the heads are H0 to H3"),
        (["--ablate", "layer one"], 2, "'layer one' is not a place"),
        (["--head", "L0H9"], 2, "the heads are H0 to H3"),
        (["--head", "L0"], 2, "is not a head"),
        (["--patch", "other"], 2, "TEXT@PLACE"),
        (["--patch", "other@L7:-1"], 2, "there is no layer 7"),
        (["--patch", "a@L1:9"], 2, "out of range"),
        (["--token", "99"], 2, "--token 99 is out of range: tokens are 0 to"),
        (["--token", "-99"], 2, "--token -99 is out of range"),
        (["--at", "99"], 2, "--at 99 is out of range"),
        (["--format", "pdf"], 2, "--format must be one of"),
        (["--mean"], 2, "--mean"),
        (["--sampling", "-n", "0"], 2, "--sampling"),
        (["--occlusion", "--ablate", "L0"], 2, "--occlusion is of the model as it is"),
        (["--sweep", "mlps", "--ablate", "L0"], 2, "--sweep is of the model as it is"),
        (["--sweep", "layers"], 2, "layers"),
        (["-n", "-1"], 2, "-1"),
        (["-n", "99999", "--save", "/nonexistent/run.xray"], 1, "cannot save /nonexistent/run.xray"),
        (["--save", "b.trace"], 2, "--save b.trace: the name of a trace ends in .xray"),
        (["--save", "traces/.xray"], 2, "ends in .xray"),
    ],
)
def test_what_cannot_be_is_one_line(call: Call, tiny_gpt2: Path, words: list[str], code: int, says: str) -> None:
    found, out, err = call(TEXT, "-m", tiny_gpt2, *words)
    lines = err.splitlines()
    assert found == code and says in err and out == ""
    assert lines[0].startswith("gptcli: error: ") and len(lines) <= 2


def test_what_a_trace_cannot_show_is_one_line(call: Call, saved: Path, tmp_path: Path) -> None:
    assert call(tmp_path / "no.xray")[::2] == (3, f"gptcli: error: no trace {tmp_path / 'no.xray'}\n"
                                               "hint: gptcli xray TEXT --save run.xray makes one\n")  # fmt: skip
    assert "no model to change" in call(saved, "--ablate", "L0")[2]
    assert "--head" not in call(saved, "--head", "L0H1")[2] and "H0 to H3" in call(saved, "--head", "L0H7")[2]
    bad = tmp_path / "bad.xray"
    bad.write_bytes(saved.read_bytes().replace(b'"schema": "1"', b'"schema": "9"'))
    code, _, err = call(bad)
    assert code == 2 and "schema '9'" in err


def test_an_empty_prompt_starts_from_the_start_token_or_is_refused(call: Call, tiny_gpt2: Path, tmp_path: Path) -> None:
    code, out, _ = call("", "-m", tiny_gpt2, "-n", "1")
    assert code == 0 and "<|endoftext|>" in out.replace("…", "<|endoftext|>")
    folder = tiny.write_gpt2(tmp_path / "none")
    (folder / "tokenizer_config.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "bos_token_id"}))
    code, out, err = call("", "-m", folder)
    assert code == 2 and "no start token" in err and out == ""


def test_at_a_terminal_it_is_in_colour_and_as_wide(saved: Path) -> None:
    seen, code = in_terminal("xray", saved, env={"COLORTERM": "truecolor"}, size=(40, 72))
    assert code == 0 and b"\x1b[" in seen and "◆".encode() in seen
    seen, code = in_terminal("xray", saved, env={"NO_COLOR": "1"}, size=(40, 72))
    assert code == 0 and b"\x1b[3" not in seen and b"\x1b[4" not in seen


@pytest.mark.parametrize(
    "flags", [[], ["--token", "-1"], ["--ledger"], ["--head", "L1H3"], ["--occlusion"], ["--sampling"], ["--walk"]]
)
def test_a_light_terminal_gets_inks_for_light_and_files_keep_theirs(
    call: Call, saved: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    svg = call(saved, *flags, "--format", "svg")[1]
    for ground, contrasts in (("15;0", ("#1b1d21",)), ("0;15", ("#ffffff", "#eee8d5"))):
        monkeypatch.setenv("COLORFGBG", ground)
        drawn = call(saved, *flags, "--color", "always")[1]
        assert all(least_contrast(drawn, on) >= 3.0 for on in contrasts)
        assert call(saved, *flags, "--format", "svg")[1] == svg


def test_a_saved_trace_does_not_steer_the_terminal_nor_end_in_a_fault(call: Call, saved: Path, tmp_path: Path) -> None:
    """Its strings and its kinds of records are whatever somebody wrote into it."""
    data = saved.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])

    def changed(change: Callable[[dict[str, object]], None]) -> Path:
        scan = json.loads(header["__metadata__"]["scan"])
        change(scan)
        meta = {**header, "__metadata__": {**header["__metadata__"], "scan": json.dumps(scan)}}
        text = json.dumps(meta).encode()
        text += b" " * (-len(text) % 8)
        path = tmp_path / "odd.xray"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
        return path

    def escapes(scan: Any) -> None:
        scan["cells"]["rows"][1] = scan["check"]["dtype"] = scan["books"][0]["names"][0] = "\x1b]0;pwned\x07\x1b[2J"

    for flags in (["--color", "never"], ["--ledger"], ["--token", "-1"]):
        code, out, err = call(changed(escapes), *flags)
        assert code == 0 and "\x1b" not in out and "\x07" not in out + err
    for field in ("depth", "rivals", "special"):
        code, out, err = call(changed(lambda scan, field=field: scan.update({field: None})))  # type: ignore[misc]
        assert code in (0, 4) and err.count("\n") <= 1 and "fault of gptcli" not in err
        assert code == 0 or "odd.xray is malformed" in err


def test_a_trace_goes_through_a_link_and_replaces_nothing_but_files(
    call: Call, tiny_gpt2: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.xray").symlink_to(tmp_path / "target.xray")
    assert call(TEXT, "-m", tiny_gpt2, "-n", "1", "--save", tmp_path / "link.xray")[0] == 0
    assert (tmp_path / "link.xray").is_symlink() and (tmp_path / "target.xray").is_file()
    os.mkfifo(tmp_path / "pipe.xray")
    code, _, err = call(TEXT, "-m", tiny_gpt2, "-n", "1", "--save", tmp_path / "pipe.xray")
    assert code == 2 and "not an ordinary file" in err and (tmp_path / "pipe.xray").is_fifo()


@pytest.mark.parametrize("asked", [("--ablate", "L0H1"), ("--sweep", "heads")])
def test_a_mean_over_nothing_is_refused(call: Call, asked: tuple[str, str], tiny_gpt2: Path) -> None:
    """The first position, where attention rests, is not part of it."""
    code, out, err = call("a", "-m", tiny_gpt2, "-n", "1", "--no-bos", "--mean", *asked)
    assert code == 2 and out == "" and "--mean is over the prompt without its first token" in err
