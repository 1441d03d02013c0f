"""The commands of `align3gr` in their order, and the options of those that no recipe reads."""

import argparse
import dataclasses
import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import align3gr
from align3gr.cli.argument_parser import ArgumentParser
from align3gr.estimate.command import add_options
from align3gr.pipeline import STAGES
from align3gr.serving.settings import ServerSettings

# The story in its order: a heading, and the commands with a line each.
_STORY = {
    "everything at once": {
        "run": "all stages of a pipeline, from raw files to results; finished ones are skipped",
    },
    "the stages, in their order": {
        "prepare": "raw logs -> tables, k-core, leave-one-out split",
        "embed": "semantic and collaborative vectors of users and items",
        "scid": "token level: users and items become SCIDs, a few tokens each",
        "sft": "behaviour level: supervised fine-tuning of the language model",
        "sp_dpo": "preference level: progressive self-play Softmax-DPO",
        "rf_dpo": "preference level: Softmax-DPO on real feedback",
        "evaluate": "full ranking on the test split, beside the baselines",
    },
    "with a trained model": {
        "recommend": "lists for a file of histories: Parquet, CSV or JSON lines",
        "serve": "lists over HTTP, and a log of events",
        "demo-ui": "a page in the browser: SCIDs, the beam level by level, before and after preference training",
        "feedback": "a served model's log of events as feedback for the next round of rf_dpo",
        "merge": "a LoRA adapter and its base as one plain model",
        "push": "a run's recommender, codes or catalogue on the Hub, with a card written from the run",
    },
    "studies": {
        "baselines": "every system of the paper's Table 1: tuned on validation, judged like the models",
        "ablation": "tables of runs that differ in stated options: those of the paper, a sweep of learning rates",
        "results": "the result tables of runs on one Markdown page",
        "report": "a run as one page of HTML: data, SCIDs, curves, metrics, example users, settings; partial runs too",
        "scid-report": "what a table of codes is worth: numbers and plots, for any run or published index",
    },
    "checks": {
        "doctor": "what works on this machine, and what to do where something does not",
        "estimate": "parameters, memory and hours of a training, before anything is loaded",
        "audit": "is a split clean, and does anything depend on targets that it must not see?",
    },
}
# Commands that a recipe reads the options of.
RECIPES = (*STAGES, "ablation", "baselines", "feedback")
COMMANDS = tuple(name for part in _STORY.values() for name in part)


def _epilog(data_sets: Sequence[str]) -> str:
    lines = [
        f"{heading}:\n" + "\n".join(f"  {name:<12} {text}" for name, text in part.items()) + "\n"
        for heading, part in _STORY.items()
    ]
    end = f"""first steps:
  align3gr doctor
  align3gr run --config recipes/synthetic/pipeline.yaml --run_dir runs/first

`align3gr COMMAND --help` lists the options of a command. Data sets with recipes: {", ".join(data_sets)}."""
    return "\n".join([*lines, end])


def resource(name: str) -> Path:
    return Path(str(importlib.resources.files(f"align3gr.{name}")))


