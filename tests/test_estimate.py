"""Estimates against real small models on the CPU: counted, trained for a step, saved, measured."""

import argparse
import json
import subprocess
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError
from align3gr.estimate import (
    PRESETS,
    LoRA,
    ModelShape,
    Setting,
    activations,
    adapter_bytes,
    cache_bytes,
    count,
    duration,
    flop_per_token,
    memory,
)
from align3gr.estimate.command import add_options, estimate
from align3gr.sft.lora import LoRAArguments, add_lora, save_adapter
from align3gr.sft.pretrained import load_backbone
from tests.sft.backbones import FAMILIES, save_backbone

SIZES = {"hidden_size": 64, "intermediate_size": 160}
ITEM_CODES, USER_CODES, NEW = [16, 16], [8], 40
BATCH, LENGTH = 4, 40


def backbone(folder, lora=None, dtype=torch.float32, deepspeed=False, family="llama", tied=False, **sizes):
    """A model with SCID tokens as the recipes make it, its tokenizer, and its shape."""
    base = save_backbone(folder, family, tied, **(SIZES | sizes))
    shape = ModelShape.from_pretrained(str(base)).grown(NEW)
    model, tokenizer = load_backbone(base, ITEM_CODES, USER_CODES, dtype=dtype)
    if lora is not None:
        options = LoRAArguments(True, lora.rank, 16, 0.1 if lora.dropout else 0.0, list(lora.targets), lora.new_tokens)
        model = add_lora(model, tokenizer, options)
        if deepspeed:  # which makes all weights bf16
            model = model.to(torch.bfloat16)
    return model, tokenizer, shape


