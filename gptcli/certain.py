"""Which tokens rows of logits choose, where rounding cannot have made another choice of it.

Many texts computed together are rounded otherwise than each alone: every logit may be off by a little. Here the token
is chosen for all rows at once, and only where no such change of the logits can lead to another. The others are left to
whoever can compute the row alone.

    n rows   V vocabulary   M best tokens of a row, largest first
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.sample import Choice
from gptcli.sampling import Sampling

HEAD = 64  # tokens of a row that count as likely: these are looked at where no top-k says how many
SLACK = 1e-11  # covers the rounding of the float64 sums themselves


def plain(sampling: Sampling) -> bool:
    """Whether the logits are taken as they are: no bias and no penalty stands before the filters."""
    return not (
        sampling.logit_bias
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or (sampling.repetition_penalty != 1 and sampling.repeat_last_n != 0)
    )


@torch.inference_mode()
def certain(
    logits: Tensor, adjusted: Tensor, samplings: Sequence[Sampling], draws: Sequence[float], errors: Sequence[float]
) -> list[Choice | None]:
    """The choice of each row, or None where logits that are off by up to the row's error could lead to another.

    logits: [n, V], float32; adjusted: [n, tokens that may be chosen], with biases and penalties. draws: as from `rng`.
    """
    errors = [_adjusted(e, s, row) for e, s, row in zip(errors, samplings, adjusted, strict=True)]
    head = max(2 if s.greedy else s.top_k + 1 if s.top_k else HEAD for s in samplings)
    found = _certain(logits, adjusted, samplings, draws, errors, head)
    again = [i for i, c in enumerate(found) if c is None and not samplings[i].greedy and not samplings[i].top_k]
    if again and head < adjusted.shape[1]:  # perhaps only because the tail was not looked at
        wide = _certain(
            logits[again],
            adjusted[again],
            [samplings[i] for i in again],
            [draws[i] for i in again],
            [errors[i] for i in again],
            adjusted.shape[1],
        )
        for i, choice in zip(again, wide, strict=True):
            found[i] = choice
    return found


def spread(alone: Tensor, together: Tensor) -> float:
    """How far rounding moved a row's likely tokens against each other; a shift of all alike changes no choice. [V]."""
    off = (together - alone)[alone.topk(min(HEAD, len(alone))).indices]
    return float(off.max() - off.min())


def _adjusted(error: float, sampling: Sampling, row: Tensor) -> float:
    """How far logits may be off that biases and penalties were applied to: these are rounded once more. row: [V]."""
    if plain(sampling):
        return error
    penalty, largest = sampling.repetition_penalty, float(row.abs().nan_to_num(0, 0, 0).max())
    return error * max(penalty, 1 / penalty) + torch.finfo(row.dtype).eps * largest


def _certain(
    logits: Tensor,
    adjusted: Tensor,
    samplings: Sequence[Sampling],
    draws: Sequence[float],
    errors: Sequence[float],
    head: int,
) -> list[Choice | None]:
    """The same, with a look at the `head` best tokens of each row."""
    size = adjusted.shape[1]
    best, ids = _best(adjusted, min(head, size))
    total = logits.logsumexp(1).double()
    greedy = torch.tensor([s.greedy for s in samplings])
    error = torch.tensor(errors, dtype=torch.float64)[:, None]
    values = best.double()  # [n, M]
    gap = values[:, :-1] - values[:, 1:] if values.shape[1] > 1 else values.new_full((len(values), 1), math.inf)
    at, n_kept = torch.zeros_like(ids[:, 0]), torch.ones_like(ids[:, 0])
    p, safe = torch.ones_like(total), greedy.clone()
    if not bool(greedy.all()):
        drawn = _drawn(values, adjusted, samplings, draws, error)
        at, p, n_kept, safe = (torch.where(greedy, *each) for each in zip((at, p, n_kept, safe), drawn, strict=True))
    # the neighbours in the ranking stay where they are
    clear = torch.nn.functional.pad(gap > 2 * error, (1, 1), value=True)  # the gap above each, and that below the last
    clear[:, -1] = values.shape[1] == size
    safe &= (clear.gather(1, at[:, None]) & clear.gather(1, at[:, None] + 1))[:, 0]
    chosen = ids.gather(1, at[:, None])
    logprobs = logits.gather(1, chosen)[:, 0].double() - total
    columns = (chosen[:, 0], logprobs, p, n_kept, gap[:, 0], safe)
    return [
        Choice(id=i, logprob=lp, p=pr, n_kept=n, draw=None if s.greedy else u, margin=margin) if sure else None
        for s, u, i, lp, pr, n, margin, sure in zip(samplings, draws, *(c.tolist() for c in columns), strict=True)
    ]


