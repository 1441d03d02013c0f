"""What the launch tests of `SoftmaxDPOTrainer` start: a few steps on random ragged rows.

`train_dpo.py OUTPUT full|lora|lora_saved_modules|ref_model`; the main process writes `OUTPUT/launch.json`, all
together save the weights to `OUTPUT/weights.safetensors`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, load_from_disk
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align3gr.dpo import SoftmaxDPOConfig, SoftmaxDPOTrainer
from align3gr.processes import leave

VOCABULARY, NEW_TOKENS, TOTAL_BATCH = 2000, list(range(1900, 2000)), 8


def build_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    # ZeRO-3 divides matrices of more than 100,000 numbers (`stage3_param_persistence_threshold`).
    sizes = {"hidden_size": 64, "intermediate_size": 2048, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0)
    )


def add_lora(model: LlamaForCausalLM, way: str):
    if way == "lora_saved_modules":
        new = {"modules_to_save": ["embed_tokens", "lm_head"]}
    else:
        new = {"trainable_token_indices": dict.fromkeys(("embed_tokens", "lm_head"), NEW_TOKENS)}
    # Not PEFT's zero start: an adapter that is switched off somewhere must show.
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **new))


def build_rows() -> list[dict]:
    chance = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return chance.choice(NEW_TOKENS, length).tolist()

    return [
        {
            "prompt_ids": [1, *ids(chance.integers(1, 12))],
            "chosen_ids": ids(3),
            "rejected_ids": [ids(chance.integers(1, 4)) for _ in range(chance.integers(1, 6))],
        }
        for _ in range(24)
    ]


def main(output: str, way: str) -> None:
    lora = way.startswith("lora")
    args = SoftmaxDPOConfig(
        output_dir=f"{output}/trainer",
        use_cpu=True,
        max_steps=3,
        # Adam makes a full step of the rounding of a gradient near zero, and all weights have too many of those.
        learning_rate=1e-2 if lora else 0.1,
        optim="adamw_torch" if lora else "sgd",
        per_device_train_batch_size=1,  # set below, when the number of processes is known
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        sft_coefficient=0.5,
        precompute_ref_log_probs=way != "ref_model",
        prefix_sharing="merged" if way == "lora" else "shared",
        gradient_checkpointing=lora,
    )
    args.per_device_train_batch_size = TOTAL_BATCH // args.world_size
    model = add_lora(build_model(), way) if lora else build_model()
    data = Dataset.from_list(build_rows())
    if lora:  # the others stay in the memory of each process
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                data.save_to_disk(f"{output}/rows")
        data = load_from_disk(f"{output}/rows")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<p>": 0}, "<p>")), pad_token="<p>"
    )
    reference = build_model(seed=1) if way == "ref_model" else None
    trainer = SoftmaxDPOTrainer(model, reference, args, data, processing_class=tokenizer)
    trainer.train()
    drawn = gather_object([torch.rand(4).tolist()])  # what the next mask of dropout would come from
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        save_file(
            {name: value.contiguous().clone() for name, value in weights.items()}, f"{output}/weights.safetensors"
        )
        plugin = trainer.accelerator.state.deepspeed_plugin
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        facts = {
            "world_size": trainer.accelerator.num_processes,
            "distributed_type": trainer.accelerator.distributed_type.value,
            "zero_stage": plugin.zero_stage if plugin else None,
            "drawn": drawn,
            "logs": [
                {name: entry[name] for name in ("loss", "preference_loss", "uniform_loss", "sft_loss", "chosen_rank")}
                for entry in logs
            ],
        }
        Path(output, "launch.json").write_text(json.dumps(facts))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:3])
