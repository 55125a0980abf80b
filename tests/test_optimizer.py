"""The optimizers: Muon as torch has it, and queries without 1/sqrt(d) that train as if they had it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gptcli.config import Config, Layer
from gptcli.model import Decoder
from gptcli.optimizer import Muon, optimizers, orthogonal, share
from gptcli.recipe import Recipe
from gptcli.train import initialise, losses

CONFIG = Config(
    n_vocab=50, n_ctx=16, d_model=16, n_head=2, n_kv_head=2, d_head=8, d_ff=32, layers=(Layer(), Layer(window=4)),
    learned_positions=True, tied=True, norm_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_muon_is_torch_s_to_the_bit_in_its_dtype(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for _ in range(3)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    muon = Muon([{"params": ours, "weight_decay": 0.1}], dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(shape, generator=generator)
            b.grad = a.grad.clone()
        muon.param_groups[0]["lr"] = 0.02
        muon.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # a batched product may round bfloat16 another way


def test_muon_s_turns_are_nearly_orthogonal() -> None:
    matrices = torch.randn(3, 20, 48, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_only_blocks_matrices_go_to_muon_and_vectors_do_not_decay() -> None:
    decoder = Decoder(CONFIG)
    muon, adam = optimizers(decoder, Recipe(n_steps=1, n_ctx=8, batch=1, learning_rate=1e-3, optimizer="muon"))
    assert isinstance(muon, Muon)
    in_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    assert in_muon == {id(p) for n, p in decoder.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    for group in adam.param_groups:
        assert all((p.ndim == 2) == (group["weight_decay"] > 0) for p in group["params"])
    every = [p for optimizer in (muon, adam) for group in optimizer.param_groups for p in group["params"]]
    assert len(every) == len({id(p) for p in every}) == len(list(decoder.parameters()))


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
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * group["share"]
            optimizer.step()
        yield float(loss.detach())
