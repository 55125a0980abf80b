"""generate --xray and generate --ablate: the same text as without watching, and strips that are what the lens reads."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from programs import in_terminal
from rich.cells import cell_len
from rich.text import Text
from test_xray_views import least_contrast
from torch import Tensor
from xray_checks import IDS, KINDS, traced
from zoo import Kind, built

from gptcli import CheckFailed, Checkpoint, Sampling, generate, load
from gptcli.cache import Cache
from gptcli.cli import run
from gptcli.lens import depth, read
from gptcli.places import read_place
from gptcli.records import Prompt, Step
from gptcli.records_xray import Strip
from gptcli.render.output import Output
from gptcli.render.strip import StripView
from gptcli.strips import Strips
from gptcli.whatif import Edits

GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_strips_are_what_the_lens_reads_of_the_whole_text(kind: Kind, ours: Checkpoint) -> None:
    """And the text is the one that is written without them."""

    def edits() -> Edits:
        return Edits(ours.decoder, [read_place("L1H1")])

    for edited in (False, True):
        tape = Strips(ours.decoder, edits=edits() if edited else None)
        plain = [s.id for s in generate(ours, IDS[:11], sampling=GREEDY, max_tokens=9, ignore_eos=True,
                                        tape=edits() if edited else None)]  # fmt: skip
        found = list[tuple[int, Strip]]()
        for step in generate(ours, IDS[:11], sampling=GREEDY, max_tokens=9, ignore_eos=True, tape=tape):
            found.append((step.id, tape.read(step.id, step.logprob)))
        assert [id for id, _ in found] == plain
        text = IDS[:11] + plain
        longer = kind.name in ("llama-dynamic", "phi3-longrope")  # whose longer texts have other frequencies
        for i, (id, strip) in enumerate(found, 10):
            if longer or i == 10:
                seen = text[: i + 1] if longer else text[:-1]
                whole = traced(ours.decoder, seen, edits() if edited else None)
                lens = read(ours.decoder, whole.states, watch=torch.tensor(text[1 : len(seen) + 1])[:, None])
            logprobs, kl, rank = lens.watched[:, i, 0], lens.kl[:, i], lens.rank[:, i, 0]
            assert (torch.tensor(strip.logprobs) - logprobs).abs().max() <= 1e-5 * logprobs.abs().max().clamp(min=10)
            assert (torch.tensor(strip.kl) - kl).abs().max() <= 1e-5 * kl.max().clamp(min=10)
            if ours.config.final_softcap != 3.0:  # such a cap makes the best tokens tie
                assert strip.stands == tuple((rank == 1).tolist()) and strip.rank == int(rank[-1])
                assert strip.depth == int(depth(lens.ids[:, i : i + 1, 0], torch.tensor([id])))


def test_the_newest_state_is_the_stream_s_bitwise(tiny_gpt2: Path) -> None:
    decoder = load(str(tiny_gpt2)).decoder
    tape = Strips(decoder)
    with torch.inference_mode():
        x = decoder.stream(torch.tensor([IDS]), None, tape)
    assert torch.equal(tape.states[-1], x[0, -1]) and torch.equal(tape.states, traced(decoder).states[:, -1])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slices_of_the_head_make_no_difference(
    zoo_root: Path, dtype: str, swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the strip's, nor the lens's, whether they divide the vocabulary or not; biases, scales and caps too.

    swapped: as on a processor where scores lie with a token's together, in slices of another size.
    """
    for name in ("gpt2", "gptj", "granite", "gemma2", "opt-350m"):
        checkpoint = load(str(built(name, zoo_root)[0]), dtype=dtype)
        with torch.inference_mode():
            tape = Strips(checkpoint.decoder)
            logits = checkpoint.decoder(torch.tensor([IDS]), tape=tape)[0, -1].float()
            whole, lens = tape.read(7, float(logits.log_softmax(-1)[7])), read(checkpoint.decoder, tape.states[:, None])
            monkeypatch.setattr("gptcli.strips.SLICE", 50)
            monkeypatch.setattr("gptcli.strips.MANY", 160)  # not a whole number of slices, and some are the last's
            monkeypatch.setattr("gptcli.strips.held_back", lambda device: swapped)
            monkeypatch.setattr("gptcli.lens.SLICE", 89)
            sliced = Strips(checkpoint.decoder)
            if len(logits) > 160:
                assert {len(group) for group in sliced._groups[:-1]} == {1 if swapped else 3}
            checkpoint.decoder(torch.tensor([IDS]), tape=sliced)
            again = sliced.read(7, float(logits.log_softmax(-1)[7]))
        assert again.logprobs == pytest.approx(whole.logprobs, abs=1e-4) and again.stands == whole.stands
        found = read(checkpoint.decoder, sliced.states[:, None])
        assert torch.equal(found.ids, lens.ids) and (found.logprobs - lens.logprobs).abs().max() <= 1e-4
        monkeypatch.undo()


