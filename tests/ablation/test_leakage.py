"""The experiment that leaks on purpose: it does what it says, and the audit finds it."""

import csv
import shutil

import numpy as np
import pytest
from datasets import load_from_disk

import experiments.leakage as leakage
from align3gr.audit import audit_manifests, permutation_check
from align3gr.cli import main
from align3gr.data import Split
from align3gr.pipeline import read_manifest
from tests.conftest import ROOT, SMOKE

FILES = {name: SMOKE / f"{name}.yaml" for name in ("embed", "scid", "sft", "sp_dpo")}


@pytest.fixture
def in_process(run_stage, monkeypatch):
    """Stages without a start of Python each."""

    def launch(name, files, run_dir, **options):
        run_stage(name, run_dir, files[name], **options)

    monkeypatch.setattr(leakage, "launch", launch)


def run_of(smoke_run, folder, *names):
    for name in names:
        shutil.copytree(smoke_run / name, folder / name)
    return folder


def audit(run_dir, capsys) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--run_dir", str(run_dir)])
    return ended.value.code, [line for line in capsys.readouterr().out.splitlines() if line.startswith("LEAK")]


def test_all_events_are_the_train_items_and_both_targets_of_each_user(smoke_run):
    split = Split.load(smoke_run / "data")
    everything = leakage.all_events(split)
    questions = split.histories("test", max_history=1000)
    found = everything.train_sequences()
    assert len(questions) == 200
    for user, history, target in zip(questions.user_rows, questions.histories, questions.targets, strict=True):
        assert found[user].tolist() == [*history.tolist(), target]
    row = everything.train.row(3, named=True)
    assert row["timestamps"][-1] == split.test["timestamp"][3] and row["ratings"][-1] == split.test["rating"][3]
    # Who has no target keeps the train items.
    without = split.test.head(50)["user_id"]
    some = leakage.all_events(leakage.replace(split, test=split.test.filter(~split.test["user_id"].is_in(without))))
    lengths = [len(a) - len(b) for a, b in zip(found, some.train_sequences(), strict=True)]
    assert lengths == [int(user in set(without)) for user in split.users["user_id"]]


def test_the_audit_calls_codes_of_all_pairs_leaking(smoke_run, tmp_path, in_process, capsys):
    run_dir = run_of(smoke_run, tmp_path / "run", "data", "embeddings")
    assert audit(run_dir, capsys) == (0, [])
    leakage.make_leak("codes", run_dir, FILES, 42)
    status, lines = audit(run_dir, capsys)
    assert status == 1 and lines == ["LEAK  inputs of scid: read validation and test targets, may read none"]
    assert "Nothing that is measured of it is a result" in (run_dir / "scid" / "LEAKING").read_text()
    # The codes are others than those of the same stage without the leak, of the same seed.
    assert read_manifest(smoke_run / "scid")["seed"] == 42
    names = ("item_codes.parquet", "user_codes.parquet")
    assert any((run_dir / "scid" / n).read_bytes() != (smoke_run / "scid" / n).read_bytes() for n in names)
    assert not (run_dir / "scid" / "all_events").exists()


@pytest.mark.long
def test_exchanged_targets_find_the_leak_whatever_its_manifest_says(smoke_run, tmp_path, in_process, monkeypatch):
    class Ended:
        returncode, stderr = 0, ""

    def run(words, **_):
        monkeypatch.setattr("sys.argv", words[1:])
        leakage.main()
        return Ended

    monkeypatch.setattr("align3gr.audit.subprocess.run", run)
    command = f"python {ROOT}/experiments/leakage.py --leak codes-and-vectors --recipes {SMOKE} --run_dir {{output}}"
    finding = permutation_check(smoke_run / "data", command, tmp_path / "work")
    assert not finding.passed and "scid/" in finding.message and "embeddings/" not in finding.message


def test_the_audit_calls_preferences_for_test_targets_leaking(smoke_run, tmp_path, capsys):
    run_dir = run_of(smoke_run, tmp_path / "run", "data", "scid", "sft")
    leakage.make_leak("preferences", run_dir, FILES, 0)
    status, lines = audit(run_dir, capsys)
    assert status == 1 and lines == ["LEAK  inputs of sp_dpo: read validation and test targets, may read validation"]
    assert [finding.passed for finding in audit_manifests(smoke_run) if finding.check == "inputs of sp_dpo"] == [True]
    (dataset,) = (run_dir / "sp_dpo" / "0-easy").rglob("dataset_info.json")
    rows = load_from_disk(str(dataset.parent))
    recommender = leakage.Recommender.from_pretrained(run_dir / "sft" / "model")
    split = Split.load(run_dir / "data")
    codes = leakage.load_codes(run_dir / "scid" / "item_codes.parquet", "item_id", split.items["item_id"])
    completions = recommender.prompt_builder.vocabulary.item_ids(codes)
    targets = dict(zip(*(getattr(split.histories("test"), name) for name in ("user_rows", "targets")), strict=True))
    assert len(rows) > 20 and len(set(rows["user_row"])) == len(rows)
    for row in rows:
        assert np.array_equal(row["chosen_ids"], completions[targets[row["user_row"]]])


@pytest.mark.long
def test_the_table_has_honest_and_leaking_rows_and_is_not_made_twice(smoke_run, tmp_path, in_process, monkeypatch):
    rows = {name: leakage.ROWS[name] for name in ("honest", "codes of all pairs")}
    monkeypatch.setattr(leakage, "ROWS", rows)
    leakage.run_all(smoke_run, FILES, tmp_path / "leakage", [5])
    lines = list(csv.DictReader((tmp_path / "leakage" / "table.csv").open()))
    assert [(line["row"], line["seeds"], line["against"]) for line in lines] == [
        ("honest", "5", ""),
        ("codes of all pairs", "5", "honest"),
    ]
    assert 0 < float(lines[1]["p over users"]) <= 1 and (tmp_path / "leakage" / "LEAKING").is_file()
    honest, leaking = (tmp_path / "leakage" / name / "seed-5" for name in ("honest", "codes-of-all-pairs"))
    assert all(finding.passed for finding in audit_manifests(honest))
    assert [finding.check for finding in audit_manifests(leaking) if not finding.passed] == ["inputs of scid"]
    monkeypatch.setattr(leakage, "launch", lambda *_, **__: pytest.fail("ran a finished cell"))
    leakage.run_all(smoke_run, FILES, tmp_path / "leakage", [5])


def test_nothing_of_the_package_or_the_recipes_knows_the_experiment():
    files = [
        *(ROOT / "align3gr").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.yaml"),
    ]
    assert len(files) > 200
    assert [path for path in files if "experiments" in path.read_text() and "leak" in path.read_text().lower()] == []
