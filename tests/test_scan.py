"""The scan and its file: checked against the model, refused when a check fails, and the same after saving."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from programs import environment
from xray_checks import IDS, KINDS
from zoo import Kind, built

from gptcli import BadCheckpoint, CheckFailed, Checkpoint, NotFound, Sampling, UsageError, load
from gptcli.draws import draw_of
from gptcli.generation import prepare
from gptcli.lens import read
from gptcli.places import read_place
from gptcli.records_xray import Scan
from gptcli.render import theme
from gptcli.render.changes import draw_draw
from gptcli.scan import fingerprint, roles, run, scan
from gptcli.tables import Table
from gptcli.trace_file import load as load_trace
from gptcli.trace_file import save as save_trace
from gptcli.walk import walk
from gptcli.whatif import Edits, Exchange
from gptcli.xray_json import lines, whole


def made(checkpoint: Checkpoint, n: int = 4, **more: Any) -> Scan:
    done = run(checkpoint, prepare(checkpoint, IDS[:12], max_tokens=n), max_tokens=n)
    return scan(checkpoint, done, **{"heads": True, "attention": True, "between": range(12)} | more)


@pytest.fixture
def checkpoint(tiny_gpt2: Path) -> Checkpoint:
    return load(str(tiny_gpt2))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_scan_of_every_family_proves_itself(kind: Kind, zoo_root: Path) -> None:
    checkpoint = load(str(built(kind.name, zoo_root)[0]))
    found = made(checkpoint)
    assert found.check.lens <= 1e-5 and found.check.emitted is not None and found.check.emitted <= 2e-5
    assert (found.check.ledger is None) == checkpoint.config.post_norm
    assert (found.between is None) == checkpoint.config.parallel
    assert found.n_positions == 15 and found.answers[11:] == found.ids[12:]
    for i, depth in enumerate(found.depth):
        best = [found.cells.ids.whole(r, i, 0) for r in range(checkpoint.config.n_layer + 1)]
        assert best[depth:] == [found.answers[i]] * (len(best) - depth)
        assert depth == 0 or depth > len(best) - 1 or best[depth - 1] != found.answers[i]
        assert found.rivals[i] != found.answers[i]
    for book in found.books:
        for i in range(found.n_positions):
            parts = book.parts.column(i)
            scale = sum(map(abs, parts)) + abs(book.const.number(i))
            assert sum(parts) + book.const.number(i) == pytest.approx(book.logit.number(i), abs=1e-4 * scale)


def test_cells_are_what_the_lens_reads(checkpoint: Checkpoint) -> None:
    done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=3)
    found = scan(checkpoint, done, between=[5])
    lens = read(checkpoint.decoder, done.trace.states)
    assert torch.equal(torch.tensor(found.cells.ids.nested()), lens.ids)
    assert found.cells.entropy.number(1, 5) == pytest.approx(float(lens.entropy[1, 5]), abs=1e-6)
    assert found.between and found.between.positions == (5,) and found.between.ids.shape == (2, 1, 5)


def test_numbers_that_contradict_the_model_s_are_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli import ledger, lens

    true_scores, true_norm = lens.scores, ledger.through_norm

    def unscaled(end: Any, x: torch.Tensor, out: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        return true_scores(end, x, out, **more).mul_(1.01)

    with monkeypatch.context() as bug:
        bug.setattr("gptcli.lens.scores", unscaled)
        with pytest.raises(CheckFailed, match="lens of the last layer is not the model's logits: the final norm"):
            made(checkpoint)
    with monkeypatch.context() as bug:
        bug.setattr("gptcli.ledger.through_norm", lambda n, x, w: (true_norm(n, x, w)[0], torch.zeros(len(x))))
        with pytest.raises(CheckFailed, match="do not add up to the logit"):
            made(checkpoint)
    with monkeypatch.context() as bug:
        bug.setattr("gptcli.trace.Trace.attn_out", property(lambda trace: trace._all("attn_out") * 0.9))
        with pytest.raises(CheckFailed, match="does not add up to the stream"):
            made(checkpoint)
    with monkeypatch.context() as bug:
        bug.setattr("gptcli.attention.seen", lambda T, window, device: torch.ones(T, T, dtype=torch.bool))
        with pytest.raises(CheckFailed, match="patterns gather something else"):
            made(checkpoint)
    assert made(checkpoint).check.lens == 0.0


def test_a_saved_trace_is_the_scan(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = dataclasses.replace(made(checkpoint), roles=roles(checkpoint, n=8))
    save_trace(found, tmp_path / "run.xray")
    again = load_trace(tmp_path / "run.xray")
    views = ("ledger", "attention", "roles", "norms")
    assert json.dumps(whole(again, views, between=True)) == json.dumps(whole(found, views, between=True))
    assert again.pieces == found.pieces and again.special == found.special
    assert dataclasses.replace(again.check) == found.check
    save_trace(again, tmp_path / "again.xray")
    assert (tmp_path / "again.xray").read_bytes() == (tmp_path / "run.xray").read_bytes()


def test_a_trace_of_before_has_no_seed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, sampling = tmp_path / "run.xray", Sampling(temperature=1.0)
    done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=2, sampling=sampling, seed=3)
    save_trace(scan(checkpoint, done), path)
    assert load_trace(path).seed == 3
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    record = json.loads(header["__metadata__"]["scan"])
    assert record.pop("seed") == 3
    header["__metadata__"]["scan"] = json.dumps(record)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
    assert load_trace(path).seed is None


def test_a_fingerprint_is_of_what_decides_shape_and_meaning(tmp_path: Path) -> None:
    """Not of keys without influence, nor of where the folder lies; but of layers, families and vocabularies."""

    def of(name: str, **values: Any) -> str:
        return fingerprint(load(str(tiny.write_gpt2(tmp_path / name, **values))))

    plain = of("plain")
    assert of("copy", transformers_version="5.0.0", architectures=["GPT2LMHeadModel"]) == plain
    others = [of("deep", n_layer=3), of("scaled", scale_attn_by_inverse_layer_idx=True), of("long", n_positions=96)]
    folder = tiny.write_gpt2(tmp_path / "renamed")
    words = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(words.replace('"in"', '"ni"').replace('"i n"', '"n i"'), encoding="utf-8")
    others.append(fingerprint(load(str(folder))))
    checkpoint = load(str(tmp_path / "plain"))
    others.append(fingerprint(dataclasses.replace(checkpoint, family="llama")))
    assert len({plain, *others}) == 1 + len(others)


def test_a_context_without_room_for_two_tokens_twice_has_no_roles(checkpoint: Checkpoint) -> None:
    for n_ctx, measured in ((4, False), (5, True)):  # and the start token
        short = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, n_ctx=n_ctx))
        assert (roles(short) is not None) == measured


def test_a_trace_is_a_safetensors_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from safetensors import safe_open

    found = made(checkpoint)
    save_trace(found, tmp_path / "run.xray")
    with safe_open(tmp_path / "run.xray", framework="pt") as file:
        assert file.metadata()["schema"] == "1"
        assert file.get_tensor("cells.ids").tolist() == found.cells.ids.nested()
        assert file.get_tensor("attention.patterns").dtype == torch.float16
    assert (tmp_path / "run.xray").stat().st_mode & 0o044


def test_traces_are_read_without_torch_and_numpy(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_trace(made(checkpoint), tmp_path / "run.xray")
    program = (
        "import sys; from gptcli.cli import run; assert run(['xray', sys.argv[1], '--ledger', '--attention']) == 0;"
        "assert not {'torch', 'numpy', 'tokenizers', 'safetensors'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "run.xray"], env=environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_files_that_are_no_trace_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "run.xray"
    with pytest.raises(NotFound, match=r"no trace .*run\.xray"):
        load_trace(path)
    done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=4)
    found = scan(checkpoint, done, heads=True, attention=True)
    found = dataclasses.replace(found, walk=walk(done.trace, 3, found.answers[3], found.rivals[3]))
    save_trace(found, path)
    good = path.read_bytes()
    n = int.from_bytes(good[:8], "little")
    header, rest = json.loads(good[8 : 8 + n]), good[8 + n :]

    def written(change: Any) -> Path:
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        return path

    def in_scan(change: Any) -> Any:
        def edit(h: dict[str, Any]) -> None:
            value = json.loads(h["__metadata__"]["scan"])
            change(value)
            h["__metadata__"]["scan"] = json.dumps(value)

        return edit

    with pytest.raises(UsageError, match="schema '99', and this gptcli reads '1'"):
        load_trace(written(lambda h: h["__metadata__"].update(schema="99")))
    with pytest.raises(BadCheckpoint, match="is not an x-ray"):
        load_trace(written(lambda h: h["__metadata__"].update(format="pt")))
    for change in (
        lambda v: v.update(kind="Popen"),
        lambda v: v.update(kind="Check"),
        lambda v: v.update(more=1),
        lambda v: v.pop("answers"),
        lambda v: v.update(n_layer=3),
        lambda v: v.update(n_prompt=99),
        lambda v: v["cells"].update(ids={"kind": "table", "name": "cells.entropy"}),
        lambda v: v["cells"].update(ids={"kind": "table", "name": "nowhere"}),
        lambda v: v["books"][0].update(heads=None, parts={"kind": "table", "name": "lengths.attn"}),
        lambda v: v.update(pieces={"kind": "ids"}),
        lambda v: v.update(answers=5),
        lambda v: v["walk"].update(position=99),
        lambda v: v["walk"].update(words=[1.0]),
        lambda v: v["walk"]["stops"][1].update(depth=10**9),  # which would be drawn for a long time
        lambda v: v["walk"]["stops"][1].update(depth=-1),
        lambda v: v["walk"]["stops"][0].update(position=99),
        lambda v: v["walk"]["stops"][0].pop("value"),
    ):
        with pytest.raises(BadCheckpoint, match="malformed"):
            load_trace(written(in_scan(change)))
    path.write_bytes(good[:-10])
    with pytest.raises(BadCheckpoint, match="incomplete"):
        load_trace(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(BadCheckpoint):
        load_trace(path)


def test_rows_between_attention_and_mlp_are_in_json_where_they_are_asked_for(checkpoint: Checkpoint) -> None:
    found = made(checkpoint)
    for between in (False, True):
        for tokens in (whole(found, between=between)["tokens"], [*lines(found, between=between)][1:-2]):
            assert ["between" in token for token in tokens] == [between] * 12 + [False] * 4


def test_json_lines_say_the_same_as_the_object(checkpoint: Checkpoint) -> None:
    found = made(checkpoint)
    frames = list(lines(found, ("ledger",)))
    assert [f["type"] for f in frames] == ["meta", *["token"] * 16, "ledger", "check", "done"]
    answer = whole(found, ("ledger",))
    assert answer["tokens"] == [{k: v for k, v in f.items() if k != "type"} for f in frames[1:17]]
    token = answer["tokens"][11]
    assert token["given"] and not answer["tokens"][12]["given"] and token["answer"]["id"] == found.ids[12]
    assert [row["row"] for row in token["rows"]] == ["emb", "L0", "L1"] and token["rows"][-1]["kl"] == 0
    assert bytes(token["answer"]["bytes"]) == checkpoint.tokenizer.raw(found.ids[12])
    assert "rows" not in answer["tokens"][15]  # the last token was written, and not read
    book = answer["ledger"]["positions"][11][0]
    assert sum(book["parts"].values()) + book["constant"] == pytest.approx(book["logit"], abs=1e-4)


def test_the_ledger_in_json_adds_up_from_a_row_to_heads_to_tokens(checkpoint: Checkpoint) -> None:
    """Of the first three positions every token is named, so that nothing is left over."""
    found = whole(made(checkpoint), ("ledger",))
    for i, books in enumerate(found["ledger"]["positions"]):
        for book in books:
            for layer in range(2):
                heads, bias = book["heads"][layer], book["head_bias"][layer]
                assert bias and sum(heads) + bias == pytest.approx(book["parts"][f"L{layer} attn"], abs=1e-5)
                for head, sources in zip(heads, book["sources"][layer], strict=True):
                    *named, others = sources
                    assert others["position"] is None
                    assert sum(source["value"] for source in sources) == pytest.approx(head, abs=1e-9)
                    at = [source["position"] for source in named]
                    assert len({*at}) == len(at) == min(3, i + 1) and {*at} <= {*range(i + 1)}
                    assert i > 2 or others["value"] == pytest.approx(0, abs=1e-5)
                    assert [abs(source["value"]) for source in named] == sorted(
                        (abs(source["value"]) for source in named), reverse=True
                    )


def test_a_draw_shows_what_was_drawn(checkpoint: Checkpoint) -> None:
    sampling = Sampling(temperature=1.3, top_k=20, top_p=0.8)
    prompt = prepare(checkpoint, IDS[:12])
    done = run(checkpoint, prompt, max_tokens=3, sampling=sampling, seed=5)
    for index, step in enumerate(done.steps):
        found = draw_of(checkpoint, done, index, sampling, n=40)
        assert found.chosen == step.id and found.draw == step.draw and found.n_kept == step.n_kept
        chosen = next(o for o in found.options if o.id == step.id)
        assert chosen.kept == pytest.approx(step.p, abs=1e-6) and math.log(chosen.raw) == pytest.approx(
            step.logprob, abs=1e-5
        )
        assert sum(o.kept for o in found.options) == pytest.approx(1.0)
        before = sum(o.kept for o in found.options[: found.options.index(chosen)])
        assert step.draw is not None and before - 1e-9 <= step.draw <= before + chosen.kept + 1e-9
        assert 0 < found.cut < 1
    greedy = draw_of(checkpoint, run(checkpoint, prompt, max_tokens=1), 0, Sampling(temperature=0))
    assert greedy.draw is None and greedy.options[0].id == greedy.chosen and greedy.options[0].kept == 1.0
    assert [o.warm for o in greedy.options] == [1.0] + [0.0] * 11 and greedy.cut == 0


def test_a_drawn_token_far_down_has_its_own_interval(checkpoint: Checkpoint) -> None:
    sampling = Sampling(temperature=3.0, top_k=0, top_p=1.0)
    for seed in range(4):
        done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=2, sampling=sampling, seed=seed)
        for index in range(2):
            found = draw_of(checkpoint, done, index, sampling, n=2)
            chosen = found.options[-1]
            assert chosen.id == found.chosen and chosen.rank is not None and chosen.rank > 2
            assert chosen.before is not None and found.draw is not None
            assert chosen.before - 1e-9 <= found.draw <= chosen.before + chosen.kept + 1e-9
            logits = checkpoint.decoder.readout(done.trace.states[-1, found.position]).detach().double()
            p = (logits[: checkpoint.n_tokens] / 3).softmax(-1)
            higher = p[p > p[chosen.id]]
            assert chosen.rank == 1 + len(higher) and chosen.before == pytest.approx(float(higher.sum()), abs=1e-6)


def test_a_draw_counts_all_that_was_kept_and_shows_the_best_that_were_cut(checkpoint: Checkpoint) -> None:
    """Whether the chosen token is among the first or far below them; where nothing was cut, nothing is shown."""
    wide, last = Sampling(temperature=3.0, top_k=60, top_p=1.0), set[bool]()
    for seed in range(4):
        done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=1, sampling=wide, seed=seed)
        found = draw_of(checkpoint, done, 0, wide, n=5)
        *_, kept, _, _, _ = found.options
        last.add(kept.id == found.chosen)
        assert [o.rank for o in found.options if not o.kept] == [61, 62, 63] and kept.kept
        drawn = theme.drawn(draw_draw(scan(checkpoint, done), found, colour=False), colour=False, width=120)
        more = sum(int(n) for n in re.findall(r"^ (\d+) more kept", drawn, re.MULTILINE))
        rows = re.findall(r"  \d\.\d{4}  \d\.\d{4}", drawn)
        assert more + len(rows) == found.n_kept == 60 and drawn.count("  cut\n") == 3
    assert True in last
    whole = Sampling(temperature=3.0, top_k=0, top_p=1.0)
    done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=1, sampling=whole, seed=1)
    found = draw_of(checkpoint, done, 0, whole, n=5)
    drawn = theme.drawn(draw_draw(scan(checkpoint, done), found, colour=False), colour=False, width=120)
    assert found.cut == 0 and "nothing cut" in drawn and all(o.kept for o in found.options)
    assert f"{found.n_kept - (found.options[-1].rank or 0)} more kept" in drawn


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-dynamic"])
def test_an_answer_that_outgrows_its_frequencies_is_computed_anew_and_holds(name: str, zoo_root: Path) -> None:
    checkpoint = load(str(built(name, zoo_root)[0]))
    (trained,) = {rope.n_ctx_trained for rope in checkpoint.decoder.ropes}
    n = trained + 4 - 12
    done = run(checkpoint, prepare(checkpoint, IDS[:12], max_tokens=n), max_tokens=n)
    found = scan(checkpoint, done, heads=True, attention=True)
    assert found.n_positions > trained and found.check.lens <= 1e-5 and found.check.emitted is not None
    whole = checkpoint.decoder.stream(torch.tensor([done.ids[: found.n_positions]]))[0]
    torch.testing.assert_close(done.trace.states[-1], whole.detach(), rtol=1e-4, atol=1e-5)


def test_what_an_edit_put_there_came_from_no_token_and_the_rest_is_checked(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prepare(checkpoint, IDS[:12])
    means = run(checkpoint, prompt, max_tokens=0).trace
    other = Exchange(place=read_place("L1H2"), position=3, other=means, other_position=7)

    def edited() -> Scan:
        edits = Edits(checkpoint.decoder, [read_place("L1H1")], [other], means=means)
        done = run(checkpoint, prompt, max_tokens=2, edits=edits)
        return scan(checkpoint, done, heads=True, attention=True, edits=edits, edited=["L1H1"])

    found = edited()
    assert found.attention is not None and found.attention.error <= 1e-5
    for book in found.books:
        assert book.heads and book.source_parts
        for t in range(found.n_positions):
            assert abs(book.heads.number(1, 1, t)) > 1e-4 and not any(book.source_parts.row(1, 1, t))
            assert any(book.source_parts.row(1, 2, t)) == (t != 3) and any(book.source_parts.row(0, 1, t))
    monkeypatch.setattr("gptcli.attention.seen", lambda T, window, device: torch.ones(T, T, dtype=torch.bool))
    with pytest.raises(CheckFailed, match="patterns gather something else"):
        edited()


@pytest.mark.parametrize("to_mean", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "gptj"])
def test_the_ledger_adds_up_down_to_the_heads_where_an_attention_was_put_there(
    name: str, to_mean: bool, zoo_root: Path
) -> None:
    """There no head wrote anything, and what was put there came from no token."""
    checkpoint = load(str(built(name, zoo_root)[0]))
    prompt = prepare(checkpoint, IDS[:12])
    plain = run(checkpoint, prompt, max_tokens=0).trace
    other = Exchange(place=read_place("L2.attn"), position=3, other=plain, other_position=7)
    off = [read_place("L0.attn"), read_place("L1"), read_place("L3.mlp")]
    edits = Edits(checkpoint.decoder, off, [other], means=plain if to_mean else None)
    done = run(checkpoint, prompt, max_tokens=2, edits=edits)
    for books in whole(scan(checkpoint, done, heads=True, edits=edits), ("ledger",))["ledger"]["positions"]:
        for book in books:
            for layer, (heads, bias) in enumerate(zip(book["heads"], book["head_bias"], strict=True)):
                part = book["parts"][f"L{layer} attn"]
                assert sum(heads) + bias == pytest.approx(part, abs=1e-5 * (sum(map(abs, heads)) + abs(bias)) + 1e-7)
                put = layer < 2 or (layer == 2 and book["position"] == 3)
                assert any(heads) != put and (to_mean or layer > 1 or part == 0)
                if put:
                    assert book["sources"][layer] == [[{"position": None, "value": 0.0}]] * len(heads)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_heads_add_up_to_their_attention_as_far_as_16_bits_do(dtype: str, zoo_root: Path) -> None:
    for name in ("gpt2", "gemma2", "granite", "gptj", "qwen2"):
        checkpoint = load(str(built(name, zoo_root)[0]), dtype=dtype)
        found = scan(checkpoint, run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=2), heads=True)
        assert found.books[0].heads is not None


def test_a_ledger_over_another_mean_is_refused_where_it_is_asked_for(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the check says does not depend on whether it was."""
    done = run(checkpoint, prepare(checkpoint, IDS[:12]), max_tokens=2)
    with_mean, without = scan(checkpoint, done, over_mean=True), scan(checkpoint, done)
    assert [book.over_mean for book in with_mean.books] == [False, False, True] and len(without.books) == 2
    assert with_mean.check == without.check
    monkeypatch.setattr("gptcli.ledger._mean", lambda x: x[:1].float())
    assert scan(checkpoint, done).check == without.check
    with pytest.raises(CheckFailed, match="the parts of the ledger do not add up"):
        scan(checkpoint, done, over_mean=True)


