"""How far apart two predictions are. All take log-probabilities [..., V], natural, and answer in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(p: Tensor) -> Tensor:
    """-sum p ln p, [...]: from 0 to ln V."""
    return -_dot(p, p)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum p (ln p - ln q), [...]: 0 or more."""
    return _dot(p, p) - _dot(p, q)


def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence, [...]: half of KL to the mixture from each side; from 0 to ln 2."""
    mixture = torch.logaddexp(p, q) - math.log(2)
    return (kl(p, mixture) + kl(q, mixture)) / 2


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half of sum |p - q|, [...]: from 0 to 1."""
    return (p.exp() - q.exp()).abs().sum(-1) / 2


def _dot(p: Tensor, q: Tensor) -> Tensor:
    """sum exp(p) q, where exp(p) = 0 counts as 0 whatever q is."""
    weight = p.exp()
    return torch.where(weight > 0, weight * q, 0.0).sum(-1)
