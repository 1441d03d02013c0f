"""The one place where a prompt is made: fine-tuning, preference training, evaluation and serving all call it.

A prompt is a list of token ids, never a string: `[BOS]`, the template's text before the user, the user's SCID, the
template's text before the history, the SCIDs of the history's items, oldest first. The completion is the SCID of one
item. The template may put text before the user and before the history; nothing stands between history and answer, so
that one sequence can teach every item of a history at once.
"""

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from align3gr.errors import InputError
from align3gr.scid.vocabulary import SCIDVocabulary

PROMPT_FILE = "prompt.json"


class PromptBuilder:
    """Builds prompts of token ids from codes.

    Args:
        tokenizer: a tokenizer with SCID tokens.
        max_history: the latest items of a history that a prompt keeps.
        user_scid: whether a user's SCID stands in the prompt.
        before_user: text in front of the user's SCID.
        before_history: text between the user's SCID and the history.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_history: int = 20,
        user_scid: bool = True,
        before_user: str = "",
        before_history: str = "",
    ) -> None:
        if max_history < 1:
            raise InputError(f"max_history must be at least 1, got {max_history}")
        self.vocabulary = SCIDVocabulary.from_tokenizer(tokenizer)
        if user_scid and self.vocabulary.user_tokens.size == 0:
            raise InputError("user_scid=True, but the tokenizer has no user SCID tokens")
        self.settings = {
            "max_history": max_history,
            "user_scid": user_scid,
            "before_user": before_user,
            "before_history": before_history,
        }
        self.max_history = max_history
        self.user_scid = user_scid
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._before_user = bos + _text_ids(tokenizer, before_user)
        self._before_history = _text_ids(tokenizer, before_history)

    def header(self, user_codes: np.ndarray | None) -> list[int]:
        """Everything in front of the history. `user_codes` is `(levels,)`, or None for an unknown user."""
        user = [] if user_codes is None or not self.user_scid else self.vocabulary.user_ids(user_codes).tolist()
        return self._before_user + user + self._before_history

    def prompt(self, user_codes: np.ndarray | None, history_codes: np.ndarray) -> list[int]:
        """The prompt for one user.

        Args:
            user_codes: `(levels,)`, or None for an unknown user, whose prompt has no user SCID.
            history_codes: `(items, levels)` codes of the history, oldest first; the latest `max_history` are used.
        """
        history = np.asarray(history_codes).reshape(-1, self.vocabulary.item_levels)[-self.max_history :]
        return self.header(user_codes) + self.vocabulary.item_ids(history).reshape(-1).tolist()

    def check_length(self, longest: int) -> None:
        """Makes sure that the longest prompt and its answer fit.

        Raises:
            InputError: they have more than `longest` tokens.
        """
        users = len(self.vocabulary.user_tokens) if self.user_scid else 0
        header = len(self._before_user) + users + len(self._before_history)
        needed = header + (self.max_history + 1) * self.vocabulary.item_levels
        if needed > longest:
            raise InputError(
                f"max_history: {self.max_history} items make prompts of {needed} tokens, the model takes {longest}; "
                "use a shorter history or a longer model"
            )

    def completion(self, item_codes: np.ndarray) -> list[int]:
        """The answer: the tokens of one item. `item_codes` is `(levels,)`."""
        return self.vocabulary.item_ids(item_codes).tolist()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `prompt.json` beside a model, so that it is always prompted as it was trained."""
        Path(folder, PROMPT_FILE).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> "PromptBuilder":
        """Reads `prompt.json` of a model folder."""
        path = Path(folder, PROMPT_FILE)
        if not path.is_file():
            raise InputError(f"{path}: not found; the folder holds no model trained by align3gr")
        return cls(tokenizer, **json.loads(path.read_text(encoding="utf-8")))


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