def parts(model) -> tuple[int, int]:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters()) - trainable


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def test_published_models_have_their_published_sizes():
    sizes = {name: shape.parameters for name, shape in PRESETS.items()}
    assert sizes["llama2-7b"] == 6_738_415_616 and sizes["llama2-13b"] == 13_015_864_320
    assert sizes["llama3-8b"] == 8_030_261_248
    assert sizes["qwen3-0.6b"] == 596_049_920 and sizes["qwen3-1.7b"] == 1_720_574_976
    assert sizes["qwen3-4b"] == 4_022_468_096 and sizes["qwen3-8b"] == 8_190_735_360


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_the_shape_of_a_folder_has_the_parameters_of_its_model(family, tied, tmp_path):
    folder = save_backbone(tmp_path, family, tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert ModelShape.from_pretrained(str(folder)).parameters == model.num_parameters()


def test_biases_are_counted(tmp_path):
    config = FAMILIES["llama"](**SIZES, num_hidden_layers=2, num_attention_heads=4, attention_bias=True, mlp_bias=True)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert ModelShape.from_pretrained(str(tmp_path)).parameters == model.num_parameters()


def test_other_families_and_missing_models_are_refused(tmp_path):
    folder = save_backbone(tmp_path / "gemma3", "gemma3_text")
    with pytest.raises(InputError, match="model_type: got gemma3_text, expected one of llama, mistral"):
        ModelShape.from_pretrained(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--model .*empty: its config.json cannot be read"):
        ModelShape.from_pretrained(str(tmp_path / "empty"))


STATES = [
    (None, "fp32", False),
    (LoRA(16, dropout=False), "fp32", False),
    (LoRA(16, dropout=False), "bf16", True),
    (LoRA(16, ("q_proj", "down_proj"), "modules_to_save", False), "bf16", False),
    (LoRA(16, ("q_proj", "down_proj"), "modules_to_save", False), "bf16", True),
]


@pytest.mark.parametrize(("lora", "precision", "tied"), STATES)
def test_parameters_gradients_and_states_are_those_of_a_real_step(lora, precision, tied, tmp_path):
    dtype = torch.bfloat16 if lora and precision == "bf16" else torch.float32
    # Wide enough that the names in the saved adapter weigh less than 2 %.
    model, tokenizer, shape = backbone(
        tmp_path / "base", lora, dtype, tied=tied, hidden_size=256, intermediate_size=512
    )
    setting = Setting(lora, NEW, precision, batch_size=BATCH, length=LENGTH)
    counted, expected = count(shape, setting), memory(shape, setting)
    assert parts(model) == (counted.trainable, counted.frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(**batch(shape.vocab_size)).loss.backward()
    optimizer.step()
    assert sum(p.nbytes for p in model.parameters()) == expected.weights
    assert sum(p.grad.nbytes for p in trained) == expected.gradients
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert sum(value.nbytes for value in states) == expected.optimizer
    assert expected.communication == 0
    if lora is not None:
        size = save_adapter(model, tokenizer, tmp_path / "adapter")
        assert adapter_bytes(shape, setting) == pytest.approx(size, rel=0.02)


def saved_bytes(model, inputs, autocast: bool, tiled: bool) -> int:
    """Distinct storages that a forward pass keeps for the backward pass, without those of the model."""
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    sizes, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # or another one could come to lie at the same place
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    options = {"fused_lm_head": True} if tiled else {}
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, **options, use_cache=False)
    return sum(sizes.values())


PLAIN = LoRA(dropout=False)
SOME = LoRA(4, ("q_proj", "v_proj", "o_proj"), "modules_to_save", False)
# precision, ZeRO stage (DeepSpeed makes all weights bf16), adapter, loss, checkpointing, padding, tied, family
ACTIVATIONS = [
    ("fp32", 0, None, "full", False, True, False, "llama"),
    ("fp32", 0, None, "full", False, False, False, "llama"),
    ("fp32", 0, None, "tiled", True, True, False, "llama"),
    ("bf16", 0, None, "full", False, True, False, "llama"),
    ("bf16", 0, None, "tiled", False, True, False, "llama"),
    ("bf16", 2, None, "full", False, True, True, "llama"),
    ("bf16", 0, None, "full", False, True, False, "qwen3"),
    ("fp32", 0, PLAIN, "full", False, True, False, "llama"),
    ("fp32", 0, PLAIN, "tiled", True, True, False, "llama"),
    ("bf16", 0, PLAIN, "tiled", False, True, False, "llama"),
    ("bf16", 0, PLAIN, "full", False, False, True, "qwen3"),
    ("bf16", 0, SOME, "full", False, True, False, "llama"),
    ("bf16", 2, SOME, "tiled", False, True, False, "llama"),
    ("bf16", 2, PLAIN, "full", True, True, False, "llama"),
]


@pytest.mark.parametrize("case", ACTIVATIONS, ids=str)
def test_activations_are_those_that_a_forward_pass_keeps(case, tmp_path):
    precision, stage, lora, loss, checkpointing, padded, tied, family = case
    light = precision == "bf16" and (stage > 0 or lora is not None)
    dtype = torch.bfloat16 if light else torch.float32
    model, _, shape = backbone(tmp_path, lora, dtype, stage > 0, family, tied)
    if loss == "tiled":
        add_fused_lm_head(model.get_base_model() if lora else model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = batch(shape.vocab_size)
    if not padded:
        inputs["attention_mask"].fill_(1)
    setting = Setting(
        lora, NEW, precision, "adamw_torch", BATCH, LENGTH, 1, checkpointing, stage, loss=loss, padded=padded
    )
    measured = saved_bytes(model, inputs, setting.autocast, loss == "tiled")
    # What is left out: token ids, positions, one number a token of the loss.
    assert activations(shape, setting).saved == pytest.approx(measured, rel=0.04)


def test_dropout_in_front_of_an_adapter_keeps_a_mask(tmp_path):
    lora = LoRA(8, ("q_proj", "down_proj"))
    model, _, shape = backbone(tmp_path, lora)
    setting = Setting(lora, NEW, "fp32", batch_size=BATCH, length=LENGTH, loss="full")
    measured = saved_bytes(model, batch(shape.vocab_size), False, False)
    # A CPU keeps the noise in fp32 where a GPU keeps a byte: 3 bytes more for each input of two layers.
    noise = 3 * 2 * BATCH * LENGTH * (64 + 160)
    assert activations(shape, setting).saved == pytest.approx(measured - noise, rel=0.04)


def test_the_block_that_checkpointing_computes_again_is_what_a_block_keeps(tmp_path):
    setting = Setting(precision="bf16", batch_size=BATCH, length=LENGTH, loss="full", checkpointing=True)
    measured = []
    for layers in (1, 2):
        config = FAMILIES["llama"](
            **SIZES, vocab_size=700, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2
        )
        model = AutoModelForCausalLM.from_config(config)
        measured.append(saved_bytes(model, batch(700), True, False))
    shape = ModelShape(64, 2, 4, 160, 700, 2)
    gradients = 2 * BATCH * LENGTH * 160 * 2  # on top of what is kept
    assert activations(shape, setting).recomputed - gradients == pytest.approx(measured[1] - measured[0], rel=0.04)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, PLAIN], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_the_second_batch_of_a_step_is_the_sum(precision, lora, checkpointing, tmp_path):
    dtype = torch.bfloat16 if lora and precision == "bf16" else torch.float32
    model, _, shape = backbone(tmp_path, lora, dtype, hidden_size=128, intermediate_size=384)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    setting = Setting(
        lora, NEW, precision, batch_size=BATCH, length=LENGTH, loss="full", checkpointing=checkpointing, accumulation=2
    )
    inputs = batch(shape.vocab_size)
    model.train()

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.autocast):
            output = model(**inputs, use_cache=False)
        output.loss.backward()

    run()  # the gradients are there from here on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    # When a block is computed again, what the loss held has gone in part.
    assert activations(shape, setting).peak == pytest.approx(peak, rel=0.2 if checkpointing else 0.02)


def test_zero_divides_as_in_its_paper():
    # Figure 1 of Rajbhandari et al. 2020: 7.5B parameters, 64 processes, Adam, mixed precision.
    shape = PRESETS["llama2-7b"]
    figure = {1: 31.4, 2: 16.6, 3: 1.88}
    for stage, gigabytes in figure.items():
        held = memory(shape, Setting(zero_stage=stage, processes=64))
        states = (held.weights + held.gradients + held.optimizer) * 7.5e9 / shape.parameters
        assert states / 1e9 == pytest.approx(gigabytes, rel=0.01) and held.communication == 0
    alone, together = memory(shape, Setting()), memory(shape, Setting(processes=64))
    assert (alone.weights + alone.gradients + alone.optimizer) / shape.parameters == 16
    assert together.communication == together.gradients == alone.gradients


@pytest.mark.parametrize(("name", "devices"), [("qwen3-0.6b", 1), ("qwen3-0.6b", 4), ("llama2-7b", 8)])
def test_zero_takes_what_deepspeed_itself_estimates(name, devices):
    """DeepSpeed 0.19, for the moment of the optimizer's step; where both assume the same.

    Both: all weights train, in bf16, with Adam; nothing is offloaded; tied matrices count once. ZeRO-2 then is 2 bytes
    a weight and 18 divided: gradients 2, their fp32 copy 4, weights in fp32 4, Adam 8. ZeRO-3 of DeepSpeed is another
    18 divided: weights 2, and no gradients in bf16 beside those in fp32; plus weights and gradients of the largest
    layer, which is gathered and which we leave out. It knows no groups of a billion weights that are updated one after
    the other, so a device has fewer here.
    """
    zero2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2", reason="needs deepspeed")
    zero3 = pytest.importorskip("deepspeed.runtime.zero.stage3", reason="needs deepspeed")
    shape, layer = PRESETS[name], PRESETS[name].embedding
    held = memory(shape, Setting(zero_stage=2, processes=devices))
    _, theirs = zero2.estimate_zero2_model_states_mem_needs(shape.parameters, devices, 1, cpu_offload=False)
    assert held.states + held.step == pytest.approx(theirs, abs=4 * devices)
    held = memory(shape, Setting(zero_stage=3, processes=devices))
    _, theirs, gathered = zero3.estimate_zero3_model_states_mem_needs(
        shape.parameters, layer, devices, 1, cpu_offload=False, cpu_offload_params=False
    )
    assert gathered == 4 * layer
    assert held.states - held.gradients + held.step == pytest.approx(theirs - gathered, abs=4 * devices)


def test_the_step_takes_more_than_a_small_batch_and_less_than_a_large_one():
    # 7B on 4 devices: 6.7 GB of gradients in fp32, or one group of a billion at a time under ZeRO-3.
    small, large = (Setting(zero_stage=2, processes=4, batch_size=size, length=256) for size in (1, 64))
    shape = PRESETS["llama2-7b"]
    held = memory(shape, small)
    assert held.step == shape.parameters > held.activations.peak and held.total == held.states + held.step
    held = memory(shape, large)
    assert held.step < held.activations.peak and held.total == held.states + held.activations.peak
    assert memory(shape, Setting(zero_stage=3, processes=4)).step == 4_000_000_000
    assert memory(shape, Setting(processes=4)).step == 0


@pytest.mark.parametrize(
    ("lora", "checkpointing"), [(None, False), (None, True), (PLAIN, False), (PLAIN, True), (SOME, False)], ids=str
)
def test_flop_are_those_of_the_products_that_run(lora, checkpointing, tmp_path):
    model, _, shape = backbone(tmp_path, lora)
    model.set_attn_implementation("eager")  # whose products are counted like all others
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(**batch(shape.vocab_size), use_cache=False).loss.backward()
    setting = Setting(lora, NEW, "fp32", batch_size=BATCH, length=LENGTH, checkpointing=checkpointing)
    flop = flop_per_token(shape, setting)
    assert flop.computed * setting.tokens == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert (flop.computed > flop.model) is checkpointing


def test_six_and_four_times_the_weights():
    shape, one = PRESETS["llama2-7b"], 32 * 4 * 4096 * 12
    products = shape.parameters - shape.embedding - 65 * 4096  # no input embeddings, no norms
    assert flop_per_token(shape, Setting(length=4)).model == 6 * products + one
    frozen = flop_per_token(shape, Setting(LoRA(), length=4)).model
    assert frozen == 4 * products + 6 * count(shape, Setting(LoRA())).adapter + one


@pytest.mark.parametrize("beams", [3, 20])
def test_the_cache_is_that_of_a_real_search(beams):
    config = FAMILIES["llama"](
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=40,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(10, 28).view(3, 6)
    codes = torch.cartesian_prod(*[torch.arange(6)] * 3)
    caches = []

    def look(module, arguments, options, output):
        cache = output.past_key_values
        caches.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))

    model.register_forward_hook(look, with_kwargs=True)
    ids = torch.randint(0, 10, (5, 9))
    ConstrainedBeamSearch(model, SCIDTrie.from_codes(codes, (6, 6, 6)), tokens, num_beams=beams).search(
        ids, torch.ones_like(ids)
    )
    shape = ModelShape(32, 2, 4, 32, 40, 2)
    assert max(caches) == cache_bytes(shape, 5, 9, [6, 6, 6], beams, 4)[0]


