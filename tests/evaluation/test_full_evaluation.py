import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from align3gr.data import Split
from align3gr.errors import InputError
from align3gr.evaluation import (
    FullEvaluation,
    beyond_accuracy_table,
    compare,
    metrics_table,
    paired_test,
    ranking_table,
    read_per_user,
    results_page,
    segments_table,
)
from align3gr.evaluation.policies import weights_hash
from align3gr.evaluation.report import shown_length
from align3gr.report.run_results import results_section

ITEMS = list("abcdef")
# Train counts: a 3, b 2, c 1, d 0, e 0, f 1.
TRAIN = {"u": ["a", "b", "f"], "v": ["a", "b"], "w": ["a", "c"]}
RATINGS = {"u": [5.0, 1.0, 3.0], "v": [4.0, 1.0], "w": [None, 2.0]}
TEST = [("u", "a", 5.0), ("v", "d", 1.0), ("w", "e", None)]
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
# By item index; u's target stands first, v's second, w's nowhere.
ALLOWED = np.array([[0, 1], [2, 3], [2, 0]])
MASKED = np.array([[2, 3], [3, 2], [1, 3]])


def split_of(ratings=True, feedbacks=None):
    users = list(TRAIN)
    train = {"user_id": users, "items": list(TRAIN.values()), "timestamps": [[*range(len(x))] for x in TRAIN.values()]}
    train["ratings"] = list(RATINGS.values()) if ratings else [[None] * len(x) for x in TRAIN.values()]
    if feedbacks:
        train["feedbacks"] = feedbacks
    test = {"user_id": users, "item_id": [t[1] for t in TEST], "timestamp": [9] * 3}
    test["rating"] = [t[2] if ratings else None for t in TEST]
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64}
    return Split(
        items=pl.DataFrame({"item_id": ITEMS, "title": ITEMS, "text": ITEMS}),
        users=pl.DataFrame({"user_id": users, "profile": users}),
        train=pl.DataFrame(train),
        validation=pl.DataFrame(schema=schema),
        test=pl.DataFrame(test, schema=schema),
    )


def evaluation_of(split, **options):
    evaluation = FullEvaluation(split, ks=(1, 2), **options)
    evaluation.add("model", split.histories("test"), ALLOWED, MASKED)
    return evaluation