def test_strips_are_read_off_the_compiled_pass_where_there_is_one_and_nothing_is_changed(tiny_gpt2: Path) -> None:
    """A stand-in for the machine code: the decoder itself, which counts how often it was asked."""
    checkpoint, asked = load(str(tiny_gpt2)), list[int]()

    def one(id: int, cache: Cache) -> tuple[Tensor, Tensor]:
        asked.append(id)
        states = Strips(checkpoint.decoder)
        x = checkpoint.decoder.stream(torch.tensor([[id]]), cache, states)
        return checkpoint.decoder.readout(x)[0, -1], states.states

    def strips(edits: Edits | None = None) -> list[Strip]:
        tape = Strips(checkpoint.decoder, edits=edits)
        steps = generate(checkpoint, IDS[:5], sampling=GREEDY, max_tokens=6, ignore_eos=True, tape=tape)
        return [tape.read(step.id, step.logprob) for step in steps]

    plain = strips()
    assert not asked
    checkpoint._found["one"] = type("Stub", (), {"__call__": staticmethod(one), "fits": lambda self: True})()
    assert strips() == plain and len(asked) == 5  # the prompt's pass goes over several tokens
    strips(Edits(checkpoint.decoder, [read_place("L1H1")]))
    assert len(asked) == 5  # machine code has no place where something could be changed


def test_padding_is_in_a_strip_s_softmax_and_not_in_its_ranks(tmp_path: Path) -> None:
    checkpoint = load(str(tiny.write_padded(tmp_path / "padded")))
    tape = Strips(checkpoint.decoder, size=checkpoint.n_tokens)
    above = 0
    for step in generate(checkpoint, IDS[:11], sampling=GREEDY, max_tokens=6, ignore_eos=True, tape=tape):
        strip = tape.read(step.id, step.logprob)
        with torch.inference_mode():
            z = checkpoint.decoder.readout(tape.states)
        assert strip.logprobs == pytest.approx(z.log_softmax(-1)[:, step.id].tolist(), abs=1e-4)
        assert strip.stands == tuple((z[:, :267].argmax(-1) == step.id).tolist()) and strip.rank == 1
        above += int((z[-1] > z[-1, step.id]).sum())
    assert above > 0  # padding did stand above what was written


def test_the_command_s_strips_know_the_padding(tmp_path: Path, capfd: Any) -> None:
    folder = tiny.write_padded(tmp_path / "padded")
    assert run(["generate", "hello", "-m", str(folder), "-n", "6", "-t", "0", "-q", "--json", "--xray"]) == 0
    (sample,) = json.loads(capfd.readouterr().out)["samples"]
    assert [token["xray"]["rank"] for token in sample["tokens"]] == [1] * 6


def test_the_last_line_says_what_was_changed_and_rounded(tiny_gpt2: Path, capfd: Any) -> None:
    words = ["generate", "hello", "-m", str(tiny_gpt2), "-n", "2", "-t", "0", "-q", "--xray"]
    for flags, says in (
        (["--patch", "other@L1:-1"], 'changed: "other"@L1:-1 │'),
        (["--ablate", "L0H1", "--mean"], "changed: L0H1 (mean) │"),
        (["--quantize", "int8"], "weights rounded to int8 │"),
    ):
        assert run([*words, *flags]) == 0
        out = capfd.readouterr().out.replace("\n", " │ ")
        assert says in out and "without" not in out and ("changed" in out) == ("changed" in says)
    assert run(words) == 0 and "rounded" not in capfd.readouterr().out


