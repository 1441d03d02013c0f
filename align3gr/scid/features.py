"""Features of all users or items as tensors, and what a trained model makes of them: embeddings and codes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from align3gr.encoders.embeddings import Embeddings
from align3gr.scid.collisions import resolve_collisions
from align3gr.scid.modeling_dual_scid import DualSCIDModel

ROWS_AT_ONCE = 65_536


@dataclass
class FeatureTable:
    """Features of all users or all items, row by row.

    Attributes:
        semantic: `(rows, dim)` float32, or None.
        collaborative: `(rows, dim)` float32, or None.
    """

    semantic: torch.Tensor | None = None
    collaborative: torch.Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.semantic, self.collaborative) if part is not None}
        if len(lengths) != 1:
            raise ValueError(
                f"a feature table needs one kind of features, or two of equal length; got {lengths or 'none'}"
            )
        self._length = lengths.pop()

    @classmethod
    def from_embeddings(cls, embeddings: Embeddings) -> "FeatureTable":
        parts = (embeddings.semantic, embeddings.collaborative)
        return cls(*(None if part is None else torch.from_numpy(part) for part in parts))

    def __len__(self) -> int:
        return self._length

    @property
    def dims(self) -> tuple[int, int]:
        """Widths of the semantic and the collaborative features, 0 for a kind that is not there."""
        widths = tuple(0 if part is None else part.shape[1] for part in (self.semantic, self.collaborative))
        return widths[0], widths[1]

    def rows(self, index: torch.Tensor | slice) -> dict[str, torch.Tensor]:
        """The features of some rows, as the model takes them."""
        parts = {"semantic": self.semantic, "collaborative": self.collaborative}
        return {name: values[index] for name, values in parts.items() if values is not None}


@dataclass
class Codes:
    """Codes of every item and user.

    Attributes:
        items: `(items, levels)` int64, no two rows alike.
        users: `(users, levels)` int64; users may share.
        health: use of the code books and the price of unique item codes.
    """

    items: np.ndarray
    users: np.ndarray
    health: dict[str, Any]


@torch.no_grad()
def embed_all(model: DualSCIDModel, users: FeatureTable, items: FeatureTable) -> tuple[torch.Tensor, torch.Tensor]:
    """SC embeddings of all users and items, on the CPU. Shapes: `(users, sc_dim)`, `(items, sc_dim)`."""

    def embed(side, table: FeatureTable) -> torch.Tensor:
        blocks = []
        for start in range(0, len(table), ROWS_AT_ONCE):
            features = table.rows(slice(start, start + ROWS_AT_ONCE))
            blocks.append(side({name: part.to(model.device) for name, part in features.items()}).float().cpu())
        return torch.cat(blocks)

    return embed(model.embed_users, users), embed(model.embed_items, items)


@torch.no_grad()
def assign_codes(model: DualSCIDModel, users: FeatureTable, items: FeatureTable) -> Codes:
    """Codes of everybody, in fp32; those of the items are made unique.

    Raises:
        ValueError: the code books have fewer combinations than there are items under a prefix.
    """
    model.eval()
    user_vectors, item_vectors = (vectors.to(model.device) for vectors in embed_all(model, users, items))
    user_codes = model.user_rqvae.encode(user_vectors).cpu().numpy()
    raw, residuals = (part.cpu().numpy() for part in model.item_rqvae.encode_with_residual(item_vectors))
    books = [book.float().cpu().numpy() for book in model.item_rqvae.quantizer.codebooks]
    item_codes, report = resolve_collisions(raw, residuals, books[-1], books[-2] if len(books) > 1 else None)
    health = {
        "item_utilisation": utilisation(raw, model.item_rqvae.config.codebook_sizes),
        "user_utilisation": utilisation(user_codes, model.user_rqvae.config.codebook_sizes),
        "item_collisions": asdict(report),
        "distinct_user_codes": len(np.unique(user_codes, axis=0)),
    }
    return Codes(item_codes, user_codes, health)


def utilisation(codes: np.ndarray, codebook_sizes: list[int]) -> list[float]:
    """Share of each level's codes that are used. Shape: `codes` `(rows, levels)`."""
    return [len(np.unique(codes[:, level])) / size for level, size in enumerate(codebook_sizes)]
