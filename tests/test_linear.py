"""Products in a dtype that the processor has no instructions for are made in float32, and are as right or more so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from zoo import built

from gptcli import linear, load
from gptcli.linear import FEW, Int8, by_onednn, in_float32, wants_onednn


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor that has none; the sizes of the matrices that were made float32."""
    found, real = list[int](), linear.in_float32

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        found.append(weight.numel())
        return real(x, weight, bias)

    monkeypatch.setattr(linear, "emulated", lambda dtype, device: dtype != torch.float32)
    monkeypatch.setattr(linear, "in_float32", counted)
    return found


@pytest.mark.parametrize("at_once", [1, 100, 2**22])
def test_part_by_part_is_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "AT_ONCE", at_once)
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=g).bfloat16() for shape in ((2, 9, 40), (37, 40), (37,)))
    exact = (x.double() @ w.double().T + b.double()).bfloat16()
    found = in_float32(x, w, b)
    assert found.shape == (2, 9, 37) and found.dtype == torch.bfloat16
    assert (found.double() - exact.double()).abs().max() <= 2**-7 * exact.abs().max()
    assert torch.equal(in_float32(x, w), in_float32(x.flatten(0, 1), w).view(2, 9, 37))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neo"])
def test_scores_in_bfloat16_are_no_farther_from_the_exact_ones(
    name: str, zoo_root: Path, without_instructions: list[int]
) -> None:
    folder = str(built(name, zoo_root)[0])
    exact, rounded = load(folder), load(folder, dtype="bfloat16")
    for parameter, other in zip(exact.decoder.parameters(), rounded.decoder.parameters(), strict=True):
        parameter.data.copy_(other.data)  # the same numbers, so that only what is computed from them differs
    ids = torch.randint(0, exact.config.n_vocab, (1, 3 * FEW), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want, with_it = exact.decoder(ids), rounded.decoder(ids).float()
        assert without_instructions
        without_instructions.clear()
        few = rounded.decoder(ids[:, : FEW - 1]).float()
        assert not without_instructions  # few rows are as fast as they are
        assert (few - want[:, : FEW - 1]).abs().max() < 0.1 * want.abs().max()
        linear.emulated = lambda dtype, device: False  # type: ignore[assignment]
        without = rounded.decoder(ids).float()
    off, usual = ((found - want).square().mean().sqrt() for found in (with_it, without))
    assert off < 1.1 * usual


def test_only_dtypes_of_16_bits_are_asked_about() -> None:
    assert not any(linear.emulated(dtype, "cpu") for dtype in (torch.float32, torch.float64))
    assert not any(linear.emulated(dtype, "cuda") for dtype in (torch.bfloat16, torch.float16))
    assert {linear.emulated(dtype, "cpu") for dtype in (torch.bfloat16, torch.float16)} <= {True, False}


def test_training_keeps_the_product_that_has_a_gradient(without_instructions: list[int]) -> None:
    x, w = torch.randn(9, 4).bfloat16(), torch.randn(3, 4).bfloat16().requires_grad_()
    linear.linear(x, w).float().sum().backward()
    assert w.grad is not None and not without_instructions


def test_whole_numbers_of_8_bits_take_the_same_way(without_instructions: list[int]) -> None:
    g = torch.Generator().manual_seed(2)
    matrix = Int8.of(torch.randn(24, 16, generator=g), None)
    x = torch.randn(3 * FEW, 16, generator=g).bfloat16()
    with torch.inference_mode():
        found = matrix(x)
    want = x.float() @ matrix.whole().T
    assert without_instructions == [24 * 16] and (found - want).abs().max() <= 2**-6 * want.abs().max()


@pytest.mark.parametrize("K", [33, 40, 172, 96])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_8_bits_read_a_row_of_any_length_and_nothing_behind_it(K: int, rows: int) -> None:
    """torch's kernel takes 32 numbers at a time, and would go on past the end of the last row."""
    generator = torch.Generator().manual_seed(K)
    x, weight = torch.randn(rows, K, generator=generator), torch.randn(24, K, generator=generator)
    matrix = Int8.of(weight, None)
    expected = x @ matrix.whole().T
    for _ in range(5):
        assert (matrix(x) - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("rows", [3, 9, 120])
@pytest.mark.parametrize("bias", [False, True])
def test_onednn_s_products_are_f_linear_s(bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MKL is held back; here on any processor."""
    monkeypatch.setattr(linear, "held_back", lambda device: True)
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows // 3, 3, 384, generator=rng).transpose(0, 1), torch.randn(500, 384, generator=rng)
    b = torch.randn(500, generator=rng) if bias else None
    with torch.inference_mode():
        assert wants_onednn(x, weight)
        for some in (x, x[:1, :1], x[:0]):
            y, same = linear.linear(some, weight, b), F.linear(some, weight, b)
            assert y.shape == same.shape and y.is_contiguous()
            assert torch.allclose(y, same, rtol=0, atol=1e-5 * float(weight.abs().max()) * 384)


def test_f_linear_makes_what_is_learned_from_and_what_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "held_back", lambda device: True)
    x, weight = torch.randn(16, 256), torch.randn(256, 256)
    assert not wants_onednn(x, weight)  # gradients are on: oneDNN's product has none
    with torch.no_grad():
        assert wants_onednn(x, weight)
        assert wants_onednn(x[:1], weight)
        assert not wants_onednn(x, weight[:255])
        assert not wants_onednn(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):  # it would stay in float32 there
            assert not wants_onednn(x, weight)


def test_onednn_makes_few_products_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps each, with memory of its own: prompts of hundreds of lengths took hundreds of megabytes."""
    sizes = set[int]()

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *how: object) -> torch.Tensor:
        sizes.add(len(x))
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", product)
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 4, generator=g), torch.randn(8, generator=g)
    for rows in (*range(65, 1025, 7), 8191):
        x = torch.randn(rows, 4, generator=g)
        y = by_onednn(x, weight, bias)
        assert y.shape == (rows, 8) and torch.allclose(y, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
        assert max(sizes) <= 1.25 * rows
    assert len(sizes) <= 4 * 5 + 1