def test_time_is_tokens_by_rate():
    shape, setting = PRESETS["llama2-7b"], Setting(LoRA(), 0, batch_size=16, length=256, accumulation=16, processes=4)
    taken = duration(shape, setting, 2049, tokens_per_second=1000.0)
    assert taken.steps == 3 and taken.tokens == 2049 * 256
    assert taken.hours == pytest.approx(2049 * 256 / 4000 / 3600)
    by_share = duration(shape, setting, 2049, mfu=0.5, peak_tflops=100.0)
    assert by_share.tokens_per_second == pytest.approx(50e12 / flop_per_token(shape, setting).model)


def figures(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return estimate(parser.parse_args(list(words)))


WRONG = {
    "--model llama2-7b --hidden_size 8": "--hidden_size: has no effect beside --model llama2-7b",
    "--hidden_size 8": "--model: give a preset, a folder or a Hub id, or a whole shape with --num_layers --num_heads",
    "--model llama2-7b --lora_r 4": "--lora_r: has no effect without --use_lora",
    "--model llama2-7b --use_lora --lora_r 0": "lora_r: got 0, expected 1 or more",
    "--model llama2-7b --use_lora --lora_target_modules wq": "lora_target_modules: got wq, expected all-linear",
    "--model llama2-7b --use_lora --zero_stage 3": "trainable_token_indices does not train under ZeRO-3",
    "--model llama2-7b --mfu 0.4": "--mfu: has no effect without --rows or --tokens",
    "--model llama2-7b --rows 9 --mfu 0.4": "tokens_per_second: give it, or mfu and peak_tflops together",
    "--model llama2-7b --rows 9 --mfu 40 --peak_tflops 989": "mfu: got 40.0, expected a share",
    "--model llama2-7b --rows 9 --tokens 9": "--rows: give it or --tokens",
    "--model llama2-7b --num_processes 0": "processes: got 0, expected 1 or more",
    "--model llama2-7b --item_codes 0 4": r"--item_codes: got \[0, 4\], expected 1 or more codes",
    "--model llama2-7b --grown --item_codes 40000": "--grown: 40768 SCID tokens do not fit a vocabulary of 32000",
}


@pytest.mark.parametrize("words", WRONG)
def test_options_that_do_not_go_together_are_refused(words):
    with pytest.raises(InputError, match=WRONG[words]):
        figures(*words.split())


def test_numbers_of_a_shape_and_a_grown_vocabulary():
    words = "--hidden_size 64 --num_layers 2 --num_heads 4 --intermediate_size 160 --tie_embeddings --vocab_size"
    small = figures(*words.split(), "700", "--item_codes", "16", "16", "--user_codes", "8")
    grown = figures(*words.split(), "740", "--item_codes", "16", "16", "--user_codes", "8", "--grown")
    assert (
        small["parameters"] == grown["parameters"]
        and small["parameters"]["trainable"] == 740 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 160 + 2 * 64) + 64
    )
    assert "adapter_file" not in small and "time" not in small


def test_the_command_prints_tables_and_json():
    command = [sys.executable, "-m", "align3gr.cli", "estimate", "--model", "llama2-7b", "--use_lora", "--rows", "512"]
    command += ["--tokens_per_second", "5000"]
    table = subprocess.run(command, capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    lines = {line.rsplit(None, 1)[0].strip(): line.split()[-1] for line in table.stdout.splitlines() if "  " in line}
    assert lines["total"] == "6,783,569,920" and lines["steps"] == "32"
    printed = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True).stdout)
    # 80 MB of adapter and 50 MB of rows, as docs/lora.md has them from saved files.
    assert printed["adapter_file"] == 4 * (printed["parameters"]["adapter"] + printed["parameters"]["rows"])
    assert printed["adapter_file"] == pytest.approx(130.3e6, rel=0.001)
    wrong = subprocess.run([*command, "--lora_r", "0"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr == "error: lora_r: got 0, expected 1 or more\n"
