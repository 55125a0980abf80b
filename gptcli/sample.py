"""From a row of logits to a token: pure functions.

    logits (V) ── adjust ──> logits (V) ── keep ──> ids, probabilities (kept) ── one uniform number ──> Choice
                  bias, penalties          temperature, top-k, top-p, min-p

The order is that of transformers. It is spelled out because llama.cpp applies the temperature last, which gives other
sets for top-p and min-p. Everything is ordered by logit, largest first, and equal logits by id, lowest first, so
which token a uniform number in [0, 1) means never depends on how a sort breaks ties.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gptcli.errors import UsageError
from gptcli.sampling import Sampling

LOWEST = torch.finfo(torch.float32).min
SMALL = 2**15  # tokens up to which `topk` is the faster way to the best of them


@dataclass(frozen=True, slots=True)
class Choice:
    """The token taken, and how free the choice was."""

    id: int
    logprob: float  # natural; the model's own, from the untouched logits, padding rows included
    p: float  # the probability it was drawn with
    n_kept: int  # how many tokens the filters left
    draw: float | None  # the uniform number that chose; None when greedy
    margin: float  # best minus second best adjusted logit, before temperature; inf when there is no second


def finite(logits: Tensor) -> bool:
    """Whether all are numbers, any shape but the empty one; a tenth of the time of `isfinite`."""
    return all(math.isfinite(float(end)) for end in torch.aminmax(logits))


def rng(seed: int, sample: int) -> Callable[[], float]:
    """Uniform numbers in [0, 1) for one sample; sample i of seed s is sample 0 of seed s + i."""
    return random.Random(seed + sample).random  # the one generator whose numbers Python promises never to change


def adjust(logits: Tensor, sampling: Sampling, *, context: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Add the logit bias, then take off the penalties; `logits` (V) itself is left as it was.

    `context` is the prompt and what was generated so far: the repetition penalty counts both (transformers, CTRL).
    Presence and frequency penalties count `generated` only (OpenAI).
    """
    adjusted = logits
    if sampling.logit_bias:
        last = max(id for id, _ in sampling.logit_bias)
        if last >= len(logits):
            raise UsageError(f"logit_bias names token {last}, but the model's last is {len(logits) - 1}")
        ids = torch.tensor([id for id, _ in sampling.logit_bias])
        bias = torch.tensor([bias for _, bias in sampling.logit_bias], dtype=logits.dtype)
        adjusted = adjusted.index_add(0, ids, bias)
    if sampling.repetition_penalty != 1 and sampling.repeat_last_n != 0 and context:
        recent = context if sampling.repeat_last_n < 0 else context[-sampling.repeat_last_n :]
        ids = torch.tensor(list(set(recent)))
        old = adjusted[ids]
        new = torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
        adjusted = adjusted.index_copy(0, ids, new)
    if (sampling.presence_penalty or sampling.frequency_penalty) and generated:
        counts = Counter(generated)
        penalties = [sampling.presence_penalty + sampling.frequency_penalty * n for n in counts.values()]
        adjusted = adjusted.index_add(0, torch.tensor(list(counts)), -torch.tensor(penalties, dtype=logits.dtype))
    return adjusted