def test_a_strip_that_contradicts_the_model_is_refused(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(str(tiny_gpt2))
    tape = Strips(checkpoint.decoder)
    monkeypatch.setattr("gptcli.strips.scores", lambda end, x: end.readout(x) * 1.1)
    with pytest.raises(CheckFailed, match="another probability than the model did"):
        for step in generate(checkpoint, IDS[:5], sampling=GREEDY, max_tokens=2, tape=tape):
            tape.read(step.id, step.logprob)


def test_where_a_token_was_decided_is_said_in_words() -> None:
    def strip(*stands: bool, rank: int = 1) -> str:
        n = len(stands)
        return Strip(logprobs=(0.0,) * n, kl=(0.0,) * n, stands=stands, rank=rank, error=0.0).decided

    assert strip(False, False, True, True) == "L1/2"
    assert strip(True, True, True) == "emb/1"
    assert strip(True, False, True) == "L1/1"
    assert strip(True, True, False, rank=3) == "#3"


def test_the_command_shows_a_line_for_each_token_and_the_same_text(tiny_gpt2: Path, capfd: Any) -> None:
    flags = ["-m", str(tiny_gpt2), "-n", "6", "-t", "0", "-q"]
    assert run(["generate", "hello", *flags, "--json"]) == 0
    text = json.loads(capfd.readouterr().out)["samples"][0]
    assert run(["generate", "hello", *flags, "--json", "--xray", "--num-samples", "2"]) == 0
    for sample in json.loads(capfd.readouterr().out)["samples"]:
        assert sample["ids"] == text["ids"]
        assert [len(token["xray"]["logprobs"]) for token in sample["tokens"]] == [3] * 6
        assert all(
            token["xray"]["logprobs"][-1] == pytest.approx(token["logprob"], abs=1e-4) for token in sample["tokens"]
        )
    assert run(["generate", "hello", *flags, "--jsonl", "--xray"]) == 0
    frames = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [f["id"] for f in frames if f["type"] == "token"] == text["ids"] and "xray" in frames[1]
    assert run(["generate", "hello", *flags, "--xray"]) == 0
    out = capfd.readouterr().out
    assert "emb to L1" in out and "lens(last) = logits ✓" in out and "tokenizer 267 = head 267" in out
    assert len([line for line in out.splitlines() if "/1 " in line or "#" in line[20:40]]) >= 6


def drawn(prompt: Prompt, steps: Sequence[tuple[Step, Strip]], *, n_layer: int, width: int = 80, **how: bool) -> str:
    """What the view writes."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    view = StripView(Output(stream), n_layer=n_layer, width=width, **how)
    view.begin(prompt)
    for step, strip in steps:
        view.step(step, strip, "<name>")
    view.end(["float32 cpu"])
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


def one_strip(**how: bool) -> str:
    """Of one token in three rows, the best in the last two."""
    p = (0.3, 0.3, 0.9)
    strip = Strip(logprobs=tuple(map(math.log, p)), kl=(2.0, 1.0, 0.0), stands=(False, True, True), rank=1, error=0.0)
    step = Step(index=0, id=2, raw=b"llo", logprob=math.log(0.9), p=0.9, n_kept=1, draw=None, margin=1.0)
    return drawn(Prompt(text="he", ids=(1,), raws=(b"he",)), [(step, strip)], n_layer=2, **how)


def test_layers_in_which_the_token_is_the_best_are_marked_without_colours_too() -> None:
    plain = one_strip(colour=False)
    assert " ⣤▃█ " in plain and "⣀ to ⣿: the same where another is likelier" in plain and "pink" not in plain
    coloured = one_strip(colour=True)
    assert " ▃▃█ " in Text.from_ansi(coloured).plain and "⣀" not in coloured and "pink: the best" in coloured


def test_a_strip_can_be_read_on_dark_and_on_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    for light, grounds in ((False, ("#000000", "#1b1d21")), (True, ("#ffffff", "#eee8d5"))):
        assert min(least_contrast(one_strip(colour=True, light=light), on) for on in grounds) >= 3.0


def test_the_command_knows_a_light_terminal(tiny_gpt2: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    for ground, on in (("15;0", "#000000"), ("0;15", "#ffffff")):
        monkeypatch.setenv("COLORFGBG", ground)
        assert run(["generate", "he", "-m", str(tiny_gpt2), "-n", "6", "-t", "0", "--xray", "--color", "always"]) == 0
        assert least_contrast(capfd.readouterr().out, on) >= 3.0


def test_edits_act_in_generate_as_in_xray(tiny_gpt2: Path, capfd: Any) -> None:
    flags = ["hello", "-m", str(tiny_gpt2), "-n", "5"]
    edit = ["--ablate", "L0H2", "--ablate", "L1.mlp", "--mean"]
    assert run(["generate", *flags, "-t", "0", "-q", "--json", *edit]) == 0
    ids = json.loads(capfd.readouterr().out)["samples"][0]["ids"]
    assert run(["xray", *flags, "--format", "json", *edit]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["what_if"]["after"] == ids and found["what_if"]["before"] != ids
    for words, says in (
        (["--ablate", "L9"], "there is no layer 9: this model's are L0 to L1"),
        (["--mean"], "--mean"),
        (["--patch", "x@L0:-1", "--overflow", "slide"], "--overflow slide"),
    ):
        assert run(["generate", *flags, *words]) == 2
        assert says in capfd.readouterr().err


def test_strips_fit_the_terminal(tiny_gpt2: Path) -> None:
    seen, code = in_terminal("generate", "he", "-m", tiny_gpt2, "-n", "5", "-s", "1", "--xray", size=(40, 60),
                             env={"NO_COLOR": "1"})  # fmt: skip
    assert code == 0
    text = seen.decode().split("loading ...")[-1].split("\x1b[K")[-1]
    for line in text.splitlines():
        assert cell_len(line) <= 60, line
