"""The one place where a prompt is made: fine-tuning, preference training, evaluation and serving all call it.

A prompt is a list of token ids, never a string: BOS, then the template filled with the SCID of the user and those of
the history's items, oldest first. The completion is the SCID of one item. Where nothing stands between history and
answer, one sequence can teach every item of a history at once.
"""

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from align3gr.errors import InputError
from align3gr.scid.template import Template, TextTokenizer
from align3gr.scid.vocabulary import SCIDVocabulary

PROMPT_FILE = "prompt.json"
DEFAULT_TEMPLATE = "[{user}]{history}"


class PromptBuilder:
    """Builds prompts of token ids from codes.

    Args:
        tokenizer: a tokenizer with SCID tokens.
        max_history: the latest items of a history that a prompt keeps.
        user_scid: whether a user's SCID stands in the prompt.
        template: text around `{history}`, and `{user}` in front of it, in square brackets with the text that goes
            with it: the part vanishes for a user without an SCID.

    Attributes:
        suffix: token ids between history and answer, empty where nothing stands there.

    Raises:
        InputError: the template lacks `{history}`, names other fields, or the tokenizer has no user tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_history: int = 20,
        user_scid: bool = True,
        template: str = DEFAULT_TEMPLATE,
    ) -> None:
        if max_history < 1:
            raise InputError(f"max_history must be at least 1, got {max_history}")
        self.vocabulary = SCIDVocabulary.from_tokenizer(tokenizer)
        if user_scid and self.vocabulary.user_tokens.size == 0:
            raise InputError("user_scid=True, but the tokenizer has no user SCID tokens")
        before, found, after = template.partition("{history}")
        texts = TextTokenizer(tokenizer)
        self._before, behind = Template(before, texts), Template(after, texts)
        if not found or self._before.fields - {"user"} or behind.fields:
            raise InputError(
                f"template: got {template!r}, expected text with one {{history}} outside brackets, no other field "
                f"than {{user}} in front of it and none behind it, such as {DEFAULT_TEMPLATE!r}"
            )
        if "user" in self._before.required:
            raise InputError(f"template: put {{user}} in brackets, {template!r} cannot prompt for an unknown user")
        self.settings = {"max_history": max_history, "user_scid": user_scid, "template": template}
        self.max_history = max_history
        self.user_scid = user_scid
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.suffix = behind.render({}, continued=True)

    def header(self, user_codes: np.ndarray | None) -> list[int]:
        """Everything in front of the history. `user_codes` is `(levels,)`, or None for an unknown user."""
        user = None if user_codes is None or not self.user_scid else self.vocabulary.user_ids(user_codes).tolist()
        return self._bos + self._before.render({"user": user})

    def prompt(self, user_codes: np.ndarray | None, history_codes: np.ndarray) -> list[int]:
        """The prompt for one user.

        Args:
            user_codes: `(levels,)`, or None for an unknown user, whose prompt has no user SCID.
            history_codes: `(items, levels)` codes of the history, oldest first; the latest `max_history` are used.
        """
        history = np.asarray(history_codes).reshape(-1, self.vocabulary.item_levels)[-self.max_history :]
        return self.header(user_codes) + self.vocabulary.item_ids(history).reshape(-1).tolist() + self.suffix

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        user = np.zeros(len(self.vocabulary.user_tokens), dtype=np.int64) if self.user_scid else None
        items = (self.max_history + 1) * self.vocabulary.item_levels
        return len(self.header(user)) + items + len(self.suffix)

    def check_length(self, longest: int) -> None:
        """Makes sure that the longest prompt and its answer fit.

        Raises:
            InputError: they have more than `longest` tokens.
        """
        if self.longest > longest:
            raise InputError(
                f"max_history: {self.max_history} items make prompts of {self.longest} tokens, the model takes "
                f"{longest}; use a shorter history or a longer model"
            )

    def completion(self, item_codes: np.ndarray) -> list[int]:
        """The answer: the tokens of one item. `item_codes` is `(levels,)`."""
        return self.vocabulary.item_ids(item_codes).tolist()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `prompt.json` beside a model, so that it is always prompted as it was trained."""
        text = json.dumps(self.settings, indent=2, ensure_ascii=False)
        Path(folder, PROMPT_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> "PromptBuilder":
        """Reads `prompt.json` of a model folder."""
        path = Path(folder, PROMPT_FILE)
        if not path.is_file():
            raise InputError(f"{path}: not found; the folder holds no model trained by align3gr")
        settings = json.loads(path.read_text(encoding="utf-8"))
        if "template" not in settings:  # written before templates
            settings["template"] = (
                settings.pop("before_user") + "[{user}]" + settings.pop("before_history") + "{history}"
            )
        return cls(tokenizer, **settings)
