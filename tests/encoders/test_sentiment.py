"""Scores of reviews: every scorer on tiny models made here, the cache, agreement with stars."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from align3gr.data.feedback import RatingScale
from align3gr.encoders.sentiment import (
    ClassifierScorer,
    LanguageModelScorer,
    VaderScorer,
    agreement,
    load_scorer,
    score_texts,
)
from align3gr.errors import InputError

WORDS = ["<pad>", "<unk>", "<s>", "bad", "fine", "good", "Digit:", "1", "2", "3", "4", "5"]


def words_tokenizer(words=WORDS, bos=True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", model_max_length=64
    )


@pytest.fixture
def classifier(tmp_path):
    """A folder with a random classifier of some labels."""

    def build(labels):
        torch.manual_seed(2)
        config = BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            initializer_range=1.0, id2label=dict(enumerate(labels)), label2id={x: i for i, x in enumerate(labels)},
        )  # fmt: skip
        folder = tmp_path / "-".join(labels).replace(" ", "_")
        BertForSequenceClassification(config).save_pretrained(folder)
        words_tokenizer(bos=False).save_pretrained(folder)
        return str(folder)

    return build


@pytest.fixture
def language_model(tmp_path):
    """A folder with a random Llama."""

    def build(words=WORDS, chat_template=None):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, initializer_range=0.5, max_position_embeddings=512, pad_token_id=0,
        )  # fmt: skip
        folder = tmp_path / f"llama-{len(words)}-{chat_template is not None}"
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer = words_tokenizer(words)
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(folder)
        return str(folder)

    return build


TEXTS = [" ".join(words) for n in (1, 2, 3) for words in itertools.product(("bad", "fine", "good"), repeat=n)]


def test_vader_knows_praise_from_blame():
    pytest.importorskip("vaderSentiment")
    scorer = VaderScorer()
    # Compound values: 0.92, 0.44, 0, -0.49, -0.88.
    texts = ["Loved it! Great staff, amazing tacos.", "A good guitar, would buy again.", "The book has 200 pages."]
    texts += ["Disappointing for the price.", "Horrible, terrible, I hate it."]
    assert scorer.score(texts).tolist() == [5, 4, 3, 2, 1]
    assert scorer.name.startswith("vader 3")


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        (["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], [1, 2, 3, 4, 5]),
        (["NEGATIVE", "POSITIVE"], [1, 5]),
        (["Very Negative", "neutral", "positive"], [1, 3, 5]),
    ],
)
def test_a_classifier_scores_by_its_most_probable_label(classifier, labels, scores):
    folder = classifier(labels)
    model, tokenizer = BertForSequenceClassification.from_pretrained(folder).eval(), words_tokenizer(bos=False)
    with torch.no_grad():
        expected = [scores[model(**tokenizer(text, return_tensors="pt")).logits.argmax()] for text in TEXTS]
    assert len(set(expected)) > 1
    assert ClassifierScorer(folder, batch_size=2).score(TEXTS).tolist() == expected


def test_labels_without_a_meaning_need_scores(classifier):
    folder = classifier(["LABEL_0", "LABEL_1"])
    with pytest.raises(InputError, match=r"label_scores: the label 'LABEL_0' .*give one for each of \['LABEL_0'"):
        ClassifierScorer(folder)
    given = {"LABEL_0": 1, "LABEL_1": 4}
    assert set(ClassifierScorer(folder, given).score(TEXTS)) <= {1, 4}
    with pytest.raises(InputError, match=r"the label 'LABEL_1' .* no score from 1 to 5"):
        ClassifierScorer(folder, given | {"LABEL_1": 7})
    assert ClassifierScorer(folder, given).name != ClassifierScorer(folder, given | {"LABEL_1": 5}).name


@pytest.mark.parametrize("template", [None, "<s> {{ messages[0]['content'] }} fine"])
def test_a_language_model_answers_with_the_digit_of_the_highest_logit(language_model, template):
    folder = language_model(chat_template=template)
    scorer = LanguageModelScorer(folder, batch_size=3, prompt="Review: {review} Digit:")
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), words_tokenizer()
    expected = []
    for text in TEXTS:  # alone, not padded, all digits out of the whole vocabulary
        words = f"<s> Review: {text} Digit:" + (" fine" if template else "")
        ids = tokenizer(words, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        expected.append(1 + int(logits[[WORDS.index(str(digit)) for digit in range(1, 6)]].argmax()))
    assert len(set(expected)) > 1
    assert scorer.score(TEXTS).tolist() == expected


def test_a_language_model_that_cannot_answer_is_refused(language_model, tmp_path):
    scorer = LanguageModelScorer(language_model(WORDS[:-1]))  # no token for 5... and none for unknown words either
    assert scorer.score(["good"]).shape == (1,)  # <unk> stands for the 5
    with pytest.raises(InputError, match="no token of its own for each digit"):
        LanguageModelScorer(language_model(WORDS[:-2])).score(["good"])
    with pytest.raises(InputError, match=r"prompt: got 'How\?'"):
        LanguageModelScorer(language_model(), prompt="How?")
    with pytest.raises(InputError, match=r"scorer_model: '.*nothing' cannot be loaded"):
        LanguageModelScorer(str(tmp_path / "nothing"))


def test_scorers_by_name():
    for arguments, message in (
        (("stars",), "scorer: got 'stars', choose from vader"),
        (("vader", "some/model"), "scorer_model: got 'some/model', scorer 'vader' takes none"),
        (("causal-lm",), "scorer_model: got '', scorer 'causal-lm' takes a Hub id"),
        (("causal-lm", "m", {"a": 1}), "label_scores: applies to scorer 'text-classification' only"),
    ):
        with pytest.raises(InputError, match=message):
            load_scorer(*arguments)


class Counting:
    """Scores a text by its length, and counts what it is asked."""

    def __init__(self, name="counting"):
        self.name, self.asked = name, []

    def score(self, texts):
        self.asked += texts
        return np.array([len(text) for text in texts], dtype=np.float64)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache: cannot write"):
        score_texts(Counting(), ["aa"], tmp_path / "file", progress=False)


def test_a_text_is_scored_once_by_each_scorer(tmp_path):
    first = Counting()
    scores = score_texts(first, ["aa", "bbb", "aa", " "], tmp_path, progress=False)
    assert scores[:3].tolist() == [2, 3, 2] and np.isnan(scores[3])
    assert first.asked == ["aa", "bbb"]
    again = Counting()
    assert score_texts(again, ["bbb", "cccc"], tmp_path, progress=False).tolist() == [3, 4]
    assert again.asked == ["cccc"]
    other = Counting("other")
    score_texts(other, ["aa"], tmp_path, progress=False)
    assert other.asked == ["aa"]


def test_agreement_with_stars_by_hand():
    scores = np.array([1, 3, 5, 5, np.nan, 2])
    stars = np.array([1, 4, 5, 1, 3, np.nan])
    found = agreement(scores, stars)
    assert found["reviews"] == 4 and found["accuracy"] == 0.5
    assert found["rank_correlation"] == pytest.approx(spearmanr([1, 3, 5, 5], [1, 4, 5, 1]).statistic)
    nothing = {"disliked": 0, "neutral": 0, "liked": 0}
    assert found["confusion"] == {
        "disliked": {"disliked": 1, "neutral": 0, "liked": 1},
        "neutral": nothing,
        "liked": {"disliked": 0, "neutral": 1, "liked": 1},
    }
    assert agreement(scores, np.array([10, 20, 90, 95, 1, 1.0]), RatingScale(90, 10))["accuracy"] == 0.8
    assert agreement(np.array([np.nan]), np.array([1.0])) == {
        "reviews": 0,
        "accuracy": None,
        "rank_correlation": None,
        "confusion": {"disliked": nothing, "neutral": nothing, "liked": nothing},
    }
