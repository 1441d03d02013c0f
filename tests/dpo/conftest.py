"""Tiny random models and rows for the preference tests."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from align3gr.dpo import SoftmaxDPOTrainer

VOCABULARY = 60


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    """Builder of a random two-layer Llama over 60 tokens; fp32."""

    def build(attention: str = "sdpa", seed: int = 0, **config: Any) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,  # far from uniform predictions, so that a wrong mask shows
            "pad_token_id": 0,
        }
        model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
        model.set_attn_implementation(attention)
        return model

    return build


@pytest.fixture
def lora() -> Callable[..., PeftModel]:
    """Wraps a model in LoRA with trained token rows, all of them away from their initial values."""

    def wrap(model: LlamaForCausalLM) -> PeftModel:
        rows = list(range(40, VOCABULARY))
        config = LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj"],
            trainable_token_indices={"embed_tokens": rows, "lm_head": rows},
            init_lora_weights=False,
        )
        wrapped = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "trainable_tokens_delta" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        return wrapped

    return wrap


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Rows of unequal prompts, numbers of rejected and completion lengths."""
    return [
        {"prompt_ids": [1, 5, 9, 33, 20], "chosen_ids": [41, 47, 52], "rejected_ids": [[41, 47, 53], [42, 46, 51]]},
        {"prompt_ids": [1, 7], "chosen_ids": [43, 45, 50], "rejected_ids": [[43, 45, 51]]},
        {
            "prompt_ids": [1, 8, 2, 30, 31, 32, 11, 12],
            "chosen_ids": [40, 45],
            "rejected_ids": [[40, 46, 52, 58], [40, 46, 53], [44], [41, 47, 52]],
        },
    ]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: `t7` is token 7."""
    vocabulary = {"<pad>": 0} | {f"t{index}": index for index in range(1, VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="t2")


@pytest.fixture
def build(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., "SoftmaxDPOTrainer"]:
    """Builder of a trainer of two logged steps over all rows, on the CPU."""
    from align3gr.dpo import SoftmaxDPOConfig, SoftmaxDPOTrainer  # TRL takes seconds, and data tests do not need it

    def trainer(
        model: Any, rows: Any, ref_model: Any = None, eval_dataset: Any = None, peft_config: Any = None, **options: Any
    ) -> SoftmaxDPOTrainer:
        settings = {"learning_rate": 1e-2, "max_steps": 2, "report_to": "none", "use_cpu": True, "logging_steps": 1}
        settings |= {"per_device_train_batch_size": 3, "save_strategy": "no", "disable_tqdm": True}
        args = SoftmaxDPOConfig(str(tmp_path), **(settings | options))
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        return SoftmaxDPOTrainer(model, ref_model, args, data, eval_dataset, tokenizer, peft_config=peft_config)

    return trainer
