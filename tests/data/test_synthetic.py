import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from align3gr.baselines.simple import HistoryRepeat, ItemKNN
from align3gr.data.splits import leave_one_out
from align3gr.data.synthetic import SyntheticMarket, SyntheticMarketConfig
from align3gr.errors import InputError
from align3gr.evaluation.metrics import ndcg_at_k, recall_at_k, target_ranks

SMALL = SyntheticMarketConfig(num_users=60, num_items=80, num_categories=6, seed=5)


@pytest.fixture(scope="module")
def default_market():
    market = SyntheticMarket(SyntheticMarketConfig(seed=0))
    return market, leave_one_out(market.tables())


def test_the_best_ranking_leaves_room_above_item_knn_and_below_certainty(default_market):
    market, split = default_market
    questions = split.histories("test")
    rankings = ItemKNN().fit(split.train_sequences(), questions.num_items).rank(questions.histories, 10, False)
    knn = recall_at_k(target_ranks(rankings, questions.targets), 10).mean()
    best = market.best_recall(questions, k=10)
    assert 2 * knn < best.recall < 0.6
    assert best.ndcg < best.recall


def test_ranking_by_the_true_probabilities_reaches_the_best_recall(default_market):
    market, split = default_market
    questions = split.histories("test")
    probabilities = np.stack(
        [
            market.next_item_probabilities(user, history)
            for user, history in zip(questions.user_rows, questions.histories, strict=True)
        ]
    )
    ranks = target_ranks(np.argsort(-probabilities, axis=1)[:, :10], questions.targets)
    best = market.best_recall(questions, k=10)
    # 2,000 users: the standard error of Recall@10 is 0.011, three of them are allowed.
    assert recall_at_k(ranks, 10).mean() == pytest.approx(best.recall, abs=0.033)
    assert ndcg_at_k(ranks, 10).mean() == pytest.approx(best.ndcg, abs=0.025)


def test_what_is_drawn_follows_the_stated_distribution(default_market):
    """Up to chance, draws surprise by the entropy on average and fall evenly over the cumulative distribution."""
    market, split = default_market
    surprises, entropies, middles = [], [], []
    for user, items in enumerate(split.train_sequences()[:300]):
        for position in (0, 1, len(items) - 1):
            probabilities = market.next_item_probabilities(user, items[:position])
            assert probabilities.sum() == pytest.approx(1.0)
            surprises.append(-np.log(probabilities[items[position]]))
            entropies.append(-(probabilities * np.log(probabilities)).sum())
            middles.append(probabilities.cumsum()[items[position]] - probabilities[items[position]] / 2)
    difference = np.array(surprises) - np.array(entropies)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))
    assert abs(np.mean(middles) - 0.5) < 4 * np.std(middles) / np.sqrt(len(middles))


def test_probabilities_by_hand():
    """Two categories, one brand, one taste without preferences: only transition, repeats and noise are left."""
    config = SyntheticMarketConfig(
        num_users=1,
        num_items=4,
        num_categories=2,
        num_brands=1,
        num_tastes=1,
        taste_strength=0.0,
        repeat_probability=0.3,
        repeat_decay=0.5,
        noise=0.2,
    )
    market = SyntheticMarket(config)
    market.popularity = np.ones(4)
    market.categories = np.array([0, 0, 1, 1])
    market.transitions = np.array([[1.0, 3.0], [1.0, 1.0]])
    np.testing.assert_allclose(market.next_item_probabilities(0, []), 0.25)
    # Fresh: 1/8, 1/8, 3/8, 3/8. Repeat of [2, 1]: item 1 has weight 1, item 2 half of it.
    fresh, repeat = np.array([1, 1, 3, 3]) / 8, np.array([0, 2, 1, 0]) / 3
    expected = 0.2 / 4 + 0.8 * (0.3 * repeat + 0.7 * fresh)
    np.testing.assert_allclose(market.next_item_probabilities(0, [2, 1]), expected)


