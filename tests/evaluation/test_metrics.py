import math

import numpy as np
import pytest

from align3gr.errors import InputError
from align3gr.evaluation.metrics import (
    ABSENT,
    is_repeat,
    mean_metrics,
    mrr_at_k,
    ndcg_at_k,
    recall_at_k,
    reported_ks,
    target_ranks,
    three_columns,
)

RANKINGS = np.array([[3, 1, 2], [0, 4, -1], [5, 6, 7], [-1, -1, -1]])
TARGETS = np.array([2, 0, 4, 1])


def test_ranks_by_hand():
    assert target_ranks(RANKINGS, TARGETS).tolist() == [2, 0, ABSENT, ABSENT]


def test_an_item_shown_twice_counts_where_it_is_best():
    assert target_ranks(np.array([[3, 9, 9]]), np.array([9])).tolist() == [1]


def test_recall_and_ndcg_by_hand():
    ranks = target_ranks(RANKINGS, TARGETS)
    assert recall_at_k(ranks, 2).tolist() == [0, 1, 0, 0]
    assert recall_at_k(ranks, 3).tolist() == [1, 1, 0, 0]
    # A rank of 2 has the gain 1 / log2(4), a rank of 1 would have 1 / log2(3).
    assert ndcg_at_k(ranks, 3).tolist() == [0.5, 1, 0, 0]
    assert ndcg_at_k(np.array([1]), 3).tolist() == pytest.approx([1 / math.log2(3)])
    assert ndcg_at_k(ranks, 2).tolist() == [0, 1, 0, 0]


def test_a_long_k_never_finds_an_absent_target():
    assert recall_at_k(np.array([ABSENT]), 10**9).tolist() == [0]
    assert ndcg_at_k(np.array([ABSENT]), 10**9).tolist() == [0]


KS = (1, 5, 10, 20, 100)


def ranx_means(rankings, targets, users, scores=None) -> dict[str, float]:
    """What ranx makes of the lists of some users; an empty list stays a question."""
    ranx = pytest.importorskip("ranx", reason="ranx, the oracle, is not installed")
    # Descending scores: ranx orders equal ones as it likes, where a list is an order.
    scores = np.broadcast_to(-np.arange(rankings.shape[1], dtype=float), rankings.shape) if scores is None else scores
    qrels = ranx.Qrels({f"u{user}": {f"i{targets[user]}": 1} for user in users})
    run = ranx.Run(
        {
            f"u{user}": {f"i{item}": float(score) for item, score in pairs if item >= 0}
            for user, pairs in ((user, zip(rankings[user], scores[user], strict=True)) for user in users)
        }
    )
    return ranx.evaluate(qrels, run, [f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in KS])


def test_equal_to_ranx_in_every_column():
    rng = np.random.default_rng(0)
    users, items, k = 200, 150, 100
    histories = [rng.choice(items, size=size, replace=False) for size in rng.integers(0, 30, size=users)]
    allowed = np.stack([rng.permutation(items)[:k] for _ in range(users)])
    targets = rng.integers(items, size=users)
    targets[:9] = allowed[:9, 0]  # chance alone hits the first place once in 150
    for user in range(0, users, 3):
        histories[user] = np.append(histories[user], targets[user])  # a repeat
    # Masked lists close up, so they end earlier; every eleventh pair of lists is cut short, some to nothing.
    masked = np.full_like(allowed, -1)
    for user, history in enumerate(histories):
        left = allowed[user][~np.isin(allowed[user], history)]
        masked[user, : len(left)] = left
    for user in range(0, users, 11):
        allowed[user, user % 7 :] = masked[user, user % 7 :] = -1
    ratings = np.where(rng.random(users) < 0.2, np.nan, rng.integers(1, 6, size=users))
    columns = three_columns(allowed, masked, targets, histories, KS, ratings)
    repeat = np.array([target in history for target, history in zip(targets, histories, strict=True)])
    expected = {
        "seen_allowed": (allowed, repeat | True),
        "seen_masked": (masked, repeat | True),
        "discoveries": (masked, ~repeat),
        "seen_allowed_repeats": (allowed, repeat),
        "seen_allowed_discoveries": (allowed, ~repeat),
        "seen_allowed_liked": (allowed, ratings >= 4),
        "seen_masked_liked": (masked, ratings >= 4),
        "discoveries_liked": (masked, ~repeat & (ratings >= 4)),
        "seen_allowed_disliked": (allowed, ratings <= 1),
        "seen_masked_disliked": (masked, ratings <= 1),
    }
    assert columns.keys() == expected.keys()
    for column, (rankings, asked) in expected.items():
        theirs = ranx_means(rankings, targets, np.flatnonzero(asked))
        assert columns[column].pop("users") == asked.sum() > 0
        assert columns[column] == pytest.approx(theirs, abs=1e-9), column
    assert 0 < columns["seen_allowed"]["recall@1"] < columns["discoveries"]["recall@100"] < 1
    assert 0 < columns["seen_masked"]["recall@100"] < columns["seen_allowed"]["recall@100"] < 1


