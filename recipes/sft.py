"""Behaviour level: a causal LM over SCID tokens learns every item of every training history (TRL's `SFTTrainer`)."""

import json
import shutil
from dataclasses import asdict, dataclass, field

from trl import SFTConfig

from align3gr.checkpoints import is_finished, last_checkpoint, restore_weights
from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, PROFILE, TEXT, TITLE, USER_ID
from align3gr.decoding import Recommender
from align3gr.errors import InputError
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import parse, run_recipe, training_settings
from align3gr.scid import (
    PromptBuilder,
    SCIDTokenizer,
    codes_column,
    load_codebook_sizes,
    load_codes,
    train_base_tokenizer,
)
from align3gr.sft import SmallLlamaConfig, SmallVocabularySFTTrainer, add_dropout, every_item_rows, small_llama


@dataclass
class SFTArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the model appears in its folder sft."})
    base_vocab_size: int = field(
        default=1000, metadata={"help": "Size of the BPE vocabulary trained on the catalogue, before SCID tokens."}
    )
    max_history: int = field(default=20, metadata={"help": "Latest items of a history that a prompt holds."})
    user_scid: bool = field(default=True, metadata={"help": "Whether a prompt holds the user's SCID."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on embeddings and blocks."})


def main() -> None:
    arguments, backbone, training = parse([SFTArguments, SmallLlamaConfig, SFTConfig])
    data, scid = (stage_folder(arguments.run_dir, name) for name in ("prepare", "scid"))
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train")]
    inputs += [scid / "item_codes.parquet", scid / "user_codes.parquet", scid / "codebooks.json"]
    settings = asdict(arguments) | asdict(backbone) | training_settings(training)
    del settings["run_dir"]
    with stage(arguments.run_dir, "sft", settings, inputs, training.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        item_codes = load_codes(scid / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        user_codes = load_codes(scid / "user_codes.parquet", USER_ID, split.users[USER_ID])
        texts = split.items[TEXT].to_list() + split.users[PROFILE].to_list()
        item_sizes, user_sizes = load_codebook_sizes(scid / "codebooks.json")
        if arguments.user_scid and not user_sizes:
            raise InputError("user_scid: the codes of this run have no user side; set user_scid: false")
        tokenizer = SCIDTokenizer.from_base(
            train_base_tokenizer(texts, arguments.base_vocab_size), item_sizes, user_sizes
        )
        prompts = PromptBuilder(tokenizer, arguments.max_history, arguments.user_scid)
        prompts.check_length(min(backbone.max_positions, training.max_length or backbone.max_positions))
        model = small_llama(backbone, tokenizer, training.seed)
        add_dropout(model, arguments.dropout)
        training.output_dir = str(work.folder / "trainer")
        trainer = SmallVocabularySFTTrainer(
            model=model,
            args=training,
            train_dataset=every_item_rows(prompts, split.train_sequences(), user_codes, item_codes),
            processing_class=tokenizer,
        )
        checkpoint, state = last_checkpoint(training.output_dir)
        if checkpoint and is_finished(state):
            restore_weights(model, checkpoint)
            log = state["log_history"]
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            log = trainer.state.log_history
        if trainer.is_world_process_zero():
            losses = [{"epoch": entry["epoch"], "loss": entry["loss"]} for entry in log if "loss" in entry]
            (work.folder / "log.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
            Recommender(
                trainer.accelerator.unwrap_model(model),
                tokenizer,
                split.items.select(ITEM_ID, TITLE).with_columns(codes_column(item_codes)),
                split.users.select(USER_ID).with_columns(codes_column(user_codes)),
                prompts,
            ).save_pretrained(work.folder / "model")
            shutil.rmtree(training.output_dir, ignore_errors=True)  # not there where no checkpoint was saved


if __name__ == "__main__":
    run_recipe(main)
