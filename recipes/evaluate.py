"""Full ranking on the test split: baselines that need no model, the fine-tuned model, every preference stage."""

import json
import time
from dataclasses import asdict, dataclass, field

from align3gr.baselines import judge_simple_systems
from align3gr.data import RatingScale, Split, SyntheticMarket
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.data.synthetic import CONFIG_NAME
from align3gr.decoding import HistoryCache, Recommender
from align3gr.encoders import Embeddings
from align3gr.evaluation import (
    PER_USER_FILE,
    FullEvaluation,
    judge_policies,
    read_curriculum,
    reported_ks,
    results_page,
    sample_users,
    stage_policies,
)
from align3gr.pipeline import STAGES, read_manifest, stage, stage_folder
from align3gr.processes import launched
from align3gr.recipe import parse, run_recipe
from align3gr.report import write_run_report
from align3gr.scid import load_codes


@dataclass
class EvaluateArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the tables appear in its folder evaluation."})
    num_beams: int = field(default=20, metadata={"help": "Beam of the search; 0 scores every item."})
    k: int = field(default=0, metadata={"help": "Length of the lists, at most num_beams; 0 takes num_beams, or 20."})
    batch_size: int = field(default=0, metadata={"help": "Prompts in one search; 0 takes as many as fit."})
    stage_users: int = field(
        default=0, metadata={"help": "Fixed sample of users for the stages before the last one; 0 takes all users."}
    )
    history_cache: float = field(
        default=0.0,
        metadata={"help": "Mean share of the users' own history in another row beside each final policy; 0 for none."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sample."})
    liked_from: float = field(default=4.0, metadata={"help": "Lowest rating that is liked."})
    disliked_to: float = field(default=1.0, metadata={"help": "Highest rating that is disliked."})


def main() -> None:
    (arguments,) = parse([EvaluateArguments])
    k = arguments.k or arguments.num_beams or 20
    ks = reported_ks(k, arguments.num_beams or k)
    data, embeddings, scid, sft, *preference = (stage_folder(arguments.run_dir, name) for name in STAGES[:-1])
    vectors = embeddings / "items.parquet"
    inputs = [data, scid / "item_codes.parquet", scid / "user_codes.parquet", sft / "model"]
    inputs += [path for path in (vectors, *preference) if path.exists()]
    settings = asdict(arguments)
    del settings["run_dir"]
    with stage(arguments.run_dir, "evaluate", settings, inputs, arguments.seed) as work:
        if work is None:
            return
        started, process = time.perf_counter(), launched()
        split = RatingScale(arguments.liked_from, arguments.disliked_to).on_five_points(Split.load(data))
        questions = split.histories("test")
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        semantic = Embeddings.load(vectors, ITEM_ID, split.items[ITEM_ID]).semantic if vectors.exists() else None
        evaluation = FullEvaluation(split, item_codes, semantic, ks)
        judge_simple_systems(evaluation, split, questions, k)
        folders = {"SFT": sft / "model"}
        for title, folder in zip(("SP-DPO", "RF-DPO"), preference, strict=True):
            folders |= stage_policies(title, folder)
        device = process.device if process.num_processes > 1 else None
        recommender = Recommender.from_pretrained(sft / "model", device=device, num_beams=arguments.num_beams or "all")
        sample = sample_users(questions, arguments.stage_users, arguments.seed)
        policies = {
            name: (folder, questions if folder.name == "model" else sample) for name, folder in folders.items()
        }
        whole = [name for name, folder in folders.items() if folder.name == "model"]
        batch_size = arguments.batch_size or "auto"
        cache = None
        if arguments.history_cache:
            cache = HistoryCache.fit(split.train_sequences(), arguments.history_cache)
        judge_policies(evaluation, policies, recommender, item_codes, user_codes, k, batch_size, whole, cache)
        if not process.is_main_process:
            return
        rows = evaluation.results
        if (data / CONFIG_NAME).is_file():
            market = SyntheticMarket.from_folder(data)
            # Without users or items that the k-core left out, the market's distribution is not that of the split.
            if (len(split.users), len(split.items)) == (market.config.num_users, market.config.num_items):
                best = market.best_recall(questions, 10)
                rows["best possible"] = {"seen_allowed": {"recall@10": best.recall, "ndcg@10": best.ndcg}}
        manifests = [
            read_manifest(stage_folder(arguments.run_dir, name))
            for name in STAGES[:-1]
            if name not in ("sp_dpo", "rf_dpo") or stage_folder(arguments.run_dir, name).is_dir()
        ]
        page = results_page(rows, manifests, [found for found in map(read_curriculum, preference) if found])
        (work.folder / "results.md").write_text(page, encoding="utf-8")
        (work.folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        evaluation.per_user().write_parquet(work.folder / PER_USER_FILE)
        print(page)
        print(
            f"evaluation of {len(questions):,} users: {time.perf_counter() - started:.1f} s, SFT "
            f"{rows['SFT']['ranking']['users_per_second']:,.0f} users/s, processes: {process.num_processes}"
        )
    print(write_run_report(arguments.run_dir))


if __name__ == "__main__":
    run_recipe(main)