def test_everything_about_a_system_by_hand():
    result = evaluation_of(split_of(), item_codes=CODES, item_vectors=np.eye(6)).results["model"]
    assert result["seen_allowed"]["recall@2"] == pytest.approx(2 / 3)
    beyond = result["beyond_accuracy"]["seen_allowed"]
    assert beyond["coverage@2"] == pytest.approx(4 / 6) and beyond["coverage@1"] == pytest.approx(2 / 6)
    assert beyond["popularity@2"] == pytest.approx(((3 + 2) / 2 + (1 + 0) / 2 + (1 + 3) / 2) / 3)
    # Exposures 0 0 1 1 2 2: weights -5 -3 -1 1 3 5 give 16 / (6 * 6).
    assert beyond["gini@2"] == pytest.approx(16 / 36)
    # The first two lists share one of two levels, the third none.
    assert beyond["scid_diversity@2"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert beyond["vector_diversity@2"] == 1 and "vector_diversity@1" not in beyond
    # u dislikes b (shown second), v dislikes b and the target d (shown second); of w nothing is known.
    assert (beyond["disliked@1"], beyond["disliked@2"]) == (0, 1)
    assert result["beyond_accuracy"]["seen_masked"]["disliked@1"] == 0.5
    assert result["segments"]["target popularity"]["0"]["users"] == 2
    assert result["segments"]["target"]["repeat"]["recall@1"] == 1
    # Only w's target e is lost; no item of [c, a] shares its first level.
    assert result["lost_levels"] == {"0": 1, "1": 0, "2": 0, "users": 1}
    json.dumps(result, allow_nan=False)


def test_feedback_goes_before_ratings():
    feedbacks = [["liked", "liked", "liked"], ["liked", "neutral"], ["disliked", None]]
    beyond = evaluation_of(split_of(feedbacks=feedbacks)).results["model"]["beyond_accuracy"]["seen_allowed"]
    # v's target by its rating, shown second, and w's a, shown second.
    assert (beyond["disliked@1"], beyond["disliked@2"]) == (0, 1)
    beyond = evaluation_of(split_of(ratings=False, feedbacks=feedbacks)).results["model"]["beyond_accuracy"]
    assert (beyond["seen_allowed"]["disliked@2"], beyond["seen_masked"]["disliked@2"]) == (1, 0)


def test_what_is_not_known_is_left_out():
    result = evaluation_of(split_of(ratings=False)).results["model"]
    keys = {name.partition("@")[0] for name in result["beyond_accuracy"]["seen_allowed"]}
    assert keys == {"coverage", "gini", "popularity"} and "lost_levels" not in result
    assert "seen_allowed_liked" not in result
    assert "disliked" not in beyond_accuracy_table({"model": result}, k=2)


def test_a_sample_of_the_questions_keeps_its_own_dislikes():
    split = split_of()
    evaluation = FullEvaluation(split, ks=(1, 2))
    evaluation.add("model", split.histories("test").subset(np.array([1])), ALLOWED[:1], MASKED[1:2])
    # v is shown [a, b] and dislikes b.
    assert evaluation.results["model"]["beyond_accuracy"]["seen_allowed"]["disliked@2"] == 1
    assert evaluation.per_user()["user_id"].to_list() == ["v"]


def test_ranks_are_kept_by_user():
    rows = evaluation_of(split_of()).per_user().to_dicts()
    assert rows[0] == {
        "system": "model",
        "user_id": "u",
        "item_id": "a",
        "rank_allowed": 1,
        "rank_masked": None,
        "list_length": 2,
        "history_length": 3,
        "target_popularity": 3,
        "repeat": True,
        "rating": 5.0,
    }
    assert [(row["rank_allowed"], row["rank_masked"], row["rating"]) for row in rows[1:]] == [
        (2, 1, 1.0),
        (None, None, None),
    ]


def test_a_system_that_gives_the_lists_of_another_is_judged_by_these():
    split = split_of()
    evaluation = FullEvaluation(split, ks=(1, 2))
    evaluation.add("SFT", split.histories("test"), ALLOWED, MASKED, seconds=1.5)
    evaluation.add("other", split.histories("test"), MASKED, MASKED, seconds=0.25)
    evaluation.add_same("best", "SFT")
    results = evaluation.results
    assert results["SFT"]["ranking"] == {"seconds": 1.5, "users_per_second": 2.0}
    assert results["best"].pop("ranking") == {"same_weights_as": "SFT"}
    assert results["best"] == {name: part for name, part in results["SFT"].items() if name != "ranking"}
    frames = evaluation.per_user().partition_by("system", maintain_order=True, include_key=False)
    assert evaluation.per_user()["system"].unique(maintain_order=True).to_list() == ["SFT", "other", "best"]
    assert frames[2].equals(frames[0]) and not frames[1].equals(frames[0])
    results["best"]["ranking"] = {"same_weights_as": "SFT"}
    assert ranking_table(results | {"bound": {}}).splitlines()[2:] == [
        "| SFT | 1.5 | 2 |",
        "| other | 0.2 | 12 |",
        "| best | the weights of SFT, not ranked again | |",
    ]


def test_weights_are_told_apart_by_content_alone(tmp_path):
    for name, weights, rest in (("a", b"1", b"x"), ("b", b"1", b"y"), ("c", b"2", b"x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "trie.safetensors").write_bytes(rest)
        (tmp_path / name / "prompt.json").write_bytes(rest)
    a, b, c = (weights_hash(tmp_path / name) for name in "abc")
    assert a == b != c


def test_tables_by_hand():
    results = evaluation_of(split_of(), item_codes=CODES).results | {"bound": {"seen_allowed": {"recall@10": 1.0}}}
    lines = beyond_accuracy_table(results, k=2).splitlines()
    assert lines[0].startswith("| lists of 2 | coverage | Gini | mean train count | diversity (SCID) | shows")
    assert lines[2] == "| model | 0.6667 | 0.4444 | 1.7 | 0.6667 | 1.0000 |" and len(lines) == 3
    lines = segments_table(results, "mrr@2").splitlines()
    assert lines[0] == "| M@2 | users | model |"
    assert lines[2:] == [
        "| history length 0-5 | 3 | 0.5000 |",
        "| target popularity 0 | 2 | 0.2500 |",
        "| target popularity 1-5 | 1 | 1.0000 |",
        "| target repeat | 1 | 1.0000 |",
        "| target discovery | 2 | 0.2500 |",
        "| share of lost targets, 0 levels shared | | 1.0000 |",
        "| share of lost targets, 1 levels shared | | 0.0000 |",
        "| share of lost targets, 2 levels shared | | 0.0000 |",
    ]
    assert "| bound | - | 1.0000 |" in metrics_table(results)


@pytest.mark.parametrize(
    ("lengths", "shown"), [([5, 10, 20], 10), ([5, 20], 5), ([20], 20), ([50, 20], 20), ([], None)]
)
def test_the_table_beside_the_hits_takes_a_length_that_is_there(lengths, shown):
    results = {"bound": {}, "model": {"beyond_accuracy": {"seen_allowed": {f"coverage@{k}": 0.5 for k in lengths}}}}
    assert shown_length(results) == shown
    assert ("coverage" in results_page(results, [])) == bool(lengths)
    assert (f"| lists of {shown} | coverage |" in results_page(results, [])) == bool(lengths)
    results = {name: {"seen_allowed": {}} | result for name, result in results.items()}
    section = results_section(SimpleNamespace(json=lambda *_: results))
    assert (f"<th>lists of {shown}</th>" in section) == bool(lengths)


def test_codes_of_another_catalogue_are_refused():
    with pytest.raises(InputError, match="item_codes: got 5 rows, expected one for each of 6 items"):
        FullEvaluation(split_of(), CODES[:5])


@pytest.fixture
def runs(tmp_path):
    """Two runs; in the second, u is shown the list of w, where u's target stands second."""
    split = split_of()
    for name, allowed in (("a", ALLOWED), ("b", ALLOWED[[2, 1, 2]])):
        evaluation = FullEvaluation(split, ks=(1, 2))
        evaluation.add("model", split.histories("test"), allowed, MASKED)
        evaluation.add("rival", split.histories("test"), MASKED, MASKED)
        (tmp_path / name / "evaluation").mkdir(parents=True)
        evaluation.per_user().write_parquet(tmp_path / name / "evaluation" / "per_user.parquet")
    return tmp_path


def test_runs_are_compared_user_by_user(runs):
    # Reciprocal ranks of u, v, w: 1, 1/2, 0 and, u's target now second, 1/2, 1/2, 0.
    test = compare(runs / "a", runs / "b", "model", metric="mrr@2")
    assert test == paired_test(np.array([1, 0.5, 0]), np.array([0.5, 0.5, 0]))
    assert compare(runs / "a", runs / "b", "model", metric="mrr@2", column="discoveries").users == 2
    assert compare(runs / "a", runs / "a", "model", "rival", "recall@1").mean_a == pytest.approx(1 / 3)
    liked = compare(runs / "a", runs / "b", "model", metric="recall@1", column="seen_allowed_liked")
    assert (liked.users, liked.mean_a, liked.mean_b) == (1, 1, 0)


@pytest.mark.parametrize(("column", "rank"), [("seen_allowed_disliked", 2), ("seen_masked_disliked", 1)])
def test_runs_are_compared_on_disliked_targets(runs, column, rank):
    # v alone dislikes its target.
    test = compare(runs / "a", runs / "b", "model", metric="mrr@2", column=column)
    assert (test.users, test.mean_a, test.mean_b) == (1, 1 / rank, 1 / rank)


def test_every_published_column_can_be_compared(runs):
    result = evaluation_of(split_of()).results["model"]
    published = [name for name, part in result.items() if "recall@2" in part]
    assert len(published) == 10
    for column in published:
        users = result[column]["users"]
        if users:
            test = compare(runs / "a", runs / "a", "model", metric="recall@2", column=column)
            assert (test.users, test.mean_a) == (users, pytest.approx(result[column]["recall@2"]))
        else:
            with pytest.raises(InputError, match=f"'{column}' has no users"):
                compare(runs / "a", runs / "a", "model", metric="recall@2", column=column)


def test_other_questions_are_not_compared(runs):
    frame = read_per_user(runs / "b")
    path = runs / "other.parquet"
    frame.with_columns(item_id=pl.lit("f")).write_parquet(path)
    with pytest.raises(InputError, match="user 'u' has another target than in"):
        compare(runs / "a", path, "model", metric="mrr@2")
    frame.with_columns(user_id=pl.lit("x") + pl.col("user_id")).write_parquet(path)
    with pytest.raises(InputError, match="shares no user with"):
        compare(runs / "a", path, "model", metric="mrr@2")
    frame.drop("repeat").write_parquet(path)
    with pytest.raises(InputError, match=r"other\.parquet: column 'repeat' has type None, expected Boolean"):
        read_per_user(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "metric: got length 10, but the lists of 'model' in .* have 2 items"),
        ({"metric": "recall"}, "metric: got 'recall', expected one of recall, ndcg, mrr with a length"),
        ({"column": "seen"}, "column: got 'seen', choose from seen_allowed"),
        ({"system_b": "SFT"}, "has no system 'SFT', choose from model, rival"),
    ],
)
def test_wrong_names_of_a_comparison_are_named(runs, options, message):
    if "column" in options or "system_b" in options:
        options = options | {"metric": "recall@2"}
    with pytest.raises(InputError, match=message):
        compare(runs / "a", runs / "b", **({"system_a": "model"} | options))
