"""Preference data: difficulty, what may be rejected, and where it comes from."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.dpo.self_play import (
    build_preference_rows,
    longest_common_prefix,
    prefix_lengths,
    sample_train_positions,
    self_play_rows,
)
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder

CODES = np.array(
    [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]]
)  # item 6 has item 0's SCID


def build(candidates, targets, difficulty, seed=0, codes=CODES, **options):
    prompts = [[1, index] for index in range(len(targets))]
    tokens = codes + 100 * (1 + np.arange(codes.shape[1]))
    rng = np.random.default_rng(seed)
    return build_preference_rows(
        prompts, np.array(candidates), np.array(targets), codes, tokens, difficulty, rng, **options
    )


def test_difficulty_is_the_common_prefix():
    assert longest_common_prefix(CODES, CODES[0]).tolist() == [3, 2, 2, 1, 0, 0, 3]
    assert [list(prefix_lengths(name, 3)) for name in ("easy", "medium", "hard")] == [[0], [1], [2]]
    assert list(prefix_lengths("hard", 5)) == [2, 3, 4]
    # An equal code after a different one is no prefix.
    assert longest_common_prefix(np.array([1, 0, 0]), np.array([0, 0, 0])) == 0


@pytest.mark.parametrize(("difficulty", "levels"), [("hard", 2), ("medium", 1), ("extreme", 3)])
def test_difficulty_that_does_not_exist(difficulty, levels):
    with pytest.raises(InputError, match=difficulty):
        prefix_lengths(difficulty, levels)


def test_rows_by_hand():
    # Easy for item 0: of the beam 1, 5, 4 only 5 and 4 share no code, in the beam's order.
    rows, statistics = build([[1, 5, 4, -1]], [0], "easy")
    assert rows == [
        {
            "prompt": 0,
            "prompt_ids": [1, 0],
            "chosen_ids": [100, 200, 300],
            "rejected_ids": [[101, 200, 301], [101, 200, 300]],
            "num_beam": 2,
            "num_filler": 0,
        }
    ]
    assert statistics == {
        "prompts": 1,
        "rows": 1,
        "dropped": 0,
        "mean_rejected": 2.0,
        "beam_share": 1.0,
        "filler_share": 0.0,
        "prefix_lengths": {"0": 1.0, "1": 0.0, "2": 0.0},
    }


def test_neighbours_fill_up_and_are_counted():
    rows, statistics = build([[2, 4]], [0], "hard")
    assert rows[0]["rejected_ids"] == [[100, 200, 302], [100, 200, 301]]
    assert (rows[0]["num_beam"], rows[0]["num_filler"]) == (1, 1)
    assert (statistics["beam_share"], statistics["filler_share"]) == (0.5, 0.5)
    assert statistics["prefix_lengths"] == {"0": 0.0, "1": 0.0, "2": 1.0}


def test_number_of_rejected_is_a_limit():
    rows, _ = build([[4, 5]], [0], "easy", num_rejected=1)
    assert rows[0]["rejected_ids"] == [[101, 200, 300]]


def test_known_positives_are_never_rejected_also_by_their_twin():
    # Item 6 is known; item 0 has the same SCID. Item 3 is the target.
    rows, _ = build([[0, 1]], [3], "medium", known_positives=[np.array([6])])
    assert sorted(rows[0]["rejected_ids"]) == [[100, 200, 301], [100, 200, 302]]


def test_prompts_without_rejected_are_dropped_and_counted():
    rows, statistics = build([[0, 1], [0, 1]], [3, 4], "medium")
    assert [row["prompt"] for row in rows] == [0]  # nothing but itself shares exactly one code with item 4
    assert (statistics["prompts"], statistics["rows"], statistics["dropped"]) == (2, 1, 1)
    empty = build([[0, 1]], [4], "medium")
    assert empty.rows == [] and empty.statistics["mean_rejected"] == 0


def test_same_seed_same_rows():
    codes = np.array(list(itertools.product(range(8), range(8), range(8))))
    one, same, other = (build([[-1]], [0], "easy", seed, codes).rows for seed in (1, 1, 2))
    assert one == same and one != other
    assert len(one[0]["rejected_ids"]) == 20


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rejected_are_valid_distinct_of_the_difficulty_and_unknown(data):
    levels = data.draw(st.integers(2, 4))
    items = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    codes = rng.integers(0, 3, (items, levels))
    difficulty = data.draw(st.sampled_from(["easy", "medium"] + ["hard"] * (levels > 2)))
    targets = rng.integers(0, items, 4)
    known = [rng.integers(0, items, rng.integers(0, 6)) for _ in targets]
    limit = data.draw(st.integers(1, 20))
    candidates = rng.integers(-1, items, (4, 6))
    rows, _ = build(candidates, targets, difficulty, codes=codes, num_rejected=limit, known_positives=known)
    by_prompt = {row["prompt"]: row for row in rows}
    offsets = 100 * (1 + np.arange(levels))
    for prompt, target in enumerate(targets):
        # All that may be rejected, straight from the definition.
        allowed = {
            tuple(code + offsets)
            for code in codes
            if (length := next((at for at in range(levels) if code[at] != codes[target][at]), levels)) < levels
            and {"easy": length == 0, "medium": length == 1, "hard": length >= 2}[difficulty]
            and not any((code == codes[item]).all() for item in known[prompt])
        }
        rejected = [tuple(ids) for ids in by_prompt.get(prompt, {"rejected_ids": []})["rejected_ids"]]
        assert len(rejected) == len(set(rejected)) == min(limit, len(allowed))
        assert set(rejected) <= allowed


def test_positions_are_drawn_once_and_have_a_history():
    sequences = [np.arange(4), np.arange(1), np.arange(3), np.arange(0)]
    everything = sample_train_positions(sequences, 100, np.random.default_rng(0))
    assert sorted(zip(*everything, strict=True)) == [(0, 1), (0, 2), (0, 3), (2, 1), (2, 2)]
    longer = sample_train_positions(sequences, 100, np.random.default_rng(0), min_history=2)
    assert sorted(zip(*longer, strict=True)) == [(0, 2), (0, 3), (2, 2)]
    assert len(sample_train_positions(sequences, 2, np.random.default_rng(0)).positions) == 2


def test_self_play_with_a_policy(llama, tokenizer):
    tokenizer.add_tokens([AddedToken(f"<{family}{level}_{code}>", normalized=False)
                          for family in "iu" for level in range(3) for code in range(4)])  # fmt: skip
    tokenizer.bos_token = "t1"
    codes = np.array(list(itertools.product(range(4), range(4), range(2))))
    model = llama(vocab_size=len(tokenizer))
    builder = PromptBuilder(tokenizer)
    search = ConstrainedBeamSearch(
        model, SCIDTrie.from_codes(torch.tensor(codes), (4, 4, 4)), builder.vocabulary.item_tokens, num_beams=10
    )
    generator = np.random.default_rng(3)
    sequences = [generator.integers(0, 32, 6) for _ in range(5)]
    users = generator.integers(0, 4, (5, 3))
    rows, statistics = self_play_rows(
        search, builder, sequences, codes, users, "easy", 8, np.random.default_rng(0), num_rejected=6, progress=False
    )
    assert statistics["rows"] == len(rows) == 8
    assert statistics["beam_share"] > 0
    for row in rows:
        sequence = sequences[row["user_row"]]
        assert row["prompt_ids"] == builder.prompt(users[row["user_row"]], codes[sequence[: row["position"]]])
        assert row["chosen_ids"] == builder.completion(codes[sequence[row["position"]]])
        rejected = builder.vocabulary.item_codes(np.array(row["rejected_ids"]))
        assert not any((code == codes[item]).all() for code in rejected for item in sequence)
        assert row["num_beam"] + row["num_filler"] == len(rejected) == 6