def make_parser() -> ArgumentParser:
    """What `align3gr --help` shows."""
    names = sorted(path.name for path in resource("recipes").iterdir() if (path / "pipeline.yaml").is_file())
    parser = ArgumentParser(
        prog="align3gr",
        usage="align3gr COMMAND [options]",
        description="From interaction logs and item texts to a language model that recommends.",
        epilog=_epilog(names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"align3gr {align3gr.__version__}")
    return parser


def make_command_parser(command: str) -> ArgumentParser:
    """The options of a command that no recipe reads."""
    text = next(part[command] for part in _STORY.values() if command in part)
    parser = ArgumentParser(prog=f"align3gr {command}", description=text[0].upper() + text[1:] + ".")
    _OPTIONS[command](parser)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--config", required=True, help="a pipeline.yaml; the stages' files stand beside it")
    run.add_argument("--run_dir", help="folder of the run, in place of the one in the stages' files")
    run.add_argument("--stages", nargs="+", choices=STAGES, help="only these stages (default: those of the file)")
    run.add_argument(
        "--accelerate_config",
        help="launch sft, sp_dpo, rf_dpo and evaluate through accelerate with this configuration (name or file)",
    )


def _add_results(results: argparse.ArgumentParser) -> None:
    results.add_argument("runs", nargs="+", help="folders of runs, baselines or their records, such as runs/yelp")
    results.add_argument("--output", help="Markdown file to write")
    results.add_argument("--json", action="store_true", help="print the metrics of all runs as JSON")


def _add_merge(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("adapter", help="folder of the adapter, such as runs/yelp/sft/model")
    merge.add_argument("output", help="folder to write; must not exist")


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("run", help="folder of the run, finished or not, such as runs/yelp")
    report.add_argument("--output", help="file to write (default: report.html in the run's folder)")
    report.add_argument("--examples", type=int, default=6, help="users that are shown; 0 loads no model")


def _add_scid_report(report: argparse.ArgumentParser) -> None:
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
    report.add_argument("--json", action="store_true", help="print the figures as JSON")


def _add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("--run_dir", help="a run: its split and the manifests of its stages are checked")
    audit.add_argument("--data", help="a folder of prepared data, in place of a run")
    audit.add_argument("--command", help="makes artefacts below {output} from {output}/data; run on exchanged targets")
    audit.add_argument("--split", default="test", choices=("validation", "test"), help="targets to exchange")
    audit.add_argument("--work", help="folder for the two runs of --command; must not exist")
    audit.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_serve(serve: argparse.ArgumentParser) -> None:
    for option in dataclasses.fields(ServerSettings):
        text = option.metadata["help"]
        if option.default is dataclasses.MISSING:
            serve.add_argument(option.name, help=text)
            continue
        kinds: dict[str, Callable[[str], Any]] = {
            "num_beams": _int_or("all"),
            "port": int,
            "history_cache": float,
            "max_wait_ms": float,
            "rotate_seconds": float,
        }
        kind = kinds.get(option.name, int if isinstance(option.default, int) else str)
        serve.add_argument(f"--{option.name}", type=kind, default=option.default, help=text)


def _add_demo_ui(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("model", help="folder of a run, such as runs/yelp, or of a model, or a Hub id")
    demo.add_argument(
        "--before", help="second model to show on the left (default: a run's model of sft, beside sp_dpo's)"
    )
    demo.add_argument("--data", help="prepared data to choose users from (default: those of the model's run)")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all of the machine")
    demo.add_argument("--port", type=int, default=7860, help="port to listen at; 0 takes any that is free")
    demo.add_argument("--num_beams", type=int, default=20, help="beams, and the longest list")
    demo.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--run_dir", default="runs", help="where runs will be written: its disk is looked at")
    doctor.add_argument("--offline", action="store_true", help="do not ask the Hub")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("--run_dir", required=True, help="folder of the run, such as runs/yelp")
    push.add_argument("--repo_id", required=True, help="name/repository on the Hub; made where it does not exist")
    push.add_argument(
        "--artefact",
        choices=("recommender", "scid", "items"),
        default="recommender",
        help="model with all it needs, token level, or catalogue as a data set",
    )
    push.add_argument("--model", help="stage or model folder of the recommender (default: the last finished stage)")
    push.add_argument("--with_users", action="store_true", help="push the ids of users and their SCIDs, too")
    push.add_argument("--license", help="such as apache-2.0 (default: that of the base model)")
    push.add_argument("--private", action="store_true", default=None, help="make a private repository")
    push.add_argument("--revision", help="branch to commit to")
    push.add_argument("--create_pr", action="store_true", help="open a pull request")


def _add_recommend(recommend: argparse.ArgumentParser) -> None:
    recommend.add_argument("--model", required=True, help="model folder, such as runs/yelp/sp_dpo/model, or a Hub id")
    recommend.add_argument(
        "--input",
        required=True,
        help="Parquet, CSV or JSONL: items (lists of item ids, oldest first), user_id and profile if known",
    )
    recommend.add_argument(
        "--output", required=True, help=".parquet, .csv or .jsonl to write: row, user_id, rank, item_id, title, score"
    )
    recommend.add_argument("--k", type=int, default=10, help="length of the lists")
    recommend.add_argument(
        "--num_beams",
        type=_int_or("all"),
        default=20,
        help="beams, at least k, or all to score every item",
    )
    recommend.add_argument(
        "--batch_size", type=_int_or("auto"), default="auto", help="users in one search (default: as many as fit)"
    )
    recommend.add_argument(
        "--history_cache", type=float, help="mean share of the user's own history in the lists (default: the model's)"
    )
    recommend.add_argument("--exclude_seen", action="store_true", help="leave out the items of the user's history")
    recommend.add_argument(
        "--allowed", help="items that alone may be shown: text, one id a line, or Parquet (item_id)"
    )
    recommend.add_argument(
        "--unknown_items",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with items outside the catalogue",
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


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "run": _add_run,
    "results": _add_results,
    "merge": _add_merge,
    "push": _add_push,
    "recommend": _add_recommend,
    "serve": _add_serve,
    "demo-ui": _add_demo_ui,
    "report": _add_report,
    "scid-report": _add_scid_report,
    "audit": _add_audit,
    "doctor": _add_doctor,
    "estimate": add_options,
}
