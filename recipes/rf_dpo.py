"""Preference level: Softmax-DPO on real feedback, disliked items first, then neutral ones. See docs/feedback.md."""

import json
from dataclasses import asdict

from align3gr.data import Split
from align3gr.decoding import Recommender
from align3gr.dpo import (
    RealFeedback,
    RealFeedbackArguments,
    SoftmaxDPOConfig,
    deciding_metric,
    policy_validation,
    read_stages,
    run_curriculum,
)
from align3gr.pipeline import stage, stage_folder, start_model
from align3gr.processes import launched, refuse_fsdp
from align3gr.recipe import parse, run_recipe, training_settings
from align3gr.tracking import track_stage
from align3gr.undivided import undivided


def main() -> None:
    arguments, training = parse([RealFeedbackArguments, SoftmaxDPOConfig])
    refuse_fsdp("stages", training)
    stages = read_stages(arguments.stages, arguments.num_prompts)
    RealFeedback.check(stages)
    data, scid = (stage_folder(arguments.run_dir, name) for name in ("prepare", "scid"))
    start = start_model(arguments.run_dir, arguments.start_from)
    # The test targets are no input.
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train", "validation")]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", start, *arguments.inputs(data)]
    settings = asdict(arguments) | training_settings(training)
    del settings["run_dir"], settings["feedback_table"]  # the table is known by its content
    with stage(arguments.run_dir, "rf_dpo", settings, inputs, training.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        with undivided():
            recommender = Recommender.from_pretrained(start, num_beams=arguments.num_beams, is_trainable=True)
        feedback = RealFeedback(recommender, split, scid, arguments, training.num_rejected, work.folder)
        judged = arguments.scale().on_five_points(split)
        tracking = track_stage(training, arguments.run_dir, work, settings)
        run_curriculum(
            recommender.model,
            recommender.tokenizer,
            stages,
            feedback.make_rows,
            policy_validation(
                recommender,
                judged,
                scid,
                arguments.validation_users,
                arguments.num_beams,
                arguments.decode_batch_size,
                training.seed,
            ),
            work.folder,
            training,
            deciding_metric(arguments.metric, judged),
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
            report = json.dumps(feedback.report, indent=2) + "\n"
            (work.folder / "feedback.json").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    run_recipe(main)
