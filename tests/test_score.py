"""gptcli score: each token's own probability, of texts that do not depend on one another, also past the context."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from programs import gptcli, in_terminal, quick
from zoo import built

from gptcli import UsageError, load
from gptcli.commands.score import _perplexity
from gptcli.score import score


def test_scores_are_the_model_s_own_probabilities(tiny_gpt2: Path, tmp_path: Path) -> None:
    found = json.loads(quick("score", "hello the", "-m", tiny_gpt2, "--json").stdout)
    checkpoint = load(str(tiny_gpt2))
    ids = [0, *checkpoint.tokenizer.encode("hello the")]
    with torch.no_grad():
        rows = checkpoint.decoder(torch.tensor([ids]))[0].log_softmax(-1)
    expected = [float(rows[i, id]) for i, id in enumerate(ids[1:])]
    assert [t["logprob"] for t in found["token_scores"]] == pytest.approx(expected, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(-sum(expected) / math.log(2) / 9, rel=1e-5)
    (tmp_path / "two.txt").write_text("hello<|endoftext|>" + "x" * 200)
    many = json.loads(quick("score", "-f", tmp_path / "two.txt", "--documents", "-m", tiny_gpt2, "--json").stdout)
    assert many["documents"] == 2 and many["bytes"] == 5 + 63 and many["dropped_tokens"] == 200 - 63
    done = quick("score", "hello", "-m", tiny_gpt2, "--fail-above", "0.01")
    assert done.returncode == 6 and b"bits per byte are more than 0.01" in done.stderr
    assert quick("score", "-m", tiny_gpt2).returncode == 2
    for words in (["<|endoftext|>", "--documents"], ["hello", "--fail-above", "nan"]):
        done = quick("score", *words, "-m", tiny_gpt2)
        assert done.returncode == 2 and b"fault" not in done.stderr


def test_at_a_terminal_the_colours_of_the_tokens_are_explained(tiny_gpt2: Path) -> None:
    """By the legend of generate --color prob, between the text and the figures; without colours there is none."""
    words = ("score", "hello the", "-m", tiny_gpt2)
    seen, code = in_terminal(*words, env={"COLORTERM": "truecolor"})
    assert code == 0 and seen.index(b"48;2;") < seen.index(b"probability 0 ") < seen.index(b"bits per byte")
    assert b"probability 0" not in in_terminal(*words, "--color", "never")[0]
    assert quick(*words, "--color", "always").stderr == b""


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-dynamic", "llama"])
def test_a_text_s_score_depends_on_no_other_text(name: str, zoo_root: Path) -> None:
    checkpoint = load(str(built(name, zoo_root)[0]))
    texts = ["hello", "the hello " * 8, "on", "hello the hello there " * 3]
    together = list(score(checkpoint, texts))
    for text, found in zip(texts, together, strict=True):
        (alone,) = score(checkpoint, [text])
        assert found.ids == alone.ids and found.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        rows = checkpoint.decoder(torch.tensor([found.ids]))[0].log_softmax(-1)
        own = [float(rows[i, id].detach()) for i, id in enumerate(found.ids[1:])]
        assert found.logprobs == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("stride", [1, 20, 32, 63])
def test_with_a_stride_all_of_a_text_is_scored_once(tiny_gpt2: Path, stride: int, bos: bool) -> None:
    checkpoint = load(str(tiny_gpt2))
    if not bos:
        checkpoint = dataclasses.replace(checkpoint, start_id=None)
    n_ctx, text = checkpoint.config.n_ctx, "the hello there " * 30 + "漢字"
    (found,) = score(checkpoint, [text], stride=stride)
    ids = list(found.ids)
    assert len(ids) > 2 * n_ctx and len(found.logprobs) == len(ids) - 1 and found.n_dropped == 0
    assert found.n_bytes == len(text.encode()) - (0 if bos else len(checkpoint.tokenizer.raw(ids[0])))
    for i in (1, n_ctx - 1, n_ctx, n_ctx + stride - 1, n_ctx + stride, len(ids) - 1):
        stop = n_ctx if i < n_ctx else min(len(ids), n_ctx + stride * ((i - n_ctx) // stride + 1))
        row = ids[max(0, stop - n_ctx) : stop]
        row[0] = 0 if bos else row[0]
        own = checkpoint.decoder(torch.tensor([row]))[0].log_softmax(-1)[i - stop - 1, ids[i]]
        assert found.logprobs[i - 1] == pytest.approx(float(own.detach()), abs=1e-4)
    with pytest.raises(UsageError, match=f"a stride is 1 to {n_ctx - 1} tokens"):
        next(score(checkpoint, [text], stride=n_ctx))


def test_a_score_that_is_no_number_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    tensors = tiny.gpt2_tensors()
    tensors["h.1.mlp.c_fc.weight"][0, 0] = math.nan
    model = tiny.write_gpt2(tmp_path / "model", tensors)
    for words in ([], ["--json"]):
        done = quick("score", "hello the", "-m", model, *words)
        assert done.returncode == 1 and done.stdout == b"" and b"not finite: the MLP in layer 1" in done.stderr


def test_options_of_score_that_would_do_nothing_are_refused(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    for words, says in (
        (["hello", "--last", "1"], b"--last counts documents"),
        (["-", "-f", str(tmp_path / "a.txt")], b"from standard input and from --file"),
    ):
        done = quick("score", *words, "-m", tiny_gpt2)
        assert done.returncode == 2 and done.stdout == b"" and says in done.stderr


def test_a_character_that_the_context_cuts_counts_with_the_bytes_that_are_scored(tiny_gpt2: Path) -> None:
    checkpoint = load(str(tiny_gpt2))
    (found,) = score(checkpoint, ["漢" * 400])
    spelled = sum(len(checkpoint.tokenizer.raw(i)) for i in found.ids)
    assert found.n_dropped and found.n_bytes == spelled


@pytest.mark.slow
def test_published_scores_of_the_stories_models_come_out(stories260k: Path) -> None:
    stories = stories260k.parent.parent / "corpora" / "tinystories" / "stories.txt"
    done = gptcli("score", "-f", stories, "--documents", "--last", "200", "-m", stories260k, "--json")
    assert json.loads(done.stdout)["bits_per_byte"] == pytest.approx(0.990, abs=0.001)


def test_colours_that_were_asked_for_reach_a_pipe(tiny_gpt2: Path) -> None:
    for choice, tinted in (("prob", True), ("always", True), ("auto", False), ("never", False)):
        out = quick("score", "hello the", "-m", tiny_gpt2, "--color", choice).stdout
        assert (b"\x1b[" in out) == tinted and b"bits per byte" in out


@pytest.mark.parametrize(
    ("x", "shown"),
    [(12.3456, "12.35"), (999.99, "1000"), (59426.1, "59,426"), (2.5e8, "250,000,000"), (1.2e12, "1.2e+12")],
)
def test_a_perplexity_is_read_without_counting_digits(x: float, shown: str) -> None:
    assert _perplexity(x) == shown
