from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.envs.distributions import CUT, KINDS, Distribution, Sampler, parse
from intune.pipelines.errors import ConfigError

U = np.array([0.0, 0.001, 0.25, 0.5, 0.8, 0.999])


def quantiles(value: Any) -> np.ndarray:
    return np.asarray(Sampler([parse(value)]).at(U[None].copy())[0])


def cut_normal(u: float) -> float:
    normal = NormalDist()
    least = normal.cdf(-CUT)
    return normal.inv_cdf(least + u * (1.0 - 2.0 * least))


def test_uniform_is_a_straight_line() -> None:
    np.testing.assert_allclose(quantiles({"uniform": [2, 6]}), 2 + 4 * U)


def test_loguniform_is_a_straight_line_of_the_logarithm() -> None:
    np.testing.assert_allclose(quantiles({"loguniform": [1e-6, 1e-2]}), 1e-6 * 1e4**U)


def test_integers_take_both_ends_equally_often() -> None:
    drawn = Sampler([parse({"integers": [3, 8]})]).sample(np.random.default_rng(0), 60_000)[0]
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7, 8]
    # Standard deviation of each count: sqrt(60,000 x 1/6 x 5/6) = 91.
    assert np.abs(counts - 10_000).max() < 5 * 91


def test_normal_matches_the_standard_librarys_inverse() -> None:
    expected = [10 + 2 * cut_normal(u) for u in U]
    np.testing.assert_allclose(quantiles({"normal": [10, 2]}), expected, atol=1e-5)


def test_log_normal_is_stated_by_its_median() -> None:
    expected = [5 * math.exp(0.4 * cut_normal(u)) for u in U]
    np.testing.assert_allclose(quantiles({"log_normal": [5, 0.4]}), expected, rtol=1e-5)


def test_choice_follows_its_weights() -> None:
    value = {"choice": [7, 9, 11], "weights": [1, 0, 3]}
    drawn = Sampler([parse(value)]).sample(np.random.default_rng(1), 40_000)[0]
    assert set(drawn) == {7.0, 11.0}
    assert abs((drawn == 7).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 40_000)


def test_a_choice_without_weights_is_even_and_may_be_infinite() -> None:
    drawn = quantiles({"choice": [1, math.inf]})
    assert drawn.tolist() == [1, 1, 1, math.inf, math.inf, math.inf]


def test_one_distribution_does_not_shift_another() -> None:
    first = parse({"uniform": [0, 1]})
    draws = [
        Sampler([first, parse(other), first]).sample(np.random.default_rng(3), 50)
        for other in ({"normal": [5, 1]}, {"choice": [1, 2]}, {"loguniform": [1, 9]}, 4)
    ]
    for other in draws[1:]:
        np.testing.assert_array_equal(draws[0][[0, 2]], other[[0, 2]])


positive = st.floats(1e-6, 1e6)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    kind = draw(st.sampled_from(["constant", *KINDS]))
    first, second = sorted([draw(positive), draw(positive)])
    if kind == "constant":
        return Distribution.constant(first)
    if kind == "integers":
        first, second = float(math.floor(first)), float(math.floor(second))
    if kind == "log_normal":
        second = draw(st.floats(0, 2))
    if kind == "choice":
        numbers = tuple(draw(st.lists(positive, min_size=1, max_size=5)))
        weights = tuple(draw(st.lists(positive, min_size=len(numbers), max_size=len(numbers))))
        return Distribution(kind="choice", numbers=numbers, weights=draw(st.sampled_from([(), weights])))
    return Distribution(kind=kind, numbers=(first, second))  # type: ignore[arg-type]


@given(distributions(), st.integers(0, 100))
def test_draws_stay_between_low_and_high(one: Distribution, seed: int) -> None:
    drawn = Sampler([one]).sample(np.random.default_rng(seed), 100)
    slack = 1e-9 * max(abs(one.low), abs(one.high))
    assert drawn.min() >= one.low - slack
    assert drawn.max() <= one.high + slack


