import numpy as np
import pytest

from align3gr.baselines.generative_codes import codes_per_level, dual_source_codes, hierarchical_codes
from align3gr.errors import InputError


def around(centres, items, spread, seed=0):
    """Items around centres, and which centre each is of."""
    rng = np.random.default_rng(seed)
    of = np.arange(items) % len(centres)
    return np.asarray(centres, dtype=float)[of] + rng.normal(0, spread, (items, len(centres[0]))), of


def same_partition(codes, groups):
    pairs = set(zip(codes.tolist(), groups.tolist(), strict=True))
    return len(pairs) == len(set(codes.tolist())) == len(set(groups.tolist()))


def test_a_level_has_room_for_the_catalogue_in_two():
    assert [codes_per_level(items) for items in (1, 4, 5, 80, 1349, 20033, 10**6)] == [2, 2, 4, 16, 64, 256, 256]


def test_clusters_of_clusters():
    centres = np.array([[0, 0], [1, 0], [100, 0], [101, 0]])
    vectors, of = around(centres, 40, 0.01)
    codes, distances = hierarchical_codes(vectors, 2, seed=0)
    assert same_partition(codes[:, 0], of // 2)  # far apart: first level
    assert same_partition(codes[:, 0] * 2 + codes[:, 1], of)  # near: second level
    # Of the two centres of its cluster an item's own is the near one, the other is 1 away.
    own = np.take_along_axis(distances, codes[:, 1:], 1)[:, 0]
    other = np.take_along_axis(distances, 1 - codes[:, 1:], 1)[:, 0]
    assert own.max() < 0.01 and other == pytest.approx(np.ones(40), abs=0.1)


def test_codes_say_first_what_an_item_is_and_then_who_takes_it():
    texts, kind = around(np.eye(4) * 10, 64, 0.01)
    behaviour, audience = around(np.eye(8)[:, ::-1] * 10, 64, 0.01, seed=1)
    codes = dual_source_codes(texts, behaviour[np.random.default_rng(2).permutation(64)], seed=0)
    assert codes.shape == (64, 4) and len(np.unique(codes, axis=0)) == 64
    assert codes.min() == 0 and codes.max() < codes_per_level(64)
    # Eight codes for four kinds: no code stands for two.
    assert all(len(set(kind[codes[:, 0] == code])) == 1 for code in np.unique(codes[:, 0]))
    changed = dual_source_codes(texts, behaviour, seed=0)
    assert np.array_equal(changed[:, :2], codes[:, :2])  # texts alone decide on these
    assert all(len(set(audience[changed[:, 2] == code])) == 1 for code in np.unique(changed[:, 2]))


def test_items_that_are_all_the_same_still_differ_in_the_last_code():
    # Nine items in three kinds of text; nothing is known about who takes them.
    texts = np.repeat(np.eye(3), 3, axis=0)
    codes = dual_source_codes(texts, np.zeros((9, 2)), seed=0)
    assert len(np.unique(codes, axis=0)) == 9
    assert len(np.unique(codes[:, :3], axis=0)) == 3
    with pytest.raises(InputError, match="9 items share three codes and a level has 4"):
        dual_source_codes(np.ones((9, 2)), np.ones((9, 2)), seed=0)
