"""A beam search level by level: the prefixes that it kept, their log-probabilities, and what their items share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from align3gr.data.schema import TITLE, USER_ID
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.candidates import stable_topk
from align3gr.decoding.catalogue_tables import CODES
from align3gr.decoding.recommender import Recommender
from align3gr.demo.common_words import CommonWords
from align3gr.errors import InputError


@dataclass(frozen=True)
class KeptPrefix:
    """A prefix of SCIDs that the search followed.

    Attributes:
        codes: its codes, one a level so far.
        log_probability: of the prefix, given the prompt.
        num_items: items of the catalogue whose SCID begins so.
        titles: some of their titles, in the order of the catalogue.
        common_words: words that most of these items share and that are rare elsewhere, the most telling first.
    """

    codes: tuple[int, ...]
    log_probability: float
    num_items: int
    titles: tuple[str, ...]
    common_words: tuple[str, ...]


@dataclass(frozen=True)
class BeamLevel:
    """What is left of the beam after one level.

    Attributes:
        level: 1 for the first code of the SCID.
        num_prefixes: prefixes of this length in the catalogue.
        kept: those that the search kept, the most probable first.
    """

    level: int
    num_prefixes: int
    kept: tuple[KeptPrefix, ...]

    @property
    def probability(self) -> float:
        """Probability that the kept prefixes have together, 0 to 1."""
        return float(np.exp([prefix.log_probability for prefix in self.kept]).sum())


class BeamViewer:
    """Shows how the search of a recommender narrows down to a list.

    Args:
        recommender: its search has beams (`num_beams` is a number).
        texts: for each row of `recommender.items` what common words are looked for in; the titles where it is None.
        examples: titles that are named for each prefix.

    Raises:
        InputError: the search has no beams, or there are more or fewer texts than items.

    Example:

    ```python
    for level in BeamViewer(recommender).levels(["B001", "B042"], "u17"):
        print(level.level, [(prefix.codes, prefix.log_probability) for prefix in level.kept[:3]])
    ```
    """

    def __init__(self, recommender: Recommender, texts: Sequence[str] | None = None, examples: int = 3):
        search = recommender.search
        if not isinstance(search, ConstrainedBeamSearch):
            raise InputError("num_beams: a search of every item has no beams to show; give a number of beams")
        titles = recommender.items[TITLE].to_list()
        if texts is not None and len(texts) != len(titles):
            raise InputError(f"texts: got {len(texts)} for {len(titles)} items; give one an item")
        tokens = recommender.prompt_builder.vocabulary.item_tokens
        settings = search.num_beams, search.widths, search.normalizer
        self.recommender = recommender
        self.codes = np.array(recommender.items[CODES].to_list(), dtype=np.int64)
        self.examples = examples
        self._search = _WatchedBeamSearch(recommender.model, search.trie, tokens, *settings)
        self._titles = titles
        self._words = CommonWords(titles if texts is None else texts)

    def levels(
        self, history: Sequence[str], user_id: str | None = None, exclude_seen: bool = False
    ) -> list[BeamLevel]:
        """The beam of the search that `recommender.recommend` runs for the same question.

        Args:
            history: item ids, oldest first.
            user_id: the user; None, or one without an SCID, is prompted without.
            exclude_seen: whether the history's items are left out, which changes what is followed.

        Raises:
            InputError: an item is not in the catalogue, or there is nothing to make a prompt of.
        """
        rows = self.recommender.item_rows(history)
        prompt = self.recommender.prompt_builder.prompt(self.user_codes(user_id), self.codes[rows])
        if not prompt:
            raise InputError("history: empty, and neither user nor tokenizer give a prompt; give at least one item")
        kept = self._search.watch(prompt, rows if exclude_seen else None)
        return [self._level(depth, *found) for depth, found in enumerate(kept, start=1)]

    def user_codes(self, user_id: str | None) -> np.ndarray | None:
        """SCID of a user, `(levels,)`, or None where the model prompts for the user without one."""
        users = self.recommender.users
        if users is None or user_id is None or not self.recommender.prompt_builder.user_scid:
            return None
        found = users.filter(users[USER_ID] == user_id)[CODES].to_list()
        return np.array(found[0], dtype=np.int64) if found else None

    def _level(self, depth: int, nodes: Tensor, scores: Tensor) -> BeamLevel:
        """The level of one prompt from the nodes of depth `depth` and their scores, `(beams,)` each."""
        trie = self._search.trie
        columns = [trie.codes(depth, nodes)]
        for above in range(depth - 1, 0, -1):
            nodes = trie.parents(above + 1, nodes)
            columns.append(trie.codes(above, nodes))
        prefixes = torch.stack(columns[::-1], dim=-1).tolist()
        kept = (self._prefix(tuple(codes), score) for codes, score in zip(prefixes, scores.tolist(), strict=True))
        return BeamLevel(depth, trie.num_nodes[depth - 1], tuple(kept))

    def _prefix(self, codes: tuple[int, ...], score: float) -> KeptPrefix:
        items = np.flatnonzero((self.codes[:, : len(codes)] == codes).all(axis=1))
        titles = tuple(self._titles[item] for item in items[: self.examples].tolist())
        return KeptPrefix(codes, score, len(items), titles, self._words.of(items))


class _WatchedBeamSearch(ConstrainedBeamSearch):
    """The same search; of one prompt it also tells what was kept at each level, the most probable first."""

    def watch(self, prompt: Sequence[int], denied: np.ndarray | None) -> list[tuple[Tensor, Tensor]]:
        self._seen: list[tuple[Tensor, Tensor]] = []
        found = self.search(torch.tensor([list(prompt)]), denied=denied)
        width = min(self.num_beams, found.scores.shape[1])
        scores, places = stable_topk(found.scores, width)
        self._kept(self.trie.levels, found.leaves.gather(1, places), scores)
        return self._seen

    def _kept(self, depth: int, nodes: Tensor, scores: Tensor) -> None:
        ordered, places = stable_topk(scores, scores.shape[1])
        real = ordered[0] > float("-inf")
        self._seen.append((nodes.gather(1, places)[0][real], ordered[0][real]))
