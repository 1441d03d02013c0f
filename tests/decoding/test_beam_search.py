"""The search against `generate`, against scoring every item, and against everything that could bend it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
)

from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.exhaustive import exhaustive_scores
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

SIZES = (6, 6, 6)
LEVEL_TOKENS = torch.arange(10, 28).view(3, 6)
PROMPTS = [[1, 12, 18, 25], [1, 30, 31, 32, 33, 11, 17, 24, 45], [7]]


def catalogue(items: int = 60, seed: int = 0) -> torch.Tensor:
    """Distinct random SCIDs."""
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:items]]


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def naive_scores(model, codes: torch.Tensor, prompt: list[int], level_tokens=LEVEL_TOKENS) -> torch.Tensor:
    """Log-probability of every item, each as one whole sequence without any cache."""
    tokens = torch.stack([level_tokens[level][codes[:, level]] for level in range(codes.shape[1])], dim=1)
    sequences = torch.cat([torch.tensor(prompt).expand(len(codes), -1), tokens], dim=1)
    with torch.no_grad():
        log_probs = model(sequences).logits.float().log_softmax(-1)
    answer = log_probs[:, len(prompt) - 1 : -1].gather(-1, tokens[..., None])
    return answer.squeeze(-1).sum(-1)


def generated(model, codes, prompts: list[list[int]], num_beams: int) -> tuple[list[list[int]], torch.Tensor]:
    """The same lists from `generate` with a dictionary trie."""
    allowed: dict[tuple[int, ...], set[int]] = {}
    tokens = torch.stack([LEVEL_TOKENS[level][codes[:, level]] for level in range(3)], dim=1).tolist()
    for row in tokens:
        for level in range(3):
            allowed.setdefault(tuple(row[:level]), set()).add(row[level])
    ids, mask = left_padded(prompts)
    length = ids.shape[1]
    output = model.generate(
        ids,
        attention_mask=mask,
        prefix_allowed_tokens_fn=lambda _, sequence: sorted(allowed[tuple(sequence[length:].tolist())]),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=3,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    item_of = {tuple(row): item for item, row in enumerate(tokens)}
    items = [item_of[tuple(row)] for row in output.sequences[:, length:].tolist()]
    lists = np.array(items).reshape(len(prompts), num_beams).tolist()
    return lists, output.sequences_scores.view(len(prompts), num_beams)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_lists_and_scores_are_those_of_generate(tiny_model, architecture):
    model, codes = tiny_model(architecture), catalogue()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=8)
    output = search.search(*left_padded(PROMPTS)).top(8)
    items, scores = generated(model, codes, PROMPTS, num_beams=8)
    assert output.items.tolist() == items
    torch.testing.assert_close(output.scores, scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_wide_beams_rank_the_whole_catalogue_exactly(tiny_model, architecture, attention):
    model, codes = tiny_model(architecture, attention), catalogue()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=60)
    output = search.search(*left_padded(PROMPTS)).top(60)
    for row, prompt in enumerate(PROMPTS):
        expected = naive_scores(model, codes, prompt).sort(descending=True)
        assert output.items[row].tolist() == expected.indices.tolist()
        torch.testing.assert_close(output.scores[row], expected.values, atol=1e-4, rtol=0)


def test_exhaustive_scores_are_those_of_whole_sequences(tiny_model):
    model = tiny_model()
    codes = torch.cat([catalogue(), catalogue()[:3]])  # three SCIDs twice
    trie = SCIDTrie.from_codes(codes, SIZES)
    scores = exhaustive_scores(model, trie, LEVEL_TOKENS, PROMPTS[1], batch_size=7)
    torch.testing.assert_close(scores, naive_scores(model, codes, PROMPTS[1]), atol=1e-4, rtol=0)
    trie = SCIDTrie.from_codes(codes[:6, :1], SIZES[:1])
    scores = exhaustive_scores(model, trie, LEVEL_TOKENS[:1], PROMPTS[1])
    torch.testing.assert_close(scores, naive_scores(model, codes[:6, :1], PROMPTS[1]), atol=1e-4, rtol=0)


def test_a_row_does_not_depend_on_its_batch(tiny_model):
    search = ConstrainedBeamSearch(tiny_model(), SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS, num_beams=5)
    together = search.search(*left_padded(PROMPTS)).top(5)
    for row, prompt in enumerate(PROMPTS):
        alone = search.search(torch.tensor([prompt])).top(5)
        assert alone.items[0].tolist() == together.items[row].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[row], atol=1e-5, rtol=0)


def test_a_wide_first_level_finds_what_a_narrow_beam_loses():
    """Level 0 prefers code 0 by a little, its child costs a lot; the true best item stands under code 1."""
    model = FixedLogits({(): [0.6, 0.4], (0,): [0.1, 0.1], (1,): [0.9, 0.1]})
    trie = SCIDTrie.from_codes(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    tokens = torch.tensor([[0, 1], [2, 3]])
    narrow = ConstrainedBeamSearch(model, trie, tokens, num_beams=1)
    wide = ConstrainedBeamSearch(model, trie, tokens, num_beams=1, widths=[2, 1])
    prompt = torch.tensor([[5, 5]])
    assert narrow.search(prompt).top(1).items.tolist() == [[0]]
    best = wide.search(prompt).top(1)
    assert best.items.tolist() == [[2]]
    assert best.scores.item() == pytest.approx(np.log(0.4 * 0.9), abs=1e-6)


def test_equal_scores_stand_in_code_order():
    """0.3 = 0.3 at level 0 and everything below alike: items in code order, whatever their index."""
    model = FixedLogits({(): [0.3, 0.3], (0,): [0.25, 0.25], (1,): [0.25, 0.25]})
    trie = SCIDTrie.from_codes(torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]), (2, 2))
    search = ConstrainedBeamSearch(model, trie, torch.tensor([[0, 1], [2, 3]]), num_beams=4)
    assert search.search(torch.tensor([[5]])).top(4).items.tolist() == [[3, 2, 1, 0]]
    search = ConstrainedBeamSearch(model, trie, torch.tensor([[0, 1], [2, 3]]), num_beams=3, widths=[1, 3])
    assert search.search(torch.tensor([[5]])).top(3).items.tolist() == [[3, 2, -1]]


def test_level_normaliser_is_another_score():
    """Over the level's two tokens alone 0.3 and 0.1 become 0.75 and 0.25."""
    model = FixedLogits({(): [0.3, 0.1], (0,): [0.2, 0.2], (1,): [0.8, 0.1]})
    trie = SCIDTrie.from_codes(torch.tensor([[0, 0], [1, 0]]), (2, 2))
    tokens = torch.tensor([[0, 1], [2, 3]])
    prompt = torch.tensor([[5]])
    exact = ConstrainedBeamSearch(model, trie, tokens, num_beams=2).search(prompt).top(2)
    level = ConstrainedBeamSearch(model, trie, tokens, num_beams=2, normalizer="level").search(prompt).top(2)
    assert exact.items.tolist() == [[1, 0]]
    np.testing.assert_allclose(exact.scores[0], np.log([0.1 * 0.8, 0.3 * 0.2]), atol=1e-6)
    assert level.items.tolist() == [[0, 1]]
    np.testing.assert_allclose(level.scores[0], np.log([0.75 * 0.5, 0.25 * 8 / 9]), atol=1e-6)


