"""Fine-tuning, preference training, evaluation and serving prompt with the same token ids."""

from types import SimpleNamespace

import numpy as np
import pytest

from align3gr.decoding import ConstrainedBeamSearch, Recommender, SCIDTrie
from align3gr.dpo import self_play_rows
from align3gr.evaluation import rank_policy
from align3gr.scid import PromptBuilder, codes_column
from align3gr.sft import SmallLlamaConfig, TaskTemplates, prefix_rows, small_llama
from tests.sft.conftest import ITEM_CODES, ITEMS, USER_CODES, USERS, scid_tokenizer

__all__ = ["scid_tokenizer"]

SEQUENCES = [np.array([0, 1, 2, 0, 4]), np.array([3, 4, 6])]


@pytest.mark.parametrize("templates", ["natural", "compact"])
def test_all_stages_make_the_same_prompts(scid_tokenizer, templates, monkeypatch):
    prompts = PromptBuilder(scid_tokenizer, max_history=3, template=TaskTemplates(templates).prompt)
    model = small_llama(SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_heads=2), scid_tokenizer, 0)
    trie = SCIDTrie.from_codes(ITEM_CODES, (4, 4))
    search = ConstrainedBeamSearch(model, trie, prompts.vocabulary.item_tokens, num_beams=8)

    levels = ITEM_CODES.shape[1]
    trained = {tuple(ids[:-levels]) for ids in prefix_rows(prompts, SEQUENCES, USER_CODES, ITEM_CODES)["input_ids"]}
    assert len(trained) == 6

    played = self_play_rows(
        search, prompts, SEQUENCES, ITEM_CODES, USER_CODES, "easy", 6, np.random.default_rng(0), num_rejected=2
    )
    assert {tuple(row["prompt_ids"]) for row in played.rows} == trained

    asked: list[list[int]] = []

    def capture(search, inputs, *args, **options):
        asked.extend(inputs)
        lists = np.zeros((len(inputs), 1), dtype=np.int64)
        return SimpleNamespace(seen_allowed=lists, masked=lists, seen_allowed_scores=lists * 0.0)

    monkeypatch.setattr("align3gr.evaluation.evaluator.generate_rankings", capture)
    monkeypatch.setattr("align3gr.decoding.recommender.generate_rankings", capture)
    places = [(user, position) for user, sequence in enumerate(SEQUENCES) for position in range(1, len(sequence))]
    histories = [SEQUENCES[user][:position] for user, position in places]
    questions = SimpleNamespace(user_rows=np.array([user for user, _ in places]), histories=histories)
    rank_policy(search, prompts, questions, ITEM_CODES, USER_CODES, k=1)
    assert {tuple(ids) for ids in asked} == trained

    asked.clear()
    recommender = Recommender(
        model,
        scid_tokenizer,
        ITEMS.select("item_id", "title").with_columns(codes_column(ITEM_CODES)),
        USERS.select("user_id").with_columns(codes_column(USER_CODES)),
        prompts,
    )
    ids = ITEMS["item_id"].to_list()
    recommender.recommend(
        [[ids[item] for item in history] for history in histories], [USERS["user_id"][user] for user, _ in places], k=1
    )
    assert {tuple(ids) for ids in asked} == trained
