"""Other libraries: which of their names this package relies on, and its models where it is not installed."""

import ast
import importlib
import inspect
import json
import sys

import pytest
import torch

from align3gr import Recommender
from align3gr.sft.lora import merge_adapter, save_adapter
from tests.conftest import ROOT
from tests.launching import run
from tests.sft.test_lora import adapted

LIBRARIES = ("trl", "transformers", "peft", "accelerate", "datasets")
# Names that are not in the top level of their library, or that a class of ours overrides: a release may move them
# without a word. Each with the arguments that are passed or overridden by name, and the module that needs it.
RELIED_ON = {
    # TRL
    "trl.TrlParser.parse_args_and_config": (["args", "fail_with_unknown_args"], "recipe"),
    "trl.SFTTrainer.compute_loss": (["inputs", "return_outputs", "num_items_in_batch"], "sft/trainer"),
    "trl.DPOTrainer.compute_loss": (["inputs", "return_outputs", "num_items_in_batch"], "dpo/softmax_dpo_trainer"),
    "trl.DPOTrainer.compute_ref_log_probs": (["inputs"], "dpo/softmax_dpo_trainer"),
    "trl.DPOTrainer._prepare_dataset": (["dataset", "processing_class", "args", "dataset_name"], "dpo/..._trainer"),
    "trl.DPOTrainer._precompute_ref_logps": (["dataset", "name", "batch_size"], "dpo/softmax_dpo_trainer"),
    "trl.DPOTrainer._set_signature_columns_if_needed": ([], "dpo/softmax_dpo_trainer"),
    "trl.models.utils.disable_gradient_checkpointing": (
        ["model", "gradient_checkpointing_kwargs"],
        "dpo/softmax_dpo_trainer",
    ),
    # transformers: the Trainer
    "transformers.Trainer.compute_loss": (["inputs", "return_outputs", "num_items_in_batch"], "sft/trainer"),
    "transformers.Trainer.training_step": (["model", "inputs", "num_items_in_batch"], "finite_loss"),
    "transformers.Trainer.evaluate": (["eval_dataset", "ignore_keys", "metric_key_prefix"], "sft/trainer"),
    "transformers.Trainer.log": (["logs"], "sft/trainer"),
    "transformers.Trainer.train": (["resume_from_checkpoint"], "checkpoints"),
    "transformers.Trainer.remove_callback": (["callback"], "tracking"),
    "transformers.PrinterCallback": ([], "tracking"),
    "transformers.TrainerCallback.on_log": (["args", "state", "control"], "tracking"),
    "transformers.TrainerCallback.on_step_end": (["args", "state", "control"], "checkpoints"),
    "transformers.TrainerCallback.on_train_begin": (["args", "state", "control"], "dpo/curriculum"),
    "transformers.TrainerCallback.on_save": (["args", "state", "control"], "sft/fine_tuning"),
    "transformers.trainer_callback.ExportableState": ([], "dpo/curriculum"),
    "transformers.integrations.get_available_reporting_integrations": ([], "tracking"),
    "transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK": ([], "tracking"),
    "transformers.integrations.is_deepspeed_zero3_enabled": ([], "sft/fine_tuning"),
    "transformers.integrations.deepspeed": ([], "undivided"),
    "transformers.integrations.deepspeed.set_hf_deepspeed_config": (["hf_deepspeed_config_obj"], "undivided"),
    "transformers.integrations.deepspeed.unset_hf_deepspeed_config": ([], "undivided"),
    # transformers: models and tokenizers
    "transformers.initialization.normal_": (["tensor", "std"], "scid/modeling_rqvae"),
    "transformers.initialization.xavier_uniform_": (["tensor"], "scid/modeling_rqvae"),
    "transformers.initialization.orthogonal_": (["tensor"], "scid/modeling_dual_scid"),
    "transformers.DynamicCache.update": (["key_states", "value_states", "layer_idx"], "decoding/tree_decoder"),
    "transformers.modeling_outputs.BaseModelOutput": ([], "decoding/encoder_decoder_tree"),
    "transformers.modeling_outputs.CausalLMOutput": (["loss", "logits"], "dpo/softmax_dpo_trainer"),
    "transformers.tokenization_utils_base.TOKENIZER_CONFIG_FILE": ([], "scid"),
    "transformers.tokenization_utils_tokenizers.TokenizersBackend": ([], "scid/tokenization_scid"),
    "transformers.utils.CONFIG_NAME": ([], "decoding/saved_model"),
    "transformers.utils.ModelOutput": ([], "scid/modeling_dual_scid"),
    "transformers.utils.peft_utils.ADAPTER_CONFIG_NAME": ([], "scid/adapter"),
    # PEFT
    "peft.load_peft_weights": (["model_id", "device"], "checkpoints"),
    "peft.set_peft_model_state_dict": (["model", "peft_model_state_dict"], "checkpoints"),
    "peft.utils.other.TrainableTokensWrapper": ([], "sft/lora"),
    "peft.LoraConfig": (["trainable_token_indices", "modules_to_save"], "sft/lora"),
    # accelerate
    "accelerate.Accelerator.unwrap_model": (["model", "keep_fp32_wrapper"], "dpo/curriculum"),
    "accelerate.Accelerator.get_state_dict": (["model"], "checkpoints"),
    "accelerate.Accelerator.free_memory": ([], "dpo/curriculum"),
    "accelerate.PartialState": (["cpu"], "processes"),
    "accelerate.state.AcceleratorState": ([], "dpo/curriculum"),
    "accelerate.state.AcceleratorState._reset_state": ([], "dpo/curriculum"),
    "accelerate.utils.broadcast_object_list": (["object_list"], "dpo/curriculum"),
    "accelerate.utils.gather_object": (["object"], "processes"),
    "accelerate.utils.is_peft_model": (["model"], "checkpoints"),
    "accelerate.utils.str_to_bool": (["value"], "dpo/softmax_dpo_trainer"),
    "accelerate.tracking.TensorBoardTracker": (["run_name", "logging_dir", "purge_step"], "tracking"),
    "accelerate.tracking.TrackioTracker": (["run_name", "group"], "tracking"),
    "accelerate.tracking.WandBTracker": (["run_name", "group"], "tracking"),
    "accelerate.commands.launch": ([], "cli"),
    # datasets
    "datasets.table.InMemoryTable": ([], "sft/dataset"),
    "datasets.Dataset.save_to_disk": (["dataset_path"], "dpo/curriculum"),
    "datasets.get_dataset_config_names": (["path"], "data/frames"),
    "datasets.load_dataset": (["path", "name", "cache_dir"], "data/frames"),
    "datasets.exceptions.DatasetsError": ([], "data/frames"),
}


