"""The cache over the history: counted returns, shares of users, and lists of the mixture."""

import json

import numpy as np
import pytest
from scipy.stats import betabinom

from align3gr import Recommender
from align3gr.decoding import HistoryCache
from align3gr.decoding.files import _fingerprint
from align3gr.decoding.history_cache import HISTORY_CACHE_FILE, repeats
from align3gr.errors import InputError

RATES = np.array([0.3, 0.1, 0.1])


def test_return_rates_are_counted_by_the_place_in_the_history():
    cache = HistoryCache.fit([np.array([4, 4, 5, 4]), np.array([7]), np.array([8, 9])], longest=3)
    # One place back: 4-4, 4-5, 5-4, 8-9. Two back: 4-5, 4-4. Three back: 4-4.
    assert cache.return_rates.tolist() == [1 / 4, 1 / 2, 1.0]
    assert cache.share == 0 and repeats(np.array([4, 4, 5, 4])) == 2


def test_the_strength_is_that_of_the_users():
    chance = np.random.default_rng(0)

    def sequences(strength: float) -> list[np.ndarray]:
        made = []
        for hits in betabinom.rvs(40, 0.2 * strength, 0.8 * strength, size=1500, random_state=chance):
            # So many of 40 items repeat the first one.
            made.append(np.concatenate([[0], chance.permutation([0] * hits + list(range(1, 41 - hits)))]))
        return made

    for strength in (2.0, 20.0):
        assert HistoryCache.fit(sequences(strength)).strength == pytest.approx(strength, rel=0.2)
    assert HistoryCache.fit([np.arange(5)]).strength == HistoryCache.fit([]).strength == 1.0


def test_a_user_who_returns_gets_a_larger_share():
    cache = HistoryCache(RATES, strength=10.0, share=0.1)
    loyal, curious, new = np.array([1, 1, 1, 2]), np.arange(11), np.empty(0, int)
    assert cache.shares([loyal, curious, new]) == pytest.approx([(1 + 2) / 13, 1 / 20, 0])
    assert HistoryCache(np.zeros(3), 10.0, 0.1).shares([loyal]).tolist() == [0]  # nobody ever returns
    assert cache.with_share(0).shares([loyal]).tolist() == [0]


def test_the_list_of_the_mixture_is_that_of_its_formula():
    cache = HistoryCache(RATES, strength=10.0, share=0.2)
    history = np.array([6, 3, 9, 3])  # latest: 3, 9, 3; 6 is too far back
    items, scores = np.array([[5, 9, 7, -1]]), np.log(np.array([[0.5, 0.2, 0.1, 0.0]]) + 1e-300)
    scores[0, 3] = -np.inf
    share = (2.0 + 1) / (10 + 3)
    of_cache = {3: 0.4 / 0.5, 9: 0.1 / 0.5}
    expected = {5: 0.5, 9: 0.2, 7: 0.1}
    expected = {
        item: (1 - share) * expected.get(item, 0) + share * of_cache.get(item, 0) for item in {*expected, *of_cache}
    }
    mixed, mixed_scores = cache.mix(items, scores, [history])
    assert mixed[0].tolist() == sorted(expected, key=expected.get, reverse=True)
    assert np.exp(mixed_scores[0]) == pytest.approx(sorted(expected.values(), reverse=True))
    for sets, shown in (
        ({"denied": [3]}, [5, 9, 7, -1]),
        ({"denied": [[9, 3]]}, [5, 9, 7, -1]),  # the search has left 9 out, here it is in the list given
        ({"allowed": {5, 7, 9}}, [5, 9, 7, -1]),
    ):
        assert cache.mix(items, scores, [history], **sets)[0][0].tolist() == shown
    unchanged = cache.with_share(0).mix(items, scores, [history])
    assert unchanged[0].tolist() == items.tolist() and unchanged[1].tolist() == scores.tolist()


def test_a_share_out_of_range_is_refused():
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"history_cache: got .* expected a share of 0"):
            HistoryCache(RATES, 1.0, share)


def test_a_saved_recommender_knows_its_returns(smoke_run, tmp_path):
    model = smoke_run / "sp_dpo" / "model"
    plain = Recommender.from_pretrained(model, device="cpu")
    assert plain.history_cache.share == 0 and plain.history_cache.return_rates.any()
    first = plain.items["item_id"][0]
    history = [[first] * 4 + plain.items["item_id"].to_list()[5:8] + [first]]
    before = plain.recommend(history, k=5)[0]
    plain.history_cache = plain.history_cache.with_share(0.9)
    after = plain.recommend(history, k=5)[0]
    assert after[0].item_id == first and before != after
    assert plain.recommend(history, k=5, denied=[first])[0][0].item_id != first
    assert after == plain.recommend(history, k=20)[0][:5]  # the length asked for changes nothing
    for k in (0, 21):
        with pytest.raises(InputError, match=f"k: got {k}, expected 1 to num_beams=20"):
            plain.recommend(history, k=k)
    unseen = plain.recommend(history, k=5, exclude_seen=True)
    plain.save_pretrained(tmp_path)
    source = smoke_run / "data" / "train.parquet"
    with_cache = _fingerprint(plain, source, None)
    plain.history_cache = plain.history_cache.with_share(0.0)
    assert _fingerprint(plain, source, None) != with_cache
    again = Recommender.from_pretrained(tmp_path, device="cpu")
    assert again.history_cache.share == 0.9 and again.recommend(history, k=5)[0] == after
    off = Recommender.from_pretrained(tmp_path, device="cpu", history_cache=0.0)
    assert off.recommend(history, k=5)[0] == before and off.recommend(history, k=5, exclude_seen=True) == unseen
    (tmp_path / HISTORY_CACHE_FILE).write_text(json.dumps({"share": 0.1}))
    with pytest.raises(InputError, match=r"history_cache.json: holds no return rates"):
        Recommender.from_pretrained(tmp_path, device="cpu")
    (tmp_path / HISTORY_CACHE_FILE).unlink()
    assert Recommender.from_pretrained(tmp_path, device="cpu").history_cache is None
    with pytest.raises(InputError, match=r"history_cache.json: holds no return rates .* fine-tune again"):
        Recommender.from_pretrained(tmp_path, device="cpu", history_cache=0.1)
