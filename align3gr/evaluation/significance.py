"""Whether two systems differ by more than chance: over the users of one run, and over the seeds of several.

Differences of per-user metrics take few distinct values (Recall@k takes three), so all is computed on the distinct
values with their numbers of users: sums of random signs are sums of binomial counts, a resample of the users is a
multinomial count. That is the same distribution as going through the users, at a cost that grows with the number of
distinct differences instead.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from align3gr.errors import InputError

# Sign patterns, users with equal differences taken together, up to which the randomisation test enumerates them all.
EXACT_PATTERNS = 2**17
RESAMPLES = 10_000
# Cells of the matrices of counts held at a time: 64 MB.
_CELLS = 2**23


@dataclass(frozen=True)
class PairedTest:
    """Two systems on the same users.

    Attributes:
        mean_a: mean of the first system.
        mean_b: mean of the second.
        difference: mean of a - b.
        low: lower end of the confidence interval of the difference, paired percentile bootstrap over users.
        high: upper end.
        confidence: what the interval covers, such as 0.95.
        p_value: of the two-sided paired randomisation test: the probability of a mean difference at least this far
            from 0 if the labels a and b were exchanged at random user by user.
        exact: whether the p-value comes from all patterns rather than from a sample of them.
        users: pairs.
        different: pairs whose values differ.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    exact: bool
    users: int
    different: int


@dataclass(frozen=True)
class SeedTest:
    """Two systems trained with the same seeds.

    Attributes:
        mean_a: mean over the seeds.
        std_a: standard deviation over the seeds (with n - 1), NaN for one seed.
        mean_b: the same of the second system.
        std_b: the same of the second system.
        difference: mean of a - b.
        low: lower end of the t interval of the difference, NaN for one seed.
        high: upper end.
        confidence: what the interval covers.
        t_p_value: two-sided paired t-test; NaN where it is not defined: one seed, or the same difference at each.
        permutation_p_value: two-sided sign-flip test of the paired differences. With n seeds it cannot go below
            2 / 2^n: three seeds never give less than 0.25.
        seeds: pairs.
    """

    mean_a: float
    std_a: float
    mean_b: float
    std_b: float
    difference: float
    low: float
    high: float
    confidence: float
    t_p_value: float
    permutation_p_value: float
    seeds: int


