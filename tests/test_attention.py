"""What a look would add: as long as its vector is, through the output matrix; and looks weighted by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from programs import complaint, quick
from xray_checks import IDS, SUMS, traced
from zoo import Kind, built

from gptcli import load
from gptcli.attention import look_lengths
from gptcli.generation import prepare
from gptcli.scan import run, scan


@pytest.mark.parametrize("kind", SUMS, ids=str)
def test_what_a_look_would_add_is_as_long_as_it_is_said_to_be(kind: Kind, zoo_root: Path) -> None:
    """Head by head and position by position, through the output matrix and the gain of the norm behind it."""
    decoder = load(str(built(kind.name, zoo_root)[0])).decoder.double()
    trace, c = traced(decoder), decoder.config
    for i, block in enumerate(decoder.blocks):
        found, out, norm = look_lengths(block, trace.v[i]), block.attn.out.weight, block.attn_out_norm
        assert found.shape == (c.n_head, len(IDS))
        for h in range(c.n_head):
            value = trace.v[i][h // (c.n_head // c.n_kv_head)]  # [T, D]
            write = value @ out[:, h * c.d_head : (h + 1) * c.d_head].T  # [T, C]
            if norm is not None:
                write = write - write.mean(-1, keepdim=True) if norm.kind == "layer" else write
                write = write if norm.weight is None else write * norm.weight
            assert torch.allclose(found[h], write.norm(dim=-1), rtol=1e-9, atol=1e-12)


def test_weighted_rows_are_shares_of_what_is_taken(tiny_gpt2: Path) -> None:
    checkpoint = load(str(tiny_gpt2))
    found = scan(checkpoint, run(checkpoint, prepare(checkpoint, IDS), max_tokens=0), attention=True).attention
    assert found and found.lengths
    looks, lengths = found.row(1, 2, 9, weighted=False), found.lengths.row(1, 2)
    taken = found.row(1, 2, 9, weighted=True)
    assert sum(taken) == pytest.approx(1) and taken != pytest.approx(looks, rel=1e-2)
    assert taken[3] / taken[7] == pytest.approx(looks[3] * lengths[3] / (looks[7] * lengths[7]))
    assert dataclasses.replace(found, lengths=None).row(1, 2, 9, weighted=True) == looks


def test_the_command_says_what_is_weighted_and_refuses_it_elsewhere(tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.xray"
    plain = quick("xray", "the cat sat", "-m", tiny_gpt2, "--attention", "--save", file)
    made = quick("xray", "the cat sat", "-m", tiny_gpt2, "--attention", "--weighted")
    assert made.returncode == 0, made.stderr.decode()
    assert "what the heads take from where" in made.stdout.decode() and "where the heads look" in plain.stdout.decode()
    assert quick("xray", file, "--attention", "--weighted").stdout == made.stdout
    for arguments, said in (
        (("--weighted",), "no view that was asked for shows where heads look"),
        (("--weighted",), "hint: add --attention"),
        (("--attention", "--weighted", "--format", "json"), "--format json holds looks and lengths"),
    ):
        done = quick("xray", "the cat sat", "-m", tiny_gpt2, *arguments)
        assert done.returncode == 2 and said in complaint(done)
