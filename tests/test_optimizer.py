"""The optimizers: Muon as torch has it, and queries without 1/sqrt(d) that train as if they had it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gptcli.config import Config, Layer
from gptcli.model import Decoder
from gptcli.optimizer import AdamW, Group, Muon, Optimizer, optimizers, orthogonal, share
from gptcli.recipe import Recipe
from gptcli.train import initialise, losses

CONFIG = Config(
    n_vocab=50, n_ctx=16, d_model=16, n_head=2, n_kv_head=2, d_head=8, d_ff=32, layers=(Layer(), Layer(window=4)),
    learned_positions=True, tied=True, norm_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip


def moved(optimizer: Optimizer, reference: torch.optim.Optimizer, ours: Group, theirs: list[nn.Parameter]) -> None:
    """Both take the same four random steps."""
    g = torch.Generator().manual_seed(1)
    for _ in range(4):
        for a, b in zip(ours.parameters.values(), theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        optimizer.step(0.02)
        reference.step()


def twins(*shape: int) -> tuple[Group, list[nn.Parameter]]:
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g) for _ in range(3)]
    ours = {str(i): nn.Parameter(t.clone()) for i, t in enumerate(start)}
    return Group(parameters=ours, share=1.0, decay=0.1), [nn.Parameter(t.clone()) for t in start]


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_muon_is_torch_s_in_its_dtype(shape: tuple[int, int]) -> None:
    ours, theirs = twins(*shape)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    moved(Muon([ours], dtype=torch.bfloat16), reference, ours, theirs)
    for a, b in zip(ours.parameters.values(), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # a batched product may round bfloat16 another way


def test_adamw_is_torch_s_to_the_bit() -> None:
    ours, theirs = twins(7, 9)
    reference = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    moved(AdamW([ours]), reference, ours, theirs)
    for a, b in zip(ours.parameters.values(), theirs, strict=True):
        assert torch.equal(a, b)


def test_muon_s_turns_are_nearly_orthogonal() -> None:
    matrices = torch.randn(3, 20, 48, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_only_blocks_matrices_go_to_muon_and_vectors_do_not_decay() -> None:
    decoder = Decoder(CONFIG)
    muon, adam = optimizers(decoder, Recipe(n_steps=1, n_ctx=8, batch=1, learning_rate=1e-3, optimizer="muon"))
    assert isinstance(muon, Muon)
    in_muon = {name for group in muon.groups for name in group.parameters}
    assert in_muon == {n for n, p in decoder.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    for group in adam.groups:
        assert all((p.ndim == 2) == (group.decay > 0) for p in group.parameters.values())
    every = [name for optimizer in (muon, adam) for group in optimizer.groups for name in group.parameters]
    assert sorted(every) == sorted(name for name, _ in decoder.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_queries_without_the_factor_train_as_if_they_had_it(optimizer: str) -> None:
    """Two layouts of one model: 1/sqrt(d) in the attention, or in the queries' matrix. They stay one model."""
    scaled = dataclasses.replace(CONFIG, layers=tuple(dataclasses.replace(x, scale=8**-0.5) for x in CONFIG.layers))
    recipe = Recipe(n_steps=1, n_ctx=16, batch=2, learning_rate=1e-2, optimizer=optimizer, clip=1e9)  # type: ignore[arg-type]
    curves = [list(curve(Decoder(config), recipe)) for config in (CONFIG, scaled)]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)
    assert curves[0][-1] < curves[0][0] - 0.3
    assert share(Decoder(CONFIG), "blocks.1.attn.q.weight") == pytest.approx(8**-0.5)
    assert share(Decoder(scaled), "blocks.1.attn.q.weight") == share(Decoder(CONFIG), "blocks.1.attn.k.weight") == 1.0


def curve(decoder: Decoder, recipe: Recipe) -> Iterator[float]:
    initialise(decoder, 3, std=0.2)
    ids = torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(5))
    found = optimizers(decoder, recipe)
    for _ in range(8):
        decoder.zero_grad()
        loss = losses(decoder, ids[:, :-1], ids[:, 1:]) / 32
        loss.backward()
        for optimizer in found:
            optimizer.step(recipe.learning_rate)
        yield float(loss.detach())
