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
from align3gr.dpo.candidates import sample_train_positions
from align3gr.dpo.difficulty import buckets_of, item_vectors, longest_common_prefix, prefix_lengths
from align3gr.dpo.self_play import build_preference_rows, self_play_rows
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
            "num_history": 0,
        }
    ]
    assert statistics == {
        "prompts": 1,
        "rows": 1,
        "dropped": 0,
        "mean_rejected": 2.0,
        "beam_share": 1.0,
        "filler_share": 0.0,
        "history_share": 0.0,
        "known_positives": 0.0,
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


def test_mixed_takes_equal_shares_of_all_buckets():
    # Eight codes a level: enough items of each difficulty. Of 20, another bucket is one short at each prompt.
    codes = np.array(list(itertools.product(range(8), range(8), range(8))))
    rows, statistics = build([[-1]] * 3, [0, 0, 0], "mixed", codes=codes)
    counts = [
        [sum(longest_common_prefix(np.array(ids), np.array(row["chosen_ids"])) == n for ids in row["rejected_ids"])
         for n in range(3)]
        for row in rows
    ]  # fmt: skip
    assert counts == [[7, 7, 6], [6, 7, 7], [7, 6, 7]]
    assert statistics["prefix_lengths"] == {"0": 20 / 60, "1": 20 / 60, "2": 20 / 60}


def test_mixed_leaves_the_share_of_a_bucket_without_items_empty():
    # No item shares just one code with item 4, item 5 alone shares two. 20 are 7 easy, 7 medium and 6 hard.
    rows, _ = build([[5, 0, 1]], [4], "mixed")
    rejected = rows[0]["rejected_ids"]
    assert rejected[:3] == [[100, 200, 300], [100, 200, 301], [101, 200, 301]]  # from the beam: easy, easy, hard
    assert sorted(rejected[3:]) == [[100, 200, 302], [100, 201, 300]]  # drawn: easy
    assert (rows[0]["num_beam"], rows[0]["num_filler"]) == (3, 2)


def test_random_takes_generated_items_whatever_they_share():
    codes = np.array(list(itertools.product(range(8), range(8), range(8))))
    generated = np.arange(100)
    counts = np.zeros(512, dtype=int)
    for seed in range(60):
        rows, statistics = build([generated], [3], "random", seed, codes)
        items = [int(a - 100) * 64 + int(b - 200) * 8 + int(c - 300) for a, b, c in rows[0]["rejected_ids"]]
        assert len(set(items)) == 20 and (rows[0]["num_beam"], statistics["filler_share"]) == (20, 0.0)
        counts[items] += 1
    assert counts[3] == 0 and counts[100:].sum() == 0
    # 60 x 20 draws from 99 items: 12.1 each on average, sqrt(12.1 x 79/99) = 3.1 around it.
    assert counts[np.delete(generated, 3)].min() > 0 and counts.max() < 12.1 + 5 * 3.1


def test_random_fills_up_from_the_whole_catalogue():
    rows, _ = build([[3, 0, 6]], [0], "random", known_positives=[np.array([5])])
    assert rows[0]["rejected_ids"][0] == [100, 201, 300] and rows[0]["num_beam"] == 1
    # All distinct SCIDs but the chosen one's, its twin's (item 6) and the known one's.
    assert sorted(rows[0]["rejected_ids"]) == [[100, 200, 301], [100, 200, 302], [100, 201, 300], [101, 200, 300]]


VECTORS = np.array([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("difficulty", "rejected"), [("easy", [101, 200, 300]), ("medium", [101, 200, 301]), ("hard", [100, 200, 302])]
)
def test_difficulty_by_cosine_is_a_third_of_the_candidates_each(difficulty, rejected):
    # Cosines of the beam 2, 4, 5 with item 0: 0.8, -1, 0; terciles at -1/3 and 4/15.
    rows, _ = build([[2, 4, 5]], [0], difficulty, vectors=VECTORS, num_rejected=1)
    assert (rows[0]["rejected_ids"], rows[0]["num_beam"]) == ([rejected], 1)


def test_cosine_fills_up_within_the_bounds_of_the_candidates():
    # Terciles as above. Item 1 (0.6) is hard as 2 is, item 3 (0) medium as 5.
    hard = build([[2, 4, 5]], [0], "hard", vectors=VECTORS)
    assert hard.rows[0]["rejected_ids"] == [[100, 200, 302], [100, 200, 301]]
    assert (hard.rows[0]["num_beam"], hard.rows[0]["num_filler"]) == (1, 1)
    assert hard.statistics["mean_cosine"] == pytest.approx(0.7)
    medium = build([[2, 4, 5]], [0], "medium", vectors=VECTORS)
    assert medium.rows[0]["rejected_ids"] == [[101, 200, 301], [100, 201, 300]]
    known = build([[2, 4, 5]], [0], "medium", vectors=VECTORS, known_positives=[np.array([3])])
    assert known.rows[0]["rejected_ids"] == [[101, 200, 301]]


def test_cosine_without_candidates_takes_the_terciles_of_the_catalogue():
    # Cosines of the others with item 0: 0.6, 0.8, 0, -1, 0; terciles at 0 and 0.4.
    rows = {name: build([[-1]], [0], name, vectors=VECTORS).rows[0]["rejected_ids"] for name in ("easy", "hard")}
    assert rows["easy"] == [[101, 200, 300]]
    assert sorted(rows["hard"]) == [[100, 200, 301], [100, 200, 302]]


def test_items_of_the_history_and_known_positives_are_counted():
    # Beam 1, 2, 3 for item 0; 1 stands in the history, 2 was chosen later.
    free = build([[1, 2, 3]], [0], "hard", histories=[np.array([1])])
    assert (free.statistics["history_share"], free.statistics["known_positives"]) == (0.5, 0.0)
    assert free.rows[0]["num_history"] == 1
    codes = np.array(list(itertools.product(range(2), range(2), range(3))))
    known = build([[1, 2, 3]], [0], "medium", codes=codes, known_positives=[np.array([0, 1, 2])])
    assert (known.statistics["history_share"], known.statistics["known_positives"]) == (0.0, 2.0)


def test_vectors_of_items_are_sums_of_their_code_vectors(tmp_path):
    from align3gr.scid import DualSCIDConfig, DualSCIDModel

    torch.manual_seed(0)
    sizes = {"codebook_sizes": [3, 4], "codebook_dim": 5, "hidden_dims": []}
    model = DualSCIDModel(DualSCIDConfig(4, 0, 4, 0, sc_dim=6, hidden_dim=8, item_rqvae=sizes, user_rqvae=sizes))
    model.save_pretrained(tmp_path / "model")
    books = [book.detach().numpy() for book in model.item_rqvae.quantizer.codebooks]
    for codes in ([[2, 1], [0, 3]], [[2, 1, 0], [2, 1, 1]]):  # a third level tells twins apart and has no vector
        vectors = item_vectors(tmp_path, np.array(codes))
        for vector, (first, second, *_) in zip(vectors, codes, strict=True):
            total = books[0][first] + books[1][second]
            np.testing.assert_allclose(vector, total / np.sqrt((total**2).sum()), rtol=1e-5)
    with pytest.raises(InputError, match=r"code books of \[3, 4\], the codes go up to \[0, 4\]"):
        item_vectors(tmp_path, np.array([[0, 4]]))
    with pytest.raises(InputError, match=r"difficulty_measure: cosine needs .*none/model/model.safetensors"):
        item_vectors(tmp_path / "none", np.array([[0, 0]]))


def test_difficulties_and_what_they_are_made_of():
    assert buckets_of("mixed", 3) == buckets_of("mixed", 1, "cosine") == ("easy", "medium", "hard")
    assert buckets_of("mixed", 1) == ("easy",) and buckets_of("random", 1) == ()
    assert buckets_of("hard", 2, "cosine") == ("hard",)
    for arguments, message in [(("hard", 2), "does not exist for SCIDs of 2"), (("hard", 3, "l2"), "measure='l2'")]:
        with pytest.raises(InputError, match=message):
            buckets_of(*arguments)
