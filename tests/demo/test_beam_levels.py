"""The beam by level against the exhaustive search, on a random model."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from align3gr.decoding import ConstrainedBeamSearch, ExhaustiveSearch
from align3gr.decoding.recommender import Recommender
from align3gr.demo import BeamViewer
from align3gr.demo.common_words import CommonWords
from align3gr.errors import InputError


def every_item(recommender: Recommender, history: list[str], user_id: str | None) -> dict[tuple[int, ...], float]:
    """Log-probability of every SCID, by the search that has no beams."""
    codes = np.array(recommender.items["codes"].to_list())
    known = dict(recommender.users.iter_rows()).get(user_id)
    prompt = recommender.prompt_builder.prompt(
        None if known is None else np.array(known), codes[[int(item) for item in history]]
    )
    search = ExhaustiveSearch(
        recommender.model, recommender.search.trie, recommender.prompt_builder.vocabulary.item_tokens
    )
    found = search.search(torch.tensor([prompt])).top(len(codes))
    return {
        tuple(codes[item]): score
        for item, score in zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
    }


def test_the_last_level_is_the_list_and_the_levels_lead_to_it(recommender):
    history = ["3", "17", "29"]
    levels = BeamViewer(recommender).levels(history, "u1")
    codes = {item: tuple(row) for item, row in recommender.items.select("item_id", "codes").iter_rows()}
    expected = recommender.recommend([history], ["u1"], k=10)[0]
    assert [prefix.codes for prefix in levels[2].kept] == [codes[item.item_id] for item in expected]
    assert [prefix.log_probability for prefix in levels[2].kept] == pytest.approx(
        [i.score for i in expected], abs=1e-5
    )
    assert [level.level for level in levels] == [1, 2, 3]
    assert [level.num_prefixes for level in levels] == [4, len({row[:2] for row in codes.values()}), 40]
    for above, below in pairwise(levels):
        assert {prefix.codes[:-1] for prefix in below.kept} <= {prefix.codes for prefix in above.kept}
        assert len(below.kept) == 10


def test_log_probabilities_are_those_of_the_model(recommender):
    exact = every_item(recommender, ["3", "17"], "u2")
    levels = BeamViewer(recommender).levels(["3", "17"], "u2")
    for prefix in levels[2].kept:
        assert prefix.log_probability == pytest.approx(exact[prefix.codes], abs=1e-4)
    # What goes on towards no item is lost on the way, so a prefix is at least as probable as its items together.
    for prefix in levels[0].kept:
        together = sum(math.exp(score) for codes, score in exact.items() if codes[0] == prefix.codes[0])
        assert math.exp(prefix.log_probability) >= together - 1e-6
    assert [p.log_probability for p in levels[0].kept] == sorted(
        (p.log_probability for p in levels[0].kept), reverse=True
    )
    assert levels[0].probability == pytest.approx(sum(math.exp(p.log_probability) for p in levels[0].kept))


def test_history_left_out_steers_the_beam_as_it_steers_the_list(recommender):
    history = [item.item_id for item in recommender.recommend([["3"]], k=10)[0]]
    viewer = BeamViewer(recommender)
    codes = {item: tuple(row) for item, row in recommender.items.select("item_id", "codes").iter_rows()}
    expected = recommender.recommend([history], k=10, exclude_seen=True)[0]
    kept = viewer.levels(history, exclude_seen=True)[2].kept
    assert [prefix.codes for prefix in kept] == [codes[item.item_id] for item in expected]
    assert not {prefix.codes for prefix in kept} & {codes[item] for item in history}


def test_a_prefix_names_its_items(recommender):
    viewer = BeamViewer(recommender, examples=2)
    for prefix in viewer.levels(["3"])[0].kept:
        below = [
            t for t, codes in recommender.items.select("title", "codes").iter_rows() if codes[0] == prefix.codes[0]
        ]
        assert prefix.num_items == len(below) and list(prefix.titles) == below[:2]


def test_watching_leaves_the_search_of_the_recommender_alone(recommender):
    before = recommender.recommend([["5"]], k=10)
    BeamViewer(recommender).levels(["5"])
    assert type(recommender.search) is ConstrainedBeamSearch and recommender.recommend([["5"]], k=10) == before


def test_an_unknown_user_is_prompted_without(recommender):
    viewer = BeamViewer(recommender)
    assert viewer.user_codes("u1").tolist() == [1, 2, 3] and viewer.user_codes("nobody") is None
    nobody, without, known = (viewer.levels(["5"], user) for user in ("nobody", None, "u1"))
    assert nobody == without != known


def test_common_words_are_shared_and_rare_elsewhere():
    words = CommonWords(["red tea pot", "green tea", "tea cosy red", "red car", "blue car", "old car of steel, 2024"])
    # tea: 3 of 3 items and 3 of 6 in all, lift 2, log 2 = 0.69; red: 2 of 3 and 3 of 6, lift 1.33: too little.
    assert words.of(np.array([0, 1, 2])) == ("tea",)
    # steel: 1 of 2 and 1 of 6, value 0.5 log 3 = 0.55; blue the same; car: 2 of 2 and 3 of 6, value log 2 = 0.69.
    assert words.of(np.array([4, 5])) == ("car", "blue", "old")
    assert words.of(np.array([0])) == () and words.of(np.array([1, 3])) == ("green",)


def test_wrong_arguments_are_named(recommender):
    with pytest.raises(InputError, match="texts: got 1 for 40 items"):
        BeamViewer(recommender, ["one"])
    everything = Recommender(recommender.model, recommender.tokenizer, recommender.items, num_beams="all")
    with pytest.raises(InputError, match="num_beams: a search of every item has no beams"):
        BeamViewer(everything)
    with pytest.raises(InputError, match="'x', which is not in the catalogue"):
        BeamViewer(recommender).levels(["x"])
