"""LoRA on a language model with new SCID tokens: their rows train with the adapter and are saved in it."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from align3gr.errors import InputError
from align3gr.scid.adapter import SCIDPeftModel, open_adapter
from align3gr.scid.vocabulary import SCIDVocabulary

logger = logging.getLogger(__name__)

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
NEW_TOKENS = ("trainable_token_indices", "modules_to_save")


@dataclass
class LoRAArguments:
    """Low-rank adapters in place of all weights."""

    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter in place of all weights."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapter is scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapter."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Modules with an adapter, by the ends of their names; all-linear for all but the head."},
    )
    new_tokens: str = field(
        default="trainable_token_indices",
        metadata={
            "help": "How the rows of SCID tokens train: these rows alone, or the whole embedding matrices.",
            "choices": list(NEW_TOKENS),
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.lora_target_modules, str):
            self.lora_target_modules = [self.lora_target_modules]
        if self.lora_r < 1:
            raise InputError(f"lora_r: got {self.lora_r}, expected 1 or more")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout: got {self.lora_dropout}, expected a number in [0, 1)")
        if self.new_tokens not in NEW_TOKENS:
            raise InputError(f"new_tokens: got {self.new_tokens!r}, choose from {', '.join(NEW_TOKENS)}")


def add_lora(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: LoRAArguments | None = None,
    seed: int = 0,
) -> SCIDPeftModel:
    """Puts a LoRA adapter on a model and makes the rows of its SCID tokens trainable, in input and output embeddings.

    With `new_tokens="trainable_token_indices"` the rows of the SCID tokens train, those of all other tokens stay as
    they are, bit for bit. With `"modules_to_save"` both whole matrices train. A tied head stays tied.

    Args:
        model: from [`load_backbone`]; it is changed in place.
        tokenizer: its tokenizer, with SCID tokens.
        arguments: rank, modules and so on; `use_lora` is not looked at.
        seed: of the adapter's start. The global random state is left as it was.

    Raises:
        InputError: the model lacks rows, or cannot have its new rows trained in this way.
    """
    arguments = LoRAArguments() if arguments is None else arguments
    rows = _rows(model)
    token_ids = SCIDVocabulary.from_tokenizer(tokenizer).token_ids
    if max(token_ids) >= rows:
        raise InputError(
            f"model: has {rows} rows for {len(tokenizer)} tokens; call resize_scid_embeddings(model, tokenizer) first"
        )
    targets = arguments.lora_target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else list(targets),
        base_model_name_or_path=_published_name(model),
        revision=getattr(model.config, "_commit_hash", None),
        **_new_rows(model, token_ids, arguments),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # fp32 adapters beside bf16 weights stop ZeRO-3 at the first step:
        # https://github.com/deepspeedai/DeepSpeed/issues/8072
        adapted = SCIDPeftModel(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    trained, total = adapted.get_nb_trainable_parameters()
    logger.info("LoRA: %d of %d parameters train, rows of %d SCID tokens among them", trained, total, len(token_ids))
    return adapted


def _new_rows(model: PreTrainedModel, token_ids: list[int], arguments: LoRAArguments) -> dict[str, Any]:
    """The options of `LoraConfig` that make the rows of SCID tokens trainable."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    tied = head is None or head.weight is embedding.weight
    layers = [names[id(embedding)]] + ([] if tied else [names[id(head)]])
    for target in arguments.lora_target_modules:
        if target in (names[id(embedding)], names.get(id(head))):
            raise InputError(f"lora_target_modules: {target} trains by new_tokens already; leave it out")
    if arguments.new_tokens == "modules_to_save":
        return {"modules_to_save": layers, "ensure_weight_tying": tied}
    if getattr(head, "bias", None) is not None:
        raise InputError(
            "new_tokens: the model's head has a bias, which trainable_token_indices leaves out; use modules_to_save"
        )
    if is_deepspeed_zero3_enabled():
        # TRL's fused head asks for the gathering of the merged rows, which are no parameter (trl 1.16,
        # `maybe_gather_lm_head_ctx`: 'Tensor' object has no attribute 'ds_status'), and PEFT copies the rows over CUDA
        # only (peft 0.21, `TrainableTokensLayer._collect_token_weights`). Remove when a launch test passes without.
        raise InputError(
            "new_tokens: trainable_token_indices does not train under ZeRO-3, which divides the matrices whose rows "
            "it replaces; use new_tokens: modules_to_save, or ZeRO-2"
        )
    # The dictionary form: a list trains the rows of the input embeddings only and leaves an untied head as it is.
    return {"trainable_token_indices": dict.fromkeys(layers, token_ids)}


