"""The command line: `align3gr run` chains the stages, `align3gr <stage>` launches one recipe as a person would."""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from align3gr.cli.parser import COMMANDS, RECIPES, make_command_parser, make_parser, resource
from align3gr.cli.results import write_results
from align3gr.errors import InputError
from align3gr.pipeline import SEVERAL_PROCESSES, STAGES, read_manifest, stage_folder
from align3gr.progress import is_watched, silence_bars
from align3gr.recipe import one_line_ends, read_config, split_assignments
from align3gr.serving.settings import ServerSettings
from align3gr.stage_processes import call
from align3gr.suggestions import did_you_mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `align3gr` command."""
    if not is_watched():
        silence_bars()
    with one_line_ends():
        sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in RECIPES:
        launcher, rest = _split_launcher(arguments[1:])
        if "--config" in rest[:-1]:
            at = rest.index("--config") + 1
            rest[at] = str(_packaged(rest[at]))
        status = call([*_launch(command, launcher), *rest])
        if command in SEVERAL_PROCESSES and not {"-h", "--help"}.isdisjoint(rest):
            print("\n--accelerate_config NAME launches it through accelerate: a file, or one of", _launchers())
        return status
    if command.startswith("-"):
        make_parser().parse_args([command])  # --help and --version end here
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise InputError(f"align3gr: there is no command '{command}'{near or '; align3gr --help lists them'}")
    return _COMMANDS[command](make_command_parser(command).parse_args(arguments[1:]), arguments[1:])


def _audit(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.audit import audit_manifests, audit_split, findings_json, permutation_check
    from align3gr.data import Split

    if (parsed.run_dir is None) == (parsed.data is None):
        raise InputError("audit: give --run_dir or --data, one of them")
    if (parsed.command is None) != (parsed.work is None):
        raise InputError("audit: --command and --work go together")
    data = Path(parsed.data) if parsed.data else stage_folder(parsed.run_dir, "prepare")
    findings = audit_split(Split.load(data))
    if parsed.run_dir:
        findings += audit_manifests(parsed.run_dir)
    if parsed.command:
        findings.append(permutation_check(data, parsed.command, parsed.work, parsed.split))
    if parsed.json:
        print(findings_json(findings))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.passed else 'LEAK'}  {finding.check}: {finding.message}")
    return 0 if all(finding.passed for finding in findings) else 1


def _run_pipeline(parsed: argparse.Namespace, arguments: list[str]) -> int:
    config = _find_config(parsed.config)
    pipeline = read_config(config)
    if set(pipeline) != {"stages"} or not isinstance(pipeline["stages"], list):
        raise InputError(f"{config}: expected the option 'stages', a list, and no other")
    for name in parsed.stages or pipeline["stages"]:
        if name not in STAGES:
            raise InputError(f"{config}: stages: unknown stage '{name}', choose from {', '.join(STAGES)}")
        stage_config = config.with_name(f"{name}.yaml")
        if not stage_config.is_file():
            raise InputError(f"{stage_config}: not found; each stage of {config.name} needs its file beside it")
        command = [*_launch(name, parsed.accelerate_config), "--config", str(stage_config)]
        if parsed.run_dir:
            command += ["--run_dir", parsed.run_dir]
        print(f"\n{name}: {shlex.join(command)}", flush=True)
        status = call(command)
        if status:
            print(f"stopped at stage '{name}'; the same command goes on from there", file=sys.stderr)
            return status
    return 0


def _launch(name: str, accelerate_config: str | None) -> list[str]:
    """The command that runs a recipe: with this interpreter, or through accelerate where a stage takes processes."""
    script = str(resource("recipes") / f"{name}.py")
    if accelerate_config is None or name not in SEVERAL_PROCESSES:
        return [sys.executable, script]
    return [*_accelerate(accelerate_config), script]


def _accelerate(name: str) -> list[str]:
    config = Path(name)
    if not config.is_file():
        config = resource("accelerate_configs") / f"{name}.yaml"
    if not config.is_file():
        raise InputError(f"--accelerate_config {name}: no such file; built in are {_launchers()}")
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]


def _launchers() -> str:
    return ", ".join(sorted(path.stem for path in resource("accelerate_configs").glob("*.yaml")))


def _split_launcher(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Takes `--accelerate_config NAME` out of a stage's options."""
    arguments = split_assignments(arguments)
    if "--accelerate_config" not in arguments:
        return None, arguments
    at = arguments.index("--accelerate_config")
    if at + 1 == len(arguments):
        raise InputError("--accelerate_config: needs a name or a file")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


