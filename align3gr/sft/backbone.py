"""The language model that learns to recommend: a small Llama or T5 from a config, or a pretrained one."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, PROFILE, TEXT
from align3gr.decoding.recommender import ITEM_CODES_FILE
from align3gr.encoders.embeddings import Embeddings
from align3gr.errors import InputError
from align3gr.scid.assigner import ENCODERS
from align3gr.scid.code_table import read_code_table
from align3gr.scid.embedding_init import resize_scid_embeddings
from align3gr.scid.modeling_dual_scid import DualSCIDModel
from align3gr.scid.tokenization_scid import SCIDTokenizer, train_base_tokenizer
from align3gr.scid.vocabulary import NORMALIZER_FIELD
from align3gr.sft.dropout import add_dropout
from align3gr.sft.lora import LoRAArguments, add_lora
from align3gr.sft.pretrained import load_backbone
from align3gr.sft.sft_arguments import SFTArguments
from align3gr.sft.t5 import T5Arguments, small_t5
from align3gr.undivided import undivided

logger = logging.getLogger(__name__)


@dataclass
class SmallLlamaConfig:
    """Shape of a Llama, or of a T5, that is trained from scratch.

    Args:
        hidden_size, intermediate_size, num_layers, num_heads: as in Llama; of a T5 see also `T5Arguments`.
        tie_embeddings: whether input and output embeddings are one matrix.
        max_positions: longest sequence.
    """

    hidden_size: int = 128
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 4
    tie_embeddings: bool = False
    max_positions: int = 512

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")


def small_llama(config: SmallLlamaConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights for this tokenizer.

    Args:
        config: its sizes.
        tokenizer: sets the size of the vocabulary.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_backbone(
    arguments: SFTArguments,
    small: SmallLlamaConfig,
    lora: LoRAArguments,
    split: Split,
    item_sizes: Sequence[int],
    user_sizes: Sequence[int],
    scid: Path,
    training: TrainingArguments,
    t5: T5Arguments | None = None,
) -> tuple[Any, SCIDTokenizer]:
    """The model that the recipe's options name, and its tokenizer.

    Args:
        arguments: `base_model`, `embedding_init`, `embedding_scale`, `base_vocab_size`, `dropout` and `normalizer`
            count.
        small: shape of the model where there is no base model.
        lora: whether and how an adapter is trained in place of all weights.
        split: its texts train the tokenizer of a model from scratch.
        item_sizes, user_sizes: codes at each level.
        scid: folder of the token level, for rows that start from code vectors.
        training: its seed draws whatever is drawn. Frozen weights under an adapter are bf16 where it trains in bf16;
            weights that train are fp32, whatever they were saved in.
        t5: whether it is an encoder-decoder, and which; a causal LM where it is None.

    Raises:
        InputError: the base model cannot be used, or there is none for an adapter. Options of a model from scratch
            that a base model leaves without effect are named in a warning.
    """
    seed = training.seed
    t5 = t5 or T5Arguments()
    if arguments.base_model is None:
        if lora.use_lora:
            raise InputError("use_lora: a model from scratch has no weights to adapt; name a base_model")
        texts = split.items[TEXT].to_list() + split.users[PROFILE].to_list()
        base = train_base_tokenizer(texts, arguments.base_vocab_size)
        tokenizer = SCIDTokenizer.from_base(base, item_sizes, user_sizes)
        if t5.encoder_decoder:
            shape = small.hidden_size, small.intermediate_size, small.num_layers, small.num_heads
            model: Any = small_t5(*shape, tokenizer, t5, seed)
        else:
            model = small_llama(small, tokenizer, seed)
        if arguments.embedding_init != "mean":
            resize_scid_embeddings(
                model,
                tokenizer,
                arguments.embedding_init,  # type: ignore[arg-type]
                _start_vectors(arguments, scid, item_sizes),
                scale=arguments.embedding_scale,
                seed=seed,
            )
        add_dropout(model, arguments.dropout)
        _say_normalizer(model, arguments)
        return model, tokenizer
    given = {**asdict(small), "dropout": arguments.dropout, "base_vocab_size": arguments.base_vocab_size}
    usual = {**asdict(SmallLlamaConfig()), **{f.name: f.default for f in fields(SFTArguments)}}
    if ignored := [name for name, value in given.items() if value != usual[name]]:
        logger.warning("base_model: %s of a model from scratch: no effect", ", ".join(ignored))
    _check_codes_of_base(Path(arguments.base_model), scid)
    model, tokenizer = load_backbone(
        arguments.base_model,
        item_sizes,
        user_sizes,
        init=arguments.embedding_init,  # type: ignore[arg-type]
        codebooks=_start_vectors(arguments, scid, item_sizes),
        scale=arguments.embedding_scale,
        dtype=torch.bfloat16 if lora.use_lora and training.bf16 else torch.float32,
        seed=seed,
        revision=arguments.base_model_revision,
        encoder_decoder=t5.encoder_decoder,
    )
    _say_normalizer(model, arguments)
    return (add_lora(model, tokenizer, lora, seed=seed) if lora.use_lora else model), tokenizer


def _check_codes_of_base(base: Path, scid: Path) -> None:
    """Refuses a model of another token level: its trained rows would keep what they mean for other items.

    Raises:
        InputError: it knows an item of this run under another SCID.
    """
    if not (base / ITEM_CODES_FILE).is_file():
        return
    known, here = read_code_table(base / ITEM_CODES_FILE), read_code_table(scid / ITEM_CODES_FILE)
    codes = dict(zip(known.ids, known.codes.tolist(), strict=True))
    other = [
        pair for pair in zip(here.ids, here.codes.tolist(), strict=True) if codes.get(pair[0], pair[1]) != pair[1]
    ]
    if other:
        item, own = other[0]
        raise InputError(
            f"base_model: {base} knows item {item!r} as {codes[item]}, this run as {own} ({len(other):,} differ); "
            "start from a model without SCIDs, or keep the codes (previous and pin of the scid stage)"
        )


def _say_normalizer(model: PreTrainedModel, arguments: SFTArguments) -> None:
    """Puts into the config what every search and every later training goes by."""
    if arguments.normalizer != "vocabulary" or hasattr(model.config, NORMALIZER_FIELD):
        setattr(model.config, NORMALIZER_FIELD, arguments.normalizer)


def _start_vectors(
    arguments: SFTArguments, scid: Path, item_sizes: Sequence[int]
) -> dict[Any, list[torch.Tensor]] | None:
    if arguments.embedding_init == "collaborative":
        return {"item": _collaborative_vectors(scid, item_sizes)}
    return _code_vectors(scid) if arguments.embedding_init == "codebook" else None


def _collaborative_vectors(scid: Path, item_sizes: Sequence[int]) -> list[torch.Tensor]:
    """For each level the mean collaborative vector of the items that carry a code; of all items where none does."""
    path, table = scid / ENCODERS / "items.parquet", read_code_table(scid / ITEM_CODES_FILE)
    vectors = None
    if path.is_file():
        vectors = Embeddings.load(path, ITEM_ID, pl.Series(ITEM_ID, table.ids, dtype=pl.String)).collaborative
    if vectors is None:
        raise InputError(
            f"embedding_init: collaborative needs collaborative vectors in {path}; train codes on them, or use mean"
        )
    values = torch.from_numpy(vectors).float()
    levels = []
    for size, codes in zip(item_sizes, torch.from_numpy(table.codes).T, strict=True):
        counts = torch.bincount(codes, minlength=size)[:, None]
        total = torch.zeros(size, values.shape[1]).index_add_(0, codes, values)
        levels.append(torch.where(counts > 0, total / counts.clamp_min(1), values.mean(0)))
    return levels


def _code_vectors(scid: Path) -> dict[Any, list[torch.Tensor]]:
    if not (scid / "model").is_dir():
        raise InputError(f"embedding_init: codebook needs {scid / 'model'}; imported codes have no vectors, use mean")
    with undivided():
        model = DualSCIDModel.from_pretrained(scid / "model")
    sides = {"item": model.item_rqvae, "user": model.user_rqvae if model.config.has_users else None}
    return {
        name: [book.detach() for book in side.quantizer.codebooks] for name, side in sides.items() if side is not None
    }
