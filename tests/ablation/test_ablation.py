"""Tables of fine-tuning runs, on the smoke pipeline's data."""

import json
import shutil

import polars as pl
import pytest
import yaml

from align3gr.ablation import AblationArguments, run_table, table_cells
from align3gr.errors import InputError
from tests.conftest import ROOT


@pytest.fixture
def run_dir(smoke_run, tmp_path):
    for name in ("data", "scid"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    return tmp_path / "run"


def arguments_of(run_dir, base, **options):
    rows = {
        "SEQ": {"tasks": ["sequential"], "user_scid": False},
        "+ user SCID": {"tasks": ["sequential"]},
        "exchanged": {"tasks": ["sequential"], "control": "shuffled user SCIDs", "against": "SEQ"},
    }
    return AblationArguments(
        **({"run_dir": str(run_dir), "name": "t", "base": str(base), "rows": rows, "seeds": [0, 1]} | options)
    )


@pytest.fixture
def base(tmp_path):
    options = yaml.safe_load((ROOT / "recipes" / "smoke" / "sft.yaml").read_text()) | {"max_steps": 2}
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(options | {"save_strategy": "no"}))
    return path


@pytest.mark.long
def test_exchanged_profiles_are_learnt_as_they_stand(run_dir, base):
    rows = {
        "B2": {"tasks": ["sequential", "user_profile"]},
        "exchanged": {"tasks": ["sequential", "user_profile"], "control": "shuffled profiles"},
    }
    table = run_table(arguments_of(run_dir, base, rows=rows, seeds=[0], only=["exchanged"]))
    assert [cell.row for cell in table if cell.result is not None] == ["exchanged"]
    own = pl.read_parquet(run_dir / "data" / "users.parquet")
    other = pl.read_parquet(run_dir / "t" / "exchanged" / "seed-0" / "data" / "users.parquet")
    assert own["user_id"].equals(other["user_id"]) and not own["profile"].equals(other["profile"])
    assert sorted(own["profile"].to_list()) == sorted(other["profile"].to_list())
    codes = [folder / "scid" / "user_codes.parquet" for folder in (run_dir, run_dir / "t" / "exchanged" / "seed-0")]
    assert pl.read_parquet(codes[0]).equals(pl.read_parquet(codes[1]))


@pytest.mark.long
def test_cells_accumulate_and_are_never_run_twice(run_dir, base, monkeypatch):
    arguments = arguments_of(run_dir, base, seeds=[0], only=["SEQ", "exchanged"])
    run_table(arguments)
    table = (run_dir / "t" / "table.md").read_text()
    assert "Not finished: + user SCID (0 of 1 seeds)." in table and "| exchanged | 0." in table
    rows = {row["name"]: row for row in json.loads((run_dir / "t" / "table.json").read_text())}
    cell = json.loads((run_dir / "t" / rows["SEQ"]["cells"][0]).read_text())
    assert rows["SEQ"]["mean"]["recall@10"] == cell["metrics"]["seen_allowed"]["recall@10"]
    assert rows["exchanged"]["difference"]["against"] == "SEQ" and rows["+ user SCID"]["mean"] == {}
    # The control has the same codes, at other users; the others see the run's own.
    own = pl.read_parquet(run_dir / "scid" / "user_codes.parquet")
    other = pl.read_parquet(run_dir / "t" / "exchanged" / "seed-0" / "scid" / "user_codes.parquet")
    assert own["user_id"].equals(other["user_id"]) and not own["codes"].equals(other["codes"])
    assert sorted(own["codes"].to_list()) == sorted(other["codes"].to_list())
    assert (run_dir / "t" / "seq" / "seed-0" / "scid").is_symlink()
    assert not (run_dir / "t" / "seq" / "seed-0" / "sft").exists()

    monkeypatch.setattr("align3gr.ablation.running._run_cell", lambda *_: pytest.fail("ran a finished cell"))
    run_table(arguments)
    base.write_text(base.read_text() + "weight_decay: 0.5\n")
    assert all(cell.result is None for cell in table_cells(arguments))  # other options, other cells


def test_a_failed_cell_is_named_and_leaves_the_table(run_dir, base, capfd):
    arguments = arguments_of(run_dir, base, rows={"SEQ": {"tasks": ["nothing"]}})
    with pytest.raises(InputError, match="SEQ, seed 0: the training ended with status 2"):
        run_table(arguments)
    assert "'nothing' is unknown" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": {}}, "rows: expected for each row"),
        ({"rows": {"a": {"control": "none"}}}, "control 'none'"),
        ({"rows": {"a": {}, "A": {}}}, "same folder"),
        ({"rows": {"a": {}, "b": {"against": "c"}}}, "against 'c'"),
        ({"only": ["b"]}, "'b' is no row"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        arguments_of(tmp_path, "base.yaml", **options)


def test_a_run_without_codes_is_refused(tmp_path):
    with pytest.raises(InputError, match="run the stages up to scid first"):
        list(table_cells(arguments_of(tmp_path, "base.yaml")))
