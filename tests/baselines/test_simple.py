import os
from pathlib import Path

import numpy as np
import pytest

from align3gr.baselines import HistoryRepeat, HistoryThenItemKNN, ItemKNN, Popularity
from align3gr.data.readers import read_lcrec
from align3gr.data.splits import leave_one_out
from align3gr.errors import InputError
from align3gr.evaluation.metrics import three_columns

YELP = Path(os.environ.get("ALIGN3GR_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "yelp"

# Six items, of which 5 is never taken. Distinct takers: 0: {A, B}, 1: {A, B, C}, 2: {A}, 3: {C}, 4: {C}.
TRAIN = [np.array([0, 1, 2, 1]), np.array([1, 0]), np.array([3, 1, 4])]


def test_popularity_counts_and_ties_go_to_the_lower_index():
    model = Popularity().fit(TRAIN, 6)
    # Counts: 1 four times, 0 twice, 2, 3 and 4 once, 5 never.
    histories = [np.array([2]), np.array([1, 0, 1])]
    assert model.rank(histories, 4, exclude_seen=False).tolist() == [[1, 0, 2, 3]] * 2
    assert model.rank(histories, 4, exclude_seen=True).tolist() == [[1, 0, 3, 4], [2, 3, 4, 5]]
    assert model.rank(histories, 7, exclude_seen=True).tolist() == [[1, 0, 3, 4, 5, -1, -1], [2, 3, 4, 5, -1, -1, -1]]


def test_history_repeat_is_latest_first_and_distinct():
    model = HistoryRepeat().fit(TRAIN, 6)
    histories = [np.array([4, 2, 4, 1]), np.array([], dtype=np.int64)]
    assert model.rank(histories, 4, exclude_seen=False).tolist() == [[1, 4, 2, -1], [-1] * 4]
    assert model.rank(histories, 2, exclude_seen=False).tolist() == [[1, 4], [-1, -1]]
    assert model.rank(histories, 2, exclude_seen=True).tolist() == [[-1, -1]] * 2


def test_item_knn_similarities_by_hand():
    similarity = ItemKNN().fit(TRAIN, 6).similarity.toarray()
    # Takers in common over the root of the product: (0, 1): 2 / sqrt(2 * 3), (0, 2): 1 / sqrt(2), (1, 3): 1 / sqrt(3).
    assert similarity[0, 1] == pytest.approx(2 / np.sqrt(6))
    assert similarity[0, 2] == pytest.approx(1 / np.sqrt(2))
    assert similarity[1, 3] == pytest.approx(1 / np.sqrt(3))
    assert similarity[3, 4] == pytest.approx(1)
    assert similarity[0, 3] == 0
    assert not similarity.diagonal().any() and not similarity[5].any()
    np.testing.assert_array_equal(similarity, similarity.T)


def test_item_knn_rankings_by_hand():
    model = ItemKNN(decay=0.5).fit(TRAIN, 6)
    # History [3, 0]: item 0 counts 1, item 3 half. 1: 0.816 + 0.289, 2: 0.707, 4: 0.5; 0 and 3 have nothing.
    assert model.rank([np.array([3, 0])], 5, exclude_seen=False).tolist() == [[1, 2, 4, -1, -1]]
    # History [0, 1]: 0 scores 0.816, 3 and 4 0.577 (a tie), 2 0.577 + 0.354, 1 0.408.
    assert model.rank([np.array([0, 1])], 4, exclude_seen=False).tolist() == [[2, 0, 3, 4]]
    assert model.rank([np.array([0, 1])], 4, exclude_seen=True).tolist() == [[2, 3, 4, -1]]
    assert model.rank([np.array([5])], 2, exclude_seen=False).tolist() == [[-1, -1]]


def test_item_knn_sees_the_latest_items_only():
    model = ItemKNN(max_history=1).fit(TRAIN, 6)
    assert model.rank([np.array([0, 4])], 3, exclude_seen=False).tolist() == [[3, 1, -1]]


def test_ties_at_the_end_of_the_list_go_to_the_lower_index():
    # All of 1..5 are taken once together with 0.
    model = ItemKNN().fit([np.array([0, item]) for item in (5, 3, 4, 2, 1)], 6)
    assert model.rank([np.array([0])], 3, exclude_seen=False).tolist() == [[1, 2, 3]]


def test_batches_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    train = [rng.integers(30, size=8) for _ in range(50)]
    whole = ItemKNN().fit(train, 30).rank(train, 10, exclude_seen=True)
    monkeypatch.setattr("align3gr.baselines.simple.BATCH_SIZE", 7)
    np.testing.assert_array_equal(ItemKNN().fit(train, 30).rank(train, 10, exclude_seen=True), whole)
    assert (whole >= 0).any()


def test_history_then_item_knn_fills_up_with_unseen_items():
    model = HistoryThenItemKNN(num_repeated=1).fit(TRAIN, 6)
    # Latest first: 1. Then the unseen neighbours of [0, 1]: 2, then 3 and 4, which tie.
    assert model.rank([np.array([0, 1])], 4, exclude_seen=False).tolist() == [[1, 2, 3, 4]]
    assert model.rank([np.array([0, 1])], 4, exclude_seen=True).tolist() == [[2, 3, 4, -1]]
    two = HistoryThenItemKNN(num_repeated=2).fit(TRAIN, 6)
    assert two.rank([np.array([0, 1])], 5, exclude_seen=False).tolist() == [[1, 0, 2, 3, 4]]
    assert two.rank([np.array([0, 1])], 1, exclude_seen=False).tolist() == [[1]]


def test_nobody_to_rank_for():
    for model in (Popularity(), HistoryRepeat(), ItemKNN(), HistoryThenItemKNN()):
        assert model.fit(TRAIN, 6).rank([], 3, exclude_seen=True).shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ItemKNN(max_history=0), "max_history: got 0"),
        (lambda: ItemKNN(decay=0.0), "decay: got 0.0"),
        (lambda: HistoryThenItemKNN(num_repeated=-1), "num_repeated: got -1"),
        (lambda: ItemKNN().fit(TRAIN, 4), "row 2 has item 4, expected an index from 0 to 3"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


# Recall@5, Recall@10, NDCG@5, NDCG@10 as they were measured by independent code, full ranking, leave-one-out.
MASKED_KNN = (0.0147, 0.0246, 0.0092, 0.0124)
DISCOVERED_KNN = (0.0157, 0.0263, 0.0099, 0.0133)
PUBLISHED = [
    (
        Popularity(),
        (0.0058, 0.0100, 0.0038, 0.0051),
        (0.0056, 0.0094, 0.0036, 0.0049),
        (0.0060, 0.0101, 0.0039, 0.0052),
    ),
    (ItemKNN(), (0.0222, 0.0364, 0.0138, 0.0183), MASKED_KNN, DISCOVERED_KNN),
    (HistoryRepeat(), (0.0547, 0.0620, 0.0389, 0.0414), (0.0,) * 4, (0.0,) * 4),
    (HistoryThenItemKNN(), (0.0559, 0.0700, 0.0394, 0.0439), MASKED_KNN, DISCOVERED_KNN),
]


@pytest.fixture(scope="module")
def yelp():
    return leave_one_out(read_lcrec(YELP))


@pytest.mark.skipif(not YELP.is_dir(), reason=f"{YELP} is absent; set ALIGN3GR_DATA to the folder that holds yelp")
@pytest.mark.parametrize(
    ("model", "allowed", "masked", "discoveries"), PUBLISHED, ids=[type(row[0]).__name__ for row in PUBLISHED]
)
def test_figures_on_yelp(yelp, model, allowed, masked, discoveries):
    questions = yelp.histories("test")
    model.fit(yelp.train_sequences(), questions.num_items)
    columns = three_columns(
        model.rank(questions.histories, 10, exclude_seen=False),
        model.rank(questions.histories, 10, exclude_seen=True),
        questions.targets,
        questions.histories,
    )
    for name, expected in (("seen_allowed", allowed), ("seen_masked", masked), ("discoveries", discoveries)):
        got = [columns[name][key] for key in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")]
        assert got == pytest.approx(expected, abs=2e-4), name
