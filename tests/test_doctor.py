"""What the doctor says of machines that are healthy and of others."""

import importlib.metadata
import json
import os
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError

import pytest
from packaging.requirements import Requirement

from align3gr import cli, doctor
from align3gr.doctor import Finding
from tests.conftest import ROOT

TOKEN = "hf_secret_of_the_test"


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_the_tested_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: pinned[name] for name in doctor.TESTED} == doctor.TESTED


@pytest.fixture
def installed(monkeypatch):
    """Makes a world of packages: `installed(requirements, versions)`."""

    def make(requirements: list[str], versions: dict[str, str]) -> None:
        def version(name):
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "requires", lambda _: requirements)
        monkeypatch.setattr(importlib.metadata, "version", version)

    return make


def test_packages_that_are_missing_too_old_or_not_tested_are_named(installed):
    installed(
        ["torch>=2.6", "trl>=1.16,<1.17", "numpy", "peft>=0.21,<0.22", 'fastapi>=0.130; extra == "serve"'],
        {"torch": "2.13.0+cpu", "trl": "1.15.0", "numpy": "2.0.0"},
    )
    found = {finding.check: (finding.status, finding.message) for finding in doctor._packages()}
    assert found["trl"] == (
        "broken",
        f"1.15.0 does not fit; pip install 'trl{Requirement('x>=1.16,<1.17').specifier}'",
    )
    assert found["peft"][0] == "broken" and found["peft"][1].startswith("not installed; pip install 'peft")
    assert found["packages"] == ("ok", "2 fit what align3gr asks for")
    assert found["other versions"][0] == "warning" and found["other versions"][1].startswith("numpy 2.0.0 (tested:")
    assert set(found) == {"trl", "peft", "packages", "other versions"}  # an extra is not asked for


def test_extras_say_what_they_are_for(installed):
    lines = ['fastapi>=0.130; extra == "serve"', 'uvicorn; extra == "serve"', 'deepspeed; extra == "deepspeed"']
    installed(lines, {"align3gr": "0.1.0", "fastapi": "0.165.0", "deepspeed": "0.19.8"})
    found = {finding.check: finding for finding in doctor._extras()}
    assert found["extra deepspeed"].status == "ok"
    assert found["extra serve"].status == "off"
    assert "uvicorn not installed: pip install 'align3gr[serve]'" in found["extra serve"].message
    assert "fastapi" not in found["extra serve"].message


def test_a_library_that_does_not_load_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "_IMPORTED", ("json", "wrong_build"))
    monkeypatch.setitem(sys.modules, "wrong_build", None)  # importing it raises ImportError
    finding = only(doctor._imports())
    assert (finding.check, finding.status) == ("import wrong_build", "broken")
    assert "ModuleNotFoundError" in finding.message
    monkeypatch.setattr(doctor, "_IMPORTED", ("json",))
    assert only(doctor._imports()).status == "ok"


@pytest.mark.parametrize(
    ("free", "runs", "cache"), [(0.5, "broken", "warning"), (5, "warning", "warning"), (50, "ok", "ok")]
)
def test_a_full_disk_is_broken_where_runs_are_written(tmp_path, monkeypatch, free, runs, cache):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(0, 0, free * 10**9))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = doctor._disk(tmp_path / "not" / "there" / "yet")
    assert [finding.status for finding in found] == [runs, cache]
    assert f"{free:.1f} GB free at {tmp_path}" in found[0].message


def test_a_folder_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    finding = doctor._room("disk for runs", tmp_path, needed=True)
    assert finding.status == "broken" and "cannot be written" in finding.message
    (tmp_path / "file").touch()
    finding = doctor._room("disk for runs", tmp_path / "file" / "run", needed=True)
    assert finding.status == "broken" and finding.message == f"{tmp_path / 'file'} is a file; choose a folder"


def test_old_locks_are_named_and_young_ones_are_not(tmp_path, monkeypatch, installed):
    installed([], {"deepspeed": "0.19.8"})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/c++")
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert only(doctor._locks()).status == "ok"
    os.utime(lock, (time.time() - 3600,) * 2)
    finding = only(doctor._locks())
    assert finding.status == "warning" and str(lock) in finding.message
    lock.unlink()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "install g++" in only(doctor._locks()).message


