"""Tiny random models and catalogues, made in memory."""

from collections.abc import Callable

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from align3gr.decoding.recommender import Recommender
from align3gr.scid.vocabulary import scid_tokens

VOCABULARY = 60
CODES = [[0, 0, 0], [0, 1, 2], [3, 1, 0], [2, 2, 2], [1, 3, 3], [3, 1, 1]]


def make_model(architecture: str = "llama", attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A two-layer model whose next-token distributions are far from flat, so that orders are clear."""
    torch.manual_seed(seed)
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_implementation=attention
        )
        model = GPT2LMHeadModel(config)
    else:
        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        }[architecture]
        config = config_class(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            attn_implementation=attention,
        )
        model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    model.config.pad_token_id = 0
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a new tiny model: `tiny_model(architecture="llama", attention="sdpa", seed=0)`."""
    return make_model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "[UNK]": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), bos_token="<s>", unk_token="[UNK]"
    )
    tokenizer.add_tokens(scid_tokens("i", [4, 4, 4]) + scid_tokens("u", [4, 4, 4]))
    return tokenizer


@pytest.fixture
def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    items = pl.DataFrame({"item_id": list("abcdef"), "title": ["A", "B", None, "D", "E", "F"], "codes": CODES})
    users = pl.DataFrame({"user_id": ["u1", "u2"], "codes": [[1, 2, 3], [0, 0, 0]]})
    return items, users


@pytest.fixture
def recommender(tiny_model, tokenizer, tables) -> Recommender:
    return Recommender(tiny_model(), tokenizer, *tables, num_beams=6)
