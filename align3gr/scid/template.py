"""Templates of prompts and answers: text with fields, rendered to token ids.

`"[User {user}. ]History: {history}."` has two fields. A part in square brackets is left out where one of its fields is
None, so that one template serves users with and without an SCID. SCIDs go in as token ids. Text is tokenised as it
would be in the whole string, so the ids are those of `tokenizer(whole string)`, blanks of SentencePiece included.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from align3gr.errors import InputError
from align3gr.scid.vocabulary import find_scid_tokens

Value = str | Sequence[int] | None

_PIECE = re.compile(r"\{([a-z_]+)\}|([\[\]])|([^\[\]{}]+)|(.)", re.DOTALL)


class TextTokenizer:
    """Token ids of a piece of text, at the start of a sequence or behind other tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Text behind an added token is tokenised on its own; the anchor shows how, and is cut off again.
        self._anchor = next(iter(find_scid_tokens(tokenizer.get_added_vocab())), None)
        self.ids = lru_cache(maxsize=100_000)(self._ids)

    def _ids(self, text: str, continued: bool) -> tuple[int, ...]:
        if not text:
            return ()
        if continued and self._anchor is not None:
            return tuple(self._tokenizer(self._anchor + text, add_special_tokens=False)["input_ids"][1:])
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class Template:
    """A text with fields.

    Args:
        text: the template; `{name}` is a field, `[...]` a part that vanishes where one of its fields is None.
        texts: the tokenizer of its text.

    Attributes:
        fields: names of its fields.

    Raises:
        InputError: a bracket or brace has no partner, or brackets stand within brackets.
    """

    def __init__(self, text: str, texts: TextTokenizer) -> None:
        self.text = text
        self._texts = texts
        self._parts = _parse(text)
        self.fields = template_fields(text)
        self.required = frozenset(
            name for optional, part in self._parts if not optional for is_field, name in part if is_field
        )

    def render(self, values: Mapping[str, Value], continued: bool = False) -> list[int]:
        """Token ids of the filled template.

        Args:
            values: for each field a text, token ids, or None.
            continued: whether other tokens (save BOS) stand in front of it.

        Raises:
            InputError: a field outside brackets has no value.
        """
        ids: list[int] = []
        pending = ""  # text is tokenised as one piece as far as no SCID cuts it
        for optional, part in self._parts:
            missing = [name for is_field, name in part if is_field and values.get(name) is None]
            if missing and optional:
                continue
            if missing:
                raise InputError(f"template {self.text!r}: field {missing[0]!r} has no value")
            for is_field, content in part:
                value = values[content] if is_field else content
                if isinstance(value, str):
                    pending += value
                    continue
                ids += self._texts.ids(pending, continued or bool(ids))
                ids += [int(token) for token in value or ()]
                pending = ""
        return [*ids, *self._texts.ids(pending, continued or bool(ids))]


def template_fields(text: str) -> frozenset[str]:
    """Names of the fields of a template.

    Raises:
        InputError: as for [`Template`].
    """
    return frozenset(name for _, part in _parse(text) for is_field, name in part if is_field)


def _parse(text: str) -> list[tuple[bool, list[tuple[bool, str]]]]:
    """Parts `(optional, [(is_field, content), ...])` of a template."""
    parts: list[tuple[bool, list[tuple[bool, str]]]] = [(False, [])]
    for field, bracket, plain, stray in _PIECE.findall(text):
        if stray or ((bracket == "[") == parts[-1][0] and bracket):
            raise InputError(
                f"template {text!r}: expected text, {{field}} with small letters, and [parts] that are not nested; "
                f"{(stray or bracket)!r} has no partner or stands within brackets"
            )
        if bracket:
            parts.append((bracket == "[", []))
        else:
            parts[-1][1].append((bool(field), field or plain))
    if parts[-1][0]:
        raise InputError(f"template {text!r}: '[' is not closed")
    return [part for part in parts if part[1]]
