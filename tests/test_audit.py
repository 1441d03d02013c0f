import dataclasses
import sys

import polars as pl
import pytest

from align3gr.audit import audit_manifests, audit_split, permutation_check
from align3gr.data import Split, SyntheticMarket, SyntheticMarketConfig, leave_one_out
from align3gr.errors import InputError

MARKET = SyntheticMarketConfig(num_users=200, num_items=80, num_categories=8, num_brands=4, seed=3)


@pytest.fixture(scope="module")
def split():
    return leave_one_out(SyntheticMarket(MARKET).tables(), 0)


def found(split: Split, check: str) -> bool:
    return next(finding.passed for finding in audit_split(split) if finding.check == check)


def test_a_clean_split_passes(split):
    assert [finding.passed for finding in audit_split(split)] == [True] * 3


def test_an_event_in_two_splits_is_found(split):
    first = split.train.row(0, named=True)
    user = split.test["user_id"] == first["user_id"]
    test = split.test.with_columns(
        item_id=pl.when(user).then(pl.lit(first["items"][0])).otherwise("item_id"),
        timestamp=pl.when(user).then(pl.lit(first["timestamps"][0])).otherwise("timestamp"),
    )
    leaky = dataclasses.replace(split, test=test)
    assert not found(leaky, "events in two splits") and not found(leaky, "time travel")


def test_a_target_that_is_older_than_the_history_is_found(split):
    old = dataclasses.replace(split, validation=split.validation.with_columns(timestamp=pl.lit(-1, pl.Int64)))
    assert not found(old, "time travel")


def test_titles_of_targets_in_profiles_are_found(split):
    titles = split.test.join(split.items, on="item_id", how="left").select("user_id", "title")
    users = split.users.join(titles, on="user_id", how="left").select(
        "user_id", profile=pl.col("profile") + " Likes " + pl.col("title").fill_null("")
    )
    assert not found(dataclasses.replace(split, users=users), "targets in profiles")


def test_manifests_say_who_read_targets(smoke_run):
    findings = {finding.check: finding for finding in audit_manifests(smoke_run)}
    assert len(findings) == 6 and all(finding.passed for finding in findings.values())
    assert "read no targets" in findings["inputs of scid"].message
    assert "read validation targets" in findings["inputs of sp_dpo"].message
    assert "read validation and test targets" in findings["inputs of evaluate"].message


def test_exchanged_targets_find_a_leak_and_only_a_leak(split, tmp_path):
    split.save(tmp_path / "data")
    code = "import shutil, sys; shutil.copy(sys.argv[1] + '/data/' + sys.argv[2], sys.argv[1] + '/made')"
    command = f'{sys.executable} -c "{code}" {{output}} '
    clean = permutation_check(tmp_path / "data", command + "train.parquet", tmp_path / "clean")
    assert clean.passed and clean.message == "1 files compared, none differs"
    leaky = permutation_check(tmp_path / "data", command + "test.parquet", tmp_path / "leaky")
    assert not leaky.passed and "differ: made" in leaky.message
    other = permutation_check(tmp_path / "data", command + "test.parquet", tmp_path / "other", split="validation")
    assert other.passed
    assert Split.load(tmp_path / "data").test.equals(split.test)  # the data themselves are never changed


def test_permutation_refusals(split, tmp_path):
    split.save(tmp_path / "data")
    with pytest.raises(InputError, match="must name"):
        permutation_check(tmp_path / "data", "true", tmp_path / "a")
    with pytest.raises(InputError, match="ended with status 1"):
        permutation_check(tmp_path / "data", "false {output}", tmp_path / "b")
    with pytest.raises(InputError, match="nothing to compare"):
        permutation_check(tmp_path / "data", "true {output}", tmp_path / "c")
    with pytest.raises(InputError, match="exists already"):
        permutation_check(tmp_path / "data", "true {output}", tmp_path / "c")


def test_the_command_line_ends_with_status_1_on_a_leak(split, tmp_path, capsys):
    from align3gr.cli import main

    split.save(tmp_path / "data")
    command = "cp {output}/data/test.parquet {output}/made"
    for arguments, status in (([], 0), (["--command", command, "--work", str(tmp_path / "work")], 1)):
        with pytest.raises(SystemExit) as ended:
            main(["audit", "--data", str(tmp_path / "data"), *arguments])
        assert ended.value.code == status
    assert "LEAK  exchanged test targets: 1 files compared, differ: made" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--data", "a", "--run_dir", "b"])
    assert ended.value.code == 2
