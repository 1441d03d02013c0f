"""`align3gr doctor`: what works on this machine, and what to do where something does not.

Nothing is changed, no token is shown. It starts without torch and the rest, so that it can say that they are missing.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from packaging.requirements import Requirement

from align3gr.processes import LONGEST_COMPILATION

# Versions of constraints.txt, of what runs behind the commands; a test compares them.
TESTED = {
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "deepspeed": "0.19.8",
    "fastapi": "0.165.0",
    "gradio": "6.31.0",
    "huggingface_hub": "2.4.0",
    "implicit": "0.7.3",
    "numpy": "2.4.6",
    "peft": "0.21.2",
    "polars": "2.1.0",
    "pyarrow": "26.0.1",
    "scikit-learn": "1.9.1",
    "sentence-transformers": "6.2.0",
    "tokenizers": "0.23.3",
    "torch": "2.13.0",
    "torch-geometric": "2.8.1",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "uvicorn": "0.54.0",
}
EXTRAS = {
    "text": "sentence-transformers for item texts; without it TF-IDF",
    "collaborative": "ALS and LightGCN vectors; without it DIN and PPMI",
    "sentiment": "scores of review texts by VADER",
    "deepspeed": "ZeRO-2 and ZeRO-3",
    "serve": "align3gr serve",
    "demo": "align3gr demo-ui",
}
_IMPORTED = ("torch", "transformers", "peft", "accelerate", "datasets", "polars", "pyarrow", "sklearn", "matplotlib")
_GIGABYTE = 10**9
_LEAST_DISK, _FAIR_DISK = 1, 10  # GB: a small run takes half a gigabyte, a 7B model 14

# broken: the pipeline will not run; warning: something will not, or not as meant; off: not there and not needed.
Status = Literal["ok", "off", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What a check found, with what to do about it."""

    check: str
    status: Status
    message: str


def examine(run_dir: str | Path = "runs", ask_the_hub: bool = True) -> list[Finding]:
    """All checks.

    Args:
        run_dir: where runs will be written.
        ask_the_hub: whether to find out if the Hub answers.
    """
    findings = [Finding("python", "ok", platform.python_version()), *_packages(), *_imports(), *_extras(), *_devices()]
    findings += [*_disk(Path(run_dir)), *_locks(), *_launches(_cuda_devices()), *(_hub() if ask_the_hub else [])]
    return findings


def findings_json(findings: list[Finding]) -> str:
    """For a machine: `ok` is whether the exit status is 0."""
    healthy = not any(finding.status == "broken" for finding in findings)
    return json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}, indent=1)


def findings_text(findings: list[Finding]) -> str:
    """For a person: a line each, and what follows from them."""
    lines = [f"{finding.status:<8} {finding.check:<22} {finding.message}" for finding in findings]
    broken = [finding.check for finding in findings if finding.status == "broken"]
    end = f"broken: {', '.join(broken)}" if broken else "the pipeline works here: align3gr run --config ..."
    return "\n".join([*lines, "", end])


def _packages() -> list[Finding]:
    """Installed versions against those that align3gr asks for, and those that it was tested with."""
    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires("align3gr") or []]
    except importlib.metadata.PackageNotFoundError:
        return [
            Finding("align3gr", "warning", "runs from its source tree, so versions are not checked; pip install -e .")
        ]
    findings, untested, fine = [], [], 0
    for wanted in requirements:
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found is None:
            text = f"not installed; pip install '{wanted.name}{wanted.specifier}'"
        elif not wanted.specifier.contains(found, prereleases=True):
            text = f"{found} does not fit; pip install '{wanted.name}{wanted.specifier}'"
        else:
            fine += 1
            tested = TESTED.get(wanted.name)
            if tested is not None and found.split("+")[0] != tested:
                untested.append(f"{wanted.name} {found} (tested: {tested})")
            continue
        findings.append(Finding(wanted.name, "broken", text))
    findings.append(Finding("packages", "ok", f"{fine} fit what align3gr asks for"))
    if untested:
        text = f"{', '.join(untested)}; for the tested ones: pip install -c constraints.txt -e ."
        findings.append(Finding("other versions", "warning", text))
    return findings


def _imports() -> list[Finding]:
    """Whether what is installed can also be loaded: libraries of other builds may not."""
    findings = []
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken build raises anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            findings.append(Finding(f"import {name}", "broken", f"{reason}; install it again"))
    return findings or [Finding("imports", "ok", f"{len(_IMPORTED)} libraries load")]


def _extras() -> list[Finding]:
    findings = []
    lines = importlib.metadata.requires("align3gr") if _version("align3gr") else []
    for extra, use in EXTRAS.items():
        wanted = [Requirement(line) for line in lines or []]
        wanted = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        missing = [one.name for one in wanted if _version(one.name) is None]
        name = f"extra {extra}"
        if missing:
            text = f"{use}; {', '.join(missing)} not installed: pip install 'align3gr[{extra}]'"
            findings.append(Finding(name, "off", text))
        elif wanted:
            findings.append(Finding(name, "ok", use))
    return findings


def _devices() -> list[Finding]:
    try:
        import torch
    except Exception:  # said by the check of imports
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{torch.get_num_threads()} threads (OMP_NUM_THREADS)"
    findings = [_product("cpu", f"{cores} cores, {threads}, {torch.backends.cpu.get_cpu_capability()}")]
    for number in range(_cuda_devices()):
        about = torch.cuda.get_device_properties(number)
        memory = about.total_memory / _GIGABYTE
        findings.append(_product(f"cuda:{number}", f"{about.name}, {memory:.0f} GB"))
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        text = "bf16: true of a recipe runs" if bf16 else "no bf16; set bf16: false in recipes, fp16 is not used here"
        findings.append(Finding(f"bf16 on cuda:{number}", "ok" if bf16 else "warning", text))
    if _cuda_devices():
        return findings
    if shutil.which("nvidia-smi"):
        text = f"there is a driver, but torch {torch.__version__} sees no GPU; install torch for CUDA"
        findings.append(Finding("gpu", "warning", text))
    else:
        findings.append(Finding("gpu", "off", "none: small models train on the CPU, a 7B model needs one"))
    return findings