def test_a_ledger_whose_heads_or_tokens_contradict_the_model_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where their sources are shown, and their patterns are not."""
    from gptcli import ledger

    true = ledger.head_directions
    with monkeypatch.context() as bug:
        bug.setattr("gptcli.ledger.head_directions", lambda *of: (true(*of)[0], true(*of)[1] * 0))
        with pytest.raises(CheckFailed, match="the heads of L0 do not add up to its attention"):
            made(checkpoint)
    with monkeypatch.context() as bug:
        bug.setattr("gptcli.attention.seen", lambda T, window, device: torch.ones(T, T, dtype=torch.bool))
        with pytest.raises(CheckFailed, match="patterns gather something else"):
            made(checkpoint, attention=False)


def test_a_padding_row_of_the_head_is_no_token_that_stands_above_another(tmp_path: Path) -> None:
    """A model whose head has 133 rows more than its tokenizer has tokens: ranks agree with what is the best."""
    checkpoint = load(str(tiny.write_padded(tmp_path / "padded")))
    assert (checkpoint.n_tokens, checkpoint.config.n_vocab) == (267, 400)
    found = made(checkpoint)
    ranks = [found.cells.rank.column(i) for i in range(found.n_positions)]
    best = [[found.cells.ids.whole(r, i, 0) for r in range(3)] for i in range(found.n_positions)]
    for i, (column, ids) in enumerate(zip(ranks, best, strict=True)):
        assert [rank == 1 for rank in column] == [id == found.answers[i] for id in ids]
        assert max(column) <= 267
    assert sum(column[-1] == 1 for column in ranks) == found.n_positions


def test_tables_are_read_by_index() -> None:
    import struct

    table = Table("F32", (2, 3), struct.pack("<6f", *range(6)))
    assert table[1, 2] == 5 and table[1] == (3, 4, 5) and table.number(-1, 0) == 3
    assert table.nested() == [[0, 1, 2], [3, 4, 5]] and table.column(1) == (1, 4) and list(table.rows()) == table_rows()
    for index in ((2, 0), (0, 3), (0, -4)):
        with pytest.raises(IndexError):
            table.number(*index)
    with pytest.raises(ValueError, match="no F32 numbers"):
        Table("F32", (2, 3), b"12")


def table_rows() -> list[tuple[float, ...]]:
    return [(0, 1, 2), (3, 4, 5)]
