"""Opening what a stage saved, whatever kind of model it is."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME


def open_model(folder: str | Path, is_trainable: bool = False, **model_options: Any) -> Any:
    """The model of a folder: a causal LM, an encoder-decoder, or an adapter on its base.

    Args:
        folder: a `save_pretrained` folder.
        is_trainable: whether an adapter can be trained further; other models always can.
        model_options: passed to the model's `from_pretrained`, such as `dtype`.

    Raises:
        InputError: the base of an adapter cannot be loaded.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        from align3gr.scid.adapter import open_adapter  # PEFT takes seconds to import

        return open_adapter(folder, is_trainable, **model_options)
    both_parts = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind: Any = AutoModelForSeq2SeqLM if both_parts else AutoModelForCausalLM
    return kind.from_pretrained(folder, **model_options)