class FixedLogits(torch.nn.Module):
    """A model over 6 tokens with given probabilities of the tokens of the next level, by the codes so far.

    Level 0 has tokens 0 and 1, level 1 has 2 and 3; the rest of the probability goes to token 5.
    """

    def __init__(self, probabilities: dict[tuple[int, ...], list[float]]):
        super().__init__()
        self.config = LlamaConfig(attn_implementation="sdpa")
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.probabilities = probabilities

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep):
        logits = torch.empty(*input_ids.shape, 6)
        for row, tokens in enumerate(input_ids.tolist()):
            for place, token in enumerate(tokens):
                level = 0 if token == 5 else 1
                pair = self.probabilities[() if level == 0 else (token,)]
                distribution = [1e-9] * 6
                distribution[2 * level : 2 * level + 2] = pair
                distribution[5] = 1 - sum(pair)
                logits[row, place] = torch.tensor(distribution).clamp_min(1e-9).log()
        return SimpleNamespace(logits=logits[:, -1:] if logits_to_keep else logits)


@st.composite
def catalogues(draw):
    levels = draw(st.integers(1, 4))
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(levels))
    items = draw(st.integers(1, 30))
    codes = [[draw(st.integers(0, size - 1)) for size in sizes] for _ in range(items)]
    deny = [sorted(draw(st.sets(st.integers(0, items - 1), max_size=items))) for _ in range(2)]
    return sizes, torch.tensor(codes), deny, draw(st.integers(1, 12))


