"""Draws without replacement: their frequencies, and what they may and may not depend on."""

import itertools

import pytest
import torch
from scipy.stats import chi2

from align3gr.decoding.beam_search import generate_rankings
from align3gr.decoding.exhaustive import exhaustive_scores
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

CODES = torch.tensor([[0, 0, 0], [0, 1, 2], [3, 1, 0], [2, 2, 2], [1, 3, 3], [3, 1, 1], [3, 0, 1], [2, 1, 1]])
LEVEL_TOKENS = torch.arange(10, 22).view(3, 4)
PROMPTS = [[1, 12, 18, 25], [1, 30, 31, 32, 33, 11], [7]]
INPUT_IDS = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in PROMPTS])
MASK = torch.tensor([[0] * (6 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])


@pytest.fixture(scope="module")
def trie() -> SCIDTrie:
    return SCIDTrie.from_codes(CODES, (4, 4, 4))


@pytest.fixture(scope="module")
def indifferent(tiny_model):
    """A model to which the tokens 30 to 59 are one, and 4,096 prompts of three of them."""
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[30:] = model.model.embed_tokens.weight[30]
    return model, torch.tensor(list(itertools.product(range(30, 46), repeat=3)))


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Of Pearson's chi-square test; cells with less than 5 expected are taken together."""
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    there = expected > 0
    statistic = ((counts - expected) ** 2 / expected.clamp_min(1e-9))[there].sum()
    return float(chi2.sf(statistic, int(there.sum()) - 1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 8])
def test_draws_follow_the_probabilities_of_the_items(indifferent, trie, temperature, num_beams):
    """The first draw those of all items, the second those of the items that are left."""
    model, prompts = indifferent
    tokens = torch.stack([LEVEL_TOKENS[level][CODES[:, level]] for level in range(3)], dim=1)
    sequences = torch.cat([prompts[:1].expand(8, -1), tokens], dim=1)
    with torch.no_grad():
        log_probs = (model(sequences).logits / temperature).log_softmax(-1)[:, 2:-1]
    truth = log_probs.gather(-1, tokens[..., None]).sum((1, 2)).double().softmax(0)
    search = StochasticBeamSearch(model, trie, LEVEL_TOKENS, num_beams, temperature, seed=3)
    draws = search.search(prompts).top(2).items
    firsts = torch.bincount(draws[:, 0], minlength=8).double()
    assert p_value(firsts, truth * len(draws)) > 1e-3
    assert (draws[:, 0] != draws[:, 1]).all()
    pairs = torch.bincount(draws[:, 0] * 8 + draws[:, 1], minlength=64).double()
    left = (truth[:, None] * truth / (1 - truth[:, None])).fill_diagonal_(0.0).flatten()
    assert p_value(pairs, left * len(draws)) > 1e-3
    assert p_value(firsts, torch.full((8,), len(draws) / 8)) < 1e-9  # the test can tell


def test_draws_under_allow_and_deny_follow_the_probabilities_of_what_is_left(indifferent, trie):
    model, prompts = indifferent
    truth = exhaustive_scores(model, trie, LEVEL_TOKENS, prompts[0].tolist()).double()
    left = [0, 2, 4, 5]
    search = StochasticBeamSearch(model, trie, LEVEL_TOKENS, num_beams=6)
    draws = search.search(prompts, allowed=[0, 1, 2, 4, 5], denied=[1, 7]).top(6)
    assert draws.items[:, :4].sort(dim=1).values.unique(dim=0).tolist() == [left]
    assert (draws.items[:, 4:] == -1).all() and draws.scores[:, 4:].isinf().all()
    counts = torch.bincount(draws.items[:, 0], minlength=8).double()[left]
    assert p_value(counts, truth[left].softmax(0) * len(prompts)) > 1e-3


def test_scores_are_the_models_whatever_the_temperature(tiny_model, trie):
    model = tiny_model()
    output = StochasticBeamSearch(model, trie, LEVEL_TOKENS, temperature=3.0).search(INPUT_IDS, MASK).top(8)
    for row, prompt in enumerate(PROMPTS):
        assert output.items[row].sort().values.tolist() == list(range(8))
        truth = exhaustive_scores(model, trie, LEVEL_TOKENS, prompt)
        torch.testing.assert_close(output.scores[row], truth[output.items[row]], atol=1e-4, rtol=0)


def test_draws_depend_on_seed_and_prompt_alone(tiny_model, trie):
    model = tiny_model()

    def drawn(seed: int, beams: int, ids=INPUT_IDS, mask=MASK) -> list[list[int]]:
        return (
            StochasticBeamSearch(model, trie, LEVEL_TOKENS, beams, seed=seed).search(ids, mask).top(3).items.tolist()
        )

    together = drawn(0, 3)
    assert drawn(0, 3) == together
    assert drawn(0, 8) == together  # a wider search sees the same noise
    assert [drawn(0, 3, torch.tensor([prompt]), torch.ones(1, len(prompt)))[0] for prompt in PROMPTS] == together
    assert drawn(0, 3, INPUT_IDS.flip(0), MASK.flip(0)) == together[::-1]
    assert len({str(drawn(seed, 3)) for seed in range(8)}) > 4
    search = StochasticBeamSearch(model, trie, LEVEL_TOKENS, 3)
    for batch_size in (1, 2, "auto"):
        assert generate_rankings(search, PROMPTS, batch_size, 3, progress=False).seen_allowed.tolist() == together


def test_given_widths_are_kept(indifferent, trie):
    """Two beams of one prefix each cannot give what was drawn under another one: nearly, not exactly."""
    model, prompts = indifferent
    exact = StochasticBeamSearch(model, trie, LEVEL_TOKENS, 2)
    narrow = StochasticBeamSearch(model, trie, LEVEL_TOKENS, 2, widths=[2, 2, 2])
    full = StochasticBeamSearch(model, trie, LEVEL_TOKENS, 2, widths=[4, 8, 2])
    items = exact.search(prompts[:500]).top(2).items
    assert torch.equal(full.search(prompts[:500]).top(2).items, items)
    same = (narrow.search(prompts[:500]).top(2).items == items).all(dim=1).float().mean()
    assert 0.2 < same < 1.0


def test_items_that_share_a_scid_come_together(tiny_model):
    shared = SCIDTrie.from_codes(torch.cat([CODES, CODES[2:3]]), (4, 4, 4))  # items 2 and 8
    search = StochasticBeamSearch(tiny_model(), shared, LEVEL_TOKENS, 9)
    for row in search.search(INPUT_IDS, MASK).top(9).items.tolist():
        assert sorted(row) == list(range(9)) and row.index(8) == row.index(2) + 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_other_temperatures_are_refused(tiny_model, trie, temperature):
    with pytest.raises(InputError, match=f"temperature: got {temperature}"):
        StochasticBeamSearch(tiny_model(), trie, LEVEL_TOKENS, temperature=temperature)
