"""A fast tokenizer with SCID tokens. On disk it is an ordinary one: `AutoTokenizer` opens it without align3gr."""

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from align3gr.errors import InputError
from align3gr.scid.vocabulary import ITEM_FAMILY, USER_FAMILY, SCIDVocabulary, find_scid_tokens, scid_tokens

_BLANK = "▁"  # how SentencePiece writes a blank


class SCIDTokenizer(TokenizersBackend):
    """Any fast tokenizer, extended by the tokens of item and user SCIDs.

    The class has no `__init__` of its own: transformers would lose the pre-tokenizer and decoder on reload.

    ```python
    >>> from align3gr.scid.tokenization_scid import SCIDTokenizer, train_base_tokenizer
    >>> base = train_base_tokenizer(["red shoes", "blue shoes"], vocab_size=300)
    >>> tokenizer = SCIDTokenizer.from_base(base, item_codebook_sizes=[4, 4], user_codebook_sizes=[2])
    >>> tokenizer.tokenize("<i0_3><i1_0><u0_1>")
    ['<i0_3>', '<i1_0>', '<u0_1>']

    ```
    """

    @classmethod
    def from_base(
        cls,
        base: PreTrainedTokenizerFast,
        item_codebook_sizes: Sequence[int] = (256, 256, 256),
        user_codebook_sizes: Sequence[int] = (256, 256, 256),
    ) -> "SCIDTokenizer":
        """Extends a base tokenizer; the token ids of the base stay what they were.

        A SentencePiece-style base that puts a blank before every piece of text between two added tokens puts it at the
        start of the text only, as transformers' `LlamaTokenizer(legacy=False)` does.

        Args:
            base: a fast tokenizer with a pad or end-of-sequence token. It is not changed. One that has exactly the
                tokens asked for already is taken as it is.
            item_codebook_sizes, user_codebook_sizes: codes at each level; no user tokens if empty.

        Raises:
            InputError: the base is a slow tokenizer or a `legacy=True` one, has other SCID tokens already, or text
                around a SCID does not survive encoding and decoding.
        """
        if not getattr(base, "is_fast", False):
            raise InputError(f"base: {type(base).__name__} is not a fast tokenizer; load it with use_fast=True")
        if base.init_kwargs.get("legacy"):
            raise InputError("base: legacy=True tokenizers do not round-trip added tokens; load it with legacy=False")
        tokens = scid_tokens(ITEM_FAMILY, item_codebook_sizes) + scid_tokens(USER_FAMILY, user_codebook_sizes)
        _check_present(base, tokens)
        tokenizer = cls(
            tokenizer_object=_blank_at_start_only(base.backend_tokenizer),
            model_max_length=base.model_max_length,
            model_input_names=base.model_input_names,
            padding_side="left",
            truncation_side=base.truncation_side,
            clean_up_tokenization_spaces=False,
            **_special_tokens(base),
        )
        tokenizer.chat_template = base.chat_template
        # Normal added tokens: special ones vanish from decoded text, stripping ones break round trips.
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        _check_round_trip(tokenizer, tokens[0])
        return tokenizer

    @property
    def scid(self) -> SCIDVocabulary:
        """Where the SCID tokens stand."""
        return SCIDVocabulary.from_tokenizer(self)

    def _save_pretrained(
        self,
        save_directory: str | PathLike[Any],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Names a class on disk that every transformers from 4 on has, so that nothing asks for align3gr."""
        path = Path(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + TOKENIZER_CONFIG_FILE)
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        return super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)


def _special_tokens(base: PreTrainedTokenizerFast) -> dict[str, Any]:
    special: dict[str, Any] = {
        name: str(token) for name, token in base.special_tokens_map.items() if isinstance(token, str)
    }
    special.setdefault("pad_token", special.get("eos_token", ""))
    if not special["pad_token"]:
        raise InputError("base: has neither a pad token nor an end-of-sequence token; set one of them")
    if base.extra_special_tokens:
        special["extra_special_tokens"] = base.extra_special_tokens
    return special


def _check_present(base: PreTrainedTokenizerFast, tokens: Sequence[str]) -> None:
    """A base may hold the very tokens that are asked for as normal added tokens, or none."""
    present = find_scid_tokens(base.get_vocab())
    if not present:
        return
    added = {token.content for token in base.added_tokens_decoder.values() if not token.special and not token.lstrip}
    if set(present) != set(tokens) or not added.issuperset(tokens):
        raise InputError(
            f"base: has {len(present)} SCID tokens such as {present[0]} already, which are not the {len(tokens)} that "
            "these codebook sizes need; start from the tokenizer without them, or give the sizes that it has"
        )


def _blank_at_start_only(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts SentencePiece's leading blank before the text, not again behind every added token."""
    state = json.loads(tokenizer.to_str())
    splitters = [state["pre_tokenizer"] or {}, *(state["pre_tokenizer"] or {}).get("pretokenizers", [])]
    for splitter in splitters:
        if splitter.get("type") == "Metaspace" and splitter["prepend_scheme"] == "always":
            splitter["prepend_scheme"] = "first"
    normalizers = (state["normalizer"] or {}).get("normalizers", [state["normalizer"]])
    if {"type": "Prepend", "prepend": _BLANK} in normalizers and state["pre_tokenizer"] is None:
        # The form of Llama 2's tokenizer.json.
        others = [normalizer for normalizer in normalizers if normalizer["type"] != "Prepend"]
        state["normalizer"] = {"type": "Sequence", "normalizers": others}
        state["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": _BLANK,
            "prepend_scheme": "first",
            "split": False,
        }
    return Tokenizer.from_str(json.dumps(state))


def _check_round_trip(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    """Text on both sides of a SCID token comes back as it was, without blanks that nobody wrote."""

    def again(text: str) -> str:
        return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])).strip()

    if again("a") != "a" or again("b") != "b":
        return  # the vocabulary does not know these letters, so they say nothing
    if again(f"a{token}b") != f"a{token}b":
        raise InputError(
            f"base: it changes the text around added tokens, {f'a{token}b'!r} comes back as {again(f'a{token}b')!r}; "
            "use a byte-level tokenizer with add_prefix_space=False, or a SentencePiece one"
        )


def train_base_tokenizer(texts: Iterable[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the catalogue's texts, for models that start from a config.

    It adds `<s>` only where a prompt does so itself.

    Args:
        texts: what it will read.
        vocab_size: tokens, the 256 bytes among them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
