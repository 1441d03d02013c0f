"""The options of the `align3gr` command."""

import argparse
import importlib.resources
from collections.abc import Callable
from pathlib import Path

from align3gr.estimate.command import add_options
from align3gr.pipeline import STAGES

_EPILOG = """stages:
  prepare    raw logs -> tables, k-core, leave-one-out split
  embed      semantic and collaborative vectors
  scid       token level: dual SCID tokenization
  sft        behaviour level: supervised fine-tuning
  sp_dpo     preference level: progressive self-play Softmax-DPO
  rf_dpo     preference level: Softmax-DPO on real feedback
  evaluate   full ranking on the test split, beside the baselines

tools:
  merge        a LoRA adapter and its base as one plain model
  push         a run's recommender, codes or catalogue on the Hub, with a card written from the run
  recommend    lists for a Parquet file of histories, from a trained model
  scid-report  what a table of codes is worth: numbers and plots, for any run or published index
  feedback     a served model's log of events as feedback for the next round of rf_dpo
  baselines    every system of the paper's Table 1: tuned on validation, judged like the models
  ablation     tables of runs that differ in stated options: Tables 4 and 5, a sweep of learning rates
  audit        is a split clean, and does anything depend on targets that it must not see?
  estimate     parameters, memory and hours of a training, before anything is loaded

`align3gr <stage> --help` lists a stage's options. Data sets with recipes: {recipes}."""


def resource(name: str) -> Path:
    return Path(str(importlib.resources.files(f"align3gr.{name}")))


def make_parser() -> argparse.ArgumentParser:
    names = sorted(path.name for path in resource("recipes").iterdir() if (path / "pipeline.yaml").is_file())
    parser = argparse.ArgumentParser(
        prog="align3gr",
        description="From interaction logs and item texts to a language model that recommends.",
        epilog=_EPILOG.format(recipes=", ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(
        dest="verb",
        required=True,
        metavar="run|results|merge|push|recommend|scid-report|feedback|baselines|ablation|audit|estimate|<stage>",
    )
    run = verbs.add_parser("run", help="run all stages of a pipeline; finished ones are skipped")
    run.add_argument("--config", required=True, help="a pipeline.yaml; the stages' files stand beside it")
    run.add_argument("--run_dir", help="folder of the run, in place of the one in the stages' files")
    run.add_argument("--stages", nargs="+", choices=STAGES, help="only these stages (default: those of the file)")
    run.add_argument(
        "--accelerate_config",
        help="launch sft, sp_dpo, rf_dpo and evaluate through accelerate with this configuration (name or file)",
    )
    results = verbs.add_parser("results", help="put the result tables of runs into one Markdown page")
    results.add_argument("runs", nargs="+", help="folders of runs or baselines, such as runs/yelp")
    results.add_argument("--output", required=True, help="Markdown file to write")
    merge = verbs.add_parser("merge", help="write a LoRA adapter and its base as one plain model")
    merge.add_argument("adapter", help="folder of the adapter, such as runs/yelp/sft/model")
    merge.add_argument("output", help="folder to write; must not exist")
    _add_push(verbs.add_parser("push", help="put a finished run on the Hub"))
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
    add_options(verbs.add_parser("estimate", help="what a training needs: parameters, memory, time"))
    return parser


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("--run_dir", required=True, help="folder of the run, such as runs/yelp")
    push.add_argument("--repo_id", required=True, help="name/repository on the Hub; made where it does not exist")
    push.add_argument(
        "--artefact",
        choices=("recommender", "scid", "items"),
        default="recommender",
        help="model with all it needs, token level, or catalogue as a data set (default: recommender)",
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