@given(distributions())
def test_plain_is_read_back(one: Distribution) -> None:
    assert parse(one.plain()) == one


@given(distributions(), st.floats(0.1, 10))
def test_times_scales_every_quantile(one: Distribution, factor: float) -> None:
    if one.kind == "integers":
        factor = 3.0
        one = Distribution(kind="uniform", numbers=one.numbers)
    drawn, scaled = (Sampler([each]).at(U[None].copy()) for each in (one, one.times(factor)))
    np.testing.assert_allclose(scaled, drawn * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("fast", "'fast' must be a number or a distribution"),
        (True, "True must be a number or a distribution"),
        ([1, 2], "must be a number or a distribution"),
        ({}, "must have one of the keys uniform"),
        ({"gaussian": [1, 2]}, "must have one of the keys uniform"),
        ({"uniform": [1, 2], "normal": [1, 2]}, "must have one of the keys"),
        ({"uniform": 3}, "`uniform`=3 must be a list of numbers"),
        ({"uniform": [1, "2"]}, "`uniform`=[1, '2'] must be a list of numbers"),
        ({"uniform": [1]}, "needs 2 numbers: [low, high]"),
        ({"uniform": [2, 1]}, "`uniform`=[2.0, 1.0] is reversed"),
        ({"uniform": [1, math.inf]}, "must be finite"),
        ({"uniform": [1, 2], "weights": [1, 1]}, "which only `choice` takes"),
        ({"loguniform": [0, 1]}, "must begin with a number above 0"),
        ({"log_normal": [-1, 1]}, "must begin with a number above 0"),
        ({"normal": [1, -1]}, "standard deviation of 0 or more"),
        ({"log_normal": [1, 101]}, "of a logarithm up to 100"),
        (10**400, "must be a number or a distribution"),
        ({"integers": [1, 2.5]}, "must be whole numbers"),
        ({"choice": []}, "must have one number at least"),
        ({"choice": [1, 2], "weights": [1]}, "has 2 numbers, but 1 `weights`"),
        ({"choice": [1, 2], "weights": [1, -1]}, "must be 0 or more each"),
        ({"choice": [1, 2], "weights": [0, 0]}, "must not all be 0"),
        ({"choice": [1, math.nan]}, "has NaN in it"),
        (math.nan, "NaN is no value; give a number"),
    ],
)
def test_errors_name_the_value_and_the_remedy(value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(value)
    assert says in str(error.value)


def test_integers_hold_only_whole_numbers_when_scaled() -> None:
    with pytest.raises(ConfigError, match="must be whole numbers"):
        parse({"integers": [1, 3]}).times(0.5)


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (3, True), (3.5, False), (float("inf"), False), ({"integers": [1, 4]}, True), ({"uniform": [1, 4]}, False),
        ({"choice": [1, 4.0]}, True), ({"choice": [1, 4.5]}, False),
    ],
)  # fmt: skip
def test_some_give_whole_numbers_only(value: Any, whole: bool) -> None:
    assert parse(value).whole is whole


@pytest.mark.parametrize(
    ("one", "other", "low", "high", "whole"),
    [
        (2, {"uniform": [1, 3]}, 2, 6, False),
        ({"uniform": [0, 2]}, {"uniform": [-1, 0.5]}, -2, 1, False),
        (2, {"integers": [1, 3]}, 2, 6, True),
        (0.5, {"choice": [2, 4]}, 1, 2, True),
        (0.5, {"choice": [2, 3]}, 1, 1.5, False),
        (0.5, {"integers": [2, 4]}, 1, 2, False),
        (2, float("inf"), float("inf"), float("inf"), False),
    ],
)
def test_what_a_product_may_be(one: Any, other: Any, low: float, high: float, whole: bool) -> None:
    assert parse(one).product(parse(other)) == (low, high, whole)


def test_zero_times_infinity_is_no_number() -> None:
    low, high, whole = parse({"uniform": [0, 1]}).product(parse(float("inf")))
    assert math.isnan(low)
    assert math.isnan(high)
    assert not whole
