"""RF-DPO rows: what is chosen, what may be rejected and in which order; where the feedback comes from."""

import itertools
import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from align3gr.data import Feedback, SyntheticMarket, SyntheticMarketConfig, leave_one_out
from align3gr.data.feedback import UNKNOWN
from align3gr.decoding import ConstrainedBeamSearch, SCIDTrie
from align3gr.dpo import FeedbackSettings, build_feedback_rows, rejected_levels
from align3gr.dpo.feedback_rows import find_negatives
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder
from tests.data.test_feedback import split_of, table

CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [0, 0]])  # item 6 has item 0's SCID


class Beams:
    """In place of a search: the same items for every prompt."""

    def __init__(self, items):
        self.items, self.num_beams = items, len(items)


class Prompts:
    """In place of a prompt builder: a prompt is the user's codes and those of the history."""

    max_history = 2

    @property
    def vocabulary(self):
        return self

    def item_ids(self, codes):
        return np.asarray(codes) + np.array([100, 200])

    def prompt(self, user, history):
        return [*([] if user is None else user), *np.asarray(history).reshape(-1).tolist()]


@pytest.fixture
def build(monkeypatch):
    """Rows of some train lists `{user: [(item, level), ...]}` and a log `[(user, item, level, time, request, rank)]`;
    the time of a train item is ten times its position."""

    def made(train, stage, log=(), beam=(0,), seed=0, num_prompts=100, **options):
        def generated(search, prompts, *_):
            return np.tile(np.array(search.items), (len(prompts), 1))

        monkeypatch.setattr("align3gr.dpo.feedback_rows.generate_candidates", generated)
        entries = [
            (user, item, level, 10 * position, position, -1, -1)
            for user, said in train.items()
            for position, (item, level) in enumerate(said)
        ]
        entries += [(user, item, level, time, -1, request, rank) for user, item, level, time, request, rank in log]
        feedback = Feedback(*(np.array(column) for column in zip(*entries, strict=True)))
        sequences = [np.array([item for item, _ in said], dtype=np.int64) for said in train.values()]
        return build_feedback_rows(
            Beams(list(beam)), Prompts(), sequences, CODES, None, feedback, stage, num_prompts,
            np.random.default_rng(seed), **options,
        )  # fmt: skip

    return made


def rejected(row) -> list[list[int]]:
    return [[a - 100, b - 200] for a, b in row["rejected_ids"]]


def test_a_row_by_hand(build):
    # Item 1 is liked after item 2; 3 and 4 are disliked, 5 neutral. The beam has 4, which the user disliked.
    train = {0: [(2, 2), (1, 2), (3, 0), (5, 1), (4, 0)]}
    rows, statistics = build(train, "disliked", beam=(2, 4, 5))
    assert rows == [
        {
            "prompt_ids": [1, 0],
            "chosen_ids": [100, 201],
            "rejected_ids": [[102, 200], [101, 201]],
            "user_row": 0,
            "position": 1,
            "num_generated": 1,
            "num_logged": 1,
            "num_same_request": 0,
            "num_history": 0,
        }
    ]
    assert statistics == {
        "liked": 1,  # item 2 is liked too, but nothing stands before it
        "eligible": 1,
        "rows": 1,
        "users": 1,
        "mean_rejected": 2.0,
        "generated_share": 0.5,
        "logged_share": 0.5,
        "same_request_share": 0.0,
        "history_share": 0.0,
        "prefix_lengths": {"0": 1.0, "1": 0.0},
    }
    rows, statistics = build(train, "neutral", beam=(2, 4, 5))
    assert [rejected(row) for row in rows] == [[[2, 1]]] and statistics["generated_share"] == 1
    assert rejected(build(train, "mixed", beam=(2,)).rows[0]) == [[1, 1], [2, 1], [2, 0]]  # nearest in time first


def test_never_rejected(build):
    # 3 is disliked once and liked later; 5 was taken without a word; 6 is disliked, but has the SCID of 0, liked.
    train = {0: [(2, 2), (0, 2), (3, 0), (3, 2), (5, UNKNOWN), (6, 0)]}
    log = [(0, 5, 0, 99, 1, 1)]
    assert build(train, "disliked", log).rows == []
    assert build(train, "disliked", log).statistics["eligible"] == 0
    # With something to reject there are rows, and still none of these.
    rows = build(train | {0: [*train[0], (4, 0)]}, "disliked", log, beam=(3, 5, 6, 1)).rows
    assert len(rows) == 2 and all(rejected(row) == [[2, 0]] for row in rows)
    assert all(row["num_generated"] == 0 for row in rows)  # 1 is in the beam and nobody said anything about it


def test_what_one_user_dislikes_is_not_held_against_another(build):
    rows = build({0: [(0, 2), (1, 2), (2, 0)], 1: [(3, 2), (4, 2), (5, 0)], 2: [(1, 2), (2, 2)]}, "disliked").rows
    assert sorted((row["user_row"], *rejected(row)[0]) for row in rows) == [(0, 1, 0), (1, 2, 1)]


