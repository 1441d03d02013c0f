import pytest

from align3gr.baselines import PUBLISHED, fair_play, over_seeds, results_table, tuning_table

COLUMNS = ("seen_allowed", "seen_masked", "discoveries")
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


def cell(seed, value, **more):
    return {
        "seed": seed,
        "results": {column: dict.fromkeys(METRICS, value) | {"users": 7} for column in COLUMNS},
    } | more


def test_means_and_deviations_over_seeds():
    row = over_seeds([cell(1, 0.1), cell(2, 0.2), cell(5, 0.6)])
    assert row["seen_masked"]["ndcg@5"] == pytest.approx(0.3) and row["seen_masked"]["users"] == 7
    # Squared deviations .04 + .01 + .09 over n - 1 = 2.
    assert row["sd"]["discoveries"]["recall@10"] == pytest.approx(0.07**0.5)
    assert row["seeds"] == [1, 2, 5]
    assert "sd" not in over_seeds([cell(0, 0.1)])


def test_a_value_that_a_seed_lacks_is_left_out():
    cells = [cell(1, 0.1), cell(2, 0.2)]
    cells[0]["results"]["beyond_accuracy"] = {"gini@5": 0.5}
    cells[1]["results"]["beyond_accuracy"] = {"gini@5": None}
    assert over_seeds(cells)["beyond_accuracy"] == {"gini@5": None}


def test_published_rows_stand_in_the_columns_of_their_protocol():
    rows = {"MF": over_seeds([cell(1, 0.1), cell(2, 0.3)]), "popularity": over_seeds([cell(0, 0.05)])}
    lines = results_table(rows, PUBLISHED["yelp"]).splitlines()
    assert lines[0].startswith("| | R@5 | R@10 | N@5 | N@10 | masked R@5 |")
    assert lines[2] == "| MF | " + "0.2000 ± 0.1414 | " * 10 + "2 |"
    assert lines[3] == "| popularity | " + "0.0500 | " * 10 + "1 |"
    published = {
        line.split(",")[0].removeprefix("| *"): line.split(" | ")[1:] for line in lines if "published*" in line
    }
    assert len(published) == 15
    assert published["LightGCN"] == [*"----", "0.0248", "0.0407", "0.0156", "0.0207", *"--", "- |"]
    assert published["Align3GR (Llama2-7B)"][:5] == ["0.0425", "0.0679", "0.0299", "0.0403", "-"]
    assert "published" not in results_table(rows)


def test_a_baseline_below_half_of_its_published_figure_is_named():
    rows = {name: over_seeds([cell(1, value)]) for name, value in (("MF", 0.0381), ("Caser", 0.0131), ("none", 0.1))}
    said = fair_play(rows, PUBLISHED["yelp"])
    assert "masking: MF 1.00, Caser 0.50. Below 0.5: Caser." in said  # 0.0131 / 0.0263 = 0.498
    assert fair_play({"MF": rows["MF"]}, PUBLISHED["yelp"]).endswith("Below 0.5: none.\n")
    assert fair_play({"none": rows["none"]}, PUBLISHED["yelp"]) == fair_play(rows, ()) == ""


def test_lists_of_a_hundred_items_have_columns_of_their_own():
    long = cell(1, 0.1)
    long["results"]["seen_allowed"]["recall@100"], long["results"]["seen_masked"]["recall@100"] = 0.25, 0.125
    lines = results_table({"two-tower": over_seeds([long]), "MF": over_seeds([cell(1, 0.2)])}).splitlines()
    assert lines[0].endswith("| discoveries N@10 | R@100 | masked R@100 | runs |")
    assert lines[1].count("---:") == lines[2].count(" | ") == 13
    assert lines[2].endswith("| 0.1000 | 0.2500 | 0.1250 | 1 |") and lines[3].endswith("| 0.2000 | - | - | 1 |")


def test_how_a_system_was_tuned():
    trial = {"setting": {"dim": 64, "loss": "bce"}, "value": 0.01234}
    finals = [
        cell(1, 0.1, fit_seconds=10.0, peak_memory_mb=900, best_epoch=4),
        cell(2, 0.1, fit_seconds=30.0, peak_memory_mb=1100, best_epoch=7),
    ]
    table = tuning_table({"SASRec": {"chosen": trial, "trials": 3, "tuning_seconds": 61.2, "finals": finals}})
    assert table.splitlines()[2] == "| SASRec | dim 64, loss bce | 3 | 61 | 0.0123 | 4, 7 | 20.0 | 1,100 |"
