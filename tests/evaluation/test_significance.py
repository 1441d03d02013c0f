import itertools

import numpy as np
import pytest
from scipy import stats

from align3gr.errors import InputError
from align3gr.evaluation.significance import paired_test, seeds_test


def test_the_exact_test_equals_all_patterns_of_signs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(4, size=10) / 4, rng.integers(4, size=10) / 4.5
    differences = a - b
    signs = np.array(list(itertools.product((-1, 1), repeat=10)))
    expected = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    test = paired_test(a, b)
    assert 0.01 < expected < 1
    assert test.exact and test.p_value == pytest.approx(expected) and test.users == 10


def test_recall_is_tested_by_mcnemar_at_any_size():
    # 60 users only a hits, 40 only b, 9,900 agree: the two-sided binomial test of 60 in 100.
    a, b = np.zeros(10_000), np.zeros(10_000)
    a[:60], b[60:100] = 1, 1
    test = paired_test(a, b)
    assert test.exact and test.different == 100
    assert test.p_value == pytest.approx(stats.binomtest(60, 100).pvalue)
    assert (test.mean_a, test.mean_b, test.difference) == pytest.approx((0.006, 0.004, 0.002))


def test_sampled_patterns_agree_with_scipy():
    rng = np.random.default_rng(1)
    a = rng.random(60)
    b = a + rng.normal(0.05, 0.25, size=60)
    theirs = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
    )
    test = paired_test(a, b, seed=3)
    assert not test.exact and 0.02 < test.p_value < 0.9
    assert test.p_value == pytest.approx(theirs.pvalue, abs=0.015)  # four standard errors of the two samples
    assert test == paired_test(a, b, seed=3) != paired_test(a, b, seed=4)


def test_the_interval_agrees_with_scipy_and_repeats():
    rng = np.random.default_rng(4)
    a, b = rng.integers(3, size=300) / 2, rng.integers(3, size=300) / 2
    theirs = stats.bootstrap((a - b,), np.mean, method="percentile", rng=np.random.default_rng(5)).confidence_interval
    test = paired_test(a, b, seed=6)
    assert (test.low, test.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert test.low < test.difference < test.high
    assert test == paired_test(a, b, seed=6)
    narrow = paired_test(a, b, seed=6, confidence=0.5)
    assert test.low < narrow.low < narrow.high < test.high


def test_false_alarms_come_as_often_as_promised():
    rng = np.random.default_rng(8)
    values = [paired_test(rng.random(12), rng.random(12), resamples=1).p_value for _ in range(300)]
    # Exact at 12 users. 300 draws at 5 %: 15 expected, standard deviation 3.8.
    assert 4 <= sum(p <= 0.05 for p in values) <= 27


def test_equal_systems_differ_by_nothing():
    test = paired_test(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert (test.p_value, test.low, test.high, test.different, test.exact) == (1, 0, 0, 0, True)


def test_seeds_agree_with_scipy():
    a, b = np.array([0.41, 0.43, 0.40, 0.44]), np.array([0.39, 0.42, 0.40, 0.41])
    test, theirs = seeds_test(a, b), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert test.t_p_value == pytest.approx(theirs.pvalue)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high))
    assert (test.mean_a, test.std_a, test.std_b) == pytest.approx((0.42, np.std(a, ddof=1), np.std(b, ddof=1)))
    # Differences 2 1 0 3: as far from 0 are all plus or all minus, each twice, since 0 has no sign: 4 of 16.
    assert test.permutation_p_value == pytest.approx(4 / 16) and test.seeds == 4


def test_what_seeds_cannot_say_is_no_number():
    one = seeds_test(np.array([0.5]), np.array([0.4]))
    assert np.isnan([one.std_a, one.low, one.high, one.t_p_value]).all() and one.permutation_p_value == 1
    same = seeds_test(np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.6]))
    assert np.isnan(same.t_p_value) and same.low == pytest.approx(0.1) == same.high


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match=r"a and b: got shapes \(2,\) and \(3,\)"):
        paired_test(np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match="at least one"):
        paired_test(np.zeros(0), np.zeros(0))
    with pytest.raises(InputError, match="not a finite number"):
        paired_test(np.array([np.nan]), np.zeros(1))
    with pytest.raises(InputError, match="confidence: got 95"):
        paired_test(np.zeros(2), np.zeros(2), confidence=95)
    with pytest.raises(InputError, match="resamples: got 0"):
        paired_test(np.zeros(2), np.zeros(2), resamples=0)
