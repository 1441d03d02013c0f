import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align3gr.errors import InputError
from align3gr.scid import resolve_collisions
from align3gr.scid.collisions import ADDED_LEVEL, STRATEGIES

# Level 0 has the code vectors 0 and 100, level 1 has 0, 1 and 5: latents are what is to be hit by their sum.
BOOKS = [np.array([[0.0], [100.0]]), np.array([[0.0], [1.0], [5.0]])]
CODES = np.array([[0, 0], [0, 0], [0, 0], [1, 2]])
LATENTS = np.array([[0.0], [0.4], [0.2], [105.0]])


def test_assignment_takes_the_cheapest_last_codes():
    # Of all orders of the first three, 0 -> 0.0, 0.4 -> 1.0, 0.2 -> 5.0 costs 0.36 + 23.04; sending 0.4 to
    # 5.0 costs 0.64 + 21.16 in all, which is less.
    unique, report = resolve_collisions(CODES, LATENTS, BOOKS)
    assert unique.tolist() == [[0, 0], [0, 2], [0, 1], [1, 2]]
    assert (report.collided, report.moved, report.remaining) == (3, 2, 0)
    assert report.extra_distance == pytest.approx((0.64 - 0.04 + 21.16 - 0.16) / 4)


def test_nearest_free_leaves_the_best_item_and_moves_the_others_in_order_of_fit():
    # 0.0 keeps its codes; then 0.2 takes 0 + 1; 0.4 takes 0 + 5, which is nearer than 100.
    unique, report = resolve_collisions(CODES, LATENTS, BOOKS, "nearest-free")
    assert unique.tolist() == [[0, 0], [0, 2], [0, 1], [1, 2]]
    assert report.moved == 2


def test_nearest_free_respects_what_is_taken():
    taken = np.array([[0, 0], [0, 1]])
    unique, _ = resolve_collisions(np.array([[0, 0]]), np.array([[0.2]]), BOOKS, "nearest-free", taken)
    assert unique.tolist() == [[0, 2]]
    with pytest.raises(InputError, match="need free codes"):
        everything = np.array([[a, b] for a in range(2) for b in range(3)])
        resolve_collisions(np.array([[0, 0]]), np.array([[0.2]]), BOOKS, "nearest-free", everything)


def test_items_on_taken_paths_have_collided():
    codes, latents = np.array([[0, 0], [1, 2], [1, 0]]), np.array([[0.2], [105.0], [100.0]])
    for taken in (np.array([[0, 0], [1, 2]]), {(0, 0), (1, 2)}):
        unique, report = resolve_collisions(codes, latents, BOOKS, "nearest-free", taken)
        # 0.2 goes from 0 to 1, 105 from 105 to 101.
        assert unique.tolist() == [[0, 1], [1, 1], [1, 0]]
        assert (report.collided, report.moved) == (2, 2)
        assert report.extra_distance == pytest.approx((0.64 - 0.04 + 16) / 3)
    assert resolve_collisions(codes, latents, BOOKS, "none", np.array([[0, 0]]))[1].collided == 1


def test_an_extra_level_numbers_the_items_of_a_group():
    unique, report = resolve_collisions(CODES, strategy="extra-level")
    assert unique.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 2, 0]]
    assert (report.collided, report.moved, report.extra_distance) == (3, 0, 0.0)


def test_item_tokens_are_a_level_of_one_code_an_item():
    unique, report = resolve_collisions(CODES, strategy="item-token")
    assert unique.tolist() == [[*codes, item] for item, codes in enumerate(CODES.tolist())]
    assert (report.collided, report.moved, report.extra_distance, report.remaining) == (3, 0, 0.0, 0)


def test_none_leaves_everything_and_counts_it():
    unique, report = resolve_collisions(CODES, LATENTS, BOOKS, "none")
    assert unique.tolist() == CODES.tolist()
    assert (report.collided, report.moved, report.remaining) == (3, 0, 3)


@given(st.integers(0, 10_000), st.sampled_from([s for s in STRATEGIES if s != "none"]), st.integers(2, 14))
def test_codes_become_unique_and_the_price_is_what_was_paid(seed, strategy, items):
    rng = np.random.default_rng(seed)
    books = [rng.normal(size=(4, 3)) for _ in range(3)]
    latents = rng.normal(size=(items, 3))
    codes = rng.integers(0, 2, (items, 3))
    unique, report = resolve_collisions(codes, latents, books, strategy)
    assert len(np.unique(unique, axis=0)) == items and report.remaining == 0
    if strategy in ADDED_LEVEL:
        assert np.array_equal(unique[:, :3], codes)
        return
    cost = [
        sum(np.sum((latent - sum(b[c] for b, c in zip(books, path, strict=True))) ** 2) for latent, path in pairs)
        for pairs in (zip(latents, unique, strict=True), zip(latents, codes, strict=True))
    ]
    assert report.extra_distance == pytest.approx((cost[0] - cost[1]) / items, abs=1e-4)


def test_assignment_is_never_dearer_than_sinkhorn():
    rng = np.random.default_rng(0)
    books = [rng.normal(size=(4, 3)), rng.normal(size=(16, 3))]
    codes, latents = np.zeros((10, 2), dtype=int), rng.normal(size=(10, 3))
    exact, entropic = (resolve_collisions(codes, latents, books, s)[1] for s in ("assignment", "sinkhorn"))
    assert exact.extra_distance <= entropic.extra_distance + 1e-6


def test_a_group_larger_than_the_last_codebook_spills_into_the_nearest_prefix():
    books = [np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]])]
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    unique, _ = resolve_collisions(codes, np.array([[0.0], [0.9], [1.0]]), books)
    assert len(np.unique(unique, axis=0)) == 3
    assert unique[:, 0].tolist() == [0, 0, 1]  # the third is nearest to the sibling prefix
    with pytest.raises(InputError, match="larger codebooks"):
        resolve_collisions(np.zeros((5, 2), int), np.zeros((5, 1)), books)


def test_refusals():
    with pytest.raises(InputError, match="choose from assignment"):
        resolve_collisions(CODES, LATENTS, BOOKS, "magic")
    with pytest.raises(InputError, match="extra-level, item-token or none"):
        resolve_collisions(CODES, strategy="sinkhorn")
