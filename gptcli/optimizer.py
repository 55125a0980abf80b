"""What moves the parameters: GPT-3's Adam with decoupled weight decay, or Muon for the matrices of the blocks.

Both are plain classes: torch's own optimizers are the same numbers, but the first one made imports the compiler, which
takes two seconds that a person waits at every start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gptcli.errors import BadCheckpoint
from gptcli.model import Decoder
from gptcli.recipe import Recipe

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at zero, so that five rounds are enough

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that move alike."""

    parameters: Mapping[str, nn.Parameter]
    share: float  # of the learning rate, see `share`
    decay: float


class Optimizer(Protocol):
    """Moves the parameters of its groups; `state` is what it remembers of each, by name."""

    groups: Sequence[Group]
    state: dict[str, State]

    def step(self, rate: float) -> None:
        """Applies the gradients with this learning rate."""


def is_matrix(name: str, p: nn.Parameter) -> bool:
    """Whether it multiplies vectors; a norm's gains do not, though heads with gains of their own have rows of them."""
    return p.ndim == 2 and "norm" not in name


def optimizers(decoder: Decoder, recipe: Recipe, dtype: torch.dtype = torch.float32) -> list[Optimizer]:
    """AdamW for everything, decaying matrices only; or Muon for the blocks' matrices and AdamW for the rest.

    Only parameters with requires_grad move. `dtype` is what Muon orthogonalises in.
    """
    sorts = defaultdict[tuple[bool, float, float], dict[str, nn.Parameter]](dict)
    for name, p in decoder.named_parameters():
        if p.requires_grad:
            by_muon = recipe.optimizer == "muon" and is_matrix(name, p) and name.startswith("blocks.")
            sorts[by_muon, share(decoder, name), recipe.weight_decay if is_matrix(name, p) else 0.0][name] = p
    muon, adam = (
        [Group(parameters=ps, share=s, decay=d) for (by_muon, s, d), ps in sorts.items() if by_muon == wanted]
        for wanted in (True, False)
    )
    found: list[Optimizer] = [Muon(muon, dtype=dtype)] if muon else []
    return [*found, AdamW(adam, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps)] if adam else found


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


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017), in torch's fused kernel."""

    def __init__(self, groups: Sequence[Group], *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8) -> None:
        self.groups, self._betas, self._eps = groups, betas, eps
        self.state: dict[str, State] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Applies the gradients with this learning rate."""
        for group in self.groups:
            moving = [(name, p, p.grad) for name, p in group.parameters.items() if p.grad is not None]
            for name, p, _ in moving:
                if name not in self.state:
                    zero = torch.zeros((), dtype=torch.float32, device=p.device)
                    moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    self.state[name] = {"step": zero, **moments}
            if not moving:
                continue
            states = [self.state[name] for name, _, _ in moving]
            torch._foreach_add_([s["step"] for s in states], 1)
            torch._fused_adamw_(
                [p for _, p, _ in moving],
                [grad for _, _, grad in moving],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                lr=rate * group.share,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group.decay / group.share,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )


class Muon:
    """Momentum whose matrix is made orthogonal before it is applied (Jordan 2024), scaled to the size of Adam's steps
    (Liu et al. 2025, arXiv 2502.16982), so that one learning rate and one decay serve both.

    The same numbers as torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), which works in bfloat16 only, a matrix at a
    time: 60 times slower on a CPU without bfloat16 arithmetic.
    """

    def __init__(self, groups: Sequence[Group], *, dtype: torch.dtype = torch.float32, momentum: float = 0.95) -> None:
        self.groups, self._dtype, self._momentum = groups, dtype, momentum
        self.state: dict[str, State] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Applies the gradients with this learning rate."""
        for group in self.groups:
            alike = defaultdict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]](list)
            for name, p in group.parameters.items():
                if p.grad is None:
                    continue
                momentum = self.state.setdefault(name, {"momentum": torch.zeros_like(p)})["momentum"]
                momentum.lerp_(p.grad, 1 - self._momentum)
                alike[tuple(p.shape)].append((p, p.grad.lerp(momentum, self._momentum)))  # Nesterov
            for shape, moved in alike.items():
                turns = orthogonal(torch.stack([ahead for _, ahead in moved]), self._dtype)
                for (p, _), turn in zip(moved, turns, strict=True):
                    size = 0.2 * rate * group.share * max(shape) ** 0.5
                    p.mul_(1 - rate * group.decay).add_(turn.to(p.dtype), alpha=-size)


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


def states(optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """What they all remember: `blocks.0.attn.q.weight:momentum` and its like."""
    for optimizer in optimizers:
        for name, values in optimizer.state.items():
            for key, value in values.items():
                yield f"{name}:{key}", value


def restore(optimizers: Sequence[Optimizer], kept: Mapping[str, Tensor]) -> None:
    """Gives them back what they remembered. Raises BadCheckpoint if it is of other parameters."""
    found = defaultdict[str, State](dict)
    for key, value in kept.items():
        name, _, part = key.rpartition(":")
        found[name][part] = value
    for optimizer in optimizers:
        for group in optimizer.groups:
            for name, p in group.parameters.items():
                values = found.get(name)
                if not values or any(v.ndim and v.shape != p.shape for v in values.values()):
                    raise BadCheckpoint(f"the optimizer's state does not fit {name}")
                optimizer.state[name] = {k: v.to(p.device, copy=True) for k, v in values.items()}
