"""From ids to ids: lists, histories, users, and the folder that holds it all."""

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from align3gr.decoding.recommender import Recommendation, Recommender
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder
from align3gr.scid.vocabulary import scid_tokens

CODES = [[0, 0, 0], [0, 1, 2], [3, 1, 0], [2, 2, 2], [1, 3, 3], [3, 1, 1]]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "[UNK]": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), bos_token="<s>", unk_token="[UNK]"
    )
    tokenizer.add_tokens(scid_tokens("i", [4, 4, 4]) + scid_tokens("u", [4, 4, 4]))
    return tokenizer


@pytest.fixture
def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    items = pl.DataFrame({"item_id": list("abcdef"), "title": ["A", "B", None, "D", "E", "F"], "codes": CODES})
    users = pl.DataFrame({"user_id": ["u1", "u2"], "codes": [[1, 2, 3], [0, 0, 0]]})
    return items, users


@pytest.fixture
def recommender(tiny_model, tokenizer, tables) -> Recommender:
    return Recommender(tiny_model(), tokenizer, *tables, num_beams=6)


def expected_scores(recommender: Recommender, prompt: list[int]) -> dict[str, float]:
    """Every item as one whole sequence."""
    tokens = torch.from_numpy(recommender.prompt_builder.vocabulary.item_ids(np.array(CODES)))
    sequences = torch.cat([torch.tensor(prompt).expand(6, -1), tokens], dim=1)
    with torch.no_grad():
        log_probs = recommender.model(sequences).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
    return dict(zip("abcdef", log_probs.gather(-1, tokens[..., None]).sum((1, 2)).tolist(), strict=True))


def test_lists_are_the_models_ranking(recommender):
    # <s> is 0, <i{l}_{c}> is 2 + 4 l + c, <u{l}_{c}> is 14 + 4 l + c.
    prompts = [[0, 15, 20, 25, 2, 7, 12, 5, 7, 10], [0, 2, 6, 10]]
    lists = recommender.recommend([["b", "c"], ["a"]], user_ids=["u1", "stranger"], k=6)
    for prompt, ranking in zip(prompts, lists, strict=True):
        scores = expected_scores(recommender, prompt)
        assert [entry.item_id for entry in ranking] == sorted(scores, key=scores.get, reverse=True)
        np.testing.assert_allclose(
            [entry.score for entry in ranking], sorted(scores.values(), reverse=True), atol=1e-4
        )
    titles = {entry.item_id: entry.title for entry in lists[0]}
    assert titles == {"a": "A", "b": "B", "c": "", "d": "D", "e": "E", "f": "F"}


def test_seen_items_can_be_left_out(recommender):
    every = recommender.recommend([["b", "c", "b"]], k=6)[0]
    fresh = recommender.recommend([["b", "c", "b"]], k=6, exclude_seen=True)[0]
    assert [entry.item_id for entry in fresh] == [entry.item_id for entry in every if entry.item_id not in "bc"]


def test_a_known_user_needs_no_history(recommender):
    assert len(recommender.recommend([[]], user_ids=["u2"], k=3)[0]) == 3
    for user in (None, "stranger"):
        with pytest.raises(InputError, match=r"row 0 is empty and user .* has no SCID"):
            recommender.recommend([[]], user_ids=[user])


def test_unknown_items_are_named_or_skipped(recommender):
    with pytest.raises(InputError, match="row 1 names item 'zz', which is not in the catalogue of 6 items"):
        recommender.recommend([["a"], ["b", "zz"]])
    skipped = recommender.recommend([["b", "zz"]], unknown_items="skip", k=6)
    assert skipped == recommender.recommend([["b"]], k=6)


def test_no_users_and_no_histories(tiny_model, tokenizer, tables):
    recommender = Recommender(tiny_model(), tokenizer, tables[0], num_beams=2)
    assert recommender.recommend([], k=2) == []
    with pytest.raises(InputError, match="k: got 3, expected 1 to num_beams=2"):
        recommender.recommend([["a"]], k=3)


def test_a_folder_holds_everything(tiny_model, tokenizer, tables, tmp_path):
    builder = PromptBuilder(tokenizer, max_history=1)
    recommender = Recommender(tiny_model(), tokenizer, *tables, builder, num_beams=6)
    recommender.save_pretrained(tmp_path / "model")
    loaded = Recommender.from_pretrained(tmp_path / "model", device="cpu", num_beams=6)
    histories, users = [["b", "c"], ["a"]], ["u1", None]
    before, after = (each.recommend(histories, users, k=6) for each in (recommender, loaded))
    assert after == before
    assert isinstance(after[0][0], Recommendation)
    latest = loaded.recommend([["c"]], ["u1"], k=6)[0]  # max_history=1 came along
    assert [entry.item_id for entry in latest] == [entry.item_id for entry in after[0]]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size == 60


def test_a_second_save_without_users_brings_none_back(tiny_model, tokenizer, tables, tmp_path):
    Recommender(tiny_model(), tokenizer, *tables).save_pretrained(tmp_path)
    Recommender(tiny_model(), tokenizer, tables[0]).save_pretrained(tmp_path)
    assert Recommender.from_pretrained(tmp_path, device="cpu").users is None


def test_a_folder_without_a_catalogue_is_named(tmp_path):
    with pytest.raises(InputError, match=r"item_codes\.parquet: not found"):
        Recommender.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items.drop("title"), "items: column 'title' is missing"),
        (lambda items: pl.concat([items, items[:1]]), "items: item_id 'a' is null or stands in two rows"),
        (
            lambda items: items.with_columns(codes=pl.col("codes").list.head(2)),
            r"item_id 'a' has codes \[0, 0\], expected 3",
        ),
        (lambda items: items.with_columns(codes=pl.lit([0, 1, 9])), "item 0 has code 9 at level 2, expected 0 to 3"),
    ],
)
def test_catalogues_that_cannot_be_used_are_named(tiny_model, tokenizer, tables, change, message):
    with pytest.raises(InputError, match=message):
        Recommender(tiny_model(), tokenizer, change(tables[0]))


def test_arguments_that_do_not_fit_are_named(recommender):
    with pytest.raises(InputError, match="user_ids: got 1 for 2 histories"):
        recommender.recommend([["a"], ["b"]], user_ids=["u1"])
    with pytest.raises(InputError, match="row 0 is the string 'ab'"):
        recommender.recommend(["ab"])
    with pytest.raises(InputError, match="unknown_items: got 'drop'"):
        recommender.recommend([["a"]], unknown_items="drop")