def _rows(model: Any) -> int:
    embedding = model.get_input_embeddings()
    # Not the shape of the weights: ZeRO-3 may have divided them.
    return getattr(embedding, "original_module", embedding).num_embeddings


def _published_name(model: PreTrainedModel) -> str | None:
    """What the adapter's configuration calls its base: a Hub id, or a folder that is found from everywhere."""
    name = model.name_or_path
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name or None


def save_adapter(
    model: SCIDPeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    base: str | Path | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> int:
    """Writes adapter, rows of the SCID tokens and tokenizer into one folder, from which they load again.

    Args:
        model: from [`add_lora`], without the wrappers of a trainer.
        tokenizer: its tokenizer.
        folder: where to write.
        base: what the adapter's configuration calls its base; the model that [`load_backbone`] loaded where None.
        state_dict: gathered weights, as `accelerator.get_state_dict` gives them under ZeRO-3.

    Returns:
        Size of the adapter's weights in bytes.

    Raises:
        InputError: there is no base to name, or the model has rows that neither base nor adapter hold.
    """
    config = model.peft_config["default"]
    if base is not None:
        config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else str(base)
        config.revision = None  # that of the model that was loaded, which is another repository's
    if not config.base_model_name_or_path:
        raise InputError("base: the model was made from a config; save it and name its folder, or train all weights")
    _check_rows(model, tokenizer, config.base_model_name_or_path)
    options = {} if state_dict is None else {"state_dict": state_dict}
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    size = Path(folder, ADAPTER_WEIGHTS_FILE).stat().st_size
    logger.info("%s: adapter of %.1f MB on %s", folder, size / 1e6, config.base_model_name_or_path)
    return size


def _check_rows(model: SCIDPeftModel, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    """Rows in excess of the tokens must be the base's own: those of a padded matrix would be lost."""
    rows = _rows(model)
    if rows > len(tokenizer) and rows != AutoConfig.from_pretrained(base).get_text_config().vocab_size:
        raise InputError(
            f"model: has {rows} rows for {len(tokenizer)} tokens, more than its base {base}; grow it without "
            "pad_to_multiple_of"
        )


def merge_adapter(folder: str | Path, output: str | Path, **model_options: Any) -> PreTrainedModel:
    """Writes base and adapter as one plain model, with everything else that stood beside the adapter.

    Args:
        folder: an adapter that [`save_adapter`] or `Recommender.save_pretrained` wrote.
        output: where the model goes; must not exist, folders above it are made.
        model_options: passed to `AutoModelForCausalLM.from_pretrained` for the base, such as `dtype`.

    Raises:
        InputError: `folder` is no adapter, its base cannot be loaded, or `output` exists or cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if output.exists():
        raise InputError(f"{output}: exists already; name a folder that does not")
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:  # before the base is read, which may take minutes
        partial.mkdir(parents=True)
        partial.rmdir()
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}; name another folder") from error
    model: Any = open_adapter(folder, **model_options).merge_and_unload(safe_merge=True)
    shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("adapter_*", "README.md", "checkpoint-*"))
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(folder).save_pretrained(partial)
    partial.rename(output)
    return model
