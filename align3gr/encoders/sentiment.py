"""Scores from 1 to 5 for review texts, by a frozen model: a classifier, a language model, or VADER's word list.

A score is what the model would answer: the most probable label or digit, not a mean over them, so that "disliked" (1)
can be reached. Scores are kept on disk by scorer and text, and computed once.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from align3gr.data.feedback import RatingScale
from align3gr.data.schema import FEEDBACK_LEVELS
from align3gr.encoders.sentence_transformer import model_revision
from align3gr.encoders.vector_cache import VectorCache, default_cache, text_key
from align3gr.errors import InputError
from align3gr.progress import ProgressBar

logger = logging.getLogger(__name__)

SCORERS = ("vader", "text-classification", "causal-lm")
# Texts that an interrupted run may lose.
_SHARD = 2048
_WORDS = {"positive": 5.0, "pos": 5.0, "neutral": 3.0, "neu": 3.0, "negative": 1.0, "neg": 1.0}
_WORDS |= {"very positive": 5.0, "very negative": 1.0}

PROMPT = """A customer wrote the review below. How satisfied are they?
1 = they dislike it, 2 = rather not satisfied, 3 = neither, 4 = satisfied, 5 = they love it

Review: {review}

Answer with one digit from 1 to 5.
Digit:"""


class SentimentScorer(Protocol):
    """Anything that scores texts.

    Attributes:
        name: everything beside the text that a score depends on; scores on disk are kept by it.
    """

    name: str

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """A score from 1 to 5 for each text. Shape: (texts,) float64."""
        ...


class VaderScorer:
    """VADER (Hutto & Gilbert 2014), a word list with rules for English: no model, no download.

    The range of its compound value, -1 to 1, is cut into fifths: below -0.6 the score is 1, from 0.2 on 4, from 0.6 on
    5.

    Raises:
        InputError: vaderSentiment is not installed.
    """

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise InputError("scorer: vaderSentiment is not installed; pip install 'align3gr[sentiment]'") from error
        self._analyzer = SentimentIntensityAnalyzer()
        self.name = f"vader {version('vaderSentiment')}, fifths"

    def score(self, texts: Sequence[str]) -> np.ndarray:
        compound = np.array([self._analyzer.polarity_scores(text)["compound"] for text in texts], dtype=np.float64)
        return np.clip(np.floor((compound + 1) * 2.5) + 1, 1, 5)


class ClassifierScorer:
    """A transformers `text-classification` pipeline; long texts are cut to what the model takes.

    Args:
        model: Hub id or folder.
        label_scores: score of each label. Without it, labels that begin with a digit from 1 to 5 ("4 stars") and
            positive, neutral and negative (5, 3, 1) are understood.
        batch_size: texts in a batch.

    Raises:
        InputError: the model cannot be loaded, or a label has no score.
    """

    def __init__(self, model: str, label_scores: Mapping[str, float] | None = None, batch_size: int = 32) -> None:
        from transformers import pipeline

        try:
            self._pipeline: Any = pipeline("text-classification", model=model)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"scorer_model: '{model}' cannot be loaded: {' '.join(str(error).split())}") from error
        labels = list((self._pipeline.model.config.id2label or {}).values())
        given = label_scores or {}
        self._scores = {label: given.get(label, _label_score(label)) for label in labels}
        unclear = [label for label, score in self._scores.items() if score is None or not 1 <= score <= 5]
        if unclear:
            raise InputError(
                f"label_scores: the label {unclear[0]!r} of {model} has no score from 1 to 5; give one for each of "
                f"{labels}"
            )
        self._batch_size = batch_size
        self.name = json.dumps(["text-classification", model_revision(model), self._scores])

    def score(self, texts: Sequence[str]) -> np.ndarray:
        found = self._pipeline(list(texts), batch_size=self._batch_size, truncation=True)
        return np.array([self._scores[answer["label"]] for answer in found], dtype=np.float64)


class LanguageModelScorer:
    """A causal language model that is asked for a digit from 1 to 5; no other answer is possible.

    The score is the digit with the highest logit after the prompt. A tokenizer with a chat template gets the prompt as
    a user's message.

    Args:
        model: Hub id or folder.
        batch_size: texts in a batch.
        max_characters: longer texts are cut.
        prompt: with `{review}` in it.

    Raises:
        InputError: the model cannot be loaded, or its tokenizer has no token of its own for each digit.
    """

    def __init__(self, model: str, batch_size: int = 8, max_characters: int = 4000, prompt: str = PROMPT) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if "{review}" not in prompt:
            raise InputError(f"prompt: got {prompt!r}, expected a text with {{review}} in it")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            loaded: Any = AutoModelForCausalLM.from_pretrained(model)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"scorer_model: '{model}' cannot be loaded: {' '.join(str(error).split())}") from error
        self._model = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._prompt, self._batch_size, self._max_characters = prompt, batch_size, max_characters
        self.name = json.dumps(["causal-lm", model_revision(model), prompt, max_characters])

    def score(self, texts: Sequence[str]) -> np.ndarray:
        asked = [self._ask(text) for text in texts]
        scores = np.empty(len(texts))
        # Prompts of like length in a batch need little padding.
        order = np.argsort([-len(ids) for ids, _ in asked], kind="stable")
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            logits = self._next_logits([asked[row][0] for row in rows])
            digits = torch.tensor([asked[row][1] for row in rows], device=logits.device)
            scores[rows] = 1 + logits.gather(1, digits).argmax(dim=1).cpu().numpy()
        return scores

    def _ask(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, and those of the digits 1 to 5 behind it, however this tokenizer writes them."""
        question = self._prompt.replace("{review}", text[: self._max_characters])
        if self._tokenizer.chat_template:
            message = [{"role": "user", "content": question}]
            question = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        space = "" if question[-1:].isspace() else " "
        special = not self._tokenizer.chat_template  # a template writes its special tokens itself
        answers = [
            self._tokenizer(f"{question}{space}{digit}", add_special_tokens=special)["input_ids"]
            for digit in range(1, 6)
        ]
        same = next((at for at, ids in enumerate(zip(*answers, strict=False)) if len(set(ids)) > 1), 0)
        digits = [ids[same] for ids in answers]
        if len(set(digits)) < 5:
            raise InputError("scorer_model: its tokenizer has no token of its own for each digit from 1 to 5")
        return answers[0][:same], digits

    @torch.no_grad()
    def _next_logits(self, prompts: list[list[int]]) -> torch.Tensor:
        """Logits behind each prompt. Shape: (prompts, vocabulary)."""
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left, so that every last token stands in one place
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        on_device = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        return self._model(**on_device, logits_to_keep=1).logits[:, -1]


