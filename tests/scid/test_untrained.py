from types import SimpleNamespace

import numpy as np
import polars as pl

from align3gr.scid import SCIDSettings, cluster_codes, hashed_user_codes, ready_codes

TITLES = [f"t{row}" for row in range(12)]
SEQUENCES = [np.arange(6), np.arange(6, 12), np.array([0, 5, 2]), np.array([7, 11])]


def market(users=("a", "b")):
    texts = [f"{title}. {'Food' if row < 6 else 'Shops'}, Open" for row, title in enumerate(TITLES)]
    items = pl.DataFrame({"item_id": TITLES, "title": TITLES, "text": texts})
    return SimpleNamespace(
        items=items, users=pl.DataFrame({"user_id": list(users)}), train_sequences=lambda: SEQUENCES
    )


def test_categories_and_a_number():
    settings = SCIDSettings(sides="item", codes="categories", collisions="extra-level", category_levels=2)
    codes, sizes, report = ready_codes(settings, market(), None, seed=0)
    # "Open" is the category of all, so it comes first; six items of each kind are numbered.
    assert codes.tolist() == [[0, row // 6, row % 6] for row in range(12)]
    assert sizes == [1, 2, 6] and report["item_collisions"]["collided"] == 12


def test_clusters_and_a_number():
    settings = SCIDSettings(
        sides="item", codes="clusters", collisions="extra-level", clusters=2, largest_cluster=6, cluster_levels=1
    )
    codes, sizes, _ = ready_codes(settings, market(), None, seed=0)
    assert np.array_equal(codes[:, :1], cluster_codes(SEQUENCES, 12, 2, 6, 1, seed=0))
    assert codes[:, 1].tolist() == [*range(6), *range(6)] and sizes == [2, 6]
    assert set(codes[:6, 0]) != set(codes[6:, 0])


def test_a_user_has_one_code_by_the_id_alone():
    names = [f"user {row}" for row in range(2000)]
    codes = hashed_user_codes(market(names), 16)
    assert codes.shape == (2000, 1) and set(codes[:, 0]) == set(range(16))
    assert np.bincount(codes[:, 0]).max() < 200  # 125 each on average
    assert hashed_user_codes(market(names[::-1]), 16)[::-1].tolist() == codes.tolist()
    # The first eight hexadecimal digits of sha256("a") are ca978112, the last ones 48bb: 0xb is 11.
    assert hashed_user_codes(market("a"), 16).tolist() == [[11]]