def paired_test(
    a: np.ndarray, b: np.ndarray, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> PairedTest:
    """Paired randomisation test (Smucker et al. 2007) and bootstrap interval of the mean difference.

    The test is exact where the patterns of signs can be enumerated, which for Recall they always can at up to 100,000
    users that differ (it is McNemar's exact test then); else `resamples` patterns are drawn and p is
    (1 + patterns as extreme) / (1 + resamples).

    Args:
        a: (users,) values of one system.
        b: (users,) values of the other for the same users in the same order.
        seed: of the resampling.
        resamples: patterns and bootstrap samples that are drawn.
        confidence: of the interval.

    Raises:
        InputError: shapes differ, there are no users, a value is no finite number, or an option is out of range.

    >>> test = paired_test(np.array([1.0, 1, 1, 0, 1]), np.array([0.0, 0, 0, 0, 1]))
    >>> test.p_value, test.exact, round(test.difference, 3), test.different
    (0.25, True, 0.6, 3)
    """
    a, b = _pairs(a, b)
    if resamples < 1:
        raise InputError(f"resamples: got {resamples}, expected at least 1")
    _check_confidence(confidence)
    differences = a - b
    rng = np.random.default_rng(seed)
    p_value, exact = _randomisation(differences, rng, resamples)
    low, high = _bootstrap(differences, rng, resamples, confidence)
    return PairedTest(
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        confidence=confidence,
        p_value=p_value,
        exact=exact,
        users=len(a),
        different=int((differences != 0).sum()),
    )


def seeds_test(a: np.ndarray, b: np.ndarray, seed: int = 0, confidence: float = 0.95) -> SeedTest:
    """Mean and spread of two systems over seeds, and paired tests of their difference.

    Args:
        a: (seeds,) one metric of the runs of one system.
        b: (seeds,) the same of the other, the same seeds in the same order.
        seed: of the resampling, which only more than 17 seeds need.
        confidence: of the interval.

    Raises:
        InputError: shapes differ, there are no seeds, a value is no finite number, or confidence is out of range.

    >>> test = seeds_test(np.array([0.5, 0.75, 1.0]), np.array([0.25, 0.25, 0.25]))
    >>> test.mean_a, test.std_a, round(test.permutation_p_value, 9), round(test.t_p_value, 4)
    (0.75, 0.25, 0.25, 0.0742)
    """
    a, b = _pairs(a, b)
    _check_confidence(confidence)
    differences = _merged(a - b)
    several = len(a) > 1
    half, t_p_value = float("nan"), float("nan")
    if several:
        error = differences.std(ddof=1) / np.sqrt(len(a))
        half = float(stats.t.ppf((1 + confidence) / 2, len(a) - 1) * error)
        if differences.min() < differences.max():  # the error of equal values is rounding, not 0
            t_p_value = float(2 * stats.t.sf(abs(differences.mean() / error), len(a) - 1))
    return SeedTest(
        mean_a=float(a.mean()),
        std_a=float(a.std(ddof=1)) if several else float("nan"),
        mean_b=float(b.mean()),
        std_b=float(b.std(ddof=1)) if several else float("nan"),
        difference=float(differences.mean()),
        low=float(differences.mean()) - half,
        high=float(differences.mean()) + half,
        confidence=confidence,
        t_p_value=t_p_value,
        permutation_p_value=_randomisation(differences, np.random.default_rng(seed), RESAMPLES)[0],
        seeds=len(a),
    )


def _randomisation(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[float, bool]:
    """Two-sided p-value of the sum of differences under random signs, and whether it is exact."""
    sizes, counts = np.unique(np.abs(_merged(differences)), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    # What rounding may take from a sum that equals the observed one.
    least = abs(differences.sum()) - 1e-9 * (sizes @ counts)
    if np.log2(counts + 1.0).sum() <= np.log2(EXACT_PATTERNS):
        sums, weights = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, counts, strict=True):
            positive = np.arange(count + 1)
            sums = (sums[:, None] + size * (2 * positive - count)).ravel()
            weights = (weights[:, None] * stats.binom.pmf(positive, count, 0.5)).ravel()
        return min(1.0, float(weights[np.abs(sums) >= least].sum())), True
    extreme, step = 0, max(1, _CELLS // len(sizes))
    for start in range(0, resamples, step):
        positive = rng.binomial(counts, 0.5, size=(min(step, resamples - start), len(counts)))
        extreme += int((np.abs((2 * positive - counts) @ sizes) >= least).sum())
    return (1 + extreme) / (1 + resamples), False


def _bootstrap(
    differences: np.ndarray, rng: np.random.Generator, resamples: int, confidence: float
) -> tuple[float, float]:
    """Ends of the percentile interval of the mean difference over resampled users."""
    values, counts = np.unique(_merged(differences), return_counts=True)
    means, step = [], max(1, _CELLS // len(values))
    for start in range(0, resamples, step):
        drawn = rng.multinomial(len(differences), counts / len(differences), size=min(step, resamples - start))
        means.append(drawn @ values / len(differences))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _merged(differences: np.ndarray) -> np.ndarray:
    """Values that only rounding tells apart made equal: 0.5 - 0.3 and 0.4 - 0.2 are one difference."""
    return np.round(differences, 12)


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise InputError(
            f"a and b: got shapes {a.shape} and {b.shape}, expected one value a pair in both, at least one"
        )
    if not (np.isfinite(a) & np.isfinite(b)).all():
        raise InputError("a and b: a value is not a finite number; leave out pairs without a value")
    return a, b


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: got {confidence}, expected above 0 and below 1, such as 0.95")
