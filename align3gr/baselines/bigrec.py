"""BIGRec: a causal LM writes the next item's title; items are ranked by the distance of theirs to it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import yaml

from align3gr.baselines.generative import GenerativeSystem, StageChain
from align3gr.baselines.generative_titles import PROMPT, TitleWriter
from align3gr.baselines.matrix_factorization import MatrixFactorization
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import ITEM_ID, TITLE
from align3gr.errors import InputError
from align3gr.pipeline import stage_folder
from align3gr.scid.code_table import save_codes

logger = logging.getLogger(__name__)

TEMPLATES = {
    # No row is made of it; every stage needs one.
    "sequential": [{"prompt": "{history}", "response": "{item}"}],
    "asymmetric": [{"prompt": PROMPT, "response": "{title}"}],
}
GROUNDINGS = ("lm", "semantic")
WEIGHTINGS = ("popularity", "collaborative", "none")
# Exponents of the weighting that validation chooses from; 0 is the distance alone.
GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
QUESTIONS_AT_ONCE = 256


class BIGRec(GenerativeSystem):
    """BIGRec (Bao et al. 2023): titles of the history -> a title -> the items by distance to it.

    The distances D of an answer to all titles are scaled to [0, 1]; items are ranked by D / (1 + P) ** gamma, where P,
    scaled to [0, 1] too, is an item's popularity, or what a collaborative model (MF here) gives it. Gamma is the best
    of [`GAMMAS`] on validation.

    Args:
        chain, seed, num_beams: see [`GenerativeSystem`]; `num_beams` is not used, the title has a beam of its own.
        grounding: which space the distance is taken in: the language model's last hidden state, or the prepared run's
            text encoder.
        weighting: `popularity`, `collaborative` or `none`.
        title_beams: beam with which titles are written.
        setting: options of the stages.

    Attributes:
        gamma: what was chosen.

    Raises:
        InputError: `grounding` or `weighting` is unknown.
    """

    def __init__(
        self,
        chain: StageChain,
        seed: int,
        num_beams: int = 20,
        grounding: str = GROUNDINGS[0],
        weighting: str = WEIGHTINGS[0],
        title_beams: int = 4,
        **setting: Any,
    ) -> None:
        super().__init__(chain, seed, num_beams, **setting)
        for name, value, known in (("grounding", grounding, GROUNDINGS), ("weighting", weighting, WEIGHTINGS)):
            if value not in known:
                raise InputError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
        self.grounding, self.weighting, self.title_beams = grounding, weighting, title_beams
        self.gamma = 0.0
        self._asked: EvaluationSet | None = None

    def stage_options(self, stage: str, run_dir: Path) -> Mapping[str, Any]:
        """Numbers for codes, which stand in no row, to `scid`; templates of titles to `sft`."""
        if stage == "scid":
            items = self.chain.split.items
            width = int(np.ceil(np.sqrt(len(items))))
            codes = np.stack(np.divmod(np.arange(len(items)), width), axis=1)
            save_codes(run_dir / "numbers.parquet", ITEM_ID, items[ITEM_ID], codes)
            return {"item_codes": str(run_dir / "numbers.parquet")}
        if stage == "sft":
            path = run_dir / "templates.yaml"
            path.write_text(yaml.safe_dump(TEMPLATES), encoding="utf-8")
            return {"templates": str(path)}
        return {}

    def fit(
        self, train_sequences: Sequence[np.ndarray], num_items: int, validate: Callable[[], float] | None = None
    ) -> Self:
        """Runs the stages, embeds the titles, and chooses gamma; see [`GenerativeSystem.fit`].

        Without `validate`, gamma is 0.
        """
        super().fit(train_sequences, num_items, validate)
        self._writer = TitleWriter(self.trained, self.chain.split, self.title_beams)
        self._titles = self._embed([title or "" for title in self.chain.split.items[TITLE].to_list()])
        counts = np.bincount(np.concatenate([*train_sequences, np.empty(0, np.int64)]), minlength=num_items)
        self._popularity = torch.from_numpy(_scaled(counts[None].astype(np.float32)))
        if self.weighting == "collaborative":
            self._collaborative = MatrixFactorization(self.seed).fit(train_sequences, num_items)
        if validate is not None and self.weighting != "none":
            values = []
            for self.gamma in GAMMAS:
                values.append(validate())
            self.gamma = GAMMAS[int(np.argmax(values))]
        return self

    def chosen(self) -> dict[str, Any]:
        """Gamma."""
        return {"gamma": self.gamma}

    def lists(self, questions: EvaluationSet, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See [`GenerativeSystem.lists`]. Of items at one cost, such as those of one title, the one of larger P comes
        first where gamma is above 0, and then the one of the lower row."""
        if self._asked is not questions:  # for each gamma validation asks the same
            self._answers, self._asked = self._embed(self._writer.write(questions.histories)), questions
        allowed, masked = (np.full((len(questions), k), -1, dtype=np.int64) for _ in range(2))
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            block = questions.subset(np.arange(start, min(start + QUESTIONS_AT_ONCE, len(questions))))
            rows = slice(start, start + len(block))
            statistics = self._statistics(block)
            costs = grounded_costs(self._answers[rows], self._titles, statistics, self.gamma)
            preferred = np.broadcast_to(statistics.numpy() * (self.gamma > 0), costs.shape)
            allowed[rows] = cheapest(costs, k, preferred)
            for row, history in enumerate(block.histories):
                costs[row, history] = np.inf
            masked[rows] = cheapest(costs, k, preferred)
        return allowed, masked

    def _statistics(self, questions: EvaluationSet) -> torch.Tensor:
        """P in [0, 1]. Shape: `(questions, items)` or `(1, items)`."""
        if self.weighting == "none":
            return torch.zeros_like(self._popularity)
        if self.weighting == "popularity":
            return self._popularity
        users = self._collaborative.user_vectors(questions.histories, questions.user_rows)
        return torch.from_numpy(_scaled(users @ self._collaborative.item_vectors().T))

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        if self.grounding == "lm":
            return self._writer.embed(texts)
        from align3gr.encoders import load_text_encoder

        encoder = load_text_encoder(stage_folder(self.chain.run_dir, "embed") / "semantic_encoder")
        return torch.from_numpy(encoder.encode(texts))