def _drawn(
    values: Tensor, adjusted: Tensor, samplings: Sequence[Sampling], draws: Sequence[float], error: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Place in the ranking, probability, number kept, and whether the sums around it are sure; [n] each.

    If every logit may be off by e, the odds of any set of tokens may be off by a factor exp(2 e / temperature), so a
    share f of the whole by f (1 - f) (exp(2 e / temperature) - 1), and so may the borders that top-p and min-p draw.
    The i-th largest logit is off by no more than e either, so top-k has no border to be unsure of.
    """

    def column(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)[:, None]

    temperature = column([s.temperature or 1.0 for s in samplings])
    top_k = column([s.top_k or math.inf for s in samplings])
    top_p, min_p, draw = column([s.top_p for s in samplings]), column([s.min_p for s in samplings]), column([*draws])
    place = torch.arange(values.shape[1])
    weights = ((values - values[:, :1]) / temperature).exp() * (place < top_k)  # [n, M]
    sums = weights.cumsum(1)
    open_rows = [i for i, s in enumerate(samplings) if not s.greedy and not s.top_k]
    total = sums[:, -1:].clone()
    if open_rows:
        rest = (adjusted[open_rows] - values[open_rows, :1].float()).double() / temperature[open_rows]
        total[open_rows] = rest.exp_().sum(1, keepdim=True)
    wide = torch.expm1(2 * error / temperature)
    share = sums / total
    loose = share * (1 - share).clamp(min=0) * wide + SLACK
    n, most = values.shape[1], top_k.clamp(max=values.shape[1])

    def kept(by: Tensor | float, factor: Tensor | float) -> Tensor:
        """How many tokens stay, if the shares are that much larger and the weights so many times heavier."""
        by_p = torch.where(top_p < 1, 1 + (share + by < top_p).sum(1, keepdim=True), n)
        by_min = torch.where(min_p > 0, (weights * factor >= min_p).sum(1, keepdim=True), n)
        return torch.minimum(torch.minimum(by_p, by_min).double(), most)

    factor = (1 + wide) * (1 + SLACK)
    middle, fewest, highest = kept(0.0, 1.0), kept(loose, 1 / factor), kept(-loose, factor)
    cut = (top_p < 1) | (min_p > 0)

    def sum_of(count: Tensor) -> Tensor:
        return torch.where(cut, sums.gather(1, count.long().clamp(1, n) - 1), total)

    whole, least, largest = sum_of(middle), sum_of(fewest), sum_of(highest)
    at = (sums <= draw * whole).sum(1, keepdim=True)
    seen = at < n  # else it is a token further down than those that are looked at
    at = torch.minimum(at, middle.long() - 1).clamp(min=0)
    upper, weight = sums.gather(1, at), weights.gather(1, at)
    below, above = (upper - weight) / least, upper / largest
    sure = (at == 0) | (below + below * (1 - below).clamp(min=0) * wide + SLACK < draw)
    last = (at + 1 >= highest) & (cut | (top_k <= n))
    sure &= last | (above - above * (1 - above).clamp(min=0) * wide - SLACK > draw)
    sure &= seen & (at < fewest) & ((highest < n) | (most < n) | ~cut | (n == adjusted.shape[1]))
    n_kept = torch.where(cut, middle, torch.where(top_k.isfinite(), most, adjusted.shape[1]))
    return at[:, 0], (weight / whole)[:, 0], n_kept[:, 0].long(), sure[:, 0]


def _best(logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of each row and their ids, largest first: [rows, V] -> [rows, n] twice.

    Each row stands in columns: its n best are in the n columns with the highest peaks.
    """
    rows, size = logits.shape
    height = max(1, min(64, size // (4 * n)))
    if height == 1:
        found = logits.topk(n)
        return found.values, found.indices
    grid = torch.nn.functional.pad(logits, (0, -size % height), value=-math.inf).view(rows, height, -1)
    width = grid.shape[2]
    columns = grid.amax(1).topk(n, sorted=False).indices  # [rows, n]
    few = grid.gather(2, columns[:, None].expand(-1, height, -1)).flatten(1)  # [rows, height * n]
    found = few.topk(n)
    row, column = found.indices // n, found.indices % n
    return found.values, row * width + columns.gather(1, column)