@pytest.mark.parametrize(
    ("config", "gpus", "status", "words"),
    [
        (None, 0, "ok", "no default configuration"),
        ("distributed_type: 'NO'", 0, "ok", "NO, 1 process"),
        ("distributed_type: MULTI_CPU\nnum_processes: 4", 0, "warning", "MULTI_CPU runs one process"),
        ("distributed_type: DEEPSPEED\nuse_cpu: true", 0, "warning", "DEEPSPEED with use_cpu is plain DDP"),
        ("distributed_type: FSDP", 0, "warning", "FSDP needs GPUs"),
        ("distributed_type: FSDP", 1, "ok", "FSDP"),
        ("distributed_type: MULTI_GPU\nnum_processes: 4", 2, "warning", "4 processes for 2 GPUs"),
        ("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true", 0, "ok", "MULTI_GPU, 2 processes"),
        ("- nothing", 0, "warning", "cannot be read (TypeError)"),
        ("num_processes: 2", 0, "warning", "cannot be read (KeyError)"),
    ],
)
def test_configurations_of_accelerate_that_fall_back_without_a_word(
    tmp_path, monkeypatch, config, gpus, status, words
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    if config is not None:
        (tmp_path / "accelerate").mkdir()
        (tmp_path / "accelerate" / "default_config.yaml").write_text(config)
    finding = only(doctor._accelerate(gpus))
    assert finding.status == status and words in finding.message


@pytest.fixture
def hub(monkeypatch):
    """A Hub of two addresses; `hub(token, status)` makes it and says who was asked for."""
    servers, asked = [], []

    def make(token: str | None, status: int = 200) -> list[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(f"{self.path} {self.headers['authorization']}")
                self.send_response(status)
                self.end_headers()
                role = {"accessToken": {"role": "write", "token": TOKEN}}
                self.wfile.write(json.dumps({"name": "me", "auth": role}).encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        return asked

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_hub_says_who_is_logged_in_and_the_token_is_never_shown(hub):
    asked = hub(TOKEN)
    finding = only(doctor._hub())
    assert asked == [f"/api/whoami-v2 Bearer {TOKEN}"]
    assert finding.status == "ok" and "logged in as me, role of the token: write" in finding.message
    assert TOKEN not in doctor.findings_text([finding]) + doctor.findings_json([finding])


def test_a_hub_that_refuses_fails_or_is_not_there(hub, monkeypatch):
    hub(TOKEN, 401)
    assert "refuses the token (401); hf auth login" in only(doctor._hub()).message
    hub(None, 500)
    assert "answers 500" in only(doctor._hub()).message
    asked = hub(None)
    finding = only(doctor._hub())
    assert asked[-1] == "/api/models?limit=1 None"
    assert finding.status == "ok" and "no token" in finding.message
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    finding = only(doctor._hub())
    assert finding.status == "warning" and "does not answer" in finding.message
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert only(doctor._hub()).status == "off"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("off", 0), ("broken", 1)])
def test_the_exit_status_is_one_where_something_needed_is_broken(monkeypatch, capsys, status, code):
    monkeypatch.setattr(doctor, "examine", lambda run_dir, ask_the_hub: [Finding("trl", status, f"{run_dir} text")])
    for arguments in (["doctor", "--json"], ["doctor", "--run_dir", "r", "--offline"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == code
        printed = capsys.readouterr().out
        if "--json" in arguments:
            finding = {"check": "trl", "status": status, "message": "runs text"}
            assert json.loads(printed) == {"ok": code == 0, "findings": [finding]}
        else:
            assert f"{status:<8} trl" in printed and ("broken: trl" in printed) == (code == 1)


@pytest.mark.parametrize(
    ("gpus", "deepspeed", "names"),
    [
        (0, False, "cpu_ddp"),
        (0, True, "cpu_ddp, zero2, zero3"),
        (1, False, "cpu_ddp, single_gpu"),
        (4, True, "cpu_ddp, single_gpu, ddp, fsdp2, zero2, zero3"),
    ],
)
def test_the_launches_that_work_are_named(tmp_path, monkeypatch, installed, gpus, deepspeed, names):
    installed([], {"deepspeed": "0.19.8"} if deepspeed else {})
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert doctor._launches(gpus)[0].message == f"--accelerate_config {names}"
    assert all((ROOT / "accelerate_configs" / f"{name}.yaml").is_file() for name in names.split(", "))


def test_this_machine_computes():
    found = {finding.check: finding for finding in doctor._devices()}
    assert found["cpu"].status == "ok" and "cores" in found["cpu"].message
    assert doctor._product("meta", "a device without numbers").status != "ok"
