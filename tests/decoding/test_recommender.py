"""From ids to ids: lists, histories, users, and the folder that holds it all."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from align3gr.decoding.recommender import Recommendation, Recommender
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder

CODES = [[0, 0, 0], [0, 1, 2], [3, 1, 0], [2, 2, 2], [1, 3, 3], [3, 1, 1]]  # those of the fixture `tables`


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


def test_all_in_place_of_beams_gives_the_true_best(tiny_model, tokenizer, tables, tmp_path):
    recommender = Recommender(tiny_model(), tokenizer, *tables, num_beams="all")
    scores = expected_scores(recommender, [0, 2, 6, 10])
    ranking = recommender.recommend([["a"]], k=2)[0]
    assert [entry.item_id for entry in ranking] == sorted(scores, key=scores.get, reverse=True)[:2]
    recommender.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path, device="cpu", num_beams="all")
    assert loaded.recommend([["a"]], k=6)[0][:2] == ranking
    with pytest.raises(InputError, match="widths: there are no beams"):
        Recommender(tiny_model(), tokenizer, *tables, num_beams="all", widths=[1, 1, 1])


def test_a_search_goes_on_with_another_model(tiny_model, tokenizer, tables):
    first, second = (Recommender(tiny_model(seed=seed), tokenizer, *tables, num_beams=6) for seed in (0, 1))
    prompt = torch.tensor([[0, 2, 6, 10]])
    moved = first.search.with_model(second.model)
    assert moved.search(prompt).top(6).items.tolist() == second.search.search(prompt).top(6).items.tolist()
    assert first.search.search(prompt).top(6).items.tolist() != moved.search(prompt).top(6).items.tolist()
    with pytest.raises(InputError, match="the model has 10 tokens"):
        first.search.with_model(LlamaForCausalLM(LlamaConfig(vocab_size=10, hidden_size=32, intermediate_size=8)))


def test_seen_items_can_be_left_out(recommender):
    every = recommender.recommend([["b", "c", "b"]], k=6)[0]
    fresh = recommender.recommend([["b", "c", "b"]], k=6, exclude_seen=True)[0]
    assert [entry.item_id for entry in fresh] == [entry.item_id for entry in every if entry.item_id not in "bc"]


def test_without_a_history_the_user_or_the_prior_decides(recommender):
    prompts = {"u2": [0, 14, 18, 22], "stranger": [0], None: [0]}  # <s>, then the SCID of a known user
    for user, prompt in prompts.items():
        scores = expected_scores(recommender, prompt)
        ranking = recommender.recommend([[]], user_ids=[user], k=6)[0]
        assert [entry.item_id for entry in ranking] == sorted(scores, key=scores.get, reverse=True)


def test_a_prompt_of_nothing_is_refused(tiny_model, tokenizer, tables):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = None
    recommender = Recommender(tiny_model(), tokenizer, tables[0])
    with pytest.raises(InputError, match="row 1 is empty, user None has no SCID and the tokenizer no BOS"):
        recommender.recommend([["a"], []])


def test_only_allowed_items_are_shown(recommender):
    every = [entry.item_id for entry in recommender.recommend([["b"]], k=6)[0]]
    shown = recommender.recommend([["b"], ["b"]], k=6, allowed=["f", "a", "b"], exclude_seen=True)
    assert [[entry.item_id for entry in row] for row in shown] == [[item for item in every if item in "fa"]] * 2
    by_row = recommender.recommend([["b"], ["b"]], k=6, allowed=[["c"], []])
    assert [[entry.item_id for entry in row] for row in by_row] == [["c"], []]
    with pytest.raises(InputError, match="allowed names item 'zz', which is not in the catalogue"):
        recommender.recommend([["b"]], allowed=["a", "zz"])
    with pytest.raises(InputError, match="allowed: got 1 lists for 2 histories"):
        recommender.recommend([["b"], ["b"]], allowed=[["a"]])


def test_denied_items_are_not_shown_and_add_to_the_history(recommender):
    def shown(**options):
        return [{entry.item_id for entry in row} for row in recommender.recommend([["a"], ["b"]], k=6, **options)]

    assert shown(denied=["c", "d"]) == [set("abef")] * 2
    assert shown(denied=[["c"], []]) == [set("abdef"), set("abcdef")]
    assert shown(denied=["c", "d"], exclude_seen=True) == [set("bef"), set("aef")]
    assert shown(denied=[["c"], []], exclude_seen=True, allowed=["a", "b", "c"]) == [{"b"}, {"a", "c"}]
    with pytest.raises(InputError, match="denied names item 'z'"):
        shown(denied=["z"])
    with pytest.raises(InputError, match="denied: got 1 lists for 2 histories"):
        shown(denied=[["a"]])


def test_items_that_share_a_scid_stand_in_row_order(tiny_model, tokenizer, tables):
    items = tables[0].with_columns(codes=pl.Series([CODES[0]] * 3 + CODES[3:]))
    ranking = Recommender(tiny_model(), tokenizer, items).recommend([["a"]], k=6)[0]
    assert [entry.item_id for entry in ranking if entry.item_id in "abc"] == ["a", "b", "c"]
    assert len({entry.score for entry in ranking if entry.item_id in "abc"}) == 1


def test_profiles_of_new_users_become_scids(tiny_model, tokenizer, tables):
    class Assigner:
        def user_codes(self, profiles, histories):
            assert (profiles, histories) == (["likes B"], [["b"]])
            return np.array([[1, 2, 3]])  # those of u1

    recommender = Recommender(tiny_model(), tokenizer, *tables, num_beams=6, assigner=Assigner())
    histories, users = [["b"], ["b"], ["b"]], ["stranger", "u1", "other"]
    new, known, without = recommender.recommend(histories, users, k=6, user_profiles=["likes B", "likes C", None])
    assert new == known != without
    with pytest.raises(InputError, match="user_profiles: histories: row 0 has a profile, but"):
        Recommender(tiny_model(), tokenizer, *tables).recommend([["b"]], user_profiles=["likes B"])


def test_the_saved_trie_is_used_only_for_its_own_codes(tiny_model, tokenizer, tables, tmp_path, monkeypatch, caplog):
    Recommender(tiny_model(), tokenizer, *tables, num_beams=6).save_pretrained(tmp_path)
    built = []
    from_codes = SCIDTrie.from_codes
    monkeypatch.setattr(SCIDTrie, "from_codes", lambda *args: built.append(1) or from_codes(*args))
    first = Recommender.from_pretrained(tmp_path, device="cpu").recommend([["a"]], k=6)
    assert built == [] and len(first[0]) == 6
    changed = tables[0].with_columns(codes=pl.Series([[3, 3, 3], *CODES[1:]]))
    changed.write_parquet(tmp_path / "item_codes.parquet")
    loaded = Recommender.from_pretrained(tmp_path, device="cpu")
    assert built == [1] and loaded.search.trie.item_codes()[0].tolist() == [3, 3, 3]
    assert "made from another table of codes" in caplog.text
    (tmp_path / "trie.safetensors").write_bytes(b"cut")
    assert len(Recommender.from_pretrained(tmp_path, device="cpu").recommend([["a"]], k=6)[0]) == 6
    assert built == [1, 1]


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
    with pytest.raises(InputError, match=r"item_codes\.parquet: not found; save the model with"):
        Recommender.from_pretrained(tmp_path)


def test_the_models_of_a_run_are_named_where_the_run_is_given(tmp_path):
    for stage in ("sft", "sp_dpo"):
        (tmp_path / stage / "model").mkdir(parents=True)
        (tmp_path / stage / "model" / "item_codes.parquet").touch()
    with pytest.raises(InputError, match=r"of this run, give .*/sft/model or .*/sp_dpo/model$"):
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