def test_loyalty_multiplies_the_brand_of_the_last_item():
    plain, loyal = (
        SyntheticMarket(dataclasses.replace(SMALL, loyalty=loyalty, repeat_probability=0.0, noise=0.0))
        for loyalty in (1.0, 4.0)
    )
    ratio = loyal.next_item_probabilities(3, [7]) / plain.next_item_probabilities(3, [7])
    same_brand = plain.brands == plain.brands[7]
    np.testing.assert_allclose(ratio[same_brand] / ratio[~same_brand][0], 4.0)
    np.testing.assert_allclose(ratio[~same_brand], ratio[~same_brand][0])


def test_repeats_are_answers(default_market):
    _, split = default_market
    questions = split.histories("test")
    rankings = HistoryRepeat().fit([], questions.num_items).rank(questions.histories, 10, False)
    assert recall_at_k(target_ranks(rankings, questions.targets), 10).mean() > 0.1


def test_one_seed_makes_everything():
    first, again, other = (
        SyntheticMarket(config).tables() for config in (SMALL, SMALL, dataclasses.replace(SMALL, seed=6))
    )
    for name in ("interactions", "items", "users"):
        assert getattr(first, name).equals(getattr(again, name)), name
        assert not getattr(first, name).equals(getattr(other, name)), name


def test_tables_look_like_a_log():
    tables = SyntheticMarket(SMALL).tables()
    log = tables.interactions
    per_user = log.group_by("user_id").len()["len"]
    assert per_user.min() >= 12 and per_user.max() <= 25
    assert (log.group_by("user_id").agg(pl.col("timestamp").diff().min())["timestamp"] > 0).all()
    assert set(log["rating"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert tables.items["title"].n_unique() == 80
    assert (tables.users["profile"].str.len_chars() > 20).all()
    best = log.filter(pl.col("rating") == 5)["review"]
    worst = log.filter(pl.col("rating") == 1)["review"]
    assert best.str.contains("best|Excellent|Love").all() and not worst.str.contains("best|Excellent|Love").any()


def test_ratings_follow_taste():
    market = SyntheticMarket(SMALL)
    users, items = market.sequences
    tastes = market.tastes[users]
    fit = market.category_preferences[tastes, market.categories[items]]
    fit = fit + market.brand_preferences[tastes, market.brands[items]]
    assert np.corrcoef(fit, market.tables().interactions["rating"].to_numpy())[0, 1] > 0.5


def test_the_profile_names_what_the_taste_likes_most():
    market = SyntheticMarket(SMALL)
    same_taste = np.flatnonzero(market.tastes == 0)
    favourite = market.category_preferences[0].argmax()
    text = market.tables().items["text"][int(np.flatnonzero(market.categories == favourite)[0])]
    category = text.split(". ")[1].split(",")[0]
    assert all(category in market.tables().users["profile"][int(user)] for user in same_taste)


def test_a_folder_rebuilds_the_market(tmp_path):
    market = SyntheticMarket(SMALL)
    market.save(tmp_path)
    again = SyntheticMarket.from_folder(tmp_path)
    assert again.config == SMALL
    np.testing.assert_array_equal(again.next_item_probabilities(1, [4, 9]), market.next_item_probabilities(1, [4, 9]))
    assert {path.name for path in tmp_path.iterdir()} == {
        "interactions.parquet",
        "items.parquet",
        "users.parquet",
        "market.json",
    }


def test_a_folder_without_a_market_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"market\.json: no such file"):
        SyntheticMarket.from_folder(tmp_path)
    (tmp_path / "market.json").write_text(json.dumps({"num_planets": 9}))
    with pytest.raises(InputError, match="num_planets"):
        SyntheticMarket.from_folder(tmp_path)


def test_a_split_of_another_catalogue_is_refused():
    split = leave_one_out(SyntheticMarket(SMALL).tables(), min_interactions=0)
    larger = SyntheticMarket(dataclasses.replace(SMALL, num_items=81))
    with pytest.raises(InputError, match="has 60 users and 80 items, the market 60 and 81; split with min_inter"):
        larger.best_recall(split.histories("test"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_items": 10}, "num_items: got 10, expected at least 20"),
        ({"num_categories": 25}, "num_categories: got 25, expected from 2 to 24"),
        ({"max_interactions": 3}, "max_interactions: got 3, expected at least 12"),
        ({"noise": 1.5}, "noise: got 1.5, expected from 0 to 1"),
        ({"loyalty": 0.5}, "loyalty: got 0.5, expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        SyntheticMarketConfig(**settings)
