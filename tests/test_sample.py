"""Each rule of sampling, each against arithmetic written again here in plain Python floats."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare  # type: ignore[import-untyped]

from gptcli.errors import UsageError
from gptcli.sample import Choice, adjust, candidates, choose, keep, rng
from gptcli.sampling import RANGES, Sampling

INF = math.inf
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def sampling(**changes: Any) -> Sampling:
    """Everything off at temperature 1, but for the changes."""
    return Sampling(**{**OFF, **changes})


def row(*logits: float) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float32)


def noise(n: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    """Random logits, without ties where float32 has room for that (n up to a few thousand)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=generator) * scale
    while n <= 5000 and len(set(logits.tolist())) < n:
        logits += torch.randn(n, generator=generator) * scale
    return logits


def pick(
    logits: torch.Tensor,
    how: Sampling,
    *,
    u: float | Callable[[], float] = 0.5,
    context: Sequence[int] = (),
    generated: Sequence[int] = (),
    size: int | None = None,
) -> Choice:
    uniform = u if callable(u) else lambda: u
    return choose(logits, how, context=context, generated=generated, uniform=uniform, size=size)


def expected(
    logits: Sequence[float], how: Sampling, context: Sequence[int] = (), generated: Sequence[int] = ()
) -> dict[int, float]:
    """The distribution to draw from, rule by rule, in plain Python."""
    scores = dict(enumerate(logits))
    for id, bias in how.logit_bias:
        scores[id] += bias
    window = [] if how.repeat_last_n == 0 else context if how.repeat_last_n < 0 else context[-how.repeat_last_n :]
    for id in set(window):
        scores[id] *= how.repetition_penalty if scores[id] < 0 else 1 / how.repetition_penalty
    for id, count in Counter(generated).items():
        scores[id] -= how.presence_penalty + how.frequency_penalty * count
    ranked = sorted((id for id in scores if scores[id] > -INF), key=lambda id: (-scores[id], id))
    if how.top_k:
        ranked = ranked[: how.top_k]
    peak = scores[ranked[0]]
    weights = [math.exp((scores[id] - peak) / how.temperature) for id in ranked]
    if how.top_p < 1:
        goal = how.top_p * math.fsum(weights)
        n = next(n for n in range(1, len(weights) + 1) if math.fsum(weights[:n]) >= goal or n == len(weights))
        weights = weights[:n]
    weights = [weight for weight in weights if weight >= how.min_p]
    total = math.fsum(weights)
    return {id: weight / total for id, weight in zip(ranked, weights, strict=False)}


# --- the numbers that are accepted


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bad", [math.nan, INF, -INF, -1000, "1", None, True])
def test_every_number_is_checked(name: str, bad: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**{name: bad})
    assert caught.value.message == f"{name} must be {RANGES[name]}, not {bad!r}"
    assert caught.value.exit_code == 2


def test_ranges_read_well_and_hold_their_ends() -> None:
    assert str(RANGES["top_k"]) == "a whole number, 0 or more"
    assert str(RANGES["top_p"]) == "a number from 0 to 1"
    assert str(RANGES["temperature"]) == "a number, 0 or more"
    assert 10**400 not in RANGES["temperature"] and 1.0 not in RANGES["top_k"]
    Sampling(temperature=0, top_k=0, top_p=0, min_p=1, repeat_last_n=-1)
    for changes in ({"top_p": 1.0000001}, {"top_k": 2.0}, {"repeat_last_n": -2}, {"repetition_penalty": 0}):
        with pytest.raises(UsageError):
            Sampling(**changes)


@pytest.mark.parametrize("bias", [INF, math.nan, 1e5, "x"])
def test_logit_bias_must_be_finite_or_forbid(bias: Any) -> None:
    with pytest.raises(UsageError, match="logit_bias of token 3 must be -inf or a number from -10000 to 10000"):
        Sampling(logit_bias=((3, bias),))
    with pytest.raises(UsageError, match="whole number"):
        Sampling(logit_bias=((-1, 1.0),))


def test_greedy_is_temperature_zero() -> None:
    assert Sampling(temperature=0).greedy and not Sampling(temperature=1e-9).greedy


# --- adjust


def test_adjust_without_anything_is_the_row_itself() -> None:
    logits = row(1, 2)
    assert adjust(logits, sampling(), context=[0], generated=[0]) is logits


def test_adjust_leaves_its_argument_alone() -> None:
    logits = noise(10)
    before = logits.clone()
    how = sampling(logit_bias=((1, 2.0),), repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=1.0)
    adjust(logits, how, context=[1, 2, 3], generated=[3])
    assert torch.equal(logits, before)


