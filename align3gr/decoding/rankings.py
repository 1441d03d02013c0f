"""Ranked lists of many users: prompts batched by length, one search a batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from align3gr.decoding.batch_size import BatchSize, FittingBatches, check_batch_size, fitting_batch_size
from align3gr.decoding.candidates import BeamOutput
from align3gr.decoding.item_filter import ItemSets, is_by_row
from align3gr.decoding.search import ConstrainedSearch
from align3gr.decoding.tree_decoder import PromptPrefix
from align3gr.errors import InputError
from align3gr.processes import in_shares, launched, share
from align3gr.progress import ProgressBar

# A prefix of 8 tokens costs as much as 45 tokens of a batch (benchmarks/decoding.py's model, one thread), and the
# batches one copy of it each.
_PREFIX_TOKENS = 8
_SAVED_TOKENS = 256


class Rankings(NamedTuple):
    """Ranked lists of many users, best first; -1 and -inf where a list is shorter than `k`.

    Attributes:
        seen_allowed: item indices, items of the history included.
            Shape: `(users, k)`, int64.
        seen_allowed_scores: their log-probabilities.
            Shape: `(users, k)`, float32.
        masked: item indices without those of the user's history; None where no histories were given.
            Shape: `(users, k)`, int64.
        masked_scores: their log-probabilities, or None.
            Shape: `(users, k)`, float32.
    """

    seen_allowed: np.ndarray
    seen_allowed_scores: np.ndarray
    masked: np.ndarray | None
    masked_scores: np.ndarray | None

    @property
    def seen_masked(self) -> np.ndarray:
        """`masked`, where histories were given."""
        assert self.masked is not None, "ranked without histories"
        return self.masked


def generate_rankings(
    search: ConstrainedSearch,
    prompts: Sequence[Sequence[int]],
    batch_size: BatchSize,
    k: int,
    histories: Sequence[Sequence[int] | np.ndarray] | None = None,
    progress: bool = True,
    allowed: ItemSets | None = None,
    denied: ItemSets | None = None,
    distributed: bool = False,
) -> Rankings:
    """Rank items for many prompts; with `histories` both lists, seen items allowed and masked, come from one search.

    Prompts are batched by length, longest first, so that little is padded and memory peaks in the first batch. A
    masked list that one search leaves short, because the beams led to seen items alone, is searched again with these
    items denied. What all prompts begin with is computed once, where it is long enough to save time.

    Args:
        search: the search to run.
        prompts: token ids of each user's prompt.
        batch_size: prompts in one search; `"auto"` takes as many as should fit into the free memory, and half of them
            where they do not.
        k: length of the lists, at most `search.num_beams`.
        histories: for each user the item indices to leave out of the masked list.
        progress: show a progress bar with the time left.
        allowed: item indices that alone may be in any list, one set for all prompts or one each.
        denied: item indices that may be in no list, in the same form.
        distributed: share the batches out over the processes of the launch, all of which must make the call; every
            process gets all lists, those of one process to the last bit.

    Raises:
        InputError: an empty prompt, `histories` or sets of another length than `prompts`, `k` or `batch_size` out of
            range.
    """
    _check(search, prompts, batch_size, k, {"histories": histories, "allowed": allowed, "denied": denied})
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    size = _fitting(search, prompts, distributed) if batch_size == "auto" else batch_size
    fitting = FittingBatches(size) if batch_size == "auto" else None
    prefix = _common_prefix(search, prompts)
    batches = [order[start : start + size] for start in range(0, len(prompts), size)]
    mine = share(batches) if distributed else batches

    def rank(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [rank_part(rows)] if fitting is None else fitting.run(rows, rank_part)
        bar.update(len(rows))
        batch_items, batch_scores = zip(*parts, strict=True)
        return np.concatenate(batch_items, axis=1), np.concatenate(batch_scores, axis=1)

    def rank_part(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sets = _rows_of(allowed, rows), _rows_of(denied, rows)
        return _rank_batch(search, prompts, k, rows, histories, *sets, prefix)

    items = np.full((2, len(prompts), k), -1, dtype=np.int64)
    scores = np.full((2, len(prompts), k), -np.inf, dtype=np.float32)
    with ProgressBar(sum(map(len, mine)), "ranking", "user", shown=progress) as bar:
        done = in_shares(batches, rank) if distributed else map(rank, batches)
        for rows, (batch_items, batch_scores) in zip(batches, done, strict=True):
            items[:, rows], scores[:, rows] = batch_items, batch_scores
    if histories is None:
        return Rankings(items[0], scores[0], None, None)
    return Rankings(items[0], scores[0], items[1], scores[1])


def _rank_batch(
    search: ConstrainedSearch,
    prompts: Sequence[Sequence[int]],
    k: int,
    rows: np.ndarray,
    histories: Sequence[Any] | None,
    allowed: Any,
    denied: Any,
    prefix: PromptPrefix | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores of the prompts of one batch, `(2, rows, k)` each: the list, and the masked one."""
    items = np.full((2, len(rows), k), -1, dtype=np.int64)
    scores = np.full((2, len(rows), k), -np.inf, dtype=np.float32)
    candidates = search.search(*_left_pad([prompts[row] for row in rows]), allowed, denied, prefix)
    everyone = np.arange(len(rows))
    _store(candidates.top(k), items[0], scores[0], everyone)
    if histories is not None:
        seen = [histories[row] for row in rows]
        _store(candidates.top(k, denied=seen), items[1], scores[1], everyone)
        short = np.flatnonzero(_is_short(items[1], seen, allowed, denied, search.trie.num_items))
        if len(short):
            deny = union([seen[place] for place in short], _rows_of(denied, short))
            inputs = _left_pad([prompts[row] for row in rows[short]])
            again = search.search(*inputs, _rows_of(allowed, short), deny, prefix)
            _store(again.top(k), items[1], scores[1], short)
    return items, scores


