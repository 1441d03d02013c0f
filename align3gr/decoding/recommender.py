"""From item ids to item ids: model, tokenizer, prompt and catalogue in one folder that loads with one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align3gr.data.schema import ITEM_ID, TITLE, USER_ID
from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder

CODES = "codes"
ITEM_CODES_FILE = "item_codes.parquet"
USER_CODES_FILE = "user_codes.parquet"


@dataclass(frozen=True)
class Recommendation:
    """One item of a list.

    Attributes:
        item_id: the item.
        title: its title, empty where the catalogue has none.
        score: log-probability of its SCID given the user and the history.
    """

    item_id: str
    title: str
    score: float


class Recommender:
    """Recommends items of a catalogue to users with their histories.

    Args:
        model: a causal LM whose vocabulary has the SCID tokens.
        tokenizer: its tokenizer.
        items: the catalogue: item_id, title, codes (one list of `levels` integers an item).
        users: user_id, codes; users outside this table, or all where it is None, get the prompt without a user SCID.
        prompt_builder: how the model was prompted in training; default settings where it is None.
        num_beams: beams of the search, and the longest list that can be asked for.
        widths: beams after each level, see [`ConstrainedBeamSearch`].
        batch_size: users in one search.

    Raises:
        InputError: a table lacks a column, names an id twice, or its codes do not fit the tokenizer.

    Example:

    ```python
    recommender = Recommender.from_pretrained("outputs/preference")
    recommender.recommend([["B001", "B042"]], user_ids=["u17"], k=10, exclude_seen=True)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: pl.DataFrame,
        users: pl.DataFrame | None = None,
        prompt_builder: PromptBuilder | None = None,
        num_beams: int = 20,
        widths: Sequence[int] | None = None,
        batch_size: int = 64,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.prompt_builder = prompt_builder or _default_prompts(tokenizer)
        vocabulary = self.prompt_builder.vocabulary
        self.items, self._item_codes, self._item_index = _code_table(
            items, ITEM_ID, (ITEM_ID, TITLE, CODES), vocabulary.item_levels, "items"
        )
        self.users: pl.DataFrame | None = None
        self._user_codes = np.zeros((0, 0), dtype=np.int64)
        self._user_index: dict[str, int] = {}
        if users is not None:
            self.users, self._user_codes, self._user_index = _code_table(
                users, USER_ID, (USER_ID, CODES), vocabulary.user_tokens.shape[0], "users"
            )
        sizes = (vocabulary.item_tokens >= 0).sum(axis=1).tolist()
        trie = SCIDTrie.from_codes(self._item_codes, sizes)
        self.search = ConstrainedBeamSearch(model, trie, vocabulary.item_tokens, num_beams=num_beams, widths=widths)
        self.batch_size = batch_size
        self._item_ids = self.items[ITEM_ID].to_list()
        self._titles = self.items[TITLE].to_list()

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        user_ids: Sequence[str | None] | None = None,
        k: int = 10,
        exclude_seen: bool = False,
        unknown_items: Literal["error", "skip"] = "error",
        progress: bool = False,
    ) -> list[list[Recommendation]]:
        """The `k` most probable next items of each user, best first.

        Args:
            histories: item ids of each user, oldest first. It may be empty for a known user.
            user_ids: the users; None, or a user that the model does not know, is recommended to by history alone.
            k: length of the lists, at most `num_beams`; a list is shorter only where the beams reach fewer items.
            exclude_seen: leave out every item of the history.
            unknown_items: what to do with an item outside the catalogue: raise, or leave it out of the history.
            progress: show a progress bar.

        Raises:
            InputError: an unknown item, an empty history of an unknown user, or `k` out of range.
        """
        if user_ids is not None and len(user_ids) != len(histories):
            raise InputError(f"user_ids: got {len(user_ids)} for {len(histories)} histories; give one a history")
        if unknown_items not in ("error", "skip"):
            raise InputError(f'unknown_items: got {unknown_items!r}, expected "error" or "skip"')
        indices = [self._history(row, history, unknown_items) for row, history in enumerate(histories)]
        users = user_ids if user_ids is not None else [None] * len(histories)
        prompts = [self._prompt(row, *known) for row, known in enumerate(zip(users, indices, strict=True))]
        seen = indices if exclude_seen else None
        rankings = generate_rankings(self.search, prompts, self.batch_size, k, histories=seen, progress=progress)
        items = rankings.masked if rankings.masked is not None else rankings.allowed
        scores = rankings.masked_scores if rankings.masked_scores is not None else rankings.allowed_scores
        return [
            [
                Recommendation(self._item_ids[item], self._titles[item], score)
                for item, score in zip(row, row_scores, strict=True)
                if item >= 0
            ]
            for row, row_scores in zip(items.tolist(), scores.tolist(), strict=True)
        ]

    def _history(self, row: int, history: Sequence[str], unknown_items: str) -> np.ndarray:
        if isinstance(history, str):
            raise InputError(f"histories: row {row} is the string {history!r}; give a list of item ids for each user")
        indices = []
        for item in history:
            index = self._item_index.get(item)
            if index is not None:
                indices.append(index)
            elif unknown_items == "error":
                raise InputError(
                    f"histories: row {row} names item {item!r}, which is not in the catalogue of "
                    f'{len(self._item_index)} items; correct it, or pass unknown_items="skip"'
                )
        return np.array(indices, dtype=np.int64)

    def _prompt(self, row: int, user: str | None, history: np.ndarray) -> list[int]:
        user_row = self._user_index.get(user) if user is not None and self.prompt_builder.user_scid else None
        if user_row is None and len(history) == 0:
            raise InputError(
                f"histories: row {row} is empty and user {user!r} has no SCID, so there is nothing to go by; "
                "give at least one item"
            )
        codes = None if user_row is None else self._user_codes[user_row]
        return self.prompt_builder.prompt(codes, self._item_codes[history])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer, `prompt.json`, `item_codes.parquet` and `user_codes.parquet` into one folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.prompt_builder.save_pretrained(folder)
        self.items.write_parquet(folder / ITEM_CODES_FILE)
        if self.users is not None:
            self.users.write_parquet(folder / USER_CODES_FILE)
        else:  # a table of an earlier save would bring its users back
            (folder / USER_CODES_FILE).unlink(missing_ok=True)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device | None = None,
        revision: str | None = None,
        num_beams: int = 20,
        widths: Sequence[int] | None = None,
        batch_size: int = 64,
        **model_options: Any,
    ) -> "Recommender":
        """Load what [`Recommender.save_pretrained`] wrote, from a folder or from the Hub.

        Args:
            path_or_hub_id: a folder, or a repository on the Hub.
            device: where to run; a GPU if there is one.
            revision: branch, tag or commit on the Hub.
            num_beams, widths, batch_size: as for the constructor.
            model_options: passed to `AutoModelForCausalLM.from_pretrained`, such as `dtype` or `attn_implementation`.

        Raises:
            InputError: the folder holds no catalogue or no prompt settings.
        """
        folder = Path(path_or_hub_id)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

            try:
                folder = Path(snapshot_download(str(path_or_hub_id), revision=revision))
            except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
                raise InputError(
                    f"{path_or_hub_id}: no such folder, and no repository that the Hub gives ({type(error).__name__})"
                ) from error
        if not (folder / ITEM_CODES_FILE).is_file():
            raise InputError(f"{folder / ITEM_CODES_FILE}: not found; save the model with Recommender.save_pretrained")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt_builder = PromptBuilder.from_pretrained(folder, tokenizer)
        items = pl.read_parquet(folder / ITEM_CODES_FILE)
        users = pl.read_parquet(folder / USER_CODES_FILE) if (folder / USER_CODES_FILE).is_file() else None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **model_options)
        model.to(device).eval()
        return cls(model, tokenizer, items, users, prompt_builder, num_beams, widths, batch_size)


def _default_prompts(tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    return PromptBuilder(tokenizer, user_scid=any(token.startswith("<u0_") for token in tokenizer.get_added_vocab()))


def _code_table(
    frame: pl.DataFrame, key: str, columns: tuple[str, ...], levels: int, source: str
) -> tuple[pl.DataFrame, np.ndarray, dict[str, int]]:
    """The table with its columns in order, its codes `(rows, levels)` and the row of each id."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(f"{source}: column {missing[0]!r} is missing, found {frame.columns}; add it")
    frame = frame.select(columns).with_columns(pl.col(key).cast(pl.String))
    if TITLE in columns:
        frame = frame.with_columns(pl.col(TITLE).cast(pl.String).fill_null(""))
    ids = frame[key].to_list()
    index = {name: row for row, name in enumerate(ids)}
    if len(index) != len(ids) or None in index:
        twice = next(name for row, name in enumerate(ids) if name is None or index[name] != row)
        raise InputError(f"{source}: {key} {twice!r} is null or stands in two rows; each needs one row of its own")
    lists = frame[CODES].to_list()
    wrong = next((row for row, codes in enumerate(lists) if codes is None or len(codes) != levels), None)
    if wrong is not None:
        raise InputError(f"{source}: {key} {ids[wrong]!r} has codes {lists[wrong]}, expected {levels} integers")
    return frame, np.array(lists, dtype=np.int64).reshape(-1, levels), index
