"""Behaviour level: a causal LM, or a T5, learns the tasks of multi-task fine-tuning over SCID tokens."""

import shutil
from dataclasses import asdict
from pathlib import Path

from trl import SFTConfig

from align3gr.checkpoints import gathered_weights, take_up
from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, TITLE, USER_ID
from align3gr.decoding import HistoryCache, Recommender
from align3gr.errors import InputError
from align3gr.pipeline import stage, stage_folder
from align3gr.processes import refuse_fsdp
from align3gr.recipe import parse, run_recipe, training_settings
from align3gr.scid import PromptBuilder, codes_column, load_codebook_sizes, load_codes
from align3gr.sft import (
    LoRAArguments,
    SFTArguments,
    SmallLlamaConfig,
    T5Arguments,
    TaskData,
    TaskTemplates,
    make_backbone,
    make_trainer,
    parse_tasks,
    read_user_codes,
    recommending_validation,
    training_rows,
    write_log,
)
from align3gr.tracking import follow, track_stage


def main() -> None:
    arguments, backbone, t5, lora, training = parse(
        [SFTArguments, SmallLlamaConfig, T5Arguments, LoRAArguments, SFTConfig]
    )
    t5.check(arguments, lora, training)
    tasks, templates = parse_tasks(arguments.tasks), TaskTemplates(arguments.templates)
    data, scid = (stage_folder(arguments.run_dir, name) for name in ("prepare", "scid"))
    if validated := training.eval_strategy != "no":
        refuse_fsdp("eval_strategy", training, 'set eval_strategy: "no"')
    tables = ("items", "users", "train", "validation") if validated else ("items", "users", "train")
    inputs = [data / f"{name}.parquet" for name in tables]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", scid / "codebooks.json"]
    if arguments.user_codes_from != "all" or arguments.embedding_init != "mean":
        inputs += [scid / "model", scid / "encoders"]
    inputs += [Path(name) for name in (arguments.templates, arguments.base_model) if name and Path(name).exists()]
    settings = asdict(arguments) | asdict(backbone) | t5.recorded() | asdict(lora) | training_settings(training)
    del settings["run_dir"]
    with stage(arguments.run_dir, "sft", settings, inputs, training.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        all_user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        item_sizes, user_sizes = load_codebook_sizes(scid / "codebooks.json")
        if arguments.user_scid and not user_sizes:
            raise InputError("user_scid: the codes of this run have no user side; set user_scid: false")
        model, tokenizer = make_backbone(arguments, backbone, lora, split, item_sizes, user_sizes, scid, training, t5)
        prompts = PromptBuilder(tokenizer, arguments.max_history, arguments.user_scid, templates.prompt)
        positions = getattr(model.config, "max_position_embeddings", backbone.max_positions)  # T5 has no such limit
        longest = min(positions, training.max_length or positions)
        prompts.check_length(longest)
        user_codes = read_user_codes(arguments, all_user_codes, split, scid)
        rows = training_rows(
            TaskData.from_split(split, prompts.vocabulary, item_codes, user_codes, arguments.max_history),
            prompts,
            tokenizer,
            item_codes,
            tasks,
            templates,
            objective=arguments.objective,
            rephrased=arguments.rephrased,
            returns=arguments.returns,
            shuffled=arguments.shuffled,
            max_length=longest,
            seed=training.seed,
        )
        recommender = Recommender(
            model,
            tokenizer,
            split.items.select(ITEM_ID, TITLE).with_columns(codes_column(item_codes)),
            split.users.select(USER_ID).with_columns(codes_column(all_user_codes)),
            prompts,
            history_cache=HistoryCache.fit(split.train_sequences()),
        )
        training.output_dir = str(work.folder / "trainer")
        judged = item_codes, all_user_codes, arguments, training.seed
        validate = recommending_validation(recommender, split, *judged) if validated else None
        trainer = make_trainer(model, tokenizer, rows, training, arguments, recommender, validate, t5.loss_temperature)
        tracking = track_stage(training, arguments.run_dir, work, settings)
        follow(trainer, "sft", tracking)
        log = take_up(trainer)
        tracking.close()
        weights = gathered_weights(trainer)
        if trainer.is_world_process_zero():
            write_log(work.folder / "log.json", log)
            recommender.save_pretrained(work.folder / "model", weights)
            shutil.rmtree(training.output_dir, ignore_errors=True)  # not there where no checkpoint was saved


if __name__ == "__main__":
    run_recipe(main)
