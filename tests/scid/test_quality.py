import json
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from align3gr.errors import InputError
from align3gr.scid import measure_quality, read_code_table
from tests.conftest import data_folder

# Five items: 0 and 1 share two levels, 0, 1 and 2 share one, 3 and 4 share all.
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 2], [1, 0, 2]])


def test_usage_collisions_and_load_by_hand():
    quality = measure_quality(CODES, codebook_sizes=[4, 2, 3])
    first = quality.levels[0]
    assert (first.codebook_size, first.used, first.utilisation) == (4, 2, 0.5)
    entropy = -(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4))
    assert first.entropy == pytest.approx(entropy) and first.perplexity == pytest.approx(2**entropy)
    assert (quality.collisions.items, quality.collisions.groups, quality.collisions.largest) == (2, 1, 2)
    assert quality.load == {"min": 2, "median": 2.5, "max": 3}
    assert quality.prefix_lift is None and quality.lifts == []


def test_prefix_neighbours_by_hand():
    none, one, two, three = measure_quality(CODES).neighbours
    assert [n.levels for n in (none, one, two, three)] == [0, 1, 2, 3]
    assert (none.mean_at_least, none.mean_exactly, none.share_exactly) == (4, (2 * 3 + 3 * 2) / 5, 1)
    assert one.mean_at_least == pytest.approx((3 * 2 + 2 * 1) / 5)
    assert one.mean_exactly == pytest.approx((1 + 1 + 2 + 0 + 0) / 5) and one.share_exactly == pytest.approx(3 / 5)
    assert two.mean_at_least == pytest.approx(4 / 5) and two.share_at_least == pytest.approx(4 / 5)
    assert two.mean_exactly == pytest.approx(2 / 5) and two.share_exactly == pytest.approx(2 / 5)
    assert three.mean_at_least == three.mean_exactly == pytest.approx(2 / 5)


def test_prefix_lift_by_hand():
    # Pairs of the first: 0-1, 0-3, 1-3 (a repeat counts once); of the second: 1-2. Steps: 0-1, 1-3, 3-0 and 1-2.
    quality = measure_quality(CODES, [np.array([0, 1, 3, 0, 0]), np.array([1, 2]), np.array([4])])
    history, consecutive, history_2, _ = quality.lifts
    assert (history.count, history.share) == (4, 2 / 4)
    assert history.random_share == pytest.approx((3 + 1) / 10)
    assert history.lift == quality.prefix_lift == pytest.approx(0.5 / 0.4)
    # Consumed by users: 1, 2, 1, 1, 1. Ordered pairs of distinct items: 36 - 8; in code 0 16 - 6, in code 1 4 - 2.
    assert history.random_share_by_popularity == pytest.approx(12 / 28)
    assert (consecutive.count, consecutive.share) == (4, 2 / 4)
    assert (history_2.levels, history_2.share) == (2, 1 / 4)


def test_counts_equal_a_plain_loop_over_all_pairs():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 4, (60, 3))
    sequences = [generator.integers(0, 60, generator.integers(0, 12)) for _ in range(40)]
    quality = measure_quality(codes, sequences)
    alike = [[codes[i, :p].tolist() == codes[j, :p].tolist() for i, j in combinations(range(60), 2)] for p in range(4)]
    for p in range(4):
        assert quality.neighbours[p].mean_at_least == pytest.approx(2 * sum(alike[p]) / 60)
    taken = Counter(item for sequence in sequences for item in set(sequence.tolist()))
    for lift in quality.lifts:
        if lift.pairs == "history":
            pairs = [pair for sequence in sequences for pair in combinations(sorted(set(sequence.tolist())), 2)]
        else:
            pairs = [pair for sequence in sequences for pair in pairwise(sequence.tolist()) if pair[0] != pair[1]]
        same = [(codes[i, : lift.levels] == codes[j, : lift.levels]).all() for i, j in pairs]
        assert (lift.count, lift.share) == (len(pairs), pytest.approx(np.mean(same)))
        assert lift.random_share == pytest.approx(np.mean(alike[lift.levels]))
        weights = np.array([taken[i] * taken[j] for i, j in combinations(range(60), 2)])
        expected = (weights * alike[lift.levels]).sum() / weights.sum()
        assert lift.random_share_by_popularity == pytest.approx(expected)


def test_without_pairs_there_is_no_lift():
    quality = measure_quality(np.array([[0], [1]]), [np.array([0]), np.array([], dtype=np.int64)])
    assert quality.prefix_lift is None and quality.lifts[0].count == 0
    assert measure_quality(np.array([[0], [1]]), []).lifts[0].count == 0
    # Nobody shares a code, so no random pair does.
    assert measure_quality(np.array([[0], [1]]), [np.array([0, 1])]).prefix_lift is None


def test_the_result_is_plain_json():
    result = json.loads(json.dumps(measure_quality(CODES, [np.array([0, 1])]).to_dict()))
    assert result["prefix_lift"] == pytest.approx(2.5) and result["levels"][2]["used"] == 3


@pytest.mark.parametrize(
    ("codes", "options", "words"),
    [
        (np.zeros((0, 3), dtype=int), {}, "codes: shape"),
        (np.zeros(3, dtype=int), {}, "codes: shape"),
        (np.zeros((2, 2)), {}, "float64"),
        (np.array([[-1]]), {}, "from 0 on"),
        (CODES, {"codebook_sizes": [1, 2, 3]}, r"largest codes are \[1, 1, 2\]"),
        (CODES, {"codebook_sizes": [4, 4]}, "codebook_sizes"),
        (CODES, {"sequences": [np.array([5])]}, "the table has 5 items"),
    ],
)
def test_wrong_tables_are_named(codes, options, words):
    with pytest.raises(InputError, match=words):
        measure_quality(codes, **options)


def test_letter_on_yelp_shares_codes_as_its_authors_say():
    quality = measure_quality(read_code_table(data_folder("yelp") / "Yelp.index.json").codes)
    assert (quality.items, quality.collisions.items) == (20033, 1247)
    assert all(level.utilisation == 1 for level in quality.levels)
