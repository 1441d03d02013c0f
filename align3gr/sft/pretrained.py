"""Pretrained language models with a vocabulary that knows SCIDs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from align3gr.errors import InputError
from align3gr.scid.embedding_init import CodeVectors, Init, resize_scid_embeddings
from align3gr.scid.tokenization_scid import SCIDTokenizer
from align3gr.scid.vocabulary import find_scid_tokens
from align3gr.undivided import undivided

logger = logging.getLogger(__name__)


def load_backbone(
    name_or_path: str | Path,
    item_codebook_sizes: Sequence[int],
    user_codebook_sizes: Sequence[int] = (),
    init: Init = "mean",
    codebooks: Mapping[Literal["item", "user"], CodeVectors] | None = None,
    scale: float = 1.0,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    encoder_decoder: bool = False,
) -> tuple[PreTrainedModel, SCIDTokenizer]:
    """A model of the Hub or of a folder, with rows for the SCID tokens, and its tokenizer with these tokens.

    Under ZeRO-3 each process loads the whole model into host memory; DeepSpeed divides it when training begins.

    Args:
        name_or_path: Hub id or folder of a causal LM with a fast tokenizer.
        item_codebook_sizes, user_codebook_sizes: codes at each level; no user tokens if empty.
        init, codebooks, scale, seed: how the new rows start, see [`resize_scid_embeddings`]. A model that has SCID
            tokens of these sizes already keeps its rows.
        dtype, attn_implementation: as in `AutoModelForCausalLM.from_pretrained`.
        revision: branch, tag or commit on the Hub.
        encoder_decoder: whether the model is one, such as T5, in place of a causal LM.

    Raises:
        InputError: the model cannot be loaded, or its tokenizer cannot be extended.
    """
    try:
        base: Any = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
        tokenizer = SCIDTokenizer.from_base(base, item_codebook_sizes, user_codebook_sizes)
        options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        kind: Any = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
        with undivided():
            model: Any = kind.from_pretrained(name_or_path, revision=revision, dtype=dtype, **options)
    except InputError as error:
        raise InputError(f"base_model {name_or_path}: {error}") from error
    except (
        OSError,
        ValueError,
    ) as error:  # what transformers raises where a file is missing, or the model is of another kind
        raise InputError(
            f"base_model {name_or_path}: cannot be loaded: {' '.join(str(error).split())[:300]}; give the folder or "
            f"the Hub id of {'an encoder-decoder' if encoder_decoder else 'a causal LM'} with its tokenizer"
        ) from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(base) > rows:
        # Rows of these tokens would be no SCID's: neither trained nor saved with an adapter.
        raise InputError(
            f"base_model {name_or_path}: its tokenizer has {len(base)} tokens, the model {rows} rows; take the model "
            "with its own tokenizer"
        )
    if known := find_scid_tokens(base.get_vocab()):
        logger.info("%s: has %d SCID tokens, whose rows are kept as they were trained", name_or_path, len(known))
        _follow_special_tokens(model, tokenizer)
        return model, tokenizer
    with undivided():
        new = resize_scid_embeddings(model, tokenizer, init=init, codebooks=codebooks, scale=scale, seed=seed)
    _follow_special_tokens(model, tokenizer)
    logger.info("%s: %d tokens and %d SCID tokens behind them", name_or_path, len(base), len(new))
    return model, tokenizer


def _follow_special_tokens(model: PreTrainedModel, tokenizer: SCIDTokenizer) -> None:
    """A base without a pad token is padded with the one the tokenizer took."""
    for config in (model.config, model.generation_config):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