def test_disliked_and_neutral_is_disliked(build):
    train = {0: [(0, 2), (1, 2), (3, 1), (3, 0), (4, 1)]}
    assert [rejected(row) for row in build(train, "disliked").rows] == [[[1, 1]]]
    assert [rejected(row) for row in build(train, "neutral").rows] == [[[2, 0]]]


def test_history_comes_last_and_the_number_is_a_limit(build):
    train = {0: [(2, 0), (0, 2), (1, 2), (3, 0), (4, 2), (5, 0)]}
    by_position = {row["position"]: row for row in build(train, "disliked").rows}
    assert rejected(by_position[1]) == [[1, 1], [2, 1], [1, 0]]  # 2 is nearest, but the prompt shows it
    assert by_position[1]["num_history"] == 1 and by_position[4]["num_history"] == 1
    assert rejected(by_position[4]) == [[2, 1], [1, 0], [1, 1]]  # the prompt shows 1 and 3 alone
    short = build(train, "disliked", num_rejected=1, beam=(2,)).rows
    assert [row["num_generated"] + row["num_logged"] for row in short] == [1] * 3
    assert all(rejected(row) == [[1, 0]] for row in short)  # generated goes first


def test_a_liked_item_of_a_log_has_the_older_train_items_before_it_and_its_own_request_first(build):
    train = {0: [(2, UNKNOWN), (3, UNKNOWN)]}
    log = [(0, 0, 2, 15, 7, 3), (0, 4, 1, 15, 7, 2), (0, 5, 1, 15, 7, 1), (0, 1, 1, 14, 8, 1)]
    rows, statistics = build(train, "neutral", log)
    (row,) = rows
    assert row["prompt_ids"] == [1, 0, 1, 1] and row["position"] == -1 and row["chosen_ids"] == [100, 200]
    assert rejected(row) == [[2, 1], [2, 0], [0, 1]]  # by rank in the request, then another request
    assert row["num_same_request"] == 2 and statistics["same_request_share"] == pytest.approx(2 / 3)
    assert statistics["prefix_lengths"] == {"0": pytest.approx(2 / 3), "1": pytest.approx(1 / 3)}
    # At the moment of the second train item only the first one is older; before both there is no history.
    at_10 = build(train, "neutral", [(0, 0, 2, 10, 7, 3), *log[1:]]).rows
    assert [made["prompt_ids"] for made in at_10] == [[1, 0]]
    assert build(train, "neutral", [(0, 0, 2, 0, 7, 3), *log[1:]]).rows == []


def test_prompts_are_drawn_by_the_seed(build):
    train = {user: [(0, 2), (1, 2), (2, 2), (3, 0)] for user in range(20)}
    one, same, other = (build(train, "disliked", seed=seed, num_prompts=5).rows for seed in (1, 1, 2))
    assert one == same != other and len(one) == 5
    assert build(train, "disliked", num_prompts=5).statistics["eligible"] == 40


