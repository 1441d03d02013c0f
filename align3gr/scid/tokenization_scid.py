"""A fast tokenizer with SCID tokens. On disk it is an ordinary one: `AutoTokenizer` opens it without align3gr."""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from align3gr.errors import InputError
from align3gr.scid.vocabulary import ITEM_FAMILY, USER_FAMILY, SCIDVocabulary, scid_tokens


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

        Args:
            base: a fast tokenizer with an end-of-sequence token. It is not changed.
            item_codebook_sizes, user_codebook_sizes: codes at each level; no user tokens if empty.

        Raises:
            InputError: the base is a slow tokenizer or a `legacy=True` one, whose texts do not survive a round trip.
        """
        if not getattr(base, "is_fast", False):
            raise InputError(f"base: {type(base).__name__} is not a fast tokenizer; load it with use_fast=True")
        if base.init_kwargs.get("legacy"):
            raise InputError("base: legacy=True tokenizers do not round-trip added tokens; load it with legacy=False")
        special = {name: str(token) for name, token in base.special_tokens_map.items() if isinstance(token, str)}
        special.setdefault("pad_token", special.get("eos_token", ""))
        if not special["pad_token"]:
            raise InputError("base: has neither a pad token nor an end-of-sequence token; set one of them")
        tokenizer = cls(
            tokenizer_object=Tokenizer.from_str(base.backend_tokenizer.to_str()),
            model_max_length=base.model_max_length,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            **special,
        )
        tokens = scid_tokens(ITEM_FAMILY, item_codebook_sizes) + scid_tokens(USER_FAMILY, user_codebook_sizes)
        # Normal added tokens: special ones vanish from decoded text, stripping ones break round trips.
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        return tokenizer

    @property
    def scid(self) -> SCIDVocabulary:
        """Where the SCID tokens stand."""
        return SCIDVocabulary.from_tokenizer(self)


def train_base_tokenizer(texts: Iterable[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the catalogue's texts, for models that start from a config.

    It adds `<s>` only where a prompt does so itself.
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
