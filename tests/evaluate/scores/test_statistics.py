"""Intervals hold what they promise, and what is called better is seldom chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import stats

from sailplan.evaluate.scores import statistics
from sailplan.evaluate.scores.libraries import bleu_sums
from sailplan.evaluate.scores.statistics import (
    MAX_GROUPS,
    Sums,
    change,
    estimate,
    exponential,
    mean,
    ratio,
)

NUM_STUDIES = 300


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Intervals


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(2, 1, 60), 2.0),
        (lambda rng: rng.random(60) < 0.3, 0.3),
        (lambda rng: rng.beta(0.5, 1.5, 60), 0.25),
    ],
    ids=["normal", "yes and no", "skewed"],
)
def test_interval_of_a_mean_holds_the_truth_nineteen_times_of_twenty(
    draw: Callable[[np.random.Generator], np.ndarray], truth: float
) -> None:
    found = [estimate(mean(list(draw(random(study))))) for study in range(NUM_STUDIES)]

    assert 0.91 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98


def test_interval_of_a_loss_of_tokens_holds_the_truth_nineteen_times_of_twenty() -> None:
    """Longer rows have lower losses, so that the mean of rows would miss it."""
    held = []
    for study in range(NUM_STUDIES):
        tokens = random(study).integers(5, 100, 80)
        losses = tokens * (3 - tokens / 100) + random(study + 1_000).normal(0, 5, 80)
        sizes = np.arange(5, 100)
        truth = (sizes * (3 - sizes / 100)).sum() / sizes.sum()
        one = estimate(ratio(list(losses), list(tokens)))
        held.append(one.low <= truth <= one.high)

    assert 0.91 <= np.mean(held) <= 0.98


def test_interval_is_near_that_of_scipy() -> None:
    values = random(0).gamma(2, size=200)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", random_state=random(1)
    ).confidence_interval

    found = estimate(mean(list(values)))

    assert found.value == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(list(expected), abs=0.03)


def test_interval_of_perplexity_is_the_exponential_of_the_losses() -> None:
    loss = ratio([20.0, 31.5, 8.2, 17.0], [10, 15, 4, 9])
    found, of_loss = estimate(exponential(loss)), estimate(loss)

    assert found.value == pytest.approx(math.exp(of_loss.value))
    assert found.low == pytest.approx(math.exp(of_loss.low))
    assert found.high == pytest.approx(math.exp(of_loss.high))


def test_interval_of_shares_that_are_all_the_same_is_the_binomial_one() -> None:
    exact = stats.binomtest(0, 50).proportion_ci()
    none, all_of_them = (estimate(mean([value] * 50), share=True) for value in (0, 1))

    assert (none.low, none.high) == pytest.approx((exact.low, exact.high))
    assert (all_of_them.low, all_of_them.high) == pytest.approx((1 - exact.high, 1))
    assert estimate(mean([1.0]), share=True).low == pytest.approx(0.025)


@pytest.mark.parametrize("values", [[3.0], [0.1, 0.1], [0.1] * 7, [math.nan, 1], [math.inf, 1]])
def test_interval_without_any_spread_is_the_value(values: list[float]) -> None:
    found = estimate(mean(values))

    assert (found.low, found.high) == pytest.approx((found.value, found.value), nan_ok=True)
    assert not found.low > found.value
    assert not found.high < found.value


def test_interval_of_many_rows_in_groups_is_near_that_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = random(0).integers(5, 100, 3 * MAX_GROUPS + 7)
    loss = ratio(list(tokens * random(1).normal(2, 1, len(tokens))), list(tokens))
    grouped = estimate(loss)
    monkeypatch.setattr(statistics, "MAX_GROUPS", 10_000)
    single = estimate(loss)

    assert grouped.value == single.value
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.1)


# Changes


def values_of(rng: np.random.Generator, num_rows: int) -> tuple[list[float], list[float]]:
    """Two sides that are alike, with rows that are easy for both or for none."""
    easy = rng.normal(0, 1, num_rows)
    first, second = (easy + rng.normal(0, 1, num_rows) for _ in range(2))
    return list(first), list(second)


@pytest.mark.parametrize("num_rows", [9, 40])
def test_sides_that_are_alike_are_told_apart_one_time_of_twenty(num_rows: int) -> None:
    told = 0
    for study in range(NUM_STUDIES):
        base, side = values_of(random(study), num_rows)
        told += change(mean(base), mean(side), "higher").verdict != "unclear"

    assert 0.02 <= told / NUM_STUDIES <= 0.08


def test_losses_that_are_alike_are_told_apart_one_time_of_twenty() -> None:
    told = 0
    for study in range(NUM_STUDIES):
        tokens = random(study + 1_000).integers(5, 100, 30)
        base, side = (ratio(values, list(tokens)) for values in values_of(random(study), 30))
        told += change(base, side, "lower").verdict != "unclear"

    assert 0.02 <= told / NUM_STUDIES <= 0.08


def test_interval_of_a_difference_holds_the_truth_nineteen_times_of_twenty() -> None:
    held = []
    for study in range(NUM_STUDIES):
        base, side = values_of(random(study), 60)
        found = change(mean(base), mean([value + 0.5 for value in side]), "higher").difference
        held.append(found.low <= 0.5 <= found.high)

    assert 0.91 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("num_rows", [5, 9, 12])
def test_p_value_of_few_rows_is_the_exact_one_of_scipy(num_rows: int) -> None:
    base, side = values_of(random(num_rows), num_rows)
    expected = stats.permutation_test(
        (np.array(base), np.array(side)),
        lambda first, second, axis: np.mean(first - second, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )

    assert change(mean(base), mean(side), "higher").p_value == pytest.approx(expected.pvalue)


def test_p_value_of_many_rows_is_near_that_of_a_paired_t_test() -> None:
    base, side = values_of(random(3), 200)
    side = [value + 0.2 for value in side]

    found = change(mean(base), mean(side), "higher").p_value

    assert found == pytest.approx(stats.ttest_rel(base, side).pvalue, abs=0.01)


@pytest.mark.parametrize(
    ("shift", "better", "verdict"),
    [
        (1, "higher", "better"),
        (-1, "higher", "worse"),
        (1, "lower", "worse"),
        (-1, "lower", "better"),
        (1, "neither", "unclear"),
        (0, "higher", "unclear"),
    ],
)
def test_verdict_follows_what_is_better(shift: float, better: str, verdict: str) -> None:
    base = list(random(0).normal(0, 1, 50))
    side = [value + shift for value in base]

    found = change(mean(base), mean(side), better)  # type: ignore[arg-type]

    assert found.verdict == verdict
    assert found.difference.value == pytest.approx(shift)


@pytest.mark.parametrize(
    ("num_rows", "p_value", "verdict"),
    [(1, 1, "unclear"), (2, 1 / 2, "unclear"), (5, 1 / 16, "unclear"), (6, 1 / 32, "better")],
)
def test_change_of_fewer_than_six_rows_is_unclear(
    num_rows: int, p_value: float, verdict: str
) -> None:
    found = change(mean([0.0] * num_rows), mean([1.0] * num_rows), "higher")

    assert (found.p_value, found.verdict) == (p_value, verdict)


def test_p_value_of_a_sure_change_is_not_zero() -> None:
    assert change(mean([0.0] * 300), mean([1.0] * 300), "higher").p_value == 1 / 5_000


def test_change_without_any_difference_is_unclear() -> None:
    found = change(mean([0.1, 0.7, 0.3]), mean([0.1, 0.7, 0.3]), "higher")

    assert (found.difference.value, found.p_value, found.verdict) == (0, 1, "unclear")
    assert found.difference.low == found.difference.high == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_change_of_what_is_no_number_is_unclear(bad: float) -> None:
    base, side = mean([1.0] * 20), mean([2.0] * 19 + [bad])

    assert change(base, side, "lower").verdict == "unclear"
    assert change(side, base, "lower").verdict == "unclear"
    assert change(side, side, "lower").p_value == 1


def test_change_of_a_corpus_score_is_tested_over_rows() -> None:
    references = [f"a lamp of {number} watts on a small table" for number in range(20)]
    poor = [line.replace("lamp", "chair").replace("small", "large") for line in references]

    found = change(bleu_sums(poor, references), bleu_sums(references, references), "higher")

    assert found.verdict == "better"
    assert found.difference.low > 20
    assert found.p_value == 1 / 5_000


def test_numbers_are_the_same_each_time() -> None:
    def numbers() -> tuple[object, ...]:
        base, side = (mean(values) for values in values_of(random(0), 50))
        statistics._draws.cache_clear()
        return estimate(base), change(base, side, "higher")

    assert numbers() == numbers()


def test_sums_of_no_spread_and_no_value_give_no_warning() -> None:
    nothing = Sums(rows=np.zeros((3, 2)), value=ratio([1], [1]).value)

    assert math.isnan(estimate(nothing).value)
    assert change(nothing, nothing, "higher").verdict == "unclear"