@given(catalogues())
@settings(max_examples=60, deadline=None)
def test_any_catalogue_gives_only_its_items(shared_model, drawn):
    """No id outside, none twice, denied never shown, order and scores true; wide beams show all that is left."""
    sizes, codes, deny, num_beams = drawn
    level_tokens = torch.full((len(sizes), max(sizes)), -1)
    for level, size in enumerate(sizes):
        level_tokens[level, :size] = torch.arange(10 + 10 * level, 10 + 10 * level + size)
    trie = SCIDTrie.from_codes(codes, sizes)
    prompts = [[1, 2, 3], [4]]
    search = ConstrainedBeamSearch(shared_model, trie, level_tokens, num_beams=num_beams)
    candidates = search.search(*left_padded(prompts))
    for denied in (None, deny):
        output = candidates.top(num_beams, denied=denied)
        for row, prompt in enumerate(prompts):
            items = [item for item in output.items[row].tolist() if item >= 0]
            assert output.items[row].tolist() == items + [-1] * (num_beams - len(items))
            assert len(set(items)) == len(items)
            assert all(item < len(codes) for item in items)
            assert not denied or not set(items) & set(denied[row])
            assert torch.isinf(output.scores[row, len(items) :]).all()
            expected = naive_scores(shared_model, codes, prompt, level_tokens)[items]
            torch.testing.assert_close(output.scores[row, : len(items)], expected, atol=1e-4, rtol=0)
            assert (output.scores[row, : len(items)].diff() <= 0).all()
            if num_beams >= len(codes):
                assert len(items) == len(codes) - (len(denied[row]) if denied else 0)


@pytest.fixture(scope="module")
def shared_model(tiny_model):
    return tiny_model()


def test_denied_items_make_room_for_the_next_best(tiny_model):
    model, codes = tiny_model(), catalogue()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=60)
    candidates = search.search(torch.tensor([PROMPTS[0]]))
    ranking = candidates.top(20).items[0].tolist()
    masked = candidates.top(5, denied=[[ranking[0], ranking[2], -1, 10_000]]).items[0].tolist()
    assert masked == [ranking[1], ranking[3], ranking[4], ranking[5], ranking[6]]


def test_items_that_share_a_scid_share_its_score(tiny_model):
    codes = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]])
    search = ConstrainedBeamSearch(tiny_model(), SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=4)
    output = search.search(torch.tensor([PROMPTS[0]])).top(4)
    items = output.items[0].tolist()
    assert [item for item in items if item != 1] == [0, 2, 3]
    assert output.scores[0][[items.index(item) for item in (0, 2, 3)]].unique().numel() == 1


def test_generation_config_cannot_bend_the_search(tiny_model):
    model = tiny_model()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS, num_beams=8)
    expected = search.search(*left_padded(PROMPTS)).top(8)
    best = int(LEVEL_TOKENS[0, catalogue()[expected.items[0, 0], 0]])
    model.generation_config = GenerationConfig(
        suppress_tokens=[best], bad_words_ids=[[best]], forced_eos_token_id=3, repetition_penalty=5.0, num_beams=2
    )
    before = model.generation_config.to_dict()
    output = search.search(*left_padded(PROMPTS)).top(8)
    assert output.items.tolist() == expected.items.tolist()
    assert torch.equal(output.scores, expected.scores)
    assert model.generation_config.to_dict() == before


def test_bf16_scores_are_near_and_in_fp32(tiny_model):
    model, codes = tiny_model(), catalogue()
    trie = SCIDTrie.from_codes(codes, SIZES)
    search = ConstrainedBeamSearch(model.bfloat16(), trie, LEVEL_TOKENS, num_beams=60)
    output = search.search(*left_padded(PROMPTS)).top(60)
    assert output.scores.dtype == torch.float32
    exact = tiny_model()
    for row, prompt in enumerate(PROMPTS):
        expected = naive_scores(exact, codes, prompt)[output.items[row]]
        assert (output.scores[row] - expected).abs().median() < 0.1


def test_an_adapter_with_trained_token_rows_is_searched_as_it_scores(tiny_model):
    peft = pytest.importorskip("peft")
    ids = LEVEL_TOKENS.flatten().tolist()
    model = peft.get_peft_model(
        tiny_model(),
        peft.LoraConfig(
            target_modules=["q_proj", "v_proj"], trainable_token_indices={"embed_tokens": ids, "lm_head": ids}
        ),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    codes = catalogue()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=60)
    output = search.search(*left_padded(PROMPTS)).top(60)
    for row, prompt in enumerate(PROMPTS):
        expected = naive_scores(model.eval(), codes, prompt).sort(descending=True)
        assert output.items[row].tolist() == expected.indices.tolist()
        torch.testing.assert_close(output.scores[row], expected.values, atol=1e-4, rtol=0)
        unadapted = naive_scores(tiny_model(), codes, prompt)[output.items[row]]
        assert (output.scores[row] - unadapted).abs().max() > 0.1


