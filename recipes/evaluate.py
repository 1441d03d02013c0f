"""Full ranking on the test split: baselines that need no model, the fine-tuned model, every preference stage."""

import json
from dataclasses import asdict, dataclass, field

from align3gr.baselines import HistoryRepeat, HistoryThenItemKNN, ItemKNN, Popularity
from align3gr.data import Split, SyntheticMarket
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.data.synthetic import CONFIG_NAME
from align3gr.decoding import ConstrainedBeamSearch, Recommender
from align3gr.encoders import Embeddings
from align3gr.evaluation import (
    PER_USER_FILE,
    FullEvaluation,
    beyond_accuracy_table,
    curriculum_table,
    metrics_table,
    rank_policy,
    reported_ks,
    sample_users,
    segments_table,
    stages_table,
)
from align3gr.pipeline import STAGES, read_manifest, stage, stage_folder
from align3gr.recipe import parse, run_recipe
from align3gr.scid import load_codes

BASELINES = {
    "popularity": Popularity,
    "history, latest first": HistoryRepeat,
    "item-kNN": ItemKNN,
    "five latest, then item-kNN": HistoryThenItemKNN,
}


@dataclass
class EvaluateArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the tables appear in its folder evaluation."})
    num_beams: int = field(default=20, metadata={"help": "Beam of the search."})
    k: int = field(default=0, metadata={"help": "Length of the lists, at most num_beams; 0 takes num_beams."})
    batch_size: int = field(default=64, metadata={"help": "Prompts in one search."})
    stage_users: int = field(
        default=0, metadata={"help": "Fixed sample of users for the stages before the last one; 0 takes all users."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sample."})


def main() -> None:
    (arguments,) = parse([EvaluateArguments])
    k = arguments.k or arguments.num_beams
    ks = reported_ks(k, arguments.num_beams)
    data, embeddings, scid, sft, sp_dpo = (stage_folder(arguments.run_dir, name) for name in STAGES[:-1])
    vectors = embeddings / "items.parquet"
    inputs = [data, scid / "item_codes.parquet", scid / "user_codes.parquet", sft / "model"]
    inputs += [path for path in (vectors, sp_dpo) if path.exists()]
    settings = asdict(arguments)
    del settings["run_dir"]
    with stage(arguments.run_dir, "evaluate", settings, inputs, arguments.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        questions = split.histories("test")
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        semantic = Embeddings.load(vectors, ITEM_ID, split.items[ITEM_ID]).semantic if vectors.exists() else None
        evaluation = FullEvaluation(split, item_codes, semantic, ks)
        for name, baseline in BASELINES.items():
            fitted = baseline()
            fitted.fit(split.train_sequences(), len(split.items))
            allowed, masked = (fitted.rank(questions.histories, k, exclude_seen=seen) for seen in (False, True))
            evaluation.add(name, questions, allowed, masked)
        policies = {"SFT": sft / "model"}
        curriculum = None
        if sp_dpo.is_dir():
            curriculum = json.loads((sp_dpo / "curriculum.json").read_text(encoding="utf-8"))
            for number, done in enumerate(curriculum["stages"]):
                if done["decision"] != "skipped":
                    policies[f"SP-DPO {done['name']}"] = sp_dpo / f"{number}-{done['name']}" / "policy"
            policies["SP-DPO, best stage on validation"] = sp_dpo / "model"
        recommender = Recommender.from_pretrained(sft / "model", num_beams=arguments.num_beams)
        sample = sample_users(questions, arguments.stage_users, arguments.seed)
        for name, folder in policies.items():
            model = type(recommender.model).from_pretrained(folder).to(recommender.model.device)
            search = ConstrainedBeamSearch(
                model, recommender.search.trie, recommender.prompt_builder.vocabulary.item_tokens, arguments.num_beams
            )
            asked = questions if name in ("SFT", list(policies)[-1]) else sample
            lists = rank_policy(
                search, recommender.prompt_builder, asked, item_codes, user_codes, k, arguments.batch_size
            )
            evaluation.add(name, asked, *lists)
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
            if name != "sp_dpo" or curriculum
        ]
        tables = [
            metrics_table(rows),
            beyond_accuracy_table(rows, max(n for n in ks if n <= 10)),
            segments_table(rows),
        ]
        tables += [curriculum_table(curriculum)] if curriculum else []
        report = "\n".join([*tables, stages_table(manifests)])
        (work.folder / "results.md").write_text(report, encoding="utf-8")
        (work.folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        evaluation.per_user().write_parquet(work.folder / PER_USER_FILE)
        print(report)


if __name__ == "__main__":
    run_recipe(main)
