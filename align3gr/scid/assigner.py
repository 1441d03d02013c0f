"""SCIDs for items and users that came after training, from the saved folder of the token level alone."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch

from align3gr.data.schema import ITEM_ID
from align3gr.encoders.collaborative import CollaborativeEncoder, load_collaborative_encoder
from align3gr.encoders.embeddings import Embeddings
from align3gr.encoders.semantic import TextEncoder, load_text_encoder
from align3gr.errors import InputError
from align3gr.scid.code_table import CodeTable, load_codebook_sizes, read_code_table, save_codes
from align3gr.scid.collisions import resolve_collisions
from align3gr.scid.features import FeatureTable, quantize_all
from align3gr.scid.modeling_dual_scid import DualSCIDModel
from align3gr.snapshots import local_folder

logger = logging.getLogger(__name__)

ENCODERS = "encoders"
# Items by whose behaviour a new item's is guessed.
NEIGHBOURS = 10
ROWS_AT_ONCE = 1024


def keep_encoders(embeddings: Path, folder: Path) -> None:
    """Copies the items' vectors and the encoders to the token level, so that an assigner needs nothing else.

    Args:
        embeddings: folder of the embed stage.
        folder: that of the token level, with its model.
    """
    kept = folder / ENCODERS
    kept.mkdir(exist_ok=True)
    shutil.copy(embeddings / "items.parquet", kept)
    for name in ("semantic_encoder", "collaborative_encoder"):
        if (embeddings / name).is_dir():
            shutil.copytree(embeddings / name, kept / name, dirs_exist_ok=True)


class SCIDAssigner:
    """Gives codes to new items and users; no existing code changes.

    A new item has no interactions, so its collaborative vector is guessed: the mean of those of the ten items with the
    most similar texts, weighed by similarity. It then takes the cheapest path of codes that is free.

    ```python
    assigner = SCIDAssigner.from_pretrained("runs/yelp/scid")
    codes = assigner.add_items(["new-1"], ["Nonna's Kitchen. Italian, Pizza, Restaurants"])
    user = assigner.user_codes(["Interested in pizza."], histories=[["17", "4"]])
    ```

    Args:
        model: the trained token level.
        items: the codes of the catalogue, which stay.
        vectors: embeddings of the catalogue, in the order of `items`.
        text_encoder, collaborative_encoder: as saved by the embed stage; None where the kind is not used.
        share: whether items may share codes, as they do in catalogues that were made with `collisions: none`.
    """

    def __init__(
        self,
        model: DualSCIDModel,
        items: CodeTable,
        vectors: Embeddings,
        text_encoder: TextEncoder | None = None,
        collaborative_encoder: CollaborativeEncoder | None = None,
        share: bool = False,
    ) -> None:
        config = model.config
        if items.codes.shape[1] != len(config.item_rqvae["codebook_sizes"]):
            raise InputError(
                f"{items.source}: codes have {items.codes.shape[1]} levels, the model quantises in "
                f"{len(config.item_rqvae['codebook_sizes'])}; an extra level has no room for new items"
            )
        if (config.item_semantic_dim or config.user_semantic_dim) and text_encoder is None:
            raise InputError("text_encoder: the model uses texts; give the encoder that made their vectors")
        self.model = model.eval()
        self.text_encoder, self.collaborative_encoder, self.share = text_encoder, collaborative_encoder, share
        self._ids = list(items.ids)
        self._codes = items.codes
        self._rows = {item_id: row for row, item_id in enumerate(self._ids)}
        self._catalogue = len(self._ids)
        self._vectors = vectors
        self._taken = {tuple(path) for path in self._codes.tolist()}
        self._books = [book.detach().float().cpu().numpy() for book in model.item_rqvae.quantizer.codebooks]

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> "SCIDAssigner":
        """From the folder `scid` of a run, or the id of a Hub repository that holds its files.

        Args:
            folder: the folder or the id.
            revision: branch, tag or commit on the Hub.

        Raises:
            InputError: the folder lacks a file, or there is none; codes that were imported have no model.
        """
        root = local_folder(folder, revision)
        if not (root / "model").is_dir():
            raise InputError(f"{folder}: holds no model; new items need codes that were trained, not imported")
        items = read_code_table(root / "item_codes.parquet", ITEM_ID)
        encoders = root / ENCODERS
        text, collaborative = encoders / "semantic_encoder", encoders / "collaborative_encoder"
        load_codebook_sizes(root / "codebooks.json")  # an older or foreign folder is refused here
        return cls(
            DualSCIDModel.from_pretrained(root / "model"),
            items,
            Embeddings.load(encoders / "items.parquet", ITEM_ID, pl.Series(ITEM_ID, items.ids, dtype=pl.String)),
            load_text_encoder(text) if text.is_dir() else None,
            load_collaborative_encoder(collaborative) if collaborative.is_dir() else None,
            share=len(np.unique(items.codes, axis=0)) < len(items.codes),
        )

    @property
    def item_codes(self) -> CodeTable:
        """Codes of the catalogue and of all items added so far."""
        return CodeTable(list(self._ids), self._codes.copy(), "item codes")

    def save_item_codes(self, path: str | Path) -> None:
        """Writes [`item_codes`] as the table that later stages read.

        Args:
            path: a Parquet file.
        """
        save_codes(path, ITEM_ID, self._ids, self._codes)

    def check_catalogue(self, item_ids: Iterable[str], codes: Iterable[Sequence[int]]) -> None:
        """Refuses a catalogue with other SCIDs: the model that was trained on those reads these as other items.

        Args:
            item_ids: ids of the catalogue.
            codes: SCID of each, as many integers as there are levels.

        Raises:
            InputError: an item has another SCID here, or none of them is known. Items that came later may be missing.
        """
        advice = "take the folder scid that the model was trained on"
        known = 0
        for item_id, scid in zip(item_ids, codes, strict=True):
            if (row := self._rows.get(item_id)) is None:
                continue
            known += 1
            if (own := self._codes[row].tolist()) != list(scid):
                raise InputError(
                    f"scid: gives item {item_id!r} the SCID {own}, the model knows it as {list(scid)}; {advice}"
                )
        if not known:
            raise InputError(f"scid: knows no item of the model's catalogue; {advice}")

    def add_items(self, item_ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Codes of items; those that are known already keep theirs.

        Args:
            item_ids: ids, each once.
            texts: texts in the form of the catalogue's `text` column.

        Returns:
            `(items, levels)` int64.

        Raises:
            InputError: an id stands there twice, the lengths differ, or all codes are taken.
        """
        if len(item_ids) != len(texts):
            raise InputError(f"texts: got {len(texts)} for {len(item_ids)} item_ids")
        if len(set(item_ids)) != len(item_ids):
            raise InputError(f"item_ids: {next(i for i in item_ids if list(item_ids).count(i) > 1)!r} stands twice")
        new = [row for row, item_id in enumerate(item_ids) if item_id not in self._rows]
        if new:
            features = self._item_features([texts[row] for row in new])
            raw, latents, _ = quantize_all(self.model.embed_items, self.model.item_rqvae, features)
            strategy = "none" if self.share else "nearest-free"
            codes, report = resolve_collisions(raw, latents, self._books, strategy, taken=self._taken)
            logger.info("%d new items, %d moved to a free SCID", len(new), report.moved)
            self._codes = np.concatenate([self._codes, codes])
            for row in new:
                self._rows[item_ids[row]] = len(self._ids)
                self._ids.append(item_ids[row])
        return self._codes[[self._rows[item_id] for item_id in item_ids]]

    def user_codes(self, profiles: Sequence[str], histories: Sequence[Sequence[str]] | None = None) -> np.ndarray:
        """Codes of users.

        Args:
            profiles: profile texts; the empty text gives the zero vector, as in training.
            histories: item ids of each user, oldest first; none or items added later count as no behaviour. Not read
                where codes are made from texts alone.

        Returns:
            `(users, levels)` int64.

        Raises:
            InputError: the model has no user side, the lengths differ, or a history names an unknown item.
        """
        config = self.model.config
        if not config.has_users:
            raise InputError("users: the model has an item side only")
        histories = [[] for _ in profiles] if histories is None else histories
        if len(histories) != len(profiles):
            raise InputError(f"histories: got {len(histories)} for {len(profiles)} profiles")
        semantic_dim, collaborative_dim = config.encoder_dims("user")
        semantic = collaborative = None
        if semantic_dim:
            semantic = torch.from_numpy(self._encode(profiles))
        if collaborative_dim:
            collaborative = torch.from_numpy(self._user_behaviour(histories, collaborative_dim))
        features = FeatureTable(semantic, collaborative)
        return quantize_all(self.model.embed_users, self.model.user_rqvae, features)[0]

    def _user_behaviour(self, histories: Sequence[Sequence[str]], dim: int) -> np.ndarray:
        sequences = []
        for user, history in enumerate(histories):
            unknown = [item for item in history if item not in self._rows]
            if unknown:
                raise InputError(f"histories: user {user} has item {unknown[0]!r}, which has no SCID; add it first")
            rows = np.asarray([self._rows[item] for item in history], dtype=np.int64)
            sequences.append(rows[rows < self._catalogue])
        if self.collaborative_encoder is not None:
            return self.collaborative_encoder.encode_users(sequences).astype(np.float32)
        if any(len(sequence) for sequence in sequences):
            raise InputError(
                "histories: the collaborative vectors were ready-made columns; there is no encoder for new"
            )
        return np.zeros((len(histories), dim), dtype=np.float32)

    def _item_features(self, texts: Sequence[str]) -> FeatureTable:
        semantic_dim, collaborative_dim = self.model.config.encoder_dims("item")
        semantic = collaborative = None
        if semantic_dim:
            semantic = self._encode(texts)
        if collaborative_dim:
            collaborative = np.zeros((len(texts), collaborative_dim), dtype=np.float32)
            if semantic is not None:
                collaborative = self._guess_behaviour(semantic)
        return FeatureTable(*(None if part is None else torch.from_numpy(part) for part in (semantic, collaborative)))

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        return cast(TextEncoder, self.text_encoder).encode(list(texts)).astype(np.float32)

    @cached_property
    def _neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Texts and behaviour of the items that have any, of length 1. Shapes: `(items, dim)` each.

        Items that were added have a guess in place of behaviour: nothing is guessed from them.
        """
        texts, behaviour = self._vectors.semantic, self._vectors.collaborative
        if texts is None or behaviour is None:
            raise InputError("vectors: the embeddings of the catalogue lack a kind that the model uses")
        known = behaviour.any(1)
        return _unit(texts[known]), behaviour[known] / np.linalg.norm(behaviour[known], axis=1, keepdims=True)

    def _guess_behaviour(self, semantic: np.ndarray) -> np.ndarray:
        """Collaborative vectors of the nearest texts, averaged. Shapes: `(new, dim)` -> `(new, dim)`."""
        (known_texts, known), blocks = self._neighbours, []
        for start in range(0, len(semantic), ROWS_AT_ONCE):  # new items times catalogue would not fit into memory
            similarity = _unit(semantic[start : start + ROWS_AT_ONCE]) @ known_texts.T
            count = min(NEIGHBOURS, similarity.shape[1])
            near = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
            weights = np.maximum(np.take_along_axis(similarity, near, 1), 0)
            blocks.append(np.einsum("nk,nkd->nd", weights, known[near]))
        return np.concatenate(blocks).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