def test_repetition_penalty_once_per_distinct_token() -> None:
    out = adjust(row(2, -2, 4, 0), sampling(repetition_penalty=2.0), context=[0, 1, 0, 0, 3], generated=[])
    assert out.tolist() == [1, -4, 4, 0]


@pytest.mark.parametrize(("last", "result"), [(-1, [1, 1, 1]), (0, [2, 2, 2]), (1, [2, 2, 1]), (2, [2, 1, 1])])
def test_repeat_last_n(last: int, result: list[float]) -> None:
    how = sampling(repetition_penalty=2.0, repeat_last_n=last)
    assert adjust(row(2, 2, 2), how, context=[0, 1, 2], generated=[]).tolist() == result
    assert adjust(row(2, 2, 2), how, context=[], generated=[]).tolist() == [2, 2, 2]


def test_presence_and_frequency_count_what_was_generated_only() -> None:
    how = sampling(presence_penalty=0.5, frequency_penalty=0.25)
    assert adjust(row(1, 1, 1), how, context=[0, 0, 1, 1, 2], generated=[1, 1, 2]).tolist() == [1, 0, 0.25]
    assert adjust(row(1, 1, 1), how, context=[0, 0], generated=[]).tolist() == [1, 1, 1]


def test_bias_comes_before_the_penalties_and_adds_up() -> None:
    how = sampling(logit_bias=((0, 3.0), (0, 2.0), (1, -INF)), repetition_penalty=2.0)
    assert adjust(row(-1, 1, 1), how, context=[0, 1], generated=[]).tolist() == [2, -INF, 1]


def test_bias_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="names token 3, but the model's last is 2"):
        adjust(row(1, 2, 3), sampling(logit_bias=((3, 1.0),)), context=[], generated=[])


# --- keep


def test_temperature_alone() -> None:
    ids, probs = keep(row(0, math.log(4), math.log(2)), sampling(temperature=0.5))
    assert ids.tolist() == [1, 2, 0] and probs.dtype == torch.float64
    assert probs.tolist() == pytest.approx([16 / 21, 4 / 21, 1 / 21], rel=1e-6)


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e30, 1e308])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    ids, probs = keep(row(1, 3, 3, 2), sampling(temperature=temperature))
    assert ids.tolist() == [1, 2, 3, 0]
    assert probs.tolist() == pytest.approx([0.5, 0.5, 0, 0] if temperature < 1 else [0.25] * 4)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 99])
def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_a_tie(k: int) -> None:
    ids, probs = keep(row(1, 2, 1, 2, 1), sampling(top_k=k))
    assert ids.tolist() == [1, 3, 0, 2, 4][:k]
    assert float(probs.sum()) == pytest.approx(1, abs=1e-15)


def test_top_k_counts_no_forbidden_token() -> None:
    logits = torch.full((100,), -INF)
    logits[[7, 50, 99]] = row(1, 2, 3)
    assert keep(logits, sampling(top_k=5))[0].tolist() == [99, 50, 7]


@pytest.mark.parametrize("n", [7, 63, 64, 65, 4096, 50_257])
@pytest.mark.parametrize("k", [1, 2, 40, 1024])
def test_top_k_equals_a_full_sort_whatever_the_ties(n: int, k: int) -> None:
    for logits in (noise(n), noise(n).round(), noise(n, scale=0.5).round(), torch.zeros(n)):
        logits[n // 3] = -INF
        want = logits.sort(descending=True, stable=True).indices[: min(k, n - 1)]
        assert torch.equal(keep(logits, sampling(top_k=k))[0], want)


@pytest.mark.parametrize(("p", "n"), [(0, 1), (0.25, 1), (0.2501, 2), (0.5, 2), (0.75, 3), (0.7501, 4), (1, 4)])
def test_top_p_reached_exactly_is_enough(p: float, n: int) -> None:
    assert keep(row(1, 1, 1, 1), sampling(top_p=p))[0].tolist() == [0, 1, 2, 3][:n]


@pytest.mark.parametrize(("p", "n"), [(0, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.9999, 4), (1, 4)])
def test_top_p_keeps_the_shortest_head_that_holds_p(p: float, n: int) -> None:
    logits = row(*(math.log(x) for x in (1, 1, 2, 4)))
    ids, probs = keep(logits, sampling(top_p=p))
    assert ids.tolist() == [3, 2, 0, 1][:n]
    assert probs.tolist() == pytest.approx([x / sum([4, 2, 1, 1][:n]) for x in [4, 2, 1, 1][:n]], rel=1e-6)


def test_top_p_is_taken_of_what_top_k_left() -> None:
    logits = row(*(math.log(x) for x in (1, 1, 2, 4)))
    assert keep(logits, sampling(top_p=0.6))[0].tolist() == [3, 2]  # 4/8 < 0.6
    assert keep(logits, sampling(top_p=0.6, top_k=2))[0].tolist() == [3]  # 4/6 >= 0.6


def test_temperature_comes_before_top_p() -> None:
    logits = row(*(math.log(x) for x in (1, 1, 2, 4)))
    assert keep(logits, sampling(top_p=0.6, temperature=0.5))[0].tolist() == [3]  # 16/22


def test_min_p_is_a_share_of_the_best() -> None:
    logits = row(math.log(8), math.log(4) + 1e-5, math.log(1))
    assert keep(logits, sampling(min_p=0.5))[0].tolist() == [0, 1]
    assert keep(logits, sampling(min_p=1))[0].tolist() == [0]
    assert keep(row(1, 1, 0), sampling(min_p=1))[0].tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(150))
