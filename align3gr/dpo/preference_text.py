"""Preference rows of text or messages become token ids, as TRL's `DPOTrainer` makes them."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from align3gr.errors import InputError

logger = logging.getLogger(__name__)

Messages = list[dict[str, Any]]


class PreferenceTokenizer:
    """Maps rows of `prompt`, `chosen` and `rejected` to `prompt_ids`, `chosen_ids` and `rejected_ids`.

    A completion is text or a list of messages, `rejected` one completion or a list of them. Without a `prompt` it is
    what all completions begin with. Token ids are those of prompt and completion together, from where they leave the
    prompt's own; where a prompt ends inside a token, or is rendered differently without an answer, its end is left out
    and a warning says so once.

    Args:
        tokenizer: Its chat template renders messages, the prompt with the header of the answer (`tools` and
            `chat_template_kwargs` of the row are passed to it).
        source: Name of the dataset in messages.
        append_eos: Text completions end with the end-of-sequence token. Messages end as the template ends them.
        max_length: Completions are cut to what the prompt leaves of it.

    Raises:
        InputError: (when called) A row mixes text and messages, or its tokenizer lacks what it needs.
    """

    def __init__(self, tokenizer: Any, source: str, append_eos: bool, max_length: int | None):
        self.tokenizer, self.source = tokenizer, source
        self.append_eos, self.max_length = append_eos, max_length
        self._warned = False

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        where = f"{self.source} dataset, row {index}"
        prompt, completions = _split_row(row, where)
        if isinstance(prompt, str):
            sequences = self._text_ids(prompt, completions, where)
        else:
            sequences = self._message_ids(prompt, completions, row, where)
        length = _common_length(sequences)
        if length < len(sequences[0]) and not self._warned:
            self._warned = True
            logger.warning(
                "%s: tokens merge across the end of the prompt, or the chat template renders it differently without "
                "an answer; %r is left out of the prompt, here and wherever else it happens",
                where,
                self.tokenizer.decode(sequences[0][length:]),
            )
        ids = [sequence[length : self.max_length] for sequence in sequences[1:]]
        return {"prompt_ids": sequences[0][:length], "chosen_ids": ids[0], "rejected_ids": ids[1:]}

    def _text_ids(self, prompt: str, completions: list[str], where: str) -> list[list[int]]:
        """Ids of the prompt, and of prompt and completion for each."""
        end = self.tokenizer.eos_token if self.append_eos else ""
        if end is None:
            raise InputError(
                f"{where}: the tokenizer has no eos_token to end texts with; set one, or append_eos=False"
            )
        texts = [text if text.endswith(end) else text + end for text in completions]
        return [self.tokenizer(text=text)["input_ids"] for text in [prompt, *(prompt + text for text in texts)]]

    def _message_ids(
        self, prompt: Messages, completions: list[Messages], row: dict[str, Any], where: str
    ) -> list[list[int]]:
        """The same of messages; the prompt has the header of the answer that follows."""
        if not self.tokenizer.chat_template:
            raise InputError(f"{where}: messages need a chat template; set tokenizer.chat_template, or pass text")
        tools = row.get("tools")
        options = {"tools": json.loads(tools) if isinstance(tools, str) else tools, "tokenize": True}
        options |= {"return_dict": True} | (row.get("chat_template_kwargs") or {})
        render = self.tokenizer.apply_chat_template
        asked = render(prompt, add_generation_prompt=True, **options)["input_ids"]
        return [asked, *(render(prompt + messages, **options)["input_ids"] for messages in completions)]


def leaves_room(row: dict[str, Any], max_length: int) -> bool:
    """Whether a tokenised row keeps something of its completions within `max_length`."""
    return len(row["prompt_ids"]) < max_length


def _split_row(row: dict[str, Any], where: str) -> tuple[Any, list[Any]]:
    """The prompt, and the completions with the chosen one first; all text or all messages."""
    chosen, rejected = row["chosen"], row["rejected"] or []
    if isinstance(rejected, str) or _is_messages(rejected):
        rejected = [rejected]
    completions = [chosen, *rejected]
    prompt = row.get("prompt")
    parts = completions if prompt is None else [prompt, *completions]
    if not (all(isinstance(part, str) for part in parts) or all(_is_messages(part) for part in parts)):
        raise InputError(
            f"{where}: prompt, chosen and every rejected must be all text or all messages (a list of role and "
            f"content); got {', '.join(sorted({_kind(part) for part in parts}))}"
        )
    if prompt is None:
        # A blank before the completions belongs to them: " word" is a token of its own.
        length = _common_length(completions)
        if isinstance(chosen, str) and chosen[:length].endswith(" "):
            length -= 1
        prompt, completions = chosen[:length], [completion[length:] for completion in completions]
    if not prompt:
        raise InputError(f"{where}: an empty prompt; without a column prompt, completions begin with the same prompt")
    return prompt, completions


def _common_length(sequences: Sequence[Sequence[Any]]) -> int:
    """Number of leading elements that all have in common."""
    length = 0
    for elements in zip(*sequences, strict=False):
        if any(element != elements[0] for element in elements):
            break
        length += 1
    return length


def _is_messages(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(m, dict) and "role" in m for m in part)


def _kind(part: Any) -> str:
    return "text" if isinstance(part, str) else "messages" if _is_messages(part) else repr(part)[:40]
