"""Every item scored by blocks of a tree, against the same items as plain continuations."""

import pytest
import torch

import align3gr.decoding.exhaustive_search as exhaustive_search
from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.exhaustive import exhaustive_scores
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.trie import SCIDTrie

PROMPTS = [[1, 12, 18, 25], [1, 50, 51, 52, 53, 11, 17, 24, 45], [7]]
INPUT_IDS = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in PROMPTS])
MASK = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
LEVEL_TOKENS = torch.arange(10, 49).view(3, 13)


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    every = torch.cartesian_prod(*[torch.arange(13)] * 3)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:2000]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_thousand_items_score_as_plain_continuations(tiny_model, codes, architecture, attention):
    model = tiny_model(architecture, attention)
    trie = SCIDTrie.from_codes(codes, (13, 13, 13))
    output = ExhaustiveSearch(model, trie, LEVEL_TOKENS).search(INPUT_IDS, MASK).top(2000)
    for row, prompt in enumerate(PROMPTS):
        truth = exhaustive_scores(model, trie, LEVEL_TOKENS, prompt)
        assert output.items[row].sort().values.tolist() == list(range(2000))
        torch.testing.assert_close(output.scores[row], truth[output.items[row]], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.scores[row], truth.sort(descending=True).values, atol=1e-4, rtol=0)


def test_blocks_of_any_size_give_the_same(tiny_model, codes, monkeypatch):
    model, trie = tiny_model(), SCIDTrie.from_codes(codes[:300], (13, 13, 13))
    search = ExhaustiveSearch(model, trie, LEVEL_TOKENS)
    whole = search.search(INPUT_IDS, MASK).top(300)
    for tokens in (1, 21, 100):  # one prefix a block, seven, thirty-three
        monkeypatch.setattr(exhaustive_search, "_BLOCK_TOKENS", tokens)
        parts = search.search(INPUT_IDS, MASK).top(300)
        torch.testing.assert_close(parts.scores, whole.scores, atol=1e-5, rtol=0)


def test_the_cache_of_the_prompt_does_not_grow(tiny_model, codes, monkeypatch):
    lengths = []
    model = tiny_model()
    model.register_forward_pre_hook(
        lambda _, args, options: lengths.append(options["past_key_values"].get_seq_length()), with_kwargs=True
    )
    monkeypatch.setattr(exhaustive_search, "_BLOCK_TOKENS", 60)
    ExhaustiveSearch(model, SCIDTrie.from_codes(codes[:300], (13, 13, 13)), LEVEL_TOKENS).search(INPUT_IDS, MASK)
    assert len(lengths) > 5 and lengths == [0] + [9] * (len(lengths) - 1)  # each block sees the nine prompt columns


def test_only_prefixes_of_items_that_may_be_shown_are_computed(tiny_model, codes):
    model, trie = tiny_model(), SCIDTrie.from_codes(codes, (13, 13, 13))
    search = ExhaustiveSearch(model, trie, LEVEL_TOKENS)
    every = search.search(INPUT_IDS, MASK).top(2000)
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, options: sizes.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    allowed, denied = [[3, 1500, 77], [8], []], [8, 77]
    output = search.search(INPUT_IDS, MASK, allowed, denied).top(4)
    prefixes = {tuple(codes[item, :depth].tolist()) for item in (3, 1500) for depth in (1, 2)}
    assert sizes == [9, len(prefixes)]
    score = dict(zip(every.items[0].tolist(), every.scores[0].tolist(), strict=True))
    best = sorted((3, 1500), key=score.get, reverse=True)
    assert output.items.tolist() == [[*best, -1, -1], [-1] * 4, [-1] * 4]
    assert output.scores[0, :2].tolist() == pytest.approx([score[item] for item in best], abs=1e-5)
    assert (search.search(INPUT_IDS, MASK, allowed=[]).top(4).items == -1).all()


@pytest.mark.parametrize("normalizer", ["vocabulary", "level"])
def test_other_depths_and_normalisers(tiny_model, codes, normalizer):
    model = tiny_model()
    for levels in (1, 2):
        table = torch.cat([codes[:40, :levels], codes[:5, :levels]])  # some SCIDs twice
        trie = SCIDTrie.from_codes(table, (13,) * levels)
        tokens = LEVEL_TOKENS[:levels]
        beam = ConstrainedBeamSearch(model, trie, tokens, num_beams=45, normalizer=normalizer)
        expected = beam.search(INPUT_IDS, MASK).top(45)
        output = ExhaustiveSearch(model, trie, tokens, normalizer).search(INPUT_IDS, MASK).top(45)
        assert output.items.tolist() == expected.items.tolist()
        torch.testing.assert_close(output.scores, expected.scores, atol=1e-5, rtol=0)


def test_both_lists_of_many_users(tiny_model, codes):
    model, trie = tiny_model(), SCIDTrie.from_codes(codes[:200], (13, 13, 13))
    seen = [[1, 2, 3], [], [150]]
    rankings = generate_rankings(ExhaustiveSearch(model, trie, LEVEL_TOKENS), PROMPTS, 2, 30, seen, progress=False)
    for row, prompt in enumerate(PROMPTS):
        order = exhaustive_scores(model, trie, LEVEL_TOKENS, prompt).sort(descending=True).indices.tolist()
        assert rankings.seen_allowed[row].tolist() == order[:30]
        assert rankings.masked[row].tolist() == [item for item in order if item not in seen[row]][:30]