def test_keep_equals_the_plain_arithmetic(seed: int) -> None:
    dice = random.Random(seed)
    n, scale = dice.choice([1, 2, 50, 3000]), dice.choice([0.01, 1.0, 4.0])
    how = Sampling(
        temperature=dice.uniform(0.1, 5),
        top_k=dice.choice([0, 0, 1, 3, 50, 1000]),
        top_p=dice.choice([0.0, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0]),
        min_p=dice.choice([0.0, 0.0, 1e-6, 1e-3, 0.05, 0.9, 1.0]),
    )
    logits = noise(n, seed, scale)
    want = expected(logits.tolist(), how)
    ids, probs = keep(logits, how)
    assert abs(len(ids) - len(want)) <= 1  # a border may fall on either side by the last bit
    assert ids.tolist()[: len(want)] == list(want)[: len(ids)]
    assert probs.tolist()[: len(want)] == pytest.approx(list(want.values())[: len(ids)], rel=1e-3)
    assert math.fsum(probs.tolist()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n", [50_257, 151_936])
@pytest.mark.parametrize("how", [{"top_p": 0.95}, {"top_p": 0.3}, {}, {"min_p": 0.01}, {"top_p": 0.99, "min_p": 1e-5}])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_short_way_draws_what_a_full_sort_would(n: int, how: dict[str, Any], scale: float) -> None:
    logits, filters = noise(n, 5, scale).round(decimals=2), sampling(**how)
    order = logits.sort(descending=True, stable=True).indices
    weights = (logits[order].double() - logits.max()).exp()
    n_kept = n
    if filters.top_p < 1:
        n_kept = int((weights.cumsum(0) < filters.top_p * weights.sum()).sum()) + 1
    if filters.min_p:
        n_kept = min(n_kept, int((weights >= filters.min_p).sum()))
    probs = weights[:n_kept] / weights[:n_kept].sum()
    ids, got = keep(logits, filters)
    assert torch.equal(ids, order[:n_kept]) and torch.allclose(got, probs, rtol=1e-12, atol=0)
    for u in (0.0, 0.2, 0.7, 0.999, 1 - 2**-53):
        choice = pick(logits, filters, u=u)
        at = min(int((got.cumsum(0) <= u).sum()), n_kept - 1)
        assert (choice.id, choice.n_kept, choice.p) == (int(ids[at]), n_kept, float(got[at]))


@pytest.mark.parametrize("seed", range(5))
def test_the_chain_is_that_of_transformers(seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    logits, context = noise(2000, seed), [int(id) for id in torch.arange(0, 2000, 7 + seed)]
    chains = [
        (sampling(repetition_penalty=1.3), [transformers.RepetitionPenaltyLogitsProcessor(1.3)]),
        (sampling(temperature=0.7), [transformers.TemperatureLogitsWarper(0.7)]),
        (sampling(top_k=40), [transformers.TopKLogitsWarper(40)]),
        (sampling(top_p=0.9), [transformers.TopPLogitsWarper(0.9)]),
        (sampling(min_p=0.02), [transformers.MinPLogitsWarper(0.02)]),
    ]
    everything = sampling(repetition_penalty=1.3, temperature=0.7, top_k=40, top_p=0.9, min_p=0.02)
    chains.append((everything, [processor for _, chain in chains for processor in chain]))
    for how, chain in chains:
        scores = logits[None].clone()
        for processor in chain:
            scores = processor(torch.tensor([context]), scores)
        want = scores[0].double().softmax(0)
        ids, probs = keep(adjust(logits, how, context=context, generated=[]), how)
        assert set(ids.tolist()) == set(want.nonzero()[:, 0].tolist())
        assert torch.allclose(probs, want[ids], rtol=2e-5, atol=0)


# --- choose


def test_greedy_takes_the_lowest_id_of_a_tie_and_draws_nothing() -> None:
    def never() -> float:
        raise AssertionError("greedy drew a number")

    choice = pick(row(1, 5, 2, 5), Sampling(temperature=0, top_k=1, min_p=0.5), u=never)
    assert (choice.id, choice.p, choice.n_kept, choice.draw, choice.margin) == (1, 1.0, 1, None, 0.0)


def test_greedy_takes_the_best_adjusted_token() -> None:
    choice = pick(row(3, 2.5, 0), Sampling(temperature=0, repetition_penalty=2.0), context=[0])
    assert (choice.id, choice.margin) == (1, 1.0)


@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0}])
def test_one_number_for_each_sampled_step(how: dict[str, Any]) -> None:
    drawn: list[float] = []
    numbers = itertools.cycle([0.25])
    filters = sampling(**how)
    choice = pick(noise(100), filters, u=lambda: drawn.append(1) or next(numbers))  # type: ignore[func-returns-value]
    assert len(drawn) == (0 if filters.greedy else 1)
    assert choice.draw == (None if filters.greedy else 0.25)


