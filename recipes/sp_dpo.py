"""Preference level: self-play Softmax-DPO on the train split, easy to hard, the best stage on validation kept."""

from dataclasses import asdict, dataclass, field

import numpy as np
from accelerate import PartialState

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, USER_ID
from align3gr.decoding import ConstrainedBeamSearch, Recommender
from align3gr.dpo import CurriculumStage, SoftmaxDPOConfig, prefix_lengths, run_curriculum, self_play_rows
from align3gr.evaluation import evaluate_policy, sample_users
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import parse, run_recipe, training_settings
from align3gr.scid import load_codes


@dataclass
class SelfPlayArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the policies appear in its folder sp_dpo."})
    stages: list[str] = field(
        default_factory=lambda: ["easy", "medium", "hard"],
        metadata={"help": "Difficulties in the order of training: easy, medium, hard."},
    )
    num_prompts: int = field(default=4000, metadata={"help": "Train positions that each stage plays at."})
    candidates: int = field(default=100, metadata={"help": "Beam of self-play: items generated at each position."})
    exclude_known_positives: bool = field(
        default=True, metadata={"help": "Never reject another train item of the same user."}
    )
    validation_users: int = field(default=0, metadata={"help": "Fixed sample that judges a stage; 0 takes all users."})
    min_rows: int = field(default=100, metadata={"help": "A stage with fewer rows is skipped."})
    num_beams: int = field(default=20, metadata={"help": "Beam of the evaluation."})
    decode_batch_size: int = field(default=64, metadata={"help": "Prompts in one search."})


def main() -> None:
    arguments, training = parse([SelfPlayArguments, SoftmaxDPOConfig])
    data, scid, sft = (stage_folder(arguments.run_dir, name) for name in ("prepare", "scid", "sft"))
    # The test targets are no input.
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train", "validation")]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", sft / "model"]
    settings = asdict(arguments) | training_settings(training)
    del settings["run_dir"]
    with stage(arguments.run_dir, "sp_dpo", settings, inputs, training.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        sequences = split.train_sequences()
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        for name in arguments.stages:
            prefix_lengths(name, item_codes.shape[1])  # refuses an unknown or impossible difficulty before any work
        recommender = Recommender.from_pretrained(sft / "model", num_beams=arguments.num_beams, is_trainable=True)
        prompts = recommender.prompt_builder
        questions = sample_users(split.histories("validation"), arguments.validation_users, training.seed)

        def search(policy, num_beams: int) -> ConstrainedBeamSearch:
            return ConstrainedBeamSearch(policy, recommender.search.trie, prompts.vocabulary.item_tokens, num_beams)

        def make_rows(policy, curriculum_stage: CurriculumStage, seed: int):
            return self_play_rows(
                search(policy, arguments.candidates),
                prompts,
                sequences,
                item_codes,
                user_codes,
                curriculum_stage.difficulty,
                curriculum_stage.num_prompts,
                np.random.default_rng(seed),
                num_rejected=training.num_rejected,
                exclude_known_positives=arguments.exclude_known_positives,
                batch_size=arguments.decode_batch_size,
            )

        def validate(policy) -> dict[str, float]:
            columns = evaluate_policy(
                search(policy, arguments.num_beams),
                prompts,
                questions,
                item_codes,
                user_codes,
                batch_size=arguments.decode_batch_size,
            )
            return columns["seen_allowed"]

        run_curriculum(
            recommender.model,
            recommender.tokenizer,
            [CurriculumStage(name, name, arguments.num_prompts) for name in arguments.stages],
            make_rows,
            validate,
            work.folder,
            training,
            min_rows=arguments.min_rows,
            keep_policies=True,
        )
        if PartialState().is_main_process:
            recommender.save_pretrained(work.folder / "model")


if __name__ == "__main__":
    run_recipe(main)
