"""Tiny pretrained language models of several families, saved as the Hub has them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

TEXTS = ["red shoes for running", "blue shoes", "the user likes what is red", "what comes next?"]
FAMILIES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
    "gemma3_text": Gemma3TextConfig,  # scales its embeddings in the module that holds them
}
SPARE_ROWS = {"qwen2": 8}  # behind the vocabulary, as Qwen2 has them


def base_tokenizer(pad: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", *(["<pad>"] if pad else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def save_backbone(
    folder: Path,
    family: str = "llama",
    tied: bool = False,
    pad: bool = True,
    dtype: torch.dtype = torch.float32,
    **sizes: int,
) -> Path:
    """A model of random weights with its tokenizer, as a folder of the Hub."""
    tokenizer = base_tokenizer(pad)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer) + SPARE_ROWS.get(family, 0),
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
    } | sizes
    config = FAMILIES[family](
        **sizes,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
