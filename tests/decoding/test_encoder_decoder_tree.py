"""T5 and its like: one decoder row holds all beams, and scores are those of each item alone."""

import numpy as np
import polars as pl
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

SIZES = (6, 6, 6)
LEVEL_TOKENS = torch.arange(10, 28).view(3, 6)
PROMPTS = [[1, 12, 18, 25], [1, 30, 31, 32, 33, 11, 17, 24, 45], [7]]
LEFT = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in PROMPTS])
LEFT_MASK = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])


def make_t5(attention: str = "sdpa", kind: str = "t5") -> PreTrainedModel:
    torch.manual_seed(0)
    config_class, model_class = {
        "t5": (T5Config, T5ForConditionalGeneration),
        "mt5": (MT5Config, MT5ForConditionalGeneration),
        "umt5": (UMT5Config, UMT5ForConditionalGeneration),
    }[kind]
    config = config_class(
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        attn_implementation=attention,
    )
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:  # biases of 2 and more: a wrong distance is far beyond any tolerance
                wide = "relative_attention_bias" in name or ("shared" in name and kind == "t5")  # T5 scales its logits
                parameter.normal_(std=2.0 if wide else 0.3)
    return model.eval()


def catalogue() -> torch.Tensor:
    every = torch.cartesian_prod(*(torch.arange(size) for size in SIZES))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:60]]


def teacher_forced(model, codes: torch.Tensor, prompt: list[int]) -> torch.Tensor:
    """Log-probability of every item, each as the labels of a whole forward."""
    tokens = torch.stack([LEVEL_TOKENS[level][codes[:, level]] for level in range(codes.shape[1])], dim=1)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt]).expand(len(codes), -1), labels=tokens).logits
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("search_class", [ConstrainedBeamSearch, ExhaustiveSearch, StochasticBeamSearch])
def test_every_score_is_that_of_teacher_forcing(attention, kind, search_class):
    model, codes = make_t5(attention, kind), catalogue()
    options = {} if search_class is ExhaustiveSearch else {"num_beams": 60}
    search = search_class(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, **options)
    right, right_mask = (
        torch.stack([row.roll(-int((mask == 0).sum())) for row, mask in zip(each, LEFT_MASK, strict=True)])
        for each in (LEFT, LEFT_MASK)
    )
    for ids, mask in ((LEFT, LEFT_MASK), (right, right_mask)):
        output = search.search(ids, mask).top(60)
        for row, prompt in enumerate(PROMPTS):
            truth = teacher_forced(model, codes, prompt)
            assert truth.std() > 1.0
            assert output.items[row].sort().values.tolist() == list(range(60))
            torch.testing.assert_close(output.scores[row], truth[output.items[row]], atol=1e-4, rtol=0)
            if search_class is not StochasticBeamSearch:
                assert output.items[row].tolist() == truth.sort(descending=True).indices.tolist()


def test_lists_and_scores_are_those_of_generate():
    model, codes = make_t5(), catalogue()
    allowed: dict[tuple[int, ...], set[int]] = {}
    tokens = torch.stack([LEVEL_TOKENS[level][codes[:, level]] for level in range(3)], dim=1).tolist()
    for row in tokens:
        for level in range(3):
            allowed.setdefault(tuple(row[:level]), set()).add(row[level])
    expected = model.generate(
        LEFT,
        attention_mask=LEFT_MASK,
        prefix_allowed_tokens_fn=lambda _, sequence: sorted(allowed[tuple(sequence[1:].tolist())]),
        num_beams=8,
        num_return_sequences=8,
        max_new_tokens=3,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=8)
    output = search.search(LEFT, LEFT_MASK).top(8)
    answers = [[tokens[item] for item in row] for row in output.items.tolist()]
    assert answers == expected.sequences[:, 1:].view(3, 8, 3).tolist()
    torch.testing.assert_close(output.scores, expected.sequences_scores.view(3, 8), atol=1e-4, rtol=0)


def test_the_encoder_runs_once_a_batch():
    model = make_t5()
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    model.decoder.block[0].layer[1].EncDecAttention.k.register_forward_hook(lambda *_: calls.append(2))
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(catalogue(), SIZES), LEVEL_TOKENS, num_beams=8)
    search.search(LEFT, LEFT_MASK)
    assert calls == [1, 2]  # and the keys of the encoder's output are computed once, for all levels and beams


def test_rankings_of_many_users():
    model, codes = make_t5(), catalogue()
    search = ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, SIZES), LEVEL_TOKENS, num_beams=60)
    prompts = [[*range(30, 45), *prompt] for prompt in PROMPTS] * 8  # an encoder shares no beginning
    rankings = generate_rankings(search, prompts, "auto", 60, [[5]] * 24, progress=False)
    for row in range(3):
        order = teacher_forced(model, codes, prompts[row]).sort(descending=True).indices.tolist()
        assert rankings.seen_allowed[row].tolist() == order
        assert rankings.masked[row, :59].tolist() == [item for item in order if item != 5]


def test_a_recommender_opens_and_serves_it(tokenizer, tables, tmp_path):
    model = make_t5()
    recommender = Recommender(model, tokenizer, *tables, num_beams=6)
    recommender.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path, device="cpu", num_beams=6)
    assert isinstance(loaded.model, T5ForConditionalGeneration)
    ranking = loaded.recommend([["b", "c"]], ["u1"], k=6)[0]
    prompt = [0, 15, 20, 25, 2, 7, 12, 5, 7, 10]  # as for a decoder: <s>, the user, the items
    codes = np.array(tables[0]["codes"].to_list())
    tokens = torch.from_numpy(recommender.prompt_builder.vocabulary.item_ids(codes))
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([prompt]).expand(6, -1), labels=tokens).logits.log_softmax(-1)
    truth = dict(zip("abcdef", log_probs.gather(-1, tokens[..., None]).sum((1, 2)).tolist(), strict=True))
    assert [entry.item_id for entry in ranking] == sorted(truth, key=truth.get, reverse=True)
    assert pl.read_parquet(tmp_path / "item_codes.parquet").height == 6


def test_what_cannot_be_searched_is_refused():
    trie = SCIDTrie.from_codes(catalogue(), SIZES)
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=60,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    for model in (bart, make_t5(kind="umt5")):  # UMT5 has a table of biases in each layer
        with pytest.raises(InputError, match="no relative position bias that all layers share"):
            ConstrainedBeamSearch(model, trie, LEVEL_TOKENS)
    model = make_t5()
    model.config.decoder_start_token_id = None
    with pytest.raises(InputError, match="no decoder_start_token_id"):
        ConstrainedBeamSearch(model, trie, LEVEL_TOKENS)
    search = ConstrainedBeamSearch(make_t5(), trie, LEVEL_TOKENS)
    with pytest.raises(InputError, match="a token in each prompt"):
        search.search(LEFT, torch.zeros_like(LEFT))