@pytest.mark.parametrize(("u", "id"), [(0.0, 2), (0.4999, 2), (0.5001, 0), (0.7499, 0), (0.7501, 1), (1 - 2**-53, 1)])
def test_inverse_cdf_in_order_of_probability_then_id(u: float, id: int) -> None:
    choice = pick(row(0, 0, math.log(2)), sampling(), u=u)
    assert choice.id == id
    assert choice.p == pytest.approx(0.5 if id == 2 else 0.25, rel=1e-6)


def test_a_draw_on_a_border_takes_the_next_token() -> None:
    assert [pick(row(0, 0), sampling(), u=u).id for u in (0.5 - 2**-54, 0.5)] == [0, 1]


@pytest.mark.parametrize("how", [{}, {"top_k": 150}])
@pytest.mark.parametrize("n", range(2, 100))
def test_probabilities_that_sum_to_less_than_one_leave_no_hole(n: int, how: dict[str, Any]) -> None:
    """n times 1/n is often a little less than 1, and the rest of these tokens have probability 0."""
    choice = pick(row(*[0.0] * n, *[-1000.0] * 100), sampling(**how), u=1 - 2**-53)
    assert choice.id == n - 1 and choice.p == pytest.approx(1 / n)


@pytest.mark.parametrize("how", [{}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 1e-9}, {"temperature": 0.02}])
def test_the_largest_draw_never_takes_an_impossible_token(how: dict[str, Any]) -> None:
    for seed in range(20):
        choice = pick(noise(500, seed, 40.0), sampling(**how), u=1 - 2**-53)
        assert choice.p > 0


def test_logprob_is_the_models_own() -> None:
    logits = noise(300)
    raw = logits.double().log_softmax(0)
    how = Sampling(temperature=0.3, top_k=5, repetition_penalty=2.0, logit_bias=((7, 50.0),))
    choice = pick(logits, how, context=list(range(100)), generated=[1], size=200)
    assert choice.id == 7 and choice.p == pytest.approx(1)
    assert choice.logprob == pytest.approx(float(raw[7]), abs=1e-12)


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 1e-3}, {"temperature": 0.0}])
def test_padding_rows_are_never_taken_but_counted_in_the_logprob(how: dict[str, Any]) -> None:
    logits = row(0, 1, 2, 50, 60)
    raw = logits.double().log_softmax(0)
    for u in (0.0, 0.3, 0.6, 0.999):
        choice = pick(logits, sampling(**how), u=u, size=3)
        assert choice.id < 3 and choice.n_kept <= 3
        assert choice.logprob == pytest.approx(float(raw[choice.id]))
    assert pick(logits, sampling(logit_bias=((4, 1.0),)), context=[4], size=3).id < 3


@pytest.mark.parametrize("how", [{}, {"top_k": 40}, {"top_p": 0.99}, {"temperature": 0.0}, {"min_p": 1e-9}])
def test_a_bias_of_minus_infinity_forbids(how: dict[str, Any]) -> None:
    filters = sampling(logit_bias=((1, -INF), (2, -INF)), **how)
    seen = {pick(row(1, 9, 9, 0.5), filters, u=u / 50).id for u in range(50)}
    assert seen == ({0} if filters.greedy else {0, 3})
    assert pick(row(1, 9, 9, 0.5), filters).n_kept == (1 if filters.greedy else 2)