def keep(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What temperature, top-k, top-p and min-p leave of `logits` (V): ids and float64 probabilities, best first.

    Top-k keeps exactly k: of equal logits at the border those with the lowest ids (transformers keeps them all).
    Top-p keeps the shortest head of what top-k left that holds at least p of its probability.
    """
    ids, probs, _ = _survivors(logits, sampling, reach=1.0)
    return ids, probs


def choose(
    logits: Tensor,
    sampling: Sampling,
    *,
    context: Sequence[int],
    generated: Sequence[int],
    uniform: Callable[[], float],
    size: int | None,
) -> Choice:
    """Take a token from `logits` (V), all finite; greedy takes the best and draws nothing, else one number is drawn.

    Ids from `size` on, the padding rows of the embedding, are never taken.
    """
    row = logits.to("cpu", torch.float32)
    adjusted = adjust(row, sampling, context=context, generated=generated)[:size]
    if sampling.greedy:
        _best(adjusted)
        ids = adjusted.argmax()[None]  # of equal ones the first
        id, draw, p, n_kept = int(ids), None, 1.0, 1
    else:
        draw = uniform()
        ids, probs, n_kept = _survivors(adjusted, sampling, reach=draw)
        at = int(torch.searchsorted(probs.cumsum(0), draw, right=True))
        if at == len(ids):  # the sum of the probabilities was rounded to just below the number drawn
            at = int(probs.count_nonzero()) - 1
        id, p = int(ids[at]), float(probs[at])
    logprob = float(row[id]) - _log_total(row)
    return Choice(id=id, logprob=logprob, p=p, n_kept=n_kept, draw=draw, margin=_margin(adjusted, ids))


def candidates(logits: Tensor, n: int, *, size: int | None = None) -> list[tuple[int, float]]:
    """The n best (id, log-probability) of the untouched `logits` (V), best first; ids from `size` on are left out."""
    row = logits.to("cpu", torch.float32)
    ids = _ranked(row[:size], n)
    logprobs = row[ids].double() - _log_total(row)
    return list(zip(ids.tolist(), logprobs.tolist(), strict=True))


def _survivors(logits: Tensor, sampling: Sampling, *, reach: float) -> tuple[Tensor, Tensor, int]:
    """What the filters leave: ids and probabilities as far as a draw of `reach` goes, and how many there really are.

    Each filter keeps a head of the same ranking, so the shortest head wins. Without top-k, only what can be in the
    head is sorted (all of 150k tokens take 16 ms): the tokens lighter than (1 - p) / V weigh less than 1 - p together,
    so the others already hold p. Where nothing is cut, the number drawn is that p.
    """
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    best = _best(logits)
    if top_k:
        ids = _ranked(logits, top_k)
        weights = _weights(logits[ids], best, sampling.temperature)
        total = float(weights.sum())
    else:
        weights = _weights(logits, best, sampling.temperature)
        total = float(weights.sum())
        share = top_p if top_p < 1 else 1.0 if min_p else reach
        sure = 0.5 * (1 - share) * total / len(logits)  # half of it leaves room for rounding
        for floor in (max(min_p, 1e-2), max(min_p, 1e-4), max(min_p, sure)):  # most often the first or second will do
            ids = (weights >= floor if floor else logits > -math.inf).nonzero()[:, 0]
            if floor == min_p or float(weights[ids].sum()) > (1 + 1e-9) * share * total:
                break
        ids = ids[logits[ids].sort(descending=True, stable=True).indices]
        weights = weights[ids]
        if top_p == 1 and not min_p:
            return ids, weights / total, int((logits > -math.inf).sum())
    n_kept = len(ids)
    if top_p < 1:
        n_kept = min(n_kept, 1 + int(torch.searchsorted(weights.cumsum(0), top_p * total)))
    if min_p:
        n_kept = min(n_kept, int((weights >= min_p).sum()))  # never 0: the best token's weight is 1
    weights = weights[:n_kept]
    return ids[:n_kept], weights / weights.sum(), n_kept


def _best(logits: Tensor) -> Tensor:
    """The largest of `logits` (V); UsageError if all are -inf."""
    best = logits.max()
    if float(best) == -math.inf:
        hint = "forbid fewer tokens with --logit-bias"
        raise UsageError("the logit bias leaves no token to choose: every one is at -inf", hint=hint)
    return best


def _weights(logits: Tensor, best: Tensor, temperature: float) -> Tensor:
    """Probabilities up to a factor, float64; the best token's is 1, however small the temperature."""
    return logits.double().sub_(best).div_(temperature).exp_()


def _log_total(logits: Tensor) -> float:
    """log of the sum of exp over all of `logits` (V), float64."""
    best = logits.max()
    return float(best) + math.log(float(_weights(logits, best, 1.0).sum()))


def _ranked(logits: Tensor, n: int) -> Tensor:
    """The ids of the n largest of `logits` (V) above -inf, largest first, ties by id.

    `topk` takes any of equal values and is slow for large V. Here the logits stand in columns: the n-th largest peak
    of a column is a floor that at least n tokens reach, and only the few columns that reach it are looked into.
    """
    if n >= len(logits):
        values, ids = logits.sort(descending=True, stable=True)
        return ids[: int((values > -math.inf).sum())]
    if n <= 0:
        return torch.empty(0, dtype=torch.long)
    if len(logits) <= SMALL:
        values, ids = logits.topk(n + 1)
        if bool((values[1:] < values[:-1]).all()):  # no two are equal
            return ids[:n]
    height = max(1, min(64, len(logits) // (4 * n)))
    grid = pad(logits, (0, -len(logits) % height), value=-math.inf).view(height, -1)  # id = row * width + column
    peaks = grid.amax(0)
    floor = peaks.topk(n, sorted=False).values.amin().clamp(min=LOWEST)  # -inf, and so the padding, never reaches it
    columns = (peaks >= floor).nonzero()[:, 0]
    # Found row by row, so the ids ascend, and the stable sort leaves equal logits in that order.
    where = (grid.index_select(1, columns) >= floor).nonzero()
    ids = where[:, 0] * grid.shape[1] + columns[where[:, 1]]
    return ids[logits[ids].sort(descending=True, stable=True).indices[:n]]


def _margin(logits: Tensor, ids: Tensor) -> float:
    """Best minus second best; `ids` are the best in order, one or more."""
    best = int(ids[0])
    if len(ids) > 1:
        return float(logits[best]) - float(logits[int(ids[1])])
    others = [part.amax() for part in (logits[:best], logits[best + 1 :]) if len(part)]
    return float(logits[best]) - max((float(other) for other in others), default=-math.inf)