def test_modes_are_restored_and_training_goes_on(tiny_model):
    model = tiny_model()
    model.train()
    model.model.layers[0].eval()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS, num_beams=4)
    search.search(torch.tensor([PROMPTS[0]]))
    assert model.training and model.lm_head.training and not model.model.layers[0].mlp.training
    model(torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_rankings_of_many_users(tiny_model):
    search = ConstrainedBeamSearch(tiny_model(), SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS, num_beams=6)
    candidates = search.search(*left_padded(PROMPTS))
    histories = [candidates.top(2).items[row].tolist() for row in range(3)]
    rankings = generate_rankings(search, PROMPTS, batch_size=2, k=4, histories=histories, progress=False)
    assert rankings.seen_allowed.tolist() == candidates.top(4).items.tolist()
    assert rankings.masked.tolist() == candidates.top(4, denied=histories).items.tolist()
    np.testing.assert_allclose(rankings.masked_scores, candidates.top(4, denied=histories).scores, atol=1e-5)
    assert [row[:2].tolist() for row in rankings.seen_allowed] == histories
    alone = generate_rankings(search, PROMPTS, batch_size=2, k=4, progress=False)
    assert alone.masked is None and alone.seen_allowed.tolist() == rankings.seen_allowed.tolist()
    assert generate_rankings(search, [], batch_size=2, k=4, progress=False).seen_allowed.shape == (0, 4)


def test_what_cannot_be_searched_is_refused(tiny_model):
    trie = SCIDTrie.from_codes(catalogue(), SIZES)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="BloomForCausalLM cannot decode a tree"):
        ConstrainedBeamSearch(bloom, trie, LEVEL_TOKENS)
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=r'flash_attention_2.*attn_implementation="sdpa"'):
        ConstrainedBeamSearch(model, trie, LEVEL_TOKENS)
    model = tiny_model()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match=r"layers of type .'linear_attention'."):
        ConstrainedBeamSearch(model, trie, LEVEL_TOKENS)
    with pytest.raises(InputError, match="transformers causal LM"):
        ConstrainedBeamSearch(torch.nn.Linear(1, 1), trie, LEVEL_TOKENS)


def test_a_prompt_learning_adapter_is_refused(tiny_model):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match="prompt-learning adapter"):
        ConstrainedBeamSearch(model, SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS)


def test_a_prompt_longer_than_the_sliding_window_is_refused():
    config = MistralConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=6,
    )
    search = ConstrainedBeamSearch(MistralForCausalLM(config), SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS)
    assert search.search(torch.tensor([[1, 2, 3, 4]])).top(1).items.shape == (1, 1)
    with pytest.raises(InputError, match="need 7 tokens, the model's sliding window holds 6"):
        search.search(torch.tensor([[1, 2, 3, 4, 5]]))
    search.model.config.use_sliding_window = False  # as Qwen2's configuration says it
    assert search.search(torch.tensor([[1, 2, 3, 4, 5]])).top(1).items.shape == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams: got 0"),
        ({"widths": [8, 4]}, "expected 3 positive numbers ending in num_beams=4"),
        ({"widths": [8, 4, 8]}, "ending in num_beams=4"),
        ({"normalizer": "none"}, "normalizer: got 'none'"),
        ({"level_tokens": LEVEL_TOKENS[:2]}, "made for other codes"),
        ({"level_tokens": LEVEL_TOKENS + 40}, "level 1 has ids 56 to 61, the model has 60"),
        ({"level_tokens": LEVEL_TOKENS.clamp_min(12)}, "level 0 names a token twice"),
    ],
)
def test_options_that_do_not_fit_are_named(tiny_model, options, message):
    arguments = {"level_tokens": LEVEL_TOKENS, "num_beams": 4} | options
    with pytest.raises(InputError, match=message):
        ConstrainedBeamSearch(tiny_model(), SCIDTrie.from_codes(catalogue(), SIZES), **arguments)


def test_calls_that_do_not_fit_are_named(tiny_model):
    model = tiny_model()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS, num_beams=4)
    ids, mask = left_padded(PROMPTS)
    candidates = search.search(ids, mask)
    with pytest.raises(InputError, match="k: got 5, expected 1 to num_beams=4"):
        candidates.top(5)
    with pytest.raises(InputError, match="denied: got 1 rows for a batch of 3"):
        candidates.top(4, denied=[[1]])
    with pytest.raises(InputError, match="left-padded"):
        search.search(ids.flip(1), mask.flip(1))
    with pytest.raises(InputError, match="need 66 positions, the model has 64"):
        search.search(torch.ones(1, 64, dtype=torch.long))
    with pytest.raises(InputError, match="prompt 1 is empty"):
        generate_rankings(search, [[1], []], batch_size=2, k=2, progress=False)
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="logits are NaN"):
        search.search(ids, mask)
