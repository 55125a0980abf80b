"""What moves the parameters: GPT-3's Adam with decoupled weight decay, or Muon for the matrices of the blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.model import Decoder
from gptcli.recipe import Recipe

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at zero, so that five rounds are enough


def optimizers(decoder: Decoder, recipe: Recipe, dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """AdamW for everything, decaying matrices only; or Muon for the blocks' matrices and AdamW for the rest.

    Only parameters with requires_grad move. `dtype` is what Muon orthogonalises in. A group's learning rate is the
    recipe's times its "share", see `share`.
    """
    groups = defaultdict[tuple[bool, float, float], list[nn.Parameter]](list)
    for name, p in decoder.named_parameters():
        if p.requires_grad:
            by_muon = recipe.optimizer == "muon" and p.ndim == 2 and name.startswith("blocks.")
            groups[by_muon, recipe.weight_decay if p.ndim == 2 else 0.0, share(decoder, name)].append(p)
    sorts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (by_muon, decay, part), params in groups.items():
        sorts[by_muon].append({"params": params, "weight_decay": decay / part, "share": part})
    found = list[torch.optim.Optimizer]()
    if sorts[True]:
        found.append(Muon(sorts[True], dtype=dtype))
    if sorts[False]:
        betas = (recipe.beta1, recipe.beta2)
        found.append(torch.optim.AdamW(sorts[False], lr=0.0, betas=betas, eps=recipe.eps, fused=True))
    return found


def share(decoder: Decoder, name: str) -> float:
    """What part of the learning rate a parameter moves with: all of it, but for queries that are not scaled.

    A layout without 1/sqrt(d) in its attention has that factor in its queries' matrix. Started smaller by it, moving
    smaller by it and decaying as ever, the matrix trains exactly as if the factor stood outside.
    """
    parts = name.split(".")
    of_queries = parts[0] == "blocks" and parts[2:] in (["attn", "q", "weight"], ["attn", "q", "b"])
    if of_queries and not decoder.config.qk_norm:
        return float(decoder.config.d_head**-0.5 / decoder.config.layers[int(parts[1])].scale)
    return 1.0


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal before it is applied (Jordan 2024), scaled to the size of Adam's steps
    (Liu et al. 2025, arXiv 2502.16982), so that one learning rate and one decay serve both.

    The same numbers as torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), which works in bfloat16 only, a matrix at a
    time: 60 times slower on a CPU without bfloat16 arithmetic.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": 0.95, "weight_decay": 0.0})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever evaluated
        """Applies the gradients."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            alike = defaultdict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]](list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state: dict[str, Tensor] = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - momentum)
                alike[tuple(p.shape)].append((p, p.grad.lerp(state["momentum"], momentum)))  # Nesterov
            for shape, moved in alike.items():
                turns = orthogonal(torch.stack([ahead for _, ahead in moved]), self._dtype)
                for (p, _), turn in zip(moved, turns, strict=True):
                    p.mul_(1 - lr * group["weight_decay"]).add_(turn.to(p.dtype), alpha=-0.2 * lr * max(shape) ** 0.5)


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32, rounds: int = 5) -> Tensor:
    """The nearest orthogonal matrix of each, roughly: singular values end up between 0.7 and 1.2. [N, rows, columns].

    Newton-Schulz: an odd polynomial of the matrix moves its singular values and nothing else.
    """
    a, b, c = QUINTIC
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def state_of(optimizers: Iterable[torch.optim.Optimizer], names: Mapping[int, str]) -> dict[str, Tensor]:
    """What they remember: `blocks.0.attn.q.weight:momentum` and its like. names: id(parameter) -> name."""
    return {
        f"{names[id(p)]}:{key}": value
        for optimizer in optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
