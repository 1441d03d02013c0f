"""LoRA fine-tuning at Llama2-7B's shape on packed rows: tokens a second and the share of the bf16 rate (MFU)."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Setting

ROW = 1024  # tokens; packed, so none of them is padding
ROWS = (8, 4, 2, 1)  # the first that fits is taken
HOPPER = ("H100", "H200")
HOPPER_BF16 = 989e12  # dense FLOP a second of the data sheet, H100 and H200 SXM alike


def measure(setting: Setting, figures: Figures) -> None:
    """Rates of a whole training step (forward, loss over all tokens, backward, AdamW on the adapter)."""
    rate = setting.gemm_flops(setting.dtype)
    figures.record(gemm_tflops=rate / 1e12)
    device = torch.cuda.get_device_name() if setting.device.type == "cuda" else ""
    peak = HOPPER_BF16 if any(name in device for name in HOPPER) else rate  # elsewhere, what a large product reaches
    with figures.attempt("adapter in bf16"):
        _measure_adapter(setting, figures, "", peak, fp32_adapter=False)
    with figures.attempt("adapter in fp32"):
        _measure_adapter(setting, figures, "_fp32_adapter", peak, fp32_adapter=True)
    if setting.device.type == "cuda" and not setting.tiny:
        with figures.attempt("compiled"):
            _measure_adapter(setting, figures, "_compiled", peak, fp32_adapter=False, compiled=True)


def _measure_adapter(
    setting: Setting, figures: Figures, suffix: str, peak: float, fp32_adapter: bool, compiled: bool = False
) -> None:
    base = setting.llama()
    # Products alone: the input embedding is a look-up.
    parameters = sum(p.numel() for p in base.parameters()) - base.get_input_embeddings().weight.numel()
    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(base, config, autocast_adapter_dtype=fp32_adapter).train()
    if compiled:
        for layer in base.model.layers:
            layer.compile()  # one graph, which all layers of this shape share
    rows, seconds = _fitting_step(setting, model)
    tokens = rows * (64 if setting.tiny else ROW) / seconds
    figures.record(
        **{
            f"rows{suffix}": rows,
            f"tokens_per_s{suffix}": tokens,
            f"mfu{suffix}": 4 * parameters * tokens / peak,
        }
    )


def _fitting_step(setting: Setting, model: Any) -> tuple[int, float]:
    """Rows of the largest batch that fits, and seconds of its step."""
    for rows in (2,) if setting.tiny else ROWS:
        try:
            return rows, _step_seconds(setting, model, rows)
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    raise RuntimeError("not even one row fits into the memory")


def _step_seconds(setting: Setting, model: Any, rows: int) -> float:
    generator = torch.Generator(setting.device).manual_seed(0)
    shape = (rows, 64 if setting.tiny else ROW)
    ids = torch.randint(3, model.config.vocab_size, shape, device=setting.device, generator=generator)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, fused=True)

    def step() -> None:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return setting.seconds({"step": (step, 3)}, rounds=2)["step"]
