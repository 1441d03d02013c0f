"""Full ranking on the test split: baselines that need no model, the fine-tuned model, every preference stage."""

import json
from dataclasses import asdict, dataclass, field

from align3gr.baselines import HistoryRepeat, HistoryThenItemKNN, ItemKNN, Popularity
from align3gr.data import Split, SyntheticMarket
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.data.synthetic import CONFIG_NAME
from align3gr.decoding import ConstrainedBeamSearch, Recommender
from align3gr.evaluation import (
    curriculum_table,
    evaluate_policy,
    metrics_table,
    sample_users,
    stages_table,
    three_columns,
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
    batch_size: int = field(default=64, metadata={"help": "Prompts in one search."})
    stage_users: int = field(
        default=0, metadata={"help": "Fixed sample of users for the stages before the last one; 0 takes all users."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sample."})


def main() -> None:
    (arguments,) = parse([EvaluateArguments])
    data, scid, sft, sp_dpo = (stage_folder(arguments.run_dir, s) for s in ("prepare", "scid", "sft", "sp_dpo"))
    inputs = [data, scid / "item_codes.parquet", scid / "user_codes.parquet", sft / "model"]
    if sp_dpo.is_dir():
        inputs.append(sp_dpo)
    settings = asdict(arguments)
    del settings["run_dir"]
    with stage(arguments.run_dir, "evaluate", settings, inputs, arguments.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        questions = split.histories("test")
        rows = {}
        for name, baseline in BASELINES.items():
            fitted = baseline()
            fitted.fit(split.train_sequences(), len(split.items))
            allowed, masked = (fitted.rank(questions.histories, 10, exclude_seen=seen) for seen in (False, True))
            rows[name] = three_columns(
                allowed, masked, questions.targets, questions.histories, ratings=questions.ratings
            )
        policies = {"SFT": sft / "model"}
        curriculum = None
        if sp_dpo.is_dir():
            curriculum = json.loads((sp_dpo / "curriculum.json").read_text(encoding="utf-8"))
            for number, done in enumerate(curriculum["stages"]):
                if done["decision"] != "skipped":
                    policies[f"SP-DPO {done['name']}"] = sp_dpo / f"{number}-{done['name']}" / "policy"
            policies["SP-DPO, best stage on validation"] = sp_dpo / "model"
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        recommender = Recommender.from_pretrained(sft / "model", num_beams=arguments.num_beams)
        sample = sample_users(questions, arguments.stage_users, arguments.seed)
        for name, folder in policies.items():
            model = type(recommender.model).from_pretrained(folder).to(recommender.model.device)
            rows[name] = evaluate_policy(
                ConstrainedBeamSearch(
                    model,
                    recommender.search.trie,
                    recommender.prompt_builder.vocabulary.item_tokens,
                    arguments.num_beams,
                ),
                recommender.prompt_builder,
                questions if name in ("SFT", list(policies)[-1]) else sample,
                item_codes,
                user_codes,
                batch_size=arguments.batch_size,
            )
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
        report = metrics_table(rows)
        if curriculum:
            report += "\n" + curriculum_table(curriculum)
        report += "\n" + stages_table(manifests)
        (work.folder / "results.md").write_text(report, encoding="utf-8")
        (work.folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        print(report)


if __name__ == "__main__":
    run_recipe(main)