@pytest.mark.parametrize("how", [{}, {"top_k": 1}, {"top_k": 40}, {"top_p": 0.9}, {"temperature": 0.0}, {"min_p": 0.5}])
def test_nothing_left_is_an_error(how: dict[str, Any]) -> None:
    filters = sampling(logit_bias=tuple((id, -INF) for id in range(3)), **how)
    with pytest.raises(UsageError, match="the logit bias leaves no token to choose"):
        pick(row(1, 2, 3, 4), filters, size=3)


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"top_k": 1}, {"top_k": 2}, {}, {"top_p": 0.1}, {"min_p": 1.0}])
def test_margin_is_between_the_two_best_adjusted_logits(how: dict[str, Any]) -> None:
    assert pick(row(1, 4, 2.5), sampling(**how)).margin == 1.5
    assert pick(row(4, 1, 2.5), sampling(**how), size=1).margin == INF
    assert pick(row(1, 4, 2.5), sampling(logit_bias=((2, 1.0),), **how)).margin == 0.5
    assert pick(row(1, 4), sampling(logit_bias=((0, -INF),), **how)).margin == INF


def test_half_precision_rows_are_taken_too() -> None:
    assert pick(row(1, 5, 2).bfloat16(), Sampling(temperature=0)).id == 1


# --- the numbers drawn


def test_sample_i_of_seed_s_is_sample_0_of_seed_s_plus_i() -> None:
    one, other, next_seed = rng(5, 2), rng(7, 0), rng(8, 0)
    drawn = [one() for _ in range(5)]
    assert drawn == [other() for _ in range(5)] != [next_seed() for _ in range(5)]
    assert rng(42, 0)() == 0.6394267984578837  # of every Python since 3.2


# --- candidates


def test_candidates_are_raw_and_ties_go_by_id() -> None:
    logits = row(1, 3, 3, 2, 9)
    raw = logits.double().log_softmax(0).tolist()
    assert [id for id, _ in candidates(logits, 9)] == [4, 1, 2, 3, 0]
    assert [id for id, _ in candidates(logits, 2, size=4)] == [1, 2]
    assert dict(candidates(logits, 3)) == pytest.approx({4: raw[4], 1: raw[1], 2: raw[2]})
    assert candidates(logits, 0) == []


# --- the draws themselves

LOGITS = [2.0, 1.5, 1.25, 1.0, 0.5, 0.25, 0.0, -0.25, -0.5, -1.0, -1.5, -2.0]
CONTEXT, GENERATED = [0, 3, 9, 1, 1, 4, 1], [1, 4, 1]
PENALTIES: dict[str, Any] = {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.2}
BIAS: dict[str, Any] = {"logit_bias": ((0, -1.0), (11, 3.0), (2, -INF))}
FILTERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.6},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "penalties": PENALTIES,
    "window": {"repetition_penalty": 3.0, "repeat_last_n": 2},
    "bias": BIAS,
    "all": {"temperature": 1.2, "top_k": 9, "top_p": 0.95, "min_p": 0.05, "repeat_last_n": 5, **PENALTIES, **BIAS},
}


def p_value(drawn: Counter[int], distribution: dict[int, float]) -> float:
    """Of the hypothesis that `drawn` came from `distribution`; 0 when something impossible was drawn."""
    if drawn.keys() - distribution.keys():
        return 0.0
    n = drawn.total()
    return float(chisquare([drawn[id] for id in distribution], [n * p for p in distribution.values()]).pvalue)


def draws(how: Sampling, n: int) -> Counter[int]:
    logits, uniform = row(*LOGITS), rng(1234, 0)
    return Counter(pick(logits, how, u=uniform, context=CONTEXT, generated=GENERATED).id for _ in range(n))


@pytest.mark.parametrize("n", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution(name: str, n: int) -> None:
    """And would be told from the distribution without that filter, so the test can fail."""
    how = sampling(**FILTERS[name])
    drawn, want = draws(how, n), expected(LOGITS, how, CONTEXT, GENERATED)
    assert set(drawn) <= set(want) and p_value(drawn, want) > 1e-4
    assert p_value(drawn, expected(LOGITS, sampling(), CONTEXT, GENERATED)) < 1e-6


@pytest.mark.slow
def test_the_test_of_the_draws_sees_a_slight_fault() -> None:
    """Temperature 1.3 against 1.2: every token is still possible."""
    wrong = expected(LOGITS, sampling(temperature=1.2), CONTEXT, GENERATED)
    assert p_value(draws(sampling(temperature=1.3), 20_000), wrong) < 1e-6
