"""From requests to prompts: item ids to rows of the catalogue, users to their SCIDs, known or new."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from align3gr.data.schema import ITEM_ID
from align3gr.decoding.catalogue_tables import CatalogueTable
from align3gr.decoding.item_filter import ItemSets, is_by_row
from align3gr.decoding.requests import Request
from align3gr.errors import InputError
from align3gr.scid.assigner import SCIDAssigner
from align3gr.scid.prompts import PromptBuilder

UnknownItems = Literal["raise", "error", "skip"]
SCID_FOLDER = "scid"


@dataclass(frozen=True)
class RequestPrompts:
    """Reads requests against a catalogue.

    Args:
        builder: writes a prompt from codes.
        items: the catalogue.
        users: users with an SCID, or None.
        assigner: gives an SCID to users outside the table, or None.
    """

    builder: PromptBuilder
    items: CatalogueTable
    users: CatalogueTable | None = None
    assigner: SCIDAssigner | None = None

    def item_rows(
        self, item_ids: Sequence[str], unknown_items: UnknownItems = "raise", source: str = "items"
    ) -> np.ndarray:
        """Rows of the catalogue for a list of item ids; `source` is its name in errors.

        Raises:
            InputError: an id is not in the catalogue, unless `unknown_items="skip"`.
        """
        if unknown_items not in ("raise", "error", "skip"):
            raise InputError(f'unknown_items: got {unknown_items!r}, expected "raise" or "skip"')
        if isinstance(item_ids, str):
            raise InputError(f"{source} is the string {item_ids!r}; give a list of item ids")
        rows = []
        for item in item_ids:
            row = self.items.index.get(item)
            if row is not None:
                rows.append(row)
            elif unknown_items != "skip":
                raise InputError(
                    f"{source} names item {item!r}, which is not in the catalogue of "
                    f'{len(self.items.index)} items; correct it, or pass unknown_items="skip"'
                )
        return np.array(rows, dtype=np.int64)

    def item_sets(
        self,
        sets: Sequence[str] | Sequence[Sequence[str]],
        unknown_items: UnknownItems,
        users: int,
        source: str = "allowed",
    ) -> ItemSets:
        """Rows of the catalogue for item ids, one list for all users or one each; `source` is their name in errors.

        Raises:
            InputError: an id is not in the catalogue (unless `unknown_items="skip"`), or there is a list for another
                number of users.
        """
        if isinstance(sets, str) or not is_by_row(sets):
            return self.item_rows(sets, unknown_items, source)  # type: ignore[arg-type]
        if len(sets) != users:
            raise InputError(f"{source}: got {len(sets)} lists for {users} histories; give one a history, or one list")
        return [self.item_rows(ids, unknown_items, f"{source}: row {row}") for row, ids in enumerate(sets)]

    def prompts(self, requests: Sequence[Request], histories: Sequence[np.ndarray]) -> list[list[int]]:
        """The token ids of each request's prompt.

        Args:
            requests: who asks.
            histories: rows of the catalogue of each request, oldest first.

        Raises:
            InputError: a profile without an assigner, or nothing at all to make a prompt of.
        """
        prompts = [
            self.builder.prompt(user, self.items.codes[history])
            for user, history in zip(self._user_codes(requests, histories), histories, strict=True)
        ]
        empty = next((row for row, prompt in enumerate(prompts) if not prompt), None)
        if empty is not None:
            raise InputError(
                f"{requests[empty].source} is empty, user {requests[empty].user_id!r} has no SCID and the tokenizer "
                "no BOS token, so there is nothing to go by; give at least one item"
            )
        return prompts

    def _user_codes(self, requests: Sequence[Request], histories: Sequence[np.ndarray]) -> Sequence[np.ndarray | None]:
        """Codes of known users, and of those with a profile; None for the others, and where prompts hold no user."""
        codes: list[np.ndarray | None] = [None] * len(requests)
        if not self.builder.user_scid:
            return codes
        new = []
        for row, request in enumerate(requests):
            known = self.users.index.get(request.user_id) if self.users and request.user_id is not None else None
            if self.users and known is not None:
                codes[row] = self.users.codes[known]
            elif request.profile is not None:
                new.append(row)
        if new and self.assigner is None:
            raise InputError(
                f"user_profiles: {requests[new[0]].source} has a profile, but the model folder has no folder "
                f"{SCID_FOLDER!r}; pass scid=<folder of the scid stage> to from_pretrained, or leave profiles out"
            )
        if new and self.assigner is not None:
            ids = [self.items.frame[ITEM_ID][histories[row]].to_list() for row in new]
            assigned = self.assigner.user_codes([requests[row].profile or "" for row in new], ids)
            for row, user_codes in zip(new, assigned, strict=True):
                codes[row] = user_codes
        return codes
