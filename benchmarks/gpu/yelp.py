"""From raw files to metrics on the GPU: token level and fine-tuning from scratch, and the rate of the evaluation."""

import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.figures import Figures, Skipped
from benchmarks.gpu.setting import Setting

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "embed", "scid", "sft", "evaluate")
FEW = {  # the built-in market in place of Yelp, and less of everything
    "sft": ["--num_train_epochs", "1", "--save_strategy", "no"],
    "scid": ["--alignment_epochs", "1", "--quantization_epochs", "1"],
}
SHORT = {"sft": ["--bf16", "true", "--num_train_epochs", "5", "--save_strategy", "no"]}


def measure(setting: Setting, figures: Figures) -> None:
    """Seconds of each stage, Recall@10 and NDCG@10 on the test split, users a second of the evaluation.

    Raises:
        Skipped: the Yelp files are not here.
    """
    recipes = "smoke" if setting.tiny else "yelp"
    folder = Path(os.environ.get("ALIGN3GR_DATA", ROOT.parent / "shared" / "data"))
    if not setting.tiny and not (folder / "yelp" / "Yelp.inter.json").is_file():
        raise Skipped(f"no Yelp files in {folder}; run benchmarks/gpu/pack.sh where they are")
    os.environ["ALIGN3GR_DATA"] = str(folder)
    with tempfile.TemporaryDirectory() as run_dir:
        for stage in STAGES:
            start = time.perf_counter()
            options = ["--run_dir", run_dir, *(FEW if setting.tiny else SHORT).get(stage, [])]
            run_stage(stage, ROOT / "recipes" / recipes / f"{stage}.yaml", options)
            figures.record(**{f"{stage}_s": time.perf_counter() - start})
        results = json.loads(Path(run_dir, "evaluation", "results.json").read_text(encoding="utf-8"))
        figures.record(**read_results(results))


def run_stage(stage: str, config: Path, options: list[str]) -> None:
    """One recipe, in this process: imports of the training libraries are paid once."""
    before = sys.argv
    sys.argv = [f"recipes/{stage}.py", "--config", str(config), *options]
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{stage}.py"))["main"]()
    finally:
        sys.argv = before


def read_results(results: dict) -> dict[str, float]:
    """The figures of the fine-tuned model out of `results.json`."""
    model = results["SFT"]
    return {
        "recall_10": model["seen_allowed"]["recall@10"],
        "ndcg_10": model["seen_allowed"]["ndcg@10"],
        "evaluation_users_per_s": model["ranking"]["users_per_second"],
    }