def _packaged(name: str) -> Path:
    """A file of the working folder; where there is none and the name begins so, `recipes/...` of the package."""
    path, packaged = Path(name), resource("recipes").joinpath(*Path(name).parts[1:])
    return packaged if path.parts[:1] == ("recipes",) and not path.is_file() and packaged.is_file() else path


def _find_config(name: str) -> Path:
    path = _packaged(name)
    if not path.is_file():
        raise InputError(f"--config {name}: not found; give a pipeline.yaml, such as recipes/synthetic/pipeline.yaml")
    return path


def _push(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.hub import push_run

    print(push_run(**vars(parsed)))
    return 0


def _merge(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.sft.lora import merge_adapter

    merge_adapter(parsed.adapter, parsed.output)
    print(f"{parsed.output}: merged, opens with AutoModelForCausalLM")
    return 0


def _serve(parsed: argparse.Namespace, arguments: list[str]) -> int:
    settings = ServerSettings(**vars(parsed))
    try:
        from align3gr.serving import run_server
    except ModuleNotFoundError as error:
        raise InputError(f"serve: {error.name} is not installed; pip install 'align3gr[serve]'") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    run_server(settings)
    return 0


def _demo_ui(parsed: argparse.Namespace, arguments: list[str]) -> int:
    try:
        from align3gr.demo import open_demo, run_demo
        from align3gr.listening import listen
    except ModuleNotFoundError as error:
        raise InputError(f"demo-ui: {error.name} is not installed; pip install 'align3gr[demo]'") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with listen(parsed.host, parsed.port) as listener:  # before the models are loaded, which may take minutes
        run_demo(open_demo(parsed.model, parsed.before, parsed.data, parsed.num_beams, parsed.device), listener)
    return 0


def _doctor(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.doctor import examine, findings_json, findings_text

    findings = examine(parsed.run_dir, ask_the_hub=not parsed.offline)
    print(findings_json(findings) if parsed.json else findings_text(findings))
    return 1 if any(finding.status == "broken" for finding in findings) else 0


def _recommend(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.decoding.history_files import check_histories, check_output, read_item_ids

    # What is quickly seen to be wrong is said before the model is loaded, and once, whatever the number of processes.
    check_histories(parsed.input)
    check_output(parsed.output, parsed.input)
    allowed = None if parsed.allowed is None else read_item_ids(parsed.allowed)
    if parsed.num_beams != "all" and not 1 <= parsed.k <= parsed.num_beams:
        raise InputError(f"--k {parsed.k}: expected 1 to --num_beams={parsed.num_beams}; raise --num_beams")
    if parsed.accelerate_config is not None:
        command = _accelerate(parsed.accelerate_config)
        return call([*command, "-m", "align3gr.cli", "recommend", *_split_launcher(arguments)[1]])
    from align3gr.decoding.recommender import Recommender
    from align3gr.processes import launched, leave

    process = launched()
    recommender = Recommender.from_pretrained(
        parsed.model,
        device=parsed.device or (process.device if process.num_processes > 1 else None),
        num_beams=parsed.num_beams,
        batch_size=parsed.batch_size,
        scid=parsed.scid,
        history_cache=parsed.history_cache,
    )
    users = recommender.recommend_file(
        parsed.input,
        parsed.output,
        k=parsed.k,
        exclude_seen=parsed.exclude_seen,
        allowed=allowed,
        unknown_items=parsed.unknown_items,
    )
    if process.is_main_process:
        print(f"{parsed.output}: lists for {users:,} users")
    leave()
    return 0


def _estimate(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.estimate.command import estimate, tables

    figures = estimate(parsed)
    if parsed.json:
        print(json.dumps(figures, indent=1))
        return 0
    for title, rows in tables(figures):
        print(title)
        for name, value in rows:
            print(f"  {name:<50}{value:>24}")
    return 0


def _report_codes(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from align3gr.report import write_scid_report

    quality, tables = write_scid_report(
        parsed.codes, parsed.output, parsed.data, parsed.vectors, parsed.codebook_sizes
    )
    if parsed.json:
        print(json.dumps(quality.to_dict(), indent=1))
        return 0
    console = Console()
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    print(f"{Path(parsed.output, 'scid-report.md')}")
    return 0


def _report(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.report import write_run_report

    print(write_run_report(parsed.run, parsed.output, parsed.examples))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "run": _run_pipeline,
    "results": write_results,
    "merge": _merge,
    "push": _push,
    "recommend": _recommend,
    "serve": _serve,
    "demo-ui": _demo_ui,
    "report": _report,
    "scid-report": _report_codes,
    "audit": _audit,
    "doctor": _doctor,
    "estimate": _estimate,
}