def test_equal_to_ranx_where_scores_tie():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, size=(60, 120)).astype(float)  # some thirty items a score
    # Baselines rank equal scores by index: to ranx, that is a score lowered by less than any difference.
    rankings = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    lowered = np.take_along_axis(scores - np.arange(120) / 1000, rankings, axis=1)
    targets = rng.integers(120, size=60)
    targets[:5] = rankings[:5, 0]
    ours = mean_metrics(target_ranks(rankings, targets), KS)
    assert ours.pop("users") == 60 and 0 < ours["mrr@1"] < ours["recall@100"] < 1
    assert ours == pytest.approx(ranx_means(rankings, targets, range(60), lowered), abs=1e-9)


def test_mrr_by_hand():
    assert mrr_at_k(np.array([0, 1, 4, 5, ABSENT]), 5).tolist() == pytest.approx([1, 1 / 2, 1 / 5, 0, 0])


def test_lengths_follow_the_list_and_the_list_the_beam():
    assert reported_ks(100, num_beams=120) == (1, 5, 10, 20, 100)
    assert reported_ks(99, num_beams=99) == (1, 5, 10, 20)
    with pytest.raises(InputError, match="k: got 100, but the search keeps num_beams=20 items; raise num_beams"):
        reported_ks(100, num_beams=20)


def test_repeats_are_found_anywhere_in_the_history():
    histories = [np.array([2, 5, 2]), np.array([1]), np.array([], dtype=np.int64)]
    assert is_repeat(np.array([2, 2, 2]), histories).tolist() == [True, False, False]


HISTORIES = [np.array([2, 3]), np.array([1, 6]), np.array([8])]
THREE_TARGETS = np.array([2, 0, 9])
ALLOWED = np.array([[3, 2], [6, 1], [9, 8]])
MASKED = np.array([[4, 1], [0, 5], [9, 7]])


def test_three_columns_by_hand():
    columns = three_columns(ALLOWED, MASKED, THREE_TARGETS, HISTORIES, ks=(1, 2))
    second = 1 / math.log2(3)
    # Allowed: ranks 1, absent, 0. Masked: absent (a repeat), 0, 0. The first user's target is a repeat.
    expected = {
        "seen_allowed": (1 / 3, 2 / 3, 1 / 3, (1 + second) / 3, 3),
        "seen_masked": (2 / 3, 2 / 3, 2 / 3, 2 / 3, 3),
        "discoveries": (1, 1, 1, 1, 2),
        "seen_allowed_repeats": (0, 1, 0, second, 1),
        "seen_allowed_discoveries": (1 / 2, 1 / 2, 1 / 2, 1 / 2, 2),
    }
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        got = [columns[name][key] for key in ("recall@1", "recall@2", "ndcg@1", "ndcg@2", "users")]
        assert got == pytest.approx(values), name


def test_liked_columns_count_targets_rated_four_or_higher():
    ratings = np.array([5.0, 3.0, np.nan])
    columns = three_columns(ALLOWED, MASKED, THREE_TARGETS, HISTORIES, ks=(1, 2), ratings=ratings)
    assert columns["seen_allowed_liked"] == pytest.approx(
        {"recall@1": 0, "recall@2": 1, "ndcg@1": 0, "ndcg@2": 1 / math.log2(3), "mrr@1": 0, "mrr@2": 0.5, "users": 1}
    )
    assert columns["seen_masked_liked"]["recall@2"] == 0
    # The one liked target is a repeat: nobody is left, and that is said.
    assert set(columns["discoveries_liked"].values()) == {0}


def test_disliked_columns_count_targets_rated_one_or_lower():
    columns = three_columns(ALLOWED, MASKED, THREE_TARGETS, HISTORIES, ks=(1, 2), ratings=np.array([1.0, 0.5, 2.0]))
    # Ranks 1 and absent of the first two users, masked absent and 0; the third is neutral.
    assert [columns["seen_allowed_disliked"][name] for name in ("recall@1", "recall@2", "users")] == [0, 0.5, 2]
    assert [columns["seen_masked_disliked"][name] for name in ("recall@1", "recall@2", "users")] == [0.5, 0.5, 2]


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(InputError, match="rankings_allowed: got lists of 2 items, which cannot answer k=10"):
        three_columns(ALLOWED, MASKED, THREE_TARGETS, HISTORIES)
    with pytest.raises(InputError, match="rankings_masked: row 0 shows item 2 of its history"):
        three_columns(ALLOWED, ALLOWED, THREE_TARGETS, HISTORIES, ks=(1, 2))
    with pytest.raises(InputError, match="histories: got 2, expected one for each of 3 targets"):
        is_repeat(THREE_TARGETS, HISTORIES[:2])
    with pytest.raises(InputError, match=r"expected \(users, k\) and \(users,\)"):
        target_ranks(ALLOWED, THREE_TARGETS[:2])
    with pytest.raises(InputError, match="targets: got -1"):
        target_ranks(ALLOWED, np.array([-1, 0, 0]))
    with pytest.raises(InputError, match="k: got 0"):
        recall_at_k(np.array([0]), 0)
