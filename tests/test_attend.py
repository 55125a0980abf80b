"""The decoder's two ways to attend to whole texts: PyTorch's own kernel, and the formula in blocks of queries."""

from __future__ import annotations

import pytest
import torch

from gptcli import attend as module
from gptcli.attend import attend, attend_blocks, visible


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 9, 40])
@pytest.mark.parametrize("T", [1, 4, 8, 11])  # less than a block, one, two, and a rest
def test_blocks_of_queries_attend_as_all_at_once(
    T: int, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    rng = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(2, heads, T, 8, generator=rng, requires_grad=True) for heads in (6, 3, 3))
    ways = (
        attend(q, k, v, visible(T, T, window, q.device), 0.4, softcap),
        attend_blocks(q, k, v, window, 0.4, softcap),
    )
    torch.testing.assert_close(ways[1], ways[0])
    weight = torch.randn(ways[0].shape, generator=rng)
    grads = [torch.autograd.grad((z * weight).sum(), (q, k, v)) for z in ways]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
