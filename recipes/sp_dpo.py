"""Preference level: self-play Softmax-DPO on the train split, easy to hard, the best stage on validation kept."""

from dataclasses import asdict

from align3gr.data import Split
from align3gr.decoding import Recommender
from align3gr.dpo import (
    SelfPlay,
    SelfPlayArguments,
    SoftmaxDPOConfig,
    policy_validation,
    read_stages,
    run_curriculum,
)
from align3gr.pipeline import stage, stage_folder
from align3gr.processes import launched, refuse_fsdp
from align3gr.recipe import parse, run_recipe, training_settings
from align3gr.tracking import track_stage
from align3gr.undivided import undivided


def main() -> None:
    arguments, training = parse([SelfPlayArguments, SoftmaxDPOConfig])
    refuse_fsdp("stages", training)
    stages = read_stages(arguments.stages, arguments.num_prompts)
    data, scid, sft = (stage_folder(arguments.run_dir, name) for name in ("prepare", "scid", "sft"))
    # The test targets are no input.
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train", "validation")]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", sft / "model"]
    inputs += [scid / "model"] if arguments.difficulty_measure == "cosine" else []
    settings = asdict(arguments) | training_settings(training)
    del settings["run_dir"]
    with stage(arguments.run_dir, "sp_dpo", settings, inputs, training.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        with undivided():
            recommender = Recommender.from_pretrained(sft / "model", num_beams=arguments.num_beams, is_trainable=True)
            self_play = SelfPlay(recommender, split, scid, arguments, training.num_rejected, work.folder)
            self_play.check(stages)
            if arguments.candidates_from == "start":
                self_play.generate(recommender.model, stages, training.seed)
        tracking = track_stage(training, arguments.run_dir, work, settings)
        run_curriculum(
            recommender.model,
            recommender.tokenizer,
            stages,
            self_play.make_rows,
            policy_validation(
                recommender,
                split,
                scid,
                arguments.validation_users,
                arguments.num_beams,
                arguments.decode_batch_size,
                training.seed,
            ),
            work.folder,
            training,
            arguments.metric,
            arguments.min_rows,
            keep_policies=True,
            validate_steps=arguments.validate_steps or None,
            stop_tolerance=arguments.stop_tolerance,
            likelihood=recommender.search.likelihood,
            tracking=tracking,
        )
        tracking.close()
        if launched().is_main_process:
            recommender.save_pretrained(work.folder / "model")


if __name__ == "__main__":
    run_recipe(main)
