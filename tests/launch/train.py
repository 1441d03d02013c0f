"""What the launch tests start: a few steps of fine-tuning on random histories.

`train.py BASE OUTPUT full|trainable_token_indices|modules_to_save [TOTAL_BATCH]`; the main process writes
`OUTPUT/launch.json`, all together save the model to `OUTPUT/model`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from align3gr.processes import leave
from align3gr.sft.lora import LoRAArguments, add_lora, save_adapter
from align3gr.sft.pretrained import load_backbone


def main(base: str, output: str, way: str, total_batch: int = 8) -> None:
    training = SFTConfig(
        output_dir=f"{output}/trainer",
        use_cpu=True,
        bf16=False,
        max_steps=3,
        learning_rate=1e-2,
        per_device_train_batch_size=1,  # set below, when the number of processes is known
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=way != "full",
    )
    training.per_device_train_batch_size = total_batch // training.world_size
    model, tokenizer = load_backbone(base, [4, 4], [2])
    if way != "full":
        model = add_lora(model, tokenizer, LoRAArguments(lora_r=2, lora_dropout=0.0, new_tokens=way))
    scid, chance = tokenizer.scid, np.random.default_rng(0)
    rows = [
        [*scid.user_ids(chance.integers(0, 2, 1)), *scid.item_ids(chance.integers(0, 4, (5, 2))).ravel()]
        for _ in range(24)
    ]
    data = Dataset.from_dict({"input_ids": rows, "labels": [[-100, *row[1:]] for row in rows]})
    trainer = SFTTrainer(model=model, args=training, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        plain = trainer.accelerator.unwrap_model(trainer.model)
        if way == "full":
            plain.save_pretrained(f"{output}/model", state_dict=weights)
        else:
            save_adapter(plain, tokenizer, f"{output}/model", state_dict=weights)
        plugin = trainer.accelerator.state.deepspeed_plugin
        facts = {
            "world_size": trainer.accelerator.num_processes,
            "distributed_type": trainer.accelerator.distributed_type.value,
            "zero_stage": plugin.zero_stage if plugin else None,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        }
        Path(output, "launch.json").write_text(json.dumps(facts))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:4])
