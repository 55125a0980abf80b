"""The recipe is GPT-3's: Appendix B's numbers at its own size, the same shares at ours."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from gptcli.commands.fitting import Asked, changed
from gptcli.errors import UsageError
from gptcli.presets import SIZES
from gptcli.recipe import Recipe, scaled

GPT3 = scaled(n_tokens=300_000_000_000, n_ctx=2048, batch_tokens=3_200_000, learning_rate=0.6e-4)


def test_at_gpt3_s_own_size_the_schedule_is_appendix_b_s() -> None:
    r = GPT3
    assert (r.beta1, r.beta2, r.eps, r.clip, r.weight_decay) == (0.9, 0.95, 1e-8, 1.0, 0.1)
    assert r.n_tokens(r.n_steps) == pytest.approx(300e9, rel=1e-4)
    assert r.rate(0) == pytest.approx(0.6e-4 * r.n_tokens(1) / 375e6)
    at = {n: next(s for s in range(r.n_steps) if r.n_tokens(s + 1) >= n) for n in (375e6, 130e9, 260e9)}
    assert r.rate(at[375e6]) == pytest.approx(0.6e-4, rel=1e-3)
    way = (r.n_tokens(at[130e9]) - 375e6) / (260e9 - 375e6)
    assert r.rate(at[130e9]) == pytest.approx(0.6e-4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * way))))
    assert r.rate(at[260e9]) == pytest.approx(0.6e-5, rel=1e-6)
    assert r.rate(r.n_steps - 1) == pytest.approx(0.6e-5)


def test_at_gpt3_s_own_size_the_batch_grows_from_32k_to_3_2m_tokens_over_12b() -> None:
    sizes = [GPT3.n_tokens(s + 1) - GPT3.n_tokens(s) for s in range(GPT3.n_steps)]
    assert sizes[0] == pytest.approx(32_000, rel=0.05)
    assert max(sizes) == sizes[-1] == pytest.approx(3_200_000, rel=1e-3)
    assert sizes == sorted(sizes)
    grown = next(s for s, size in enumerate(sizes) if size == sizes[-1])
    assert GPT3.n_tokens(grown) == pytest.approx(12e9, rel=1e-3)


def test_a_small_run_has_the_same_shares_and_a_rise() -> None:
    r = scaled(n_tokens=10_000_000, n_ctx=512, batch_tokens=8192, learning_rate=1e-3)
    assert r.ramp_tokens == 0, "a batch below the one GPT-3 began with does not grow"
    rates = [r.rate(s) for s in range(r.n_steps)]
    assert rates[0] < rates[50] < rates[99] == pytest.approx(1e-3)
    floor = next(s for s in range(r.n_steps) if r.n_tokens(s) >= r.n_tokens(r.n_steps) * 260 / 300)
    assert rates[floor] == pytest.approx(1e-4) and rates[floor - 5] > 1e-4


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.1), ("linear", 0.0), ("constant", 1.0), ("wsd", 0.0)])
def test_every_schedule_ends_where_it_says(schedule: str, last: float) -> None:
    r = scaled(n_tokens=2_000_000, n_ctx=128, batch_tokens=4096, learning_rate=1.0, schedule=schedule)  # type: ignore[arg-type]
    rates = [r.rate(s) for s in range(r.n_steps)]
    assert rates[-1] == pytest.approx(last, abs=0.011) and rates[-1] >= last and rates[0] > 0
    if schedule in ("linear", "wsd"):  # the last step is the last of the stairs, and not the floor under it
        assert rates[-1] > 0 and rates[-1] == pytest.approx(rates[-2] - rates[-1])
    if schedule == "wsd":
        assert all(r.rate(s) == 1.0 for s in range(100, int(r.n_steps * 0.79)))


@pytest.mark.parametrize("n_steps", [1, 10, 100, 1000])
@pytest.mark.parametrize("growth", [None, (0, 0), (3, 700_000)])
def test_steps_are_that_many_however_the_batch_grows(n_steps: int, growth: tuple[int, int] | None) -> None:
    r = scaled(
        n_tokens=n_steps * 500_000, n_ctx=2048, batch_tokens=500_000, learning_rate=1.0, n_steps=n_steps, growth=growth
    )
    assert r.n_steps == n_steps and (r.ramp_tokens > 0) == (growth != (0, 0))
    if n_steps > 100:
        assert r.rate(n_steps - 1) == pytest.approx(0.1) and r.rate(n_steps * 3 // 4) > 0.11
    if r.ramp_tokens:
        longer = scaled(
            n_tokens=n_steps * 600_000, n_ctx=2048, batch_tokens=500_000, learning_rate=1.0, n_steps=n_steps + 7,
            growth=(r.ramp_from, r.ramp_tokens),
        )  # fmt: skip
        assert [longer.first(s) for s in range(n_steps)] == [r.first(s) for s in range(n_steps)]


def test_of_a_run_that_goes_on_nothing_changes_but_what_is_asked_for() -> None:
    """Another count of sequences at once moved the learning rate of a run whose batch grows."""
    was, out = scaled(n_tokens=20_000_000, n_ctx=512, batch_tokens=65_536, learning_rate=1e-3), Path("out")
    assert was.ramp_tokens
    asked = Asked(micro_batch=4, learning_rate=2e-3, precision="bfloat16")
    assert changed(was, asked, out) == dataclasses.replace(was, micro_batch=4, learning_rate=2e-3, precision="bfloat16")
    assert changed(was, Asked(steps=was.n_steps, schedule="cosine"), out) == was
    assert changed(was, Asked(steps=was.n_steps + 9), out).decay_tokens > was.decay_tokens


def test_the_laptop_sizes_and_table_2_1_can_all_be_planned() -> None:
    for size in SIZES.values():
        recipe = scaled(
            n_tokens=50_000_000,
            n_ctx=size.n_ctx,
            batch_tokens=size.batch_tokens,
            learning_rate=size.learning_rate,
        )
        assert recipe.n_tokens(recipe.n_steps) >= 50_000_000
        assert 0 < recipe.rate(0) <= size.learning_rate


@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}])
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Recipe(**{"n_steps": 1, "n_ctx": 8, "batch": 1, "learning_rate": 1e-3, **wrong})  # type: ignore[arg-type]