def test_stages_that_do_not_exist():
    assert rejected_levels("mixed") == (0, 1)
    with pytest.raises(InputError, match="stages: got 'easy', expected one of disliked, neutral, mixed"):
        rejected_levels("easy")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_negatives_against_the_definition(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    entries, users, items = data.draw(st.integers(1, 40)), 3, 8
    columns = [rng.integers(0, users, entries), rng.integers(0, items, entries), rng.integers(-1, 3, entries)]
    leaf_of_item = rng.integers(0, 6, items)
    nothing = np.full(entries, -1)
    feedback = Feedback(*columns, np.arange(entries), nothing, nothing, nothing)
    for stage, levels in (("disliked", {0}), ("neutral", {1}), ("mixed", {0, 1})):
        found = find_negatives(feedback, leaf_of_item, rejected_levels(stage))
        expected = set()
        for user, leaf in itertools.product(range(users), range(6)):
            said = {lv for u, i, lv in zip(*columns, strict=True) if u == user and leaf_of_item[i] == leaf}
            if said & levels and not said & {-1, 2} and not (stage == "neutral" and 0 in said):
                expected.add((user, leaf))
        assert set(zip(found.user_rows.tolist(), found.leaves.tolist(), strict=True)) == expected
        assert (np.diff(found.user_rows) >= 0).all()


def test_rows_of_a_policy(llama, tokenizer):
    tokenizer.add_tokens([AddedToken(f"<{family}{level}_{code}>", normalized=False)
                          for family in "iu" for level in range(3) for code in range(4)])  # fmt: skip
    tokenizer.bos_token = "t1"
    codes = np.array(list(itertools.product(range(4), range(4), range(2))))
    builder = PromptBuilder(tokenizer)
    search = ConstrainedBeamSearch(
        llama(vocab_size=len(tokenizer)), SCIDTrie.from_codes(torch.tensor(codes), (4, 4, 4)),
        builder.vocabulary.item_tokens, num_beams=16,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    sequences = [rng.choice(32, 12, replace=False) for _ in range(5)]
    user_codes = rng.integers(0, 4, (5, 3))
    levels = rng.integers(0, 3, 60)
    nothing = np.full(60, -1)
    users, positions = np.repeat(np.arange(5), 12), np.tile(np.arange(12), 5)
    feedback = Feedback(users, np.concatenate(sequences), levels, positions, positions, nothing, nothing)
    rows, statistics = build_feedback_rows(
        search, builder, sequences, codes, user_codes, feedback, "neutral", 1000, rng, num_rejected=3, progress=False
    )
    assert statistics["rows"] == len(rows) > 5 and 0 < statistics["generated_share"] < 1
    for row in rows:
        user, position = row["user_row"], row["position"]
        said = dict(zip(sequences[user].tolist(), levels[12 * user : 12 * user + 12].tolist(), strict=True))
        assert said[sequences[user][position]] == 2
        assert row["prompt_ids"] == builder.prompt(user_codes[user], codes[sequences[user][:position]])
        assert row["chosen_ids"] == builder.completion(codes[sequences[user][position]])
        items = [int(np.flatnonzero((codes == code).all(axis=1))[0])
                 for code in builder.vocabulary.item_codes(np.array(row["rejected_ids"]))]  # fmt: skip
        beam = search.search(
            torch.tensor([row["prompt_ids"]]), torch.ones(1, len(row["prompt_ids"]), dtype=torch.long)
        )
        found = [item for item in beam.top(16).items[0].tolist() if said.get(item) == 1]
        assert all(said[item] == 1 for item in items) and len(items) == min(3, list(said.values()).count(1))
        assert items[: row["num_generated"]] == found[: row["num_generated"]]
        assert row["num_generated"] == min(3, len(found))


def test_where_feedback_comes_from(tmp_path):
    split = split_of([[5.0, 1.0, None], [3.0]])
    feedback, report = FeedbackSettings().read(split)
    assert feedback.levels.tolist() == [2, 0, -1, 1]
    assert report == {"train": {"disliked": 1, "neutral": 1, "liked": 1, "unknown": 1}}
    table().write_parquet(tmp_path / "log.parquet")
    path = str(tmp_path / "log.parquet")
    feedback, report = FeedbackSettings(feedback="none", feedback_table=path).read(split)
    assert feedback.levels.tolist() == [-1] * 4 + [2, 0, 1] and report["train"]["unknown"] == 4
    assert FeedbackSettings(feedback_table=path).read(split)[0].levels.tolist() == [2, 0, -1, 1, 2, 0, 1]
    with pytest.raises(InputError, match=r"has 0 liked, 0 neutral and 0 disliked .* name a feedback_table"):
        FeedbackSettings().read(split_of([None, None]))
    with pytest.raises(InputError, match="feedback: 'none' leaves nothing to learn from"):
        FeedbackSettings(feedback="none")
    with pytest.raises(InputError, match="scorer: applies to feedback 'reviews' only"):
        FeedbackSettings(scorer="causal-lm", scorer_model="m")
    assert FeedbackSettings(feedback="reviews", label_scores='{"GOOD": 5}').label_scores == {"GOOD": 5}
    for scores in ("{5 stars: 5}", "[1]", "{}", {"GOOD": "5"}):
        with pytest.raises(InputError, match=r"^label_scores: got"):
            FeedbackSettings(feedback="reviews", label_scores=scores)


def test_levels_of_reviews_and_how_they_agree_with_stars(tmp_path, monkeypatch):
    pytest.importorskip("vaderSentiment")
    monkeypatch.setenv("ALIGN3GR_CACHE", str(tmp_path))
    reviews = {
        "user_id": ["u", "u", "v"],
        "position": [0, 2, 0],
        "review": ["I love it, great!", "Horrible. I hate it.", ""],
    }
    split = split_of([[5.0, 1.0, 3.0], [4.0]], reviews=pl.DataFrame(reviews).lazy())
    feedback, report = FeedbackSettings(feedback="reviews").read(split)
    assert feedback.levels.tolist() == [2, -1, 0, -1]
    assert report["agreement"]["reviews"] == 2 and report["agreement"]["accuracy"] == 0.5
    assert report["agreement"]["confusion"]["neutral"] == {"disliked": 1, "neutral": 0, "liked": 0}
    json.dumps(report)


def test_exchanged_targets_change_no_feedback():
    market = SyntheticMarketConfig(num_users=60, num_items=40, num_categories=4, num_brands=3, seed=3)
    split = leave_one_out(SyntheticMarket(market).tables(), 0)
    before = FeedbackSettings().read(split)
    rng = np.random.default_rng(0)
    for name in ("validation", "test"):
        targets = getattr(split, name)
        order = rng.permutation(targets.height)
        setattr(split, name, targets.with_columns(targets["item_id"].gather(order), targets["rating"].gather(order)))
    after = FeedbackSettings().read(split)
    assert before[1] == after[1] and set(before[0].levels.tolist()) == {0, 1, 2}
    for name in ("user_rows", "item_rows", "levels", "timestamps", "positions"):
        assert (getattr(before[0], name) == getattr(after[0], name)).all()