def grounded_costs(answers: torch.Tensor, titles: torch.Tensor, statistics: torch.Tensor, gamma: float) -> np.ndarray:
    """D / (1 + P) ** gamma with the Euclidean distance D scaled to [0, 1] for each answer (Section 3.3 of BIGRec).

    Args:
        answers: `(questions, dim)`.
        titles: `(items, dim)`.
        statistics: P, `(questions, items)` or `(1, items)`.
        gamma: weight of the statistics.

    Returns:
        `(questions, items)`, lower is better.
    """
    distances = torch.cdist(answers, titles, compute_mode="donot_use_mm_for_euclid_dist")
    lowest, highest = distances.min(1, keepdim=True).values, distances.max(1, keepdim=True).values
    return ((distances - lowest) / (highest - lowest).clamp_min(1e-12) / (1 + statistics) ** gamma).numpy()


def cheapest(costs: np.ndarray, k: int, preferred: np.ndarray) -> np.ndarray:
    """The k items of least cost, ties by what is preferred and by index; -1 where only infinite costs are left.

    Shapes: `(rows, items)` twice -> `(rows, k)` int64.
    """
    width = min(k, costs.shape[1])
    chosen = np.full((len(costs), k), -1, dtype=np.int64)
    limits = np.partition(costs, width - 1, axis=1)[:, width - 1]
    for row, limit in enumerate(limits):
        # All that tie with the last one stay for the sort, so that the lowest index wins.
        items = np.flatnonzero((costs[row] <= limit) & np.isfinite(costs[row]))
        items = items[np.lexsort((-preferred[row, items], costs[row, items]))][:width]
        chosen[row, : len(items)] = items
    return chosen


def _scaled(values: np.ndarray) -> np.ndarray:
    """Rows to [0, 1]."""
    lowest, highest = values.min(1, keepdims=True), values.max(1, keepdims=True)
    return (values - lowest) / np.maximum(highest - lowest, 1e-12)
