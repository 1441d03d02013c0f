"""The command line: `align3gr run` chains the stages, `align3gr <stage>` launches one recipe as a person would."""

import argparse
import importlib.resources
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from align3gr.errors import InputError
from align3gr.pipeline import SEVERAL_PROCESSES, STAGES, read_manifest, stage_folder
from align3gr.recipe import read_config, split_assignments

_EPILOG = """stages:
  prepare    raw logs -> tables, k-core, leave-one-out split
  embed      semantic and collaborative vectors
  scid       token level: dual SCID tokenization
  sft        behaviour level: supervised fine-tuning
  sp_dpo     preference level: progressive self-play Softmax-DPO
  evaluate   full ranking on the test split, beside the baselines

tools:
  merge        a LoRA adapter and its base as one plain model
  recommend    lists for a Parquet file of histories, from a trained model
  scid-report  what a table of codes is worth: numbers and plots, for any run or published index
  baselines    popularity, item-kNN, MF, LightGCN, SASRec: tuned on validation, judged like the models
  ablation     tables of fine-tuning runs that differ in stated options: Table 4, a sweep of learning rates
  audit        is a split clean, and does anything depend on targets that it must not see?

`align3gr <stage> --help` lists a stage's options. Data sets with recipes: {recipes}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `align3gr` command."""
    try:
        sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in (*STAGES, "ablation", "baselines"):
        launcher, rest = _split_launcher(arguments[1:])
        return subprocess.call([*_launch(arguments[0], launcher), *rest])
    parsed = _parser().parse_args(arguments)
    if parsed.verb == "run":
        return _run_pipeline(parsed)
    if parsed.verb == "audit":
        return _audit(parsed)
    if parsed.verb == "scid-report":
        _report_codes(parsed)
    elif parsed.verb == "recommend":
        return _recommend(parsed, arguments[1:])
    elif parsed.verb == "merge":
        from align3gr.sft.lora import merge_adapter

        merge_adapter(parsed.adapter, parsed.output)
        print(f"{parsed.output}: merged, opens with AutoModelForCausalLM")
    else:
        _write_results(parsed.runs, parsed.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    names = sorted(path.name for path in _resource("recipes").iterdir() if (path / "pipeline.yaml").is_file())
    parser = argparse.ArgumentParser(
        prog="align3gr",
        description="From interaction logs and item texts to a language model that recommends.",
        epilog=_EPILOG.format(recipes=", ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="run|results|merge|recommend|scid-report|baselines|ablation|audit|<stage>"
    )
    run = verbs.add_parser("run", help="run all stages of a pipeline; finished ones are skipped")
    run.add_argument("--config", required=True, help="a pipeline.yaml; the stages' files stand beside it")
    run.add_argument("--run_dir", help="folder of the run, in place of the one in the stages' files")
    run.add_argument("--stages", nargs="+", choices=STAGES, help="only these stages (default: those of the file)")
    run.add_argument(
        "--accelerate_config",
        help="launch sft, sp_dpo and evaluate through accelerate with this configuration (name or file)",
    )
    results = verbs.add_parser("results", help="put the result tables of runs into one Markdown page")
    results.add_argument("runs", nargs="+", help="folders of runs or baselines, such as runs/yelp")
    results.add_argument("--output", required=True, help="Markdown file to write")
    merge = verbs.add_parser("merge", help="write a LoRA adapter and its base as one plain model")
    merge.add_argument("adapter", help="folder of the adapter, such as runs/yelp/sft/model")
    merge.add_argument("output", help="folder to write; must not exist")
    _add_recommend(verbs.add_parser("recommend", help="recommend to every row of a Parquet file"))
    report = verbs.add_parser("scid-report", help="measure and plot a table of codes")
    report.add_argument(
        "--codes", required=True, help="item_codes.parquet of a run, or an index.json of LC-Rec or LETTER"
    )
    report.add_argument("--data", help="folder of prepared data, such as runs/yelp/data, for the prefix lift")
    report.add_argument(
        "--vectors", help="the items' vectors, such as runs/yelp/embeddings/items.parquet, for the map"
    )
    report.add_argument(
        "--codebook_sizes",
        nargs="+",
        type=int,
        help="codes of each level (default: the largest that occurs, plus one)",
    )
    report.add_argument("--output", required=True, help="folder to write to")
    audit = verbs.add_parser("audit", help="look for leaks in a split, a run, or any command")
    audit.add_argument("--run_dir", help="a run: its split and the manifests of its stages are checked")
    audit.add_argument("--data", help="a folder of prepared data, in place of a run")
    audit.add_argument("--command", help="makes artefacts below {output} from {output}/data; run on exchanged targets")
    audit.add_argument("--split", default="test", choices=("validation", "test"), help="targets to exchange (test)")
    audit.add_argument("--work", help="folder for the two runs of --command; must not exist")
    audit.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def _add_recommend(recommend: argparse.ArgumentParser) -> None:
    recommend.add_argument("--model", required=True, help="model folder, such as runs/yelp/sp_dpo/model, or a Hub id")
    recommend.add_argument(
        "--input", required=True, help="Parquet: items (lists of item ids, oldest first), user_id and profile if known"
    )
    recommend.add_argument(
        "--output", required=True, help="Parquet to write: row, user_id, rank, item_id, title, score"
    )
    recommend.add_argument("--k", type=int, default=10, help="length of the lists (default: 10)")
    recommend.add_argument(
        "--num_beams",
        type=_int_or("all"),
        default=20,
        help="beams, at least k, or all to score every item (default: 20)",
    )
    recommend.add_argument(
        "--batch_size", type=_int_or("auto"), default="auto", help="users in one search (default: as many as fit)"
    )
    recommend.add_argument("--exclude_seen", action="store_true", help="leave out the items of the user's history")
    recommend.add_argument(
        "--allowed", help="items that alone may be shown: text, one id a line, or Parquet (item_id)"
    )
    recommend.add_argument(
        "--unknown_items",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with items outside the catalogue (default: raise)",
    )
    recommend.add_argument("--scid", help="folder scid of the run: gives users with a profile but no SCID one")
    recommend.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    recommend.add_argument(
        "--accelerate_config", help="launch through accelerate with this configuration (name or file), such as cpu_ddp"
    )


def _int_or(word: str) -> Callable[[str], int | str]:
    def parse(text: str) -> int | str:
        return word if text == word else int(text)

    parse.__name__ = f"number, or {word}"  # argparse: invalid <name> value
    return parse


def _audit(parsed: argparse.Namespace) -> int:
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


def _run_pipeline(parsed: argparse.Namespace) -> int:
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
        status = subprocess.call(command)
        if status:
            print(f"stopped at stage '{name}'; the same command goes on from there", file=sys.stderr)
            return status
    return 0


def _launch(name: str, accelerate_config: str | None) -> list[str]:
    """The command that runs a recipe: with this interpreter, or through accelerate where a stage takes processes."""
    script = str(_resource("recipes") / f"{name}.py")
    if accelerate_config is None or name not in SEVERAL_PROCESSES:
        return [sys.executable, script]
    return [*_accelerate(accelerate_config), script]


def _accelerate(name: str) -> list[str]:
    config = Path(name)
    if not config.is_file():
        config = _resource("accelerate_configs") / f"{name}.yaml"
    if not config.is_file():
        known = sorted(path.stem for path in _resource("accelerate_configs").glob("*.yaml"))
        raise InputError(f"--accelerate_config {name}: no such file; built in are {', '.join(known)}")
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]


def _split_launcher(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Takes `--accelerate_config NAME` out of a stage's options."""
    arguments = split_assignments(arguments)
    if "--accelerate_config" not in arguments:
        return None, arguments
    at = arguments.index("--accelerate_config")
    if at + 1 == len(arguments):
        raise InputError("--accelerate_config: needs a name or a file")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


def _find_config(name: str) -> Path:
    """A file of the working folder, else `recipes/...` of the installed package."""
    path = Path(name)
    if not path.is_file() and path.parts[:1] == ("recipes",):
        path = _resource("recipes").joinpath(*path.parts[1:])
    if not path.is_file():
        raise InputError(f"--config {name}: not found; give a pipeline.yaml, such as recipes/synthetic/pipeline.yaml")
    return path


def _resource(name: str) -> Path:
    return Path(str(importlib.resources.files(f"align3gr.{name}")))


def _write_results(runs: Sequence[str], output: str) -> None:
    sections = ["# Results\n\nWritten by `align3gr results`; the tables are those that each run made itself.\n"]
    for run in runs:
        folder = stage_folder(run, "evaluate")
        manifest = read_manifest(folder)
        # Baselines are made from the data of another run and say themselves what these are.
        statistics = manifest.get("statistics") or json.loads(
            (stage_folder(run, "prepare") / "statistics.json").read_text(encoding="utf-8")
        )
        facts = ", ".join(
            f"{value:,} {key.replace('_', ' ')}" for key, value in statistics.items() if isinstance(value, int)
        )
        sections.append(f"## {Path(run).name}\n\n{facts}. Versions: {_versions(manifest)}.\n\n")
        sections.append((folder / "results.md").read_text(encoding="utf-8"))
    try:
        Path(output).write_text("\n".join(sections), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}; choose another file") from error


def _recommend(parsed: argparse.Namespace, arguments: list[str]) -> int:
    from align3gr.decoding.history_files import check_histories, read_item_ids

    # What is quickly seen to be wrong is said before the model is loaded, and once, whatever the number of processes.
    check_histories(parsed.input)
    allowed = None if parsed.allowed is None else read_item_ids(parsed.allowed)
    if parsed.num_beams != "all" and not 1 <= parsed.k <= parsed.num_beams:
        raise InputError(f"--k {parsed.k}: expected 1 to --num_beams={parsed.num_beams}; raise --num_beams")
    if parsed.accelerate_config is not None:
        command = _accelerate(parsed.accelerate_config)
        return subprocess.call([*command, "-m", "align3gr.cli", "recommend", *_split_launcher(arguments)[1]])
    from align3gr.decoding.recommender import Recommender
    from align3gr.processes import launched

    process = launched()
    recommender = Recommender.from_pretrained(
        parsed.model,
        device=parsed.device or (process.device if process.num_processes > 1 else None),
        num_beams=parsed.num_beams,
        batch_size=parsed.batch_size,
        scid=parsed.scid,
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
    return 0


def _report_codes(parsed: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from align3gr.report import write_scid_report

    _, tables = write_scid_report(parsed.codes, parsed.output, parsed.data, parsed.vectors, parsed.codebook_sizes)
    console = Console()
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    print(f"{Path(parsed.output, 'scid-report.md')}")


def _versions(manifest: dict) -> str:
    return ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())


if __name__ == "__main__":
    main()
