"""Rows with codes of their own (Table 3), the figure of steps (Figure 4), and what stands beside a table."""

import csv
import json
import shutil

import numpy as np
import polars as pl
import pytest

from align3gr.ablation import AblationArguments, Step, draw_steps, run_table, table_cells
from align3gr.ablation.codes import codes_record
from align3gr.ablation.codes_table import codes_summary, codes_table
from align3gr.ablation.figure import steps_table
from align3gr.errors import InputError
from align3gr.pipeline import content_hash
from align3gr.recipe import parse
from align3gr.scid.code_table import save_codebook_sizes, save_codes
from tests.ablation.test_preference_rows import Trainings
from tests.conftest import ROOT, SMOKE

ROWS = {
    "Item": {"scid": {"sides": "item"}, "user_scid": False},
    "Dual": {"scid": {}},
    "Dual, items only": {"scid": {}, "user_scid": False},
    "the run's": {},
    "P5": {"scid": str(SMOKE / "scid-p5-cid.yaml"), "user_scid": False},
    "SP": {"stage": "sp_dpo", "after": "Dual", "against": "Dual"},
}
BASES = {name: str(SMOKE / f"{name}.yaml") for name in ("scid", "sft", "sp_dpo")}


@pytest.fixture
def run_dir(smoke_run, tmp_path):
    for name in ("data", "embeddings", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    return tmp_path / "run"


@pytest.fixture
def trainings(smoke_run, monkeypatch):
    trainings = Trainings(smoke_run)
    monkeypatch.setattr("align3gr.stage_processes.call", trainings)
    return trainings


def arguments_of(run_dir, **options):
    table = {"run_dir": str(run_dir), "name": "t", "base": BASES, "rows": ROWS, "seeds": [7]}
    return AblationArguments(**(table | options))


def test_rows_of_the_same_codes_share_one_training(run_dir, trainings):
    run_table(arguments_of(run_dir))
    assert trainings.stages == ["scid", "sft", "scid", "sft", "sft", "sft", "scid", "sft", "sp_dpo"]
    words = [words for stage, words, _ in trainings.asked if stage == "scid"]
    folders = [word[word.index("--run_dir") + 1] for word in words]
    assert [word[4:] for word in words] == [["--seed", "7", "--sides", "item"], ["--seed", "7"], ["--seed", "7"]]
    assert [word[1] for word in words] == [BASES["scid"], BASES["scid"], ROWS["P5"]["scid"]]
    seen = [str(links["scid"]) for stage, _, links in trainings.asked if stage in ("sft", "sp_dpo")]
    item, dual, p5 = (f"{folder}/scid" for folder in folders)
    assert seen == [item, dual, dual, str(run_dir / "scid"), p5, dual]
    assert all((run_dir / "t" / "_codes" / f"{folder}").parent.name == "_codes" for folder in folders)
    trainings.asked = []
    run_table(arguments_of(run_dir))
    run_table(arguments_of(run_dir, rows=ROWS | {"another": {"scid": {}, "dropout": 0.5}}))
    assert trainings.stages == ["sft"]  # with the codes that are there
    run_table(arguments_of(run_dir, seeds=[8], only=["Dual"]))
    assert trainings.stages == ["sft", "scid", "sft"] and trainings.asked[1][1][5] == "8"


def test_codes_that_were_made_from_other_bytes_are_made_anew(run_dir, trainings):
    rows = {"Dual": {"scid": {}}}
    run_table(arguments_of(run_dir, rows=rows))
    more = rows | {"more": {"scid": {}, "dropout": 0.5}}
    vectors = run_dir / "embeddings" / "items.parquet"
    before = vectors.read_bytes()
    vectors.write_bytes(before + b"made anew")  # under the same key
    trainings.failing = {"scid"}
    with pytest.raises(InputError, match="the training of codes ended with status 1"):
        run_table(arguments_of(run_dir, rows=more))
    vectors.write_bytes(before)
    run_table(arguments_of(run_dir, rows=more))
    assert trainings.stages == ["scid", "sft", "scid", "sft"]


def test_a_failed_training_of_codes_is_named(run_dir, trainings):
    trainings.failing = {"scid"}
    with pytest.raises(InputError, match=r"_codes/.*: the training of codes ended with status 1"):
        run_table(arguments_of(run_dir))


def set_in_manifest(folder, **settings):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"] |= settings
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_keys_are_those_of_another_machine_whose_numbers_end_otherwise(smoke_run, run_dir, run_stage, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(smoke_run / "data", other / "data")
    shutil.copytree(smoke_run / "embeddings", other / "embeddings")
    vectors = pl.read_parquet(other / "embeddings" / "items.parquet")
    moved = vectors.with_columns(pl.col("semantic").list.eval(pl.element() * (1 + 2**-20)))
    moved.write_parquet(other / "embeddings" / "items.parquet")
    run_stage("scid", other)
    hashes = [content_hash(folder / "scid" / "model") for folder in (run_dir, other)]
    assert hashes[0] != hashes[1]
    keys = [[cell.key for cell in table_cells(arguments_of(folder))] for folder in (run_dir, other)]
    assert keys[0] == keys[1]
    # Without manifests they are copies, of which the bytes are all that is known.
    for folder in (run_dir, other):
        (folder / "scid" / "manifest.json").unlink()
    keys = [{cell.row: cell.key for cell in table_cells(arguments_of(folder))} for folder in (run_dir, other)]
    assert {row for row in ROWS if keys[0][row] != keys[1][row]} == {"the run's"}


def test_a_key_holds_the_codes_and_what_they_are_made_from(run_dir, tmp_path):
    def changed(**options):
        keys = {cell.row: cell.key for cell in table_cells(arguments_of(run_dir, **options))}
        return {row for row in keys if keys[row] != first[row]}

    first = {cell.row: cell.key for cell in table_cells(arguments_of(run_dir))}
    assert len(set(first.values())) == len(ROWS)
    assert changed(rows=ROWS | {"Dual": {"scid": {"sc_dim": 8}}}) == {"Dual", "SP"}
    other = tmp_path / "scid.yaml"
    other.write_text((SMOKE / "scid.yaml").read_text() + "semantic_weight: 3.0\n")
    assert changed(base=BASES | {"scid": str(other)}) == {"Item", "Dual", "Dual, items only", "SP"}
    other.write_text("# A comment.\nrun_dir: elsewhere\n" + (SMOKE / "scid.yaml").read_text())
    assert changed(base=BASES | {"scid": str(other)}) == set()
    assert changed(rows=ROWS | {"SP": ROWS["SP"] | {"against": "Item"}}) == set()
    set_in_manifest(run_dir / "scid", sc_dim=3)
    assert changed() == {"the run's"}
    set_in_manifest(run_dir / "embeddings", semantic_dim=3)
    assert changed() == set(ROWS)
    shutil.rmtree(run_dir / "scid")  # rows with codes of their own do not need it
    rows = {row: options for row, options in ROWS.items() if row != "the run's"}
    assert len(list(table_cells(arguments_of(run_dir, rows=rows)))) == len(rows)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": {"a": {"scid": 3}}}, "rows: a: scid 3, expected options of the stage"),
        ({"rows": {"a": {"scid": {}}}, "base": BASES["sft"]}, "base: names no file for scid rows"),
        ({"rows": {"a": {}, "b": {"stage": "sp_dpo", "after": "a", "scid": {}}}}, "b: scid follows from the row"),
        ({"figure": "mrr"}, "figure: got 'mrr', choose from recall@5"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        arguments_of(tmp_path, **options)


def test_a_missing_file_of_codes_is_named(run_dir):
    with pytest.raises(InputError, match=r"nowhere.yaml: not found; name an existing YAML file"):
        list(table_cells(arguments_of(run_dir, rows={"a": {"scid": "nowhere.yaml"}})))
    shutil.rmtree(run_dir / "embeddings")
    with pytest.raises(InputError, match="embeddings: not found; rows with codes of their own need it"):
        list(table_cells(arguments_of(run_dir)))


def codes_folder(folder, items, report):
    folder.mkdir()
    save_codes(folder / "item_codes.parquet", "item_id", list("abcd"), np.array(items))
    save_codes(folder / "user_codes.parquet", "user_id", list("xyz"), np.array([[0], [1], [0]]))
    save_codebook_sizes(folder / "codebooks.json", [2, 4], [2])
    (folder / "report.json").write_text(json.dumps(report))
    return codes_record(folder)


def test_the_table_of_codes_says_what_can_be_counted_by_hand(tmp_path):
    report = {"item_collisions": {"collided": 3}, "prefix_lift": 1.5, "auc": [0.6, 0.7]}
    first = codes_folder(tmp_path / "1", [[0, 0], [0, 1], [1, 0], [1, 0]], report)
    # Level 1: two and two items, perplexity 2. Level 2: three and one, 2 ** 0.8113 = 1.7548.
    assert first["used"] == [2, 2] and first["perplexity"] == pytest.approx([2, 1.7548], abs=1e-4)
    assert (first["shared_before"], first["shared_after"], first["auc"], first["user_codes"]) == (0.75, 0.5, 0.7, 2)
    report = {"item_collisions": {"collided": 1}, "prefix_lift": 2.5, "auc": []}
    second = codes_folder(tmp_path / "2", [[0, 0], [0, 1], [0, 2], [0, 3]], report)
    assert second["auc"] is None and second["shared_after"] == 0 and second["seconds"] is None
    page = codes_table({"A": codes_summary([first, second]), "not finished": None})
    # Means of both: used (2, 1) and (2, 4), perplexity (2, 1) and (1.75, 4), shared 0.5 and 0.25, lift 2, AUC of one.
    line = "| A | 2 x 4 | 2 / 3 | 1.5 / 2.9 | 50.0 | 25.0 | 2.00 | 0.700 | 2 of 3 | - |"
    assert page.splitlines()[-1] == line and "not finished" not in page


def test_csv_settings_and_figure_say_what_the_cells_say(run_dir, trainings):
    rows = {"Item": ROWS["Item"], "Dual": ROWS["Dual"] | {"dropout": 0.25}, "SP": ROWS["SP"]}
    run_table(arguments_of(run_dir, rows=rows, figure="ndcg@10", seeds=[7, 8]))
    table = run_dir / "t"
    cells = {
        (row, seed): json.loads((table / row / f"seed-{seed}" / "cell.json").read_text())
        for row in ("item", "dual", "sp")
        for seed in (7, 8)
    }
    ndcg = {key: cell["metrics"]["seen_allowed"]["ndcg@10"] for key, cell in cells.items()}
    lines = {line["row"]: line for line in csv.DictReader((table / "table.csv").open())}
    assert float(lines["SP"]["ndcg@10"]) == pytest.approx((ndcg["sp", 7] + ndcg["sp", 8]) / 2, abs=1e-12)
    assert lines["SP"]["against"] == "Dual" and lines["SP"]["seeds"] == "7 8"
    assert lines["Dual"]["codes sizes"] == "8 8 8" and lines["Item"]["p over users"] == ""
    of_cells = list(csv.DictReader((table / "cells.csv").open()))
    assert [(line["row"], line["seed"]) for line in of_cells] == [(r, s) for r in rows for s in ("7", "8")]
    assert float(of_cells[4]["ndcg@10"]) == ndcg["sp", 7] and of_cells[4]["key"] == cells["sp", 7]["key"]
    settings = json.loads((table / "settings.json").read_text())["rows"]
    assert settings["Dual"]["options"]["dropout"] == 0.25 and settings["Dual"]["options"]["hidden_size"] == 32
    assert settings["Item"]["codes"]["options"]["sides"] == "item" and settings["SP"]["after"] == "Dual"
    assert settings["SP"]["recorded"]["settings"]["candidates"] == 40
    gain = sum(ndcg["sp", seed] - ndcg["dual", seed] for seed in (7, 8)) / 2
    (step,) = [line for line in (table / "table.md").read_text().splitlines() if line.startswith("| SP | 0.")][1:]
    assert f"| {gain:+.4f} |" in step
    assert (table / "figure.png").stat().st_size > 5000 and "</svg>" in (table / "figure.svg").read_text()


def test_the_figure_draws_the_means_and_marks_what_may_be_chance(tmp_path):
    steps = [
        Step("start", [0.1, 0.3]),
        Step("better", [0.4, 0.4], 0.2, 0.01, 0.2, 0.01),
        Step("as good", [0.4, 0.42], 0.01, 0.5, 0.21, 0.02),
    ]
    figure = draw_steps(steps, "recall@10", tmp_path)
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([20, 40, 41])
    colours = [bar.get_facecolor() for bar in bars]
    assert len(set(colours)) == 3  # the first, the one that is better, the one that may not be
    first = {name: (tmp_path / name).read_bytes() for name in ("figure.svg", "figure.png")}
    draw_steps([*steps[:2], Step("as good", [0.4, 0.42], 0.01, 0.04)], "recall@10", tmp_path)
    assert (tmp_path / "figure.svg").read_bytes() != first["figure.svg"]
    draw_steps(steps, "recall@10", tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    assert not list(tmp_path.glob("*.partial"))
    assert steps_table(steps, "recall@10").splitlines()[-2:] == [
        "| better | 0.4000 | +0.2000 | 0.01 | +0.2000 | 0.01 |",
        "| as good | 0.4100 | +0.0100 | 0.5 | +0.2100 | 0.02 |",
    ]


@pytest.mark.long
def test_trained_for_real_the_rows_of_table_3_have_the_codes_that_they_name(run_dir, run_stage, monkeypatch):
    def train(command):
        """In this process: four starts of Python cost more than the trainings."""
        stage, *words = command[command.index("align3gr.cli") + 1 :]
        at = {name: words[words.index(f"--{name}") + 1] for name in ("config", "run_dir")}
        options = dict(zip(words[4::2], words[5::2], strict=True))
        run_stage(stage, at["run_dir"], at["config"], **{name[2:]: value for name, value in options.items()})
        return 0

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("align3gr.stage_processes.call", train)
    (arguments,) = parse(
        [AblationArguments], ["--config", str(SMOKE / "ablation-table3.yaml"), "--run_dir", str(run_dir)]
    )
    run_table(arguments)
    cells = {}
    for row in ("item", "dual-cf-u2i", "dual-cf-u2i-items-only", "p5-cid-s-codes"):
        folder = run_dir / "table3" / row / "seed-0"
        cells[row] = (
            json.loads((folder / "cell.json").read_text())["codes"],
            pl.read_parquet(folder / "scid" / "item_codes.parquet"),
        )
    records = {row: record for row, (record, _) in cells.items()}
    assert records["item"]["user_codes"] == 0 and records["dual-cf-u2i"]["user_codes"] > 1
    assert records["item"]["settings"]["collaborative_input"] is False and records["item"]["auc"] is None
    assert records["dual-cf-u2i-items-only"] == records["dual-cf-u2i"]
    assert records["p5-cid-s-codes"]["settings"]["codes"] == "clusters"
    assert records["p5-cid-s-codes"]["shared_before"] > 0.9 and records["p5-cid-s-codes"]["shared_after"] == 0
    assert not cells["item"][1].equals(cells["dual-cf-u2i"][1])
    page = (run_dir / "table3" / "table.md").read_text()
    assert "Not finished" not in page and "| Item | 8 x 8 x 8 |" in page
