"""What all prompts begin with is computed once, and nothing but the time changes."""

import pytest
import torch

from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

TEMPLATE = [1, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 40]
PROMPTS = [[*TEMPLATE, *rest] for rest in ([12, 18, 25], [31], [11, 17, 24, 12, 18, 25], [12, 12], [12, 13])]
LEVEL_TOKENS = torch.arange(10, 28).view(3, 6)


@pytest.fixture(scope="module")
def trie() -> SCIDTrie:
    every = torch.cartesian_prod(*[torch.arange(6)] * 3)
    return SCIDTrie.from_codes(every[torch.randperm(216, generator=torch.Generator().manual_seed(0))[:60]], (6, 6, 6))


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def watch(model) -> list[tuple[int, int]]:
    """A log of the shapes of the tokens that the model is asked."""
    shapes = []
    model.register_forward_pre_hook(
        lambda _, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [ConstrainedBeamSearch, ExhaustiveSearch, StochasticBeamSearch])
def test_lists_and_scores_are_those_of_whole_prompts(tiny_model, trie, architecture, attention, kind):
    search = kind(tiny_model(architecture, attention), trie, LEVEL_TOKENS)
    whole = search.search(*left_padded(PROMPTS)).top(8)
    for length in (1, 5, 12):
        output = search.search(*left_padded(PROMPTS), prefix=search.prefix(TEMPLATE[:length])).top(8)
        assert output.items.tolist() == whole.items.tolist()
        torch.testing.assert_close(output.scores, whole.scores, atol=1e-5, rtol=0)


def test_rankings_compute_a_long_common_beginning_once(tiny_model, trie):
    model = tiny_model()
    search = ConstrainedBeamSearch(model, trie, LEVEL_TOKENS, num_beams=5)
    prompts = PROMPTS * 6
    expected = [search.search(torch.tensor([prompt])).top(5) for prompt in PROMPTS]
    shapes = watch(model)
    rankings = generate_rankings(search, prompts, batch_size=15, k=5, progress=False)
    # The template alone, then two batches: the longest rest of 6 and of 2 tokens, and two levels of beams.
    assert shapes == [(1, 12), (15, 6), (15, 5), (15, 5), (15, 2), (15, 5), (15, 5)]
    for row in range(30):
        assert rankings.seen_allowed[row].tolist() == expected[row % 5].items[0].tolist()
        torch.testing.assert_close(
            torch.from_numpy(rankings.seen_allowed_scores[row]), expected[row % 5].scores[0], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("prompts", "first"),
    [
        (PROMPTS, (5, 18)),  # too few prompts: 12 x 4 tokens saved
        ([[1, 2, 3, 4, 5, 6, 7, 9], [1, 2, 3, 4, 5, 6, 7, 8]] * 32, (64, 8)),  # 7 tokens in common
        ([[1, 2, 3, 4, 5, 6, 7, 8]] * 64, (64, 8)),  # equal prompts: the last token is everyone's own
        ([[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 64, (1, 8)),
    ],
)
def test_a_short_or_rare_beginning_is_not_worth_it(tiny_model, trie, prompts, first):
    model = tiny_model()
    shapes = watch(model)
    generate_rankings(ConstrainedBeamSearch(model, trie, LEVEL_TOKENS), prompts, 64, 5, progress=False)
    assert shapes[0] == first


def test_prompts_that_begin_otherwise_are_refused(tiny_model, trie):
    search = ConstrainedBeamSearch(tiny_model(), trie, LEVEL_TOKENS)
    prefix = search.prefix(TEMPLATE)
    for other in ([*TEMPLATE[:11], 9, 12], TEMPLATE, [7]):
        with pytest.raises(InputError, match="prefix: prompt 1 is not its 12 tokens and at least one more"):
            search.search(*left_padded([PROMPTS[0], other]), prefix=prefix)


def test_a_change_of_the_model_is_seen_by_the_next_rankings(tiny_model, trie):
    model = tiny_model()
    search = ConstrainedBeamSearch(model, trie, LEVEL_TOKENS, num_beams=5)
    before = generate_rankings(search, PROMPTS * 8, 40, 5, progress=False)
    model.load_state_dict(tiny_model(seed=1).state_dict())
    after = generate_rankings(search, PROMPTS * 8, 40, 5, progress=False)
    fresh = ConstrainedBeamSearch(tiny_model(seed=1), trie, LEVEL_TOKENS, num_beams=5)
    assert (
        after.seen_allowed.tolist()
        == generate_rankings(fresh, PROMPTS * 8, 40, 5, progress=False).seen_allowed.tolist()
    )
    assert after.seen_allowed.tolist() != before.seen_allowed.tolist()