def _product(device: str, about: str) -> Finding:
    """A small product of matrices: a device that is listed may still not work."""
    import torch

    try:
        ones = torch.ones(64, 64, device=device)
        right = bool(((ones @ ones) == 64).all())
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return Finding(device, "broken" if device == "cpu" else "warning", f"{about}: does not compute ({reason})")
    return Finding(device, "ok" if right else "broken", about if right else f"{about}: computes wrong results")


def _disk(run_dir: Path) -> list[Finding]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return [_room("disk for runs", run_dir, needed=True), _room("disk for the Hub", cache, needed=False)]


def _room(check: str, folder: Path, needed: bool) -> Finding:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Finding(check, "broken" if needed else "warning", f"{there} is a file; choose a folder")
    if not os.access(there, os.W_OK):
        return Finding(check, "broken" if needed else "warning", f"{there} cannot be written; choose another folder")
    free = shutil.disk_usage(there).free / _GIGABYTE
    text = f"{free:,.1f} GB free at {there}"
    if free < _LEAST_DISK:
        return Finding(check, "broken" if needed else "warning", f"{text}; make room, 1 GB at the least")
    return Finding(check, "ok" if free >= _FAIR_DISK else "warning", text)


def _locks() -> list[Finding]:
    """DeepSpeed compiles parts of itself, and waits without end for a process that was killed meanwhile."""
    if _version("deepspeed") is None:
        return []
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    locks = [path for path in root.glob("**/lock") if time.time() - path.stat().st_mtime > LONGEST_COMPILATION]
    if locks:
        names = ", ".join(map(str, locks))
        return [Finding("deepspeed locks", "warning", f"{names}: left by a killed process; delete it, or ZeRO hangs")]
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return [Finding("deepspeed compiler", "warning", "no c++: ZeRO compiles parts of itself; install g++")]
    return [Finding("deepspeed", "ok", "no old locks, a compiler is there")]


def _launches(gpus: int) -> list[Finding]:
    """Which of align3gr's configurations run here, and what accelerate's own default would do."""
    names = ["cpu_ddp", *(["single_gpu"] if gpus else []), *(["ddp", "fsdp2"] if gpus > 1 else [])]
    names += ["zero2", "zero3"] if _version("deepspeed") else []
    return [Finding("launches", "ok", f"--accelerate_config {', '.join(names)}"), *_accelerate(gpus)]


def _accelerate(gpus: int) -> list[Finding]:
    """The default configuration, which a plain `accelerate launch` takes; some fall back without a word."""
    folder = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "accelerate"
    path = next(
        (file for file in (folder / f"default_config.{kind}" for kind in ("yaml", "json")) if file.is_file()), None
    )
    if path is None:
        return [Finding("accelerate", "ok", "no default configuration of its own")]
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind, processes = str(config["distributed_type"]), int(config.get("num_processes", 1))
    except (yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        return [
            Finding("accelerate", "warning", f"{path}: cannot be read ({type(error).__name__}); accelerate config")
        ]
    use_cpu = bool(config.get("use_cpu"))
    if kind == "MULTI_CPU":
        text = "MULTI_CPU runs one process; use --accelerate_config cpu_ddp"
    elif kind in ("DEEPSPEED", "FSDP") and use_cpu:
        text = f"{kind} with use_cpu is plain DDP; set use_cpu: false"
    elif kind == "FSDP" and not gpus:
        text = "FSDP needs GPUs; use --accelerate_config cpu_ddp, zero2 or zero3"
    elif kind == "MULTI_GPU" and not use_cpu and processes > gpus:
        text = f"{processes} processes for {gpus} GPUs; set num_processes"
    else:
        return [Finding("accelerate", "ok", f"{path}: {kind}, {processes} process{'es' if processes > 1 else ''}")]
    return [Finding("accelerate", "warning", f"{path}: {text}")]


def _hub() -> list[Finding]:
    """Whether the Hub answers, and takes the token; the token itself goes nowhere else."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError:  # said by the check of packages
        return []
    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", "off", "HF_HUB_OFFLINE is set: models must lie on this machine")]
    token, endpoint = get_token(), constants.ENDPOINT
    address = f"{endpoint}/api/whoami-v2" if token else f"{endpoint}/api/models?limit=1"
    request = urllib.request.Request(address, headers={"authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: Any = json.load(answer)
    except urllib.error.HTTPError as error:
        if token and error.code in (401, 403):
            return [Finding("hub", "warning", f"{endpoint} refuses the token ({error.code}); hf auth login")]
        return [Finding("hub", "warning", f"{endpoint} answers {error.code}; try again later")]
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        return [Finding("hub", "warning", f"{endpoint} does not answer ({reason}); models must lie on this machine")]
    if not token:
        return [Finding("hub", "ok", f"{endpoint} answers; no token: public models, no push (hf auth login)")]
    role = ((content.get("auth") or {}).get("accessToken") or {}).get("role", "unknown")
    return [Finding("hub", "ok", f"{endpoint} answers, logged in as {content.get('name')}, role of the token: {role}")]


def _cuda_devices() -> int:
    try:
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:  # said by the check of imports
        return 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