def _fitting(search: ConstrainedSearch, prompts: Sequence[Sequence[int]], distributed: bool) -> int:
    size = fitting_batch_size(search, max(map(len, prompts), default=1))
    if distributed:  # processes that see other free memory must share out the same batches
        size = min(in_shares([size] * launched().num_processes, lambda mine: mine))
    return size


def _common_prefix(search: ConstrainedSearch, prompts: Sequence[Sequence[int]]) -> PromptPrefix | None:
    """What all prompts begin with, computed, where that saves more than it costs; it leaves each prompt a token."""
    if len(prompts) < 2 or search.model.config.is_encoder_decoder:  # an encoder sees the end from the beginning
        return None
    first, last = min(map(list, prompts)), max(map(list, prompts))  # all others lie between them
    shortest = min(map(len, prompts))
    length = next((place for place in range(shortest - 1) if first[place] != last[place]), shortest - 1)
    if length < _PREFIX_TOKENS or length * (len(prompts) - 1) < _SAVED_TOKENS:
        return None
    return search.prefix(first[:length])


def _check(
    search: ConstrainedSearch,
    prompts: Sequence[Sequence[int]],
    batch_size: BatchSize,
    k: int,
    sets: dict[str, Any],
) -> None:
    for name, given in sets.items():
        one_each = given is not None and (name == "histories" or is_by_row(given))
        if one_each and len(given) != len(prompts):
            raise InputError(f"{name}: got {len(given)} for {len(prompts)} prompts; give one a prompt")
    check_batch_size(batch_size)
    if not 1 <= k <= search.num_beams:
        raise InputError(f"k: got {k}, expected 1 to num_beams={search.num_beams}; search with more beams")
    empty = next((row for row, prompt in enumerate(prompts) if len(prompt) == 0), None)
    if empty is not None:
        raise InputError(f"prompts: prompt {empty} is empty; a prompt needs at least one token")


def _rows_of(sets: Any, rows: np.ndarray) -> Any:
    """The sets of some prompts; one set for all stays as it is."""
    return [sets[row] for row in rows] if sets is not None and is_by_row(sets) else sets


def union(seen: Sequence[Any], denied: Any) -> list[Any]:
    """One set a prompt, together with sets of the other form: one for all, one a prompt, or none."""
    if denied is None:
        return list(seen)
    more = denied if is_by_row(denied) else [denied] * len(seen)
    return [[*a, *b] for a, b in zip(seen, more, strict=True)]


def _is_short(items: np.ndarray, histories: list[Any], allowed: Any, denied: Any, num_items: int) -> np.ndarray:
    """Where a masked list has room although there are items left. Shape: `(rows, k)` -> `(rows,)` bool."""
    short = (items >= 0).sum(1) < items.shape[1]
    for row in np.flatnonzero(short).tolist():
        hidden = set(map(int, histories[row])) | _as_set(denied, row)
        left = num_items - len(hidden) if allowed is None else len(_as_set(allowed, row) - hidden)
        short[row] = (items[row] >= 0).sum() < left
    return short


def _as_set(sets: Any, row: int) -> set[int]:
    """The set of one prompt, or that of all."""
    if sets is None:
        return set()
    return set(map(int, sets[row] if is_by_row(sets) else sets))


def _store(output: BeamOutput, items: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    items[rows], scores[rows] = output.items.cpu().numpy(), output.scores.cpu().numpy()


def _left_pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, `(batch, longest)` each. Padding holds token 0, which the mask hides."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
