"""Plain `generate` under the processor, against the search and against distributions by hand."""

import pytest
import torch
from transformers import LogitsProcessorList

from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.logits_processor import SCIDLogitsProcessor
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

SIZES = (6, 6, 6)
LEVEL_TOKENS = torch.arange(10, 28).view(3, 6)
INPUT_IDS = torch.tensor([[0, 0, 1, 12, 18, 25], [30, 31, 11, 17, 24, 45]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def random_codes(items: int) -> torch.Tensor:
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:items]]


def item_of(codes: torch.Tensor) -> dict[tuple[int, ...], int]:
    tokens = torch.stack([LEVEL_TOKENS[level][codes[:, level]] for level in range(3)], dim=1)
    return {tuple(row): item for item, row in enumerate(tokens.tolist())}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_beams_of_generate_are_the_lists_of_the_search(tiny_model, architecture):
    model, codes = tiny_model(architecture), random_codes(60)
    trie = SCIDTrie.from_codes(codes, SIZES)
    output = model.generate(
        INPUT_IDS,
        attention_mask=MASK,
        logits_processor=LogitsProcessorList([SCIDLogitsProcessor(trie, LEVEL_TOKENS, 6)]),
        num_beams=8,
        num_return_sequences=8,
        length_penalty=0.0,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = [item_of(codes)[tuple(row)] for row in output.sequences[:, 6:].tolist()]
    ours = ConstrainedBeamSearch(model, trie, LEVEL_TOKENS, num_beams=8).search(INPUT_IDS, MASK).top(8)
    assert ours.items.flatten().tolist() == items
    torch.testing.assert_close(ours.scores.flatten(), output.sequences_scores, atol=1e-4, rtol=0)


def test_samples_stay_in_the_catalogue_and_end(tiny_model):
    model, codes = tiny_model(), random_codes(40)
    trie = SCIDTrie.from_codes(codes, SIZES).without(range(10))
    torch.manual_seed(0)
    sequences = model.generate(
        INPUT_IDS,
        attention_mask=MASK,
        logits_processor=LogitsProcessorList([SCIDLogitsProcessor(trie, LEVEL_TOKENS, 6, eos_token_id=3)]),
        do_sample=True,
        top_k=0,
        temperature=2.0,
        num_return_sequences=100,
        max_new_tokens=8,
        eos_token_id=3,
    )
    assert sequences.shape == (200, 6 + 4) and (sequences[:, 9] == 3).all()
    items = {item_of(codes)[tuple(row)] for row in sequences[:, 6:9].tolist()}
    assert items <= set(range(10, 40)) and len(items) > 5


def test_what_is_left_by_hand():
    trie = SCIDTrie.from_codes(torch.tensor([[0, 1], [0, 2], [2, 0]]), (3, 3))
    tokens = torch.tensor([[5, 6, 7], [8, 9, 4]])
    processor = SCIDLogitsProcessor(trie, tokens, 1, eos_token_id=3)
    scores = torch.arange(20.0).view(2, 10)

    def left(*sequence: int) -> list[int]:
        output = processor(torch.tensor([sequence, [1, *[0] * (len(sequence) - 1)]]), scores)
        kept = output[0].isfinite().nonzero().flatten()
        assert torch.equal(output[0, kept], scores[0, kept])
        return kept.tolist()

    assert left(1) == [5, 7]
    assert left(1, 5) == [4, 9]
    assert left(1, 7) == [8]
    assert left(1, 6) == []  # a code that no item has
    assert left(1, 9) == []  # a token of another level
    assert left(1, 5, 9) == [3]
    assert left(1, 5, 9, 3) == [3]


def test_calls_that_do_not_fit_are_named():
    trie = SCIDTrie.from_codes(torch.tensor([[0], [1]]), (2,))
    processor = SCIDLogitsProcessor(trie, torch.tensor([[5, 6]]), 2)
    with pytest.raises(InputError, match="generate with max_new_tokens=1"):
        processor(torch.tensor([[1, 1, 5]]), torch.zeros(1, 10))
    with pytest.raises(InputError, match="prompt_length: got 2, but a sequence has 1 tokens"):
        processor(torch.tensor([[1]]), torch.zeros(1, 10))
    with pytest.raises(InputError, match="made for other codes"):
        SCIDLogitsProcessor(trie, torch.tensor([[5]]), 2)
    with pytest.raises(InputError, match="prompt_length: got 0"):
        SCIDLogitsProcessor(trie, torch.tensor([[5, 6]]), 0)
