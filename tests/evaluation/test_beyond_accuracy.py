import itertools

import numpy as np
import pytest

from align3gr.errors import InputError
from align3gr.evaluation.beyond_accuracy import (
    catalogue_coverage,
    exposure,
    exposure_gini,
    prefix_diversity,
    recommendation_popularity,
    shows_disliked,
    vector_diversity,
)

RANKINGS = np.array([[0, 1, 2], [0, 3, -1], [0, -1, -1], [-1, -1, -1]])


def test_exposure_coverage_and_gini_by_hand():
    assert exposure(RANKINGS, 5).tolist() == [3, 1, 1, 1, 0]
    assert catalogue_coverage(RANKINGS, 5) == pytest.approx(4 / 5)
    # Ascending 0 1 1 1 3 with the weights -4 -2 0 2 4: (-2 + 0 + 2 + 12) / (5 * 6).
    assert exposure_gini(RANKINGS, 5) == pytest.approx(12 / 30)


def test_gini_is_half_the_relative_mean_difference_of_all_pairs():
    rankings = np.random.default_rng(0).integers(30, size=(40, 5))
    shown = np.bincount(rankings.ravel(), minlength=37)
    expected = np.abs(shown[:, None] - shown).mean() / (2 * shown.mean())
    assert exposure_gini(rankings, 37) == pytest.approx(expected)


def test_nothing_shown_has_no_gini():
    assert np.isnan(exposure_gini(np.full((2, 3), -1), 5)) and catalogue_coverage(np.full((2, 3), -1), 5) == 0


def test_an_item_outside_the_catalogue_is_refused():
    with pytest.raises(InputError, match="rankings: got item 3, expected indices below num_items=3"):
        catalogue_coverage(RANKINGS, 3)


def test_popularity_by_hand():
    counts = np.array([8, 1, 3, 2, 1000])
    assert recommendation_popularity(RANKINGS, counts) == pytest.approx([4, 5, 8, np.nan], nan_ok=True)


CODES = np.array([[0, 5, 1], [0, 5, 2], [0, 4, 1], [3, 5, 1]])


def test_prefix_diversity_by_hand():
    # Pairs of the first list: 0-1 share two levels, 0-2 and 1-2 one; a code of equal number behind another
    # first level (items 0 and 3) shares nothing.
    expected = [1 - (2 + 1 + 1) / 9, 1, np.nan, np.nan]
    assert prefix_diversity(RANKINGS, CODES) == pytest.approx(expected, nan_ok=True)


def test_diversities_equal_the_mean_over_pairs():
    rng = np.random.default_rng(1)
    codes, vectors = rng.integers(3, size=(50, 4)), rng.normal(size=(50, 6))
    vectors[7] = 0
    rankings = np.stack([rng.permutation(50)[:9] for _ in range(30)])
    rankings[3, 5:] = -1
    assert (rankings == 7).any()

    def cosine(a, b):
        return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)

    for row, by_codes, by_vectors in zip(
        rankings, prefix_diversity(rankings, codes), vector_diversity(rankings, vectors), strict=True
    ):
        pairs = list(itertools.combinations([item for item in row if item >= 0], 2))
        shared = [len(list(itertools.takewhile(bool, codes[a] == codes[b]))) for a, b in pairs]
        assert by_codes == pytest.approx(1 - np.mean(shared) / 4)
        assert by_vectors == pytest.approx(1 - np.mean([cosine(vectors[a], vectors[b]) for a, b in pairs]))


def test_disliked_items_count_for_their_own_user_only():
    users, items = np.array([0, 1, 1, 2]), np.array([3, 9, 3, 1])
    # The first user dislikes 3, which the second is shown, who dislikes it too; the third is not shown 1.
    assert shows_disliked(RANKINGS, users, items) == pytest.approx([0, 1, 0, np.nan], nan_ok=True)
