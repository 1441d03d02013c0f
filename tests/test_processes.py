"""Several processes do what one does: every job once, the same lists, the same bytes."""

import os
import shutil
import sys
import time
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from align3gr import Recommender
from align3gr.errors import InputError
from align3gr.pipeline import read_manifest
from align3gr.processes import _refuse_old_locks, in_shares, launched, leave, share
from align3gr.recipe import run_recipe
from tests.conftest import SMOKE, without_times
from tests.launching import launch_command, run

ALIGN3GR = [sys.executable, "-m", "align3gr.cli"]

RECOMMEND = """
import sys
import numpy as np
from align3gr import Recommender
from align3gr.decoding import generate_rankings
from align3gr.processes import in_shares, launched, leave

process = launched()
assert process.num_processes == 2, process.num_processes
assert in_shares("abc", str.upper) == ["A", "B", "C"] and in_shares([], str) == []
# Each process says which of the jobs are its own.
owners = in_shares(range(5), lambda job: process.process_index)
assert owners == [0, 1, 0, 1, 0], owners
recommender = Recommender.from_pretrained(sys.argv[1], device="cpu")
for rows in map(int, sys.argv[3:]):
    source, output = (f"{sys.argv[2]}/{rows}.{kind}.parquet" for kind in ("in", "two"))
    assert recommender.recommend_file(source, output, k=4, part_users=2, progress=False) == rows
    prompts, histories = [[1 + row] * (1 + row % 3) for row in range(rows)], [[row, 2 * row] for row in range(rows)]
    alone, shared = (
        generate_rankings(recommender.search, prompts, 2, 4, histories, progress=False, distributed=distributed)
        for distributed in (False, True)
    )
    assert shared.seen_allowed.shape == (rows, 4) and (shared.seen_allowed >= 0).all()
    assert all(np.array_equal(one, two) for one, two in zip(alone, shared, strict=True))
leave()
"""


def test_a_recipe_that_is_done_leaves_its_launch(tmp_path):
    """Threads of a group that is still there as Python ends may abort the process."""

    def work() -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)

    try:
        run_recipe(work)
        assert not torch.distributed.is_initialized()
    finally:
        leave()
    run_recipe(lambda: None)  # nor does it matter that there was none


def test_fsdp_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP needs GPUs"):
        launched()


@pytest.mark.parametrize(("recipe", "named"), [("sft", "eval_strategy"), ("sp_dpo", "stages"), ("rf_dpo", "stages")])
def test_what_recommends_while_it_trains_is_refused_under_fsdp(recipe, named, run_stage, tmp_path, monkeypatch):
    """Processes would wait for each other without end; nothing is read or written before that is said."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    options = {"eval_strategy": "epoch"} if recipe == "sft" else {}
    with pytest.raises(InputError, match=f"^{named}: recommends while it trains.*FSDP divides it: .*launch with ddp"):
        run_stage(recipe, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_killed_compilation_is_named_and_nobody_waits_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    _refuse_old_locks.cache_clear()
    assert launched().num_processes == 1  # a process may be compiling right now
    os.utime(lock, (time.time() - 700,) * 2)
    assert launched().num_processes == 1  # a launch that has started is not stopped by it
    _refuse_old_locks.cache_clear()
    with pytest.raises(InputError, match=r"deepspeed_shm_comm/lock: left by a process that was killed"):
        launched()
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    assert launched().num_processes == 1


@pytest.mark.parametrize("number", [0, 1, 3, 7])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_job_belongs_to_one_process(number, processes, monkeypatch):
    shares = []
    for index in range(processes):
        state = SimpleNamespace(process_index=index, num_processes=processes)
        monkeypatch.setattr("align3gr.processes.launched", lambda state=state: state)
        shares.append(list(share(range(number))))
    assert sorted(job for jobs in shares for job in jobs) == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_does_all_jobs_in_their_order():
    done = []
    assert in_shares([3, 1, 2], lambda job: done.append(job) or -job) == [-3, -1, -2] and done == [3, 1, 2]


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    assert launched().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started, but this one knows of 1; launch with"):
        launched()


def test_two_processes_recommend_like_one_whatever_the_number_of_rows(smoke_run, tmp_path):
    model, numbers = smoke_run / "sp_dpo" / "model", (0, 1, 3, 7)
    train = pl.read_parquet(smoke_run / "data" / "train.parquet")
    for rows in numbers:
        train.head(rows).write_parquet(tmp_path / f"{rows}.in.parquet")
    (tmp_path / "recommend.py").write_text(RECOMMEND)
    command = [*launch_command("cpu_ddp"), tmp_path / "recommend.py", model, tmp_path, *numbers]
    status, printed = run(command, tmp_path / "output.txt")
    assert status == 0, printed[-3000:]
    recommender = Recommender.from_pretrained(model, device="cpu")
    for rows in numbers:
        one, two = tmp_path / f"{rows}.one.parquet", tmp_path / f"{rows}.two.parquet"
        recommender.recommend_file(tmp_path / f"{rows}.in.parquet", one, k=4, part_users=2, progress=False)
        assert pl.read_parquet(one)["row"].to_list() == [row for row in range(rows) for _ in range(4)]
        assert two.read_bytes() == one.read_bytes()
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*.partial"))


@pytest.mark.long
def test_two_processes_evaluate_like_one(smoke_run, tmp_path):
    for name in ("data", "embeddings", "scid", "sft", "sp_dpo", "rf_dpo"):
        shutil.copytree(smoke_run / name, tmp_path / "run" / name)
    command = [*ALIGN3GR, "run", "--config", SMOKE / "pipeline.yaml", "--stages", "evaluate"]
    command += ["--accelerate_config", "cpu_ddp", "--run_dir", tmp_path / "run"]
    status, printed = run(command, tmp_path / "output.txt")
    assert status == 0, printed[-3000:]
    assert printed.count("evaluation of 200 users") == 1 and "processes: 2" in printed
    one, two = smoke_run / "evaluation", tmp_path / "run" / "evaluation"
    assert (read_manifest(one)["processes"], read_manifest(two)["processes"]) == (1, 2)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert (two / "per_user.parquet").read_bytes() == (one / "per_user.parquet").read_bytes()
    assert without_times(two) == without_times(one)
    assert not list((tmp_path / "run").glob("*.partial"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    status, printed = run(command, tmp_path / "output.txt")
    assert status == 0 and "evaluation of" not in printed, printed[-3000:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.long
def test_the_command_recommends_in_two_processes_like_in_one(smoke_run, tmp_path):
    train = pl.read_parquet(smoke_run / "data" / "train.parquet")
    # 1,600 users are two parts.
    pl.concat([train] * 8).write_parquet(tmp_path / "in.parquet")
    common = [*ALIGN3GR, "recommend", "--model", smoke_run / "sp_dpo" / "model"]
    common += ["--input", tmp_path / "in.parquet", "--device", "cpu", "--k", "5"]
    for name, more in (("one", []), ("two", ["--accelerate_config", "cpu_ddp"])):
        status, printed = run([*common, "--output", tmp_path / name, *more], tmp_path / "output.txt")
        assert status == 0, printed[-3000:]
        assert printed.count("lists for 1,600 users") == 1
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    status, printed = run([*common, "--output", "x", "--accelerate_config", "zero9"], tmp_path / "output.txt")
    assert status == 2 and "--accelerate_config zero9: no such file; built in are cpu_ddp" in printed
