"""Allowed and denied items: against the score of every item, restricted by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.exhaustive import exhaustive_scores
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.item_filter import ItemFilter
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

PROMPTS = [[1, 2, 3], [4]]
INPUT_IDS = torch.tensor([[1, 2, 3], [0, 0, 4]])
MASK = torch.tensor([[1, 1, 1], [0, 0, 1]])


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


def level_tokens(sizes: tuple[int, ...]) -> torch.Tensor:
    table = torch.full((len(sizes), max(sizes)), -1)
    for level, size in enumerate(sizes):
        table[level, :size] = torch.arange(10 + 10 * level, 10 + 10 * level + size)
    return table


@st.composite
def requests(draw):
    levels = draw(st.integers(1, 4))
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(levels))
    items = draw(st.integers(1, 25))
    codes = [[draw(st.integers(0, size - 1)) for size in sizes] for _ in range(items)]
    some = st.sets(st.integers(-1, items + 2), max_size=items + 3).map(sorted)
    sets = st.one_of(st.none(), some, st.tuples(some, some).map(list))
    prompts = draw(st.lists(st.lists(st.integers(1, 59), min_size=1, max_size=6), min_size=2, max_size=2))
    return sizes, torch.tensor(codes), draw(sets), draw(sets), draw(st.integers(1, 8)), prompts


def of_row(sets, row: int) -> list[int] | None:
    return sets[row] if sets and isinstance(sets[0], list) else sets


@given(requests())
@settings(max_examples=60, deadline=None)
def test_lists_are_the_best_of_the_items_left(model, drawn):
    """Nothing outside, nothing denied, none twice, as many as there are up to k, with their own scores, in order.

    Where every prefix is kept, in a wide beam and in the exhaustive search, the order is that of all scores.
    """
    sizes, codes, allowed, denied, k, prompts = drawn
    trie, tokens, items = SCIDTrie.from_codes(codes, sizes), level_tokens(sizes), len(codes)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    searches = {
        "narrow": (ConstrainedBeamSearch(model, trie, tokens, num_beams=k), k),
        "wide": (ConstrainedBeamSearch(model, trie, tokens, num_beams=items), items),
        "exhaustive": (ExhaustiveSearch(model, trie, tokens), items),
        "sampled": (StochasticBeamSearch(model, trie, tokens, num_beams=k, seed=k), k),
    }
    outputs = {name: search.search(ids, mask, allowed, denied).top(n) for name, (search, n) in searches.items()}
    for row, prompt in enumerate(prompts):
        left = set(range(items)) - set(of_row(denied, row) or [])
        if allowed is not None:
            left &= set(of_row(allowed, row) or [])
        truth = exhaustive_scores(model, trie, tokens, prompt)
        best = sorted(left, key=lambda item: (-truth[item].item(), codes[item].tolist(), item))
        for name, (_, n) in searches.items():
            shown = outputs[name].items[row].tolist()
            length = min(n, len(left))
            assert set(shown[:length]) <= left and len(set(shown[:length])) == length, name
            assert shown[length:] == [-1] * (n - length), name
            scores = outputs[name].scores[row, :length]
            torch.testing.assert_close(scores, truth[shown[:length]], atol=1e-4, rtol=0)
            assert outputs[name].scores[row, length:].isinf().all()
            assert name == "sampled" or (scores.diff() <= 0).all()
            if name in ("wide", "exhaustive"):
                # Equal but for rounding may stand in another order; the score of each place may not differ.
                torch.testing.assert_close(truth[shown[:length]], truth[best], atol=2e-5, rtol=0)


def test_a_long_deny_list_starves_a_list_that_is_masked_afterwards_but_not_a_search(model):
    codes = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, (6, 6)), level_tokens((6, 6)), num_beams=2)
    reached = search.search(INPUT_IDS, MASK)
    deny = [leaves.tolist() for leaves in reached.leaves]  # all twelve items under the two first codes of each prompt
    assert (reached.top(2, denied=deny).items == -1).all()
    steered = search.search(INPUT_IDS, MASK, denied=deny).top(2).items
    assert (steered >= 0).all() and all(not set(a) & set(b) for a, b in zip(steered.tolist(), deny, strict=True))
    rankings = generate_rankings(search, PROMPTS, 2, 2, histories=deny, progress=False)
    assert rankings.masked.tolist() == steered.tolist()
    assert rankings.seen_allowed.tolist() == reached.top(2).items.tolist()
    first = steered[:, 0].tolist()
    both = generate_rankings(search, PROMPTS, 2, 2, histories=deny, progress=False, denied=first).masked
    assert (both >= 0).all()
    assert all(not set(shown) & {*seen, *first} for shown, seen in zip(both.tolist(), deny, strict=True))


def test_sets_follow_their_prompts_through_the_batches(model):
    codes = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, (6, 6)), level_tokens((6, 6)), num_beams=3)
    prompts = [[1], [1, 2, 3], [5, 5]]  # ranked longest first
    allowed = [[0, 7, 9], [30, 31], [12]]
    items = generate_rankings(search, prompts, 1, 3, progress=False, allowed=allowed, denied=[9]).seen_allowed
    assert [sorted(row) for row in items.tolist()] == [[-1, 0, 7], [-1, 30, 31], [-1, -1, 12]]


def test_top_chooses_among_what_was_reached(model):
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1]])
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, (2, 2)), level_tokens((2, 2)), num_beams=5)
    reached = search.search(INPUT_IDS, MASK, denied=[0])
    every = reached.top(5).items.tolist()
    chosen = reached.top(5, denied=[[1], []], allowed=[[0, 1, 3], [4, 2]]).items.tolist()
    assert chosen[0] == [3, -1, -1, -1, -1]
    assert chosen[1] == [item for item in every[1] if item in (2, 4)] + [-1] * 3


def test_counts_by_hand():
    # In code order: items 1 | 0 3 | 4 under 0 | 2; first code 0 has items 1, 0, 3, first code 1 has 4, 2.
    trie = SCIDTrie.from_codes(torch.tensor([[0, 1], [0, 0], [1, 1], [0, 1], [1, 0]]), (2, 2))
    nodes = torch.tensor([[0, 1, -1], [0, 1, -1]])
    by_row = ItemFilter(trie, 2, denied=[[0, 1, 3], [2]])
    assert by_row.alive(1, nodes).tolist() == [[False, True, False], [True, True, False]]
    both = ItemFilter(trie, 2, allowed=[0, 2, 4], denied=[[0, 1], [4, 4, 2, 99]])
    assert both.alive(1, nodes).tolist() == [[False, True, False], [True, False, False]]
    items = torch.tensor([[0, 1, 2, 3, 4, -1]] * 2)
    assert both.allows(items).tolist() == [
        [False, False, True, False, True, False],
        [True, False, False, False, False, False],
    ]
    assert not ItemFilter(trie, 2, allowed=np.array([], dtype=np.int64)).alive(1, nodes).any()


def test_sets_for_another_number_of_prompts_are_refused(model):
    search = ConstrainedBeamSearch(
        model, SCIDTrie.from_codes(torch.tensor([[0], [1]]), (2,)), level_tokens((2,)), num_beams=2
    )
    with pytest.raises(InputError, match="allowed: got 1 sets for a batch of 2"):
        search.search(INPUT_IDS, MASK, allowed=[[0]])
    with pytest.raises(InputError, match="denied: got 3 for 2 prompts"):
        generate_rankings(search, PROMPTS, 2, 1, progress=False, denied=[[0], [1], []])