def load_scorer(kind: str, model: str = "", label_scores: Mapping[str, float] | None = None) -> SentimentScorer:
    """A scorer by name: "vader", "text-classification" or "causal-lm", the last two with a model.

    Args:
        kind: its name.
        model: a model on the Hub or a folder; "vader" has none.
        label_scores: the score of each label, for "text-classification".

    Raises:
        InputError: the name is unknown, or an option is missing or does not apply.
    """
    if kind not in SCORERS:
        raise InputError(f"scorer: got '{kind}', choose from {', '.join(SCORERS)}")
    if (kind == "vader") == bool(model):
        raise InputError(
            f"scorer_model: got '{model}', scorer '{kind}' takes {'none' if model else 'a Hub id or folder'}"
        )
    if label_scores and kind != "text-classification":
        raise InputError(f"label_scores: applies to scorer 'text-classification' only, got '{kind}'")
    if kind == "vader":
        return VaderScorer()
    return ClassifierScorer(model, label_scores) if kind == "text-classification" else LanguageModelScorer(model)


def score_texts(
    scorer: SentimentScorer, texts: Sequence[str], cache: str | Path | None = None, progress: bool = True
) -> np.ndarray:
    """Scores of texts, each computed once: known ones come from disk, new ones are kept there as they are made.

    Args:
        scorer: what scores.
        texts: reviews.
        cache: folder; `default_cache()` if None.
        progress: show a progress bar.

    Returns:
        (texts,) float64 from 1 to 5, NaN for a text without a character.
    """
    keys = [text_key(text) if text.strip() else b"" for text in texts]
    distinct = {key: text for key, text in zip(keys, texts, strict=True) if key}
    kept = VectorCache(default_cache() if cache is None else cache, f"sentiment {scorer.name}")
    known = {key: float(vector[0]) for key, vector in kept.load(list(distinct)).items()}
    missing = [key for key in distinct if key not in known]
    logger.info("%d texts, %d of them to score", len(distinct), len(missing))
    with ProgressBar(len(missing), "scoring", "text", shown=progress and bool(missing)) as bar:
        for start in range(0, len(missing), _SHARD):
            shard = missing[start : start + _SHARD]
            scores = scorer.score([distinct[key] for key in shard])
            kept.store(shard, scores.reshape(-1, 1))
            known |= dict(zip(shard, scores.tolist(), strict=True))
            bar.update(len(shard))
    return np.array([known[key] if key else np.nan for key in keys], dtype=np.float64)


def agreement(scores: np.ndarray, ratings: np.ndarray, scale: RatingScale | None = None) -> dict[str, Any]:
    """How well scores agree with the stars that the same users gave.

    Args:
        scores: (reviews,) from 1 to 5, NaN where there is none.
        ratings: (reviews,) stars, NaN where there are none; only reviews with both count.
        scale: levels of the stars; the paper's if None.

    Returns:
        `reviews` (with both), `accuracy` (share on the same level), `rank_correlation` (Spearman's, of scores and
        stars; None where either is always the same), and `confusion`: by stars -> by score -> reviews.
    """
    from scipy.stats import spearmanr

    both = ~(np.isnan(scores) | np.isnan(ratings))
    scores, ratings = scores[both], ratings[both]
    by_score, by_stars = RatingScale().levels(scores), (scale or RatingScale()).levels(ratings)
    levels = FEEDBACK_LEVELS
    counts = np.zeros((len(levels), len(levels)), dtype=np.int64)
    np.add.at(counts, (by_stars, by_score), 1)
    varied = len(scores) > 1 and np.ptp(scores) > 0 and np.ptp(ratings) > 0
    return {
        "reviews": len(scores),
        "accuracy": float((by_score == by_stars).mean()) if len(scores) else None,
        "rank_correlation": float(spearmanr(scores, ratings).statistic) if varied else None,
        "confusion": {
            name: dict(zip(levels, row, strict=True)) for name, row in zip(levels, counts.tolist(), strict=True)
        },
    }


def _label_score(label: str) -> float | None:
    digit = re.match(r"\s*([1-5])\b", label)
    return float(digit[1]) if digit else _WORDS.get(label.strip().lower())
