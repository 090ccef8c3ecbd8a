"""Intervals and verdicts against numbers worked out by hand, and the laws that they keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypimg.tables.statistics import over_episodes, over_seeds, paired, prediction_half_width, verdict

values = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12)


def test_t_interval_of_a_hand_made_list():
    # 1 … 5: mean 3, s = √2.5, t(4, 97.5 %) = 2.776445, half width = t s / √5
    estimate = over_seeds([1, 2, 3, 4, 5])
    assert estimate.mean == 3
    assert estimate.std == pytest.approx(math.sqrt(2.5))
    assert estimate.half_width == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)
    assert estimate.n == 5


def test_prediction_interval_of_a_hand_made_list():
    assert prediction_half_width([1, 2, 3, 4, 5]) == pytest.approx(2.776445 * math.sqrt(2.5) * math.sqrt(1.2), rel=1e-6)


def test_the_mean_of_several_more_values_is_expected_in_a_narrower_interval():
    width = prediction_half_width([1, 2, 3, 4, 5], of=4)
    assert width == pytest.approx(2.776445 * math.sqrt(2.5) * math.sqrt(0.25 + 0.2), rel=1e-6)
    assert verdict([1, 2, 3, 4, 5], 3 + width * 1.001).word == "inside"
    assert verdict([1, 2, 3, 4, 5], 3 + width * 1.001, of=4).word == "outside"


def test_interval_of_two_values_uses_the_wide_t_of_one_degree_of_freedom():
    assert over_seeds([0.0, 1.0]).half_width == pytest.approx(12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-5)


def test_one_value_has_no_interval():
    estimate = over_seeds([0.5])
    assert (estimate.mean, estimate.half_width, estimate.std) == (0.5, None, None)
    assert prediction_half_width([0.5]) is None


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_nothing_and_what_is_not_finite_have_no_statistics(bad):
    with pytest.raises(ValueError, match="finite"):
        over_seeds(bad)


def test_verdict_is_inside_up_to_the_bound_and_outside_beyond():
    width = prediction_half_width([1, 2, 3, 4, 5])
    assert verdict([1, 2, 3, 4, 5], 3 + width).word == "inside"
    assert verdict([1, 2, 3, 4, 5], 3 + width * 1.001).word == "outside"
    assert verdict([1, 2, 3, 4, 5], 3 - width * 1.001).word == "outside"


def test_verdict_below_three_seeds_is_undecided_but_shows_the_difference():
    assert verdict([0.9], 0.8).word == "undecided"
    two = verdict([0.9, 0.8], 0.1)
    assert (two.word, two.difference) == ("undecided", pytest.approx(0.75))
    assert two.half_width is not None


def test_verdict_tells_the_difference_in_units_of_the_spread_over_seeds():
    judged = verdict([1, 2, 3, 4, 5], 1.0)
    assert judged.difference == 2.0
    assert judged.spreads == pytest.approx(2 / math.sqrt(2.5))


def test_values_that_are_all_equal_decide_only_for_themselves():
    assert verdict([0.1, 0.1, 0.1], 0.1).word == "inside"
    other = verdict([0.1, 0.1, 0.1], 0.2)
    assert (other.word, other.spreads) == ("outside", None)


def test_a_prediction_interval_holds_the_next_value_in_95_of_100_samples():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 6))
    inside = [verdict(list(row[:5]), row[5]).word == "inside" for row in draws]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws


def test_paired_difference_of_a_hand_made_list():
    # differences 1, 2, 3: mean 2, s = 1, t(2, 97.5 %) = 4.302653; t = 2√3 gives p = 0.074180
    result = paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (result.mean, result.n, result.positive) == (2.0, 3, 3)
    assert result.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert result.p == pytest.approx(0.0741799, rel=1e-5)
    assert not result.decided


def test_paired_uses_the_seeds_of_both_arms_alone():
    result = paired({0: 1.0, 1: 2.0, 5: 100.0}, {1: 1.0, 0: 0.5, 7: -100.0})
    assert (result.mean, result.n) == (0.75, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_paired_sees_a_small_difference_under_a_large_spread_of_seeds():
    a = {0: 10.1, 1: 50.2, 2: 90.1, 3: 30.2}
    b = {0: 10.0, 1: 50.0, 2: 90.0, 3: 30.0}
    assert paired(a, b).decided
    assert over_seeds(list(a.values())).half_width > 10


def test_equal_arms_have_p_one_and_a_constant_difference_p_zero():
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0.0


def test_interval_over_episodes_is_that_of_the_released_code():
    accuracies = [0.2, 0.4, 0.6, 0.8]
    estimate = over_episodes(accuracies)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.half_width == pytest.approx(1.96 * np.std(accuracies) / 2)
    assert over_episodes([0.5]).half_width is None


@settings(max_examples=50)
@given(values, st.floats(-10, 10), st.floats(0.1, 10))
def test_intervals_follow_a_change_of_unit(sample, shift, scale):
    before, after = over_seeds(sample), over_seeds([scale * x + shift for x in sample])
    assert after.mean == pytest.approx(scale * before.mean + shift, abs=1e-9)
    assert after.half_width == pytest.approx(scale * before.half_width, abs=1e-9)


@settings(max_examples=50)
@given(values)
def test_intervals_equal_scipys(sample):
    from scipy import stats

    estimate = over_seeds(sample)
    if estimate.std == 0:
        assert estimate.half_width == 0
    else:
        low, high = stats.t.interval(0.95, len(sample) - 1, loc=np.mean(sample), scale=stats.sem(sample))
        assert estimate.mean - estimate.half_width == pytest.approx(low, abs=1e-9)
        assert estimate.mean + estimate.half_width == pytest.approx(high, abs=1e-9)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=8))
def test_swapping_the_arms_turns_the_sign_and_nothing_else(pairs):
    a, b = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    one, other = paired(a, b), paired(b, a)
    assert one.mean == -other.mean
    assert one.half_width == other.half_width
    assert one.p == other.p
