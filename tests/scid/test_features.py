import math

import numpy as np
import pytest
import torch

from align3gr import InputError
from align3gr.scid import FeatureTable, PinnedCodes, assign_codes
from align3gr.scid import features as features_module
from align3gr.scid.features import code_drift, codebook_health, embed_all
from tests.scid.test_dual_scid import market, small_model


@pytest.fixture(scope="module")
def trained():
    """A model whose code books stand on k-means centres, with its users and items."""
    model, (users, items, _) = small_model().eval(), market()
    user_vectors, item_vectors = embed_all(model, users, items)
    model.user_rqvae.initialize_codebooks(user_vectors)
    model.item_rqvae.initialize_codebooks(item_vectors)
    return model, users, items


def earlier_codes(trained):
    """Codes of the first 30 items and 50 users as another training might have given them; the others are new."""
    model, users, items = trained
    fresh = assign_codes(model, users, items)
    pinned_items, pinned_users = fresh.items.copy(), fresh.users.copy()
    pinned_items[:10, 0] = (pinned_items[:10, 0] + 1) % 4
    taken = {tuple(row) for row in pinned_items[10:30].tolist()}
    for row in pinned_items[:10]:  # unique among themselves, as an earlier run left them
        while tuple(row.tolist()) in taken:
            row[2] = (row[2] + 1) % 16
        taken.add(tuple(row.tolist()))
    pinned_users[:5, 0] = (pinned_users[:5, 0] + 1) % 4
    pinned_items[30:], pinned_users[50:] = -1, -1
    return PinnedCodes(pinned_items, pinned_users)


def test_known_items_keep_their_codes_and_new_ones_take_free_paths(trained):
    model, users, items = trained
    previous = earlier_codes(trained)
    fresh, codes = assign_codes(model, users, items), assign_codes(model, users, items, previous=previous)
    assert np.array_equal(codes.items[:30], previous.items[:30])
    assert np.array_equal(codes.users[:50], previous.users[:50])
    assert np.array_equal(codes.users[50:], fresh.users[50:])
    assert len(np.unique(codes.items, axis=0)) == len(items)
    raw = model.encode_items(items.rows(slice(None))).numpy()
    taken = {tuple(row) for row in codes.items[:30].tolist()}
    # A new item whose nearest codes are free and wanted by nobody else has them.
    wanted = [tuple(row) for row in raw[30:].tolist()]
    alone = [i for i, path in enumerate(wanted) if path not in taken and wanted.count(path) == 1]
    assert alone and all(tuple(codes.items[30 + i].tolist()) == wanted[i] for i in alone)
    assert (codes.collisions.strategy, codes.collisions.remaining) == ("nearest-free", 0)


def test_drift_is_against_fresh_codes_and_measured_without_pinning_too(trained):
    model, users, items = trained
    previous = earlier_codes(trained)
    pinned = assign_codes(model, users, items, previous=previous)
    free = assign_codes(model, users, items, previous=previous, pin=False)
    assert pinned.drift == free.drift
    assert np.array_equal(free.items, assign_codes(model, users, items).items)
    # Of 50 users that had codes, five had another first code.
    assert free.drift["user"] == {"rows": 50, "same_prefix": pytest.approx([0.9, 0.9, 0.9])}
    assert free.drift["item"]["rows"] == 30 and free.drift["item"]["same_prefix"][0] == pytest.approx(20 / 30)


def test_drift_by_hand():
    codes = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [9, 9, 9]])
    pinned = np.array([[1, 2, 3], [1, 2, 0], [1, 0, 3], [0, 2, 3], [-1, -1, -1]])
    assert code_drift(codes, pinned) == {"rows": 4, "same_prefix": [0.75, 0.5, 0.25]}
    assert code_drift(codes, np.full((5, 3), -1)) == {"rows": 0, "same_prefix": []}


def test_an_extra_level_does_not_go_with_pinned_codes(trained):
    model, users, items = trained
    with pytest.raises(InputError, match="pin: does not go with collisions 'extra-level'"):
        assign_codes(model, users, items, "extra-level", earlier_codes(trained))


def test_pinned_items_that_share_codes_are_counted(trained):
    model, users, items = trained
    previous = earlier_codes(trained)
    previous.items[1] = previous.items[0]
    codes = assign_codes(model, users, items, previous=previous)
    assert codes.collisions.remaining == 2 and len(np.unique(codes.items, axis=0)) == len(items) - 1


def test_the_price_beside_pinned_items_is_a_mean_over_all_items():
    books = [np.array([[0.0], [100.0]]), np.array([[0.0], [1.0], [5.0]])]
    raw, latents = np.array([[0, 0], [1, 2], [0, 0], [1, 0]]), np.array([[0.0], [105.0], [0.2], [100.0]])
    pinned = np.array([[0, 0], [1, 2], [-1, -1], [-1, -1]])
    codes, report = features_module._beside_pinned(raw, latents, books, "assignment", pinned)
    assert codes.tolist() == [[0, 0], [1, 2], [0, 1], [1, 0]] and (report.collided, report.moved) == (1, 1)
    assert report.extra_distance == pytest.approx((0.64 - 0.04) / 4)


def test_with_every_item_pinned_nothing_is_resolved(trained):
    model, users, items = trained
    had = assign_codes(model, users, items).items
    codes = assign_codes(model, users, items, previous=PinnedCodes(had))
    assert np.array_equal(codes.items, had) and codes.collisions.moved == 0 and codes.users is not None


def test_health_by_hand():
    health = codebook_health(np.array([[0, 0], [0, 1], [1, 1], [1, 1], [3, 1]]), [4, 2])
    entropy = -(2 * 0.4 * math.log2(0.4) + 0.2 * math.log2(0.2))
    assert health["utilisation"] == [0.75, 1.0]
    assert health["entropy"] == pytest.approx([entropy, -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8))])
    assert health["perplexity"] == pytest.approx([2**bits for bits in health["entropy"]])
    assert health["collisions"] == 2  # the two items with codes 1, 1


def test_quantisation_error_is_the_distance_to_the_sum_of_code_vectors(trained):
    model, users, items = trained
    codes = assign_codes(model, users, items)
    latent = model.item_rqvae.latent(model.embed_items(items.rows(slice(None))))
    raw = model.encode_items(items.rows(slice(None)))
    total = sum(book[raw[:, level]] for level, book in enumerate(model.item_rqvae.quantizer.codebooks))
    error = (latent - total).square().sum(1).mean().item()
    assert codes.health["item"]["quantization_error"] == pytest.approx(error, rel=1e-4)


def test_blocks_give_what_all_rows_at_once_give(trained, monkeypatch):
    model, users, items = trained
    whole = assign_codes(model, users, items)
    for name in ("ROWS_AT_ONCE", "CPU_ROWS_AT_ONCE"):
        monkeypatch.setattr(features_module, name, 7, raising=False)
    assert [len(block["semantic"]) for block in items.blocks("cpu")] == [7, 7, 7, 7, 7, 5]
    blocks = assign_codes(model, users, items)
    assert np.array_equal(whole.items, blocks.items) and np.array_equal(whole.users, blocks.users)


def test_a_table_needs_features_of_one_length():
    assert FeatureTable(collaborative=torch.zeros(3, 2)).dims == (0, 2)
    with pytest.raises(InputError, match="none"):
        FeatureTable()
    with pytest.raises(InputError, match="equal length"):
        FeatureTable(torch.zeros(3, 2), torch.zeros(4, 2))
