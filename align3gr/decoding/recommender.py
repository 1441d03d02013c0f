"""From item ids to item ids: model, tokenizer, prompt and catalogue in one folder that loads with one call."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align3gr.data.schema import ITEM_ID, TITLE, USER_ID
from align3gr.decoding.batch_size import BatchSize
from align3gr.decoding.beam_search import catalogue_search
from align3gr.decoding.catalogue_tables import CODES, CatalogueTable
from align3gr.decoding.code_rows import codes_fingerprint
from align3gr.decoding.history_cache import HISTORY_CACHE_FILE, HistoryCache
from align3gr.decoding.item_filter import ItemSets
from align3gr.decoding.rankings import generate_rankings, union
from align3gr.decoding.request_prompts import SCID_FOLDER, RequestPrompts, UnknownItems
from align3gr.decoding.requests import Recommendation, Request
from align3gr.decoding.saved_model import open_model
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError
from align3gr.scid.assigner import SCIDAssigner
from align3gr.scid.prompts import PromptBuilder
from align3gr.snapshots import local_folder

logger = logging.getLogger(__name__)

ITEM_CODES_FILE = "item_codes.parquet"
USER_CODES_FILE = "user_codes.parquet"
TRIE_FILE = "trie.safetensors"


class Recommender:
    """Recommends items of a catalogue to users with their histories.

    Args:
        model: a causal LM, or a T5, whose vocabulary has the SCID tokens.
        tokenizer: its tokenizer.
        items: the catalogue: item_id, title, codes (one list of `levels` integers an item).
        users: user_id, codes; users outside this table, or all where it is None, get the prompt without a user SCID.
        prompt_builder: how the model was prompted in training; default settings where it is None.
        num_beams: beams of the search, and the longest list that can be asked for; `"all"` scores every item.
        widths: beams after each level, see [`ConstrainedBeamSearch`].
        batch_size: users in one search, `"auto"` for as many as fit; see [`generate_rankings`].
        trie_file: a trie that [`SCIDTrie.save`] wrote; built anew where it is of other codes or cannot be read.
        assigner: the token level, for SCIDs of users outside the table; see `user_profiles` of [`recommend`].
        history_cache: return rates, to be mixed with the lists; none for the model's lists alone.

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
        num_beams: int | Literal["all"] = 20,
        widths: Sequence[int] | None = None,
        batch_size: BatchSize = "auto",
        trie_file: str | Path | None = None,
        assigner: SCIDAssigner | None = None,
        history_cache: HistoryCache | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.prompt_builder = prompt_builder or _default_prompts(tokenizer)
        vocabulary = self.prompt_builder.vocabulary
        catalogue = CatalogueTable.check(items, (ITEM_ID, TITLE, CODES), vocabulary.item_levels, "items")
        known = None
        if users is not None:
            known = CatalogueTable.check(users, (USER_ID, CODES), vocabulary.user_tokens.shape[0], "users")
        self.items, self.users = catalogue.frame, None if known is None else known.frame
        self.assigner = assigner
        self._read = RequestPrompts(self.prompt_builder, catalogue, known, assigner)
        sizes = (vocabulary.item_tokens >= 0).sum(axis=1).tolist()
        self._fingerprint = codes_fingerprint(catalogue.codes, sizes)
        trie = self._saved_trie(trie_file) or SCIDTrie.from_codes(catalogue.codes, sizes)
        self.search = catalogue_search(model, trie, vocabulary.item_tokens, num_beams, widths)
        self.batch_size = batch_size
        self.history_cache = history_cache
        self._item_ids = self.items[ITEM_ID].to_list()
        self._titles = self.items[TITLE].to_list()

    def _saved_trie(self, path: str | Path | None) -> SCIDTrie | None:
        if path is None or not Path(path).is_file():
            return None
        try:
            return SCIDTrie.load(path, fingerprint=self._fingerprint)
        except InputError as error:
            logger.warning("%s; the trie is built from the table of codes", error)
            return None

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        user_ids: Sequence[str | None] | None = None,
        k: int = 10,
        exclude_seen: bool = False,
        unknown_items: UnknownItems = "raise",
        progress: bool = False,
        allowed: Sequence[str] | Sequence[Sequence[str]] | None = None,
        user_profiles: Sequence[str | None] | None = None,
        denied: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> list[list[Recommendation]]:
        """The `k` most probable next items of each user, best first; items that share an SCID in row order.

        A user outside the table of users gets an SCID from the assigner where a profile is given, else the prompt
        without a user SCID. With an empty history, too, the list is what the model holds probable for anyone.

        Args:
            histories: item ids of each user, oldest first.
            user_ids: the users; None for a user without an id.
            k: length of the lists, at most `num_beams`; shorter only where fewer items may be shown.
            exclude_seen: leave out every item of the history.
            unknown_items: what to do with an item outside the catalogue: `"raise"` (or `"error"`), or `"skip"` it.
            progress: show a progress bar.
            allowed: item ids that alone may be shown, one list for all users or one each.
            user_profiles: profile texts for users outside the table; they need an assigner. None for no profile.
            denied: item ids that must not be shown, in the form of `allowed`.

        Raises:
            InputError: an unknown item, `k` out of range, arguments of another length than `histories`, a profile
                without an assigner, or nothing at all to make a prompt of.
        """
        users = _one_each(user_ids, "user_ids", len(histories))
        profiles = _one_each(user_profiles, "user_profiles", len(histories))
        return self.rank(
            [
                Request(f"histories: row {row}", *parts)
                for row, parts in enumerate(zip(histories, users, profiles, strict=True))
            ],
            k,
            exclude_seen,
            unknown_items,
            None if allowed is None else self.item_sets(allowed, unknown_items, len(histories)),
            progress=progress,
            denied=None if denied is None else self.item_sets(denied, unknown_items, len(histories), "denied"),
        )

    def rank(
        self,
        requests: Sequence[Request],
        k: int,
        exclude_seen: bool = False,
        unknown_items: UnknownItems = "raise",
        allowed: ItemSets | None = None,
        batch_size: BatchSize | None = None,
        progress: bool = False,
        denied: ItemSets | None = None,
    ) -> list[list[Recommendation]]:
        """[`recommend`] for requests that name their own origin in errors; the sets hold rows of `items`.

        Args:
            requests: histories and users.
            k: length of the lists.
            exclude_seen: leave out every item of the history.
            unknown_items: what to do with an item outside the catalogue, see [`recommend`].
            allowed: rows of the items that alone may be shown.
            batch_size: users in one search; the recommender's own where it is None.
            progress: show a progress bar.
            denied: rows of the items that must not be shown.
        """
        indices = [self.item_rows(request.history, unknown_items, request.source) for request in requests]
        prompts = self._read.prompts(requests, indices)
        cache = None if exclude_seen or not (self.history_cache and self.history_cache.share) else self.history_cache
        longest = self.search.num_beams
        rankings = generate_rankings(
            self.search,
            prompts,
            batch_size or self.batch_size,
            # What is mixed must not depend on the length that is asked for; a wrong length is refused there.
            longest if cache is not None and 1 <= k <= longest else k,
            progress=progress,
            allowed=allowed,
            denied=union(indices, denied) if exclude_seen else denied,
        )
        items, scores = rankings.seen_allowed, rankings.seen_allowed_scores
        if cache is not None:
            items, scores = cache.mix(items, scores, indices, allowed, denied)
        return [
            [
                Recommendation(self._item_ids[item], self._titles[item], score)
                for item, score in zip(row, row_scores, strict=True)
                if item >= 0
            ]
            for row, row_scores in zip(items[:, :k].tolist(), scores[:, :k].tolist(), strict=True)
        ]

    def recommend_file(self, input_file: str | Path, output_file: str | Path, **options: Any) -> int:
        """Recommend to every row of a Parquet file; see [`recommend_file`] of `align3gr.decoding.files`.

        Args:
            input_file: histories.
            output_file: where the lists go.
            **options: the other arguments of that function.
        """
        from align3gr.decoding.files import recommend_file

        return recommend_file(self, input_file, output_file, **options)

    def item_sets(
        self,
        sets: Sequence[str] | Sequence[Sequence[str]],
        unknown_items: UnknownItems,
        users: int,
        source: str = "allowed",
    ) -> ItemSets:
        """Rows of `items` for item ids, one list for all users or one each; see [`RequestPrompts.item_sets`].

        Args:
            sets: item ids, one list for all users or one each.
            unknown_items: what to do with an id outside the catalogue, see [`recommend`].
            users: number of users.
            source: what to call the lists in errors.
        """
        return self._read.item_sets(sets, unknown_items, users, source)

    def item_rows(
        self, item_ids: Sequence[str], unknown_items: UnknownItems = "raise", source: str = "items"
    ) -> np.ndarray:
        """Rows of `items` for a list of item ids; see [`RequestPrompts.item_rows`].

        Args:
            item_ids: the items.
            unknown_items: what to do with an id outside the catalogue, see [`recommend`].
            source: what to call the list in errors.
        """
        return self._read.item_rows(item_ids, unknown_items, source)

    def check_catalogue(self, item_ids: Sequence[str] | pl.Series, codes: np.ndarray) -> None:
        """Refuses items that stand in other rows, or under other SCIDs, than in the catalogue of this model.

        Who trains a model on rows of items asks this first: the SCIDs of another token level fit the same tokens, and
        mean other items to the model.

        Args:
            item_ids: ids in row order.
            codes: their SCIDs.
                Shape: `(items, levels)`.

        Raises:
            InputError: the catalogue is another one.
        """
        ids, known = list(item_ids), np.asarray(self.items[CODES].to_list())
        if ids != self._item_ids:
            raise InputError(
                f"items: the model's catalogue holds {len(self._item_ids):,} items, these are {len(ids):,} others, or "
                "in another order; take a model that was trained on this data"
            )
        if known.shape != codes.shape:
            raise InputError(
                f"scid: has SCIDs of {codes.shape[1]} levels, those of the model have {known.shape[1]}; take a model "
                "that was trained on these codes"
            )
        if (other := (known != codes).any(axis=1)).any():
            row = int(other.argmax())
            raise InputError(
                f"scid: gives item {ids[row]!r} the SCID {codes[row].tolist()}, the model knows it as "
                f"{known[row].tolist()} ({int(other.sum()):,} of {len(ids):,} differ); take a model that was trained "
                "on these codes"
            )

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write model, tokenizer, `prompt.json`, the tables of codes and the trie into one folder.

        Args:
            folder: where to write.
            state_dict: the model's weights, where the model itself holds only a part of them (ZeRO-3, FSDP).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights: dict[str, Any] = {} if state_dict is None else {"state_dict": state_dict}
        self.model.save_pretrained(folder, **weights)
        self.tokenizer.save_pretrained(folder)
        self.prompt_builder.save_pretrained(folder)
        self.items.write_parquet(folder / ITEM_CODES_FILE)
        self.search.trie.to("cpu").save(folder / TRIE_FILE, self._fingerprint)
        if self.users is not None:
            self.users.write_parquet(folder / USER_CODES_FILE)
        else:  # a table of an earlier save would bring its users back
            (folder / USER_CODES_FILE).unlink(missing_ok=True)
        if self.history_cache is not None:
            self.history_cache.save(folder)
        else:
            (folder / HISTORY_CACHE_FILE).unlink(missing_ok=True)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device | None = None,
        revision: str | None = None,
        num_beams: int | Literal["all"] = 20,
        widths: Sequence[int] | None = None,
        batch_size: BatchSize = "auto",
        scid: str | Path | None = None,
        history_cache: float | None = None,
        **model_options: Any,
    ) -> "Recommender":
        """Load what [`Recommender.save_pretrained`] wrote, a model or an adapter, from a folder or from the Hub.

        Args:
            path_or_hub_id: a folder, or a repository on the Hub.
            device: where to run; a GPU if there is one.
            revision: branch, tag or commit on the Hub.
            num_beams, widths, batch_size: as for the constructor.
            scid: folder of the token level, or its Hub id, for SCIDs of new users; the folder `scid` of the model's
                folder where it is None and there is one.
            history_cache: mean share of the user's own history in the lists, see [`HistoryCache`]; the saved share
                where it is None, which is 0 after fine-tuning.
            model_options: see [`open_model`], such as `dtype`, `attn_implementation` or `is_trainable`.

        Raises:
            InputError: the folder holds no catalogue or no prompt settings, `scid` has other codes than the model, or
                `history_cache` is out of range or there are no return rates for it.
        """
        folder = local_folder(path_or_hub_id, revision)
        if not (folder / ITEM_CODES_FILE).is_file():
            models = " or ".join(str(path.parent) for path in sorted(folder.glob(f"*/model/{ITEM_CODES_FILE}")))
            way_out = f"of this run, give {models}" if models else "save the model with Recommender.save_pretrained"
            raise InputError(f"{folder / ITEM_CODES_FILE}: not found; {way_out}")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt_builder = PromptBuilder.from_pretrained(folder, tokenizer)
        items = pl.read_parquet(folder / ITEM_CODES_FILE)
        users = pl.read_parquet(folder / USER_CODES_FILE) if (folder / USER_CODES_FILE).is_file() else None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = open_model(folder, **model_options)
        model.to(device).eval()
        if scid is None and (folder / SCID_FOLDER).is_dir():
            scid = folder / SCID_FOLDER
        assigner = None if scid is None else SCIDAssigner.from_pretrained(scid)
        if assigner is not None:
            assigner.check_catalogue(items[ITEM_ID].cast(pl.String), items[CODES])
        cache = None
        if history_cache or (folder / HISTORY_CACHE_FILE).is_file():
            cache = HistoryCache.load(folder)
        if cache is not None and history_cache is not None:
            cache = cache.with_share(history_cache)
        trie_file, search = folder / TRIE_FILE, (num_beams, widths, batch_size)
        return cls(model, tokenizer, items, users, prompt_builder, *search, trie_file, assigner, cache)


def _default_prompts(tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    return PromptBuilder(tokenizer, user_scid=any(token.startswith("<u0_") for token in tokenizer.get_added_vocab()))


def _one_each(values: Sequence[str | None] | None, name: str, users: int) -> Sequence[str | None]:
    if values is not None and len(values) != users:
        raise InputError(f"{name}: got {len(values)} for {users} histories; give one a history")
    return values if values is not None else [None] * users
