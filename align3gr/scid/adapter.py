"""Adapters that carry the rows of the SCID tokens, on a base model that does not know these tokens.

The folder of an adapter holds its weights, the rows of the SCID tokens among them, and the grown tokenizer;
`adapter_config.json` names the base as it was published. Every row that the base lacks is a SCID token's and comes
from the adapter (`load_backbone` sees to it), so nothing depends on how the base's matrices are resized when the
folder is opened. `AutoPeftModelForCausalLM` opens it as well, but takes the covariance of the whole matrix first.
"""

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModelForCausalLM
from peft.utils.other import TrainableTokensWrapper
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from align3gr.errors import InputError
from align3gr.scid.vocabulary import NORMALIZER_FIELD


class SCIDPeftModel(PeftModelForCausalLM):
    """`PeftModelForCausalLM` whose saved adapter holds the trained rows of the embeddings, never the whole matrices.

    PEFT adds both matrices to an adapter on a base with a grown vocabulary, in every checkpoint, although the rows
    that differ from the base are in the adapter already.
    """

    def __init__(self, model: Any, peft_config: PeftConfig, adapter_name: str = "default", **options: Any) -> None:
        super().__init__(model, peft_config, adapter_name, **options)
        for module in self.modules():
            if isinstance(module, TrainableTokensWrapper):
                wrapper: Any = module
                # TRL's fused head reads `lm_head.bias`, which this wrapper does not pass on (peft 0.21, trl 1.16:
                # AuxiliaryTrainingWrapper.__getattr__, trl.trainer.utils.add_fused_lm_head). It has none: PEFT leaves
                # a bias out, so heads that have one are refused. Remove when `_hasattr_wrapped` knows "bias".
                wrapper.bias = None

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """As the parent, with `save_embedding_layers=False` unless it is given.

        The base's config is saved beside the adapter where the base as published would be read otherwise.
        """
        options.setdefault("save_embedding_layers", False)
        super().save_pretrained(str(save_directory), **options)
        if hasattr(self.config, NORMALIZER_FIELD) and options.get("is_main_process", True):
            self.config.save_pretrained(str(save_directory))


def open_adapter(folder: str | Path, is_trainable: bool = False, **model_options: Any) -> SCIDPeftModel:
    """The base model that an adapter names, grown to the tokenizer beside it, with the adapter on it.

    Args:
        folder: what `save_adapter` wrote.
        is_trainable: whether the adapter can be trained further.
        model_options: passed to `AutoModelForCausalLM.from_pretrained`, such as `dtype`.

    Raises:
        InputError: the base model cannot be loaded.
    """
    file = Path(folder, ADAPTER_CONFIG_NAME)
    if not file.is_file():
        raise InputError(f"{file}: not found; give the folder of an adapter")
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not is_trainable
    base = config.base_model_name_or_path
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, revision=config.revision, **model_options)
    except (OSError, TypeError) as error:
        raise InputError(
            f"{file}: base_model_name_or_path: {base!r} cannot be loaded ({type(error).__name__}); write the model's "
            "folder or Hub id there"
        ) from error
    tokens = len(AutoTokenizer.from_pretrained(folder))
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    if (normalizer := _normalizer(Path(folder))) is not None:
        setattr(model.config, NORMALIZER_FIELD, normalizer)
    adapted = SCIDPeftModel(model, config)
    adapted.load_adapter(str(folder), "default", is_trainable=is_trainable, torch_device=str(model.device))
    return adapted if is_trainable else adapted.eval()


def _normalizer(folder: Path) -> str | None:
    """What the adapter was trained with, where that is not the rule."""
    path = folder / CONFIG_NAME
    return json.loads(path.read_text(encoding="utf-8")).get(NORMALIZER_FIELD) if path.is_file() else None