def find(name: str):
    """What a dotted name stands for; the longest part that is a module is imported."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", RELIED_ON)
def test_a_name_that_is_relied_on_is_where_it_was(name):
    arguments, user = RELIED_ON[name]
    library = sys.modules.get(name.partition(".")[0])
    version = getattr(library, "__version__", "")
    try:
        found = find(name)
    except (ModuleNotFoundError, AttributeError):
        pytest.fail(f"{name} is gone in version {version}; align3gr/{user}.py relies on it")
    if arguments:
        taken = inspect.signature(found).parameters
        anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
        missing = [argument for argument in arguments if argument not in taken and not anything]
        assert not missing, f"{name} takes no {missing} in version {version}, it takes {list(taken)}; see {user}"


def test_every_import_from_inside_a_library_is_in_the_table():
    imported = set()
    for path in (ROOT / "align3gr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and module.partition(".")[0] in LIBRARIES and "." in module:
                imported |= {f"{module}.{alias.name}" for alias in node.names}
    assert imported and imported <= set(RELIED_ON)


PLAIN = """
import json, sys

sys.modules["align3gr"] = None  # any import of it fails
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

for folder, prompt in json.loads(sys.argv[1]):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answer = pipeline("text-generation", model=folder)(
        prompt, max_new_tokens=3, do_sample=False, return_full_text=False, add_special_tokens=False
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    print("PLAIN", json.dumps([type(model).__name__, ids, answer[0]["generated_text"]]))
"""


def test_models_answer_where_align3gr_cannot_be_imported(smoke_run, tmp_path):
    adapter, of_adapter, _ = adapted(tmp_path)
    save_adapter(adapter, of_adapter, tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    scratch = Recommender.from_pretrained(smoke_run / "sft" / "model")
    cases, expected = [], []
    for folder, model, tokenizer, prompt in (
        (smoke_run / "sft" / "model", scratch.model, scratch.tokenizer, "<i0_1><i1_2><i2_0>"),
        (tmp_path / "merged", merged, of_adapter, "red shoes<i0_1><i1_2>"),
    ):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert {*tokenizer.convert_tokens_to_ids(["<i0_1>", "<i1_2>"])} <= {*ids}
        answer = model.eval().generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :]
        cases.append([str(folder), prompt])
        expected.append(["LlamaForCausalLM", ids, tokenizer.decode(answer, skip_special_tokens=True)])
    status, text = run([sys.executable, "-c", PLAIN, json.dumps(cases)], tmp_path / "printed.txt", 180)
    assert status == 0, text
    lines = [json.loads(line.removeprefix("PLAIN ")) for line in text.splitlines() if line.startswith("PLAIN ")]
    assert lines == expected
