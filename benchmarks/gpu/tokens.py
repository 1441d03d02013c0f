"""Training of an RQ-VAE and assignment of codes to ten million items, both on the GPU."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from align3gr.scid import RQVAEModel
from align3gr.scid.configuration_rqvae import RQVAEConfig
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Run, Setting

WIDTH, SIZES, BLOCK = 448, (256, 256, 256), 65_536
LAYERS = (2048, 1024, 512, 256, 128, 64)  # LC-Rec's and LETTER's
KMEANS_ROWS = 4000


def mixture(setting: Setting, rows: int) -> Tensor:
    """Rows of norm 1 around 2,000 centres, made on the device. Shape: `(rows, 448)`, fp32."""
    generator = torch.Generator(setting.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=setting.device, generator=generator)

    centres = normal(2000, 32) @ normal(32, WIDTH) / 32**0.5
    table = torch.empty(rows, WIDTH, device=setting.device)
    for block in table.split(BLOCK):  # views; ten million rows of noise at once would take the memory of two tables
        chosen = torch.randint(2000, (len(block),), device=setting.device, generator=generator)
        block.copy_(F.normalize(centres[chosen] + 0.5 * normal(*block.shape), dim=1))
    return table


def make_model(setting: Setting, table: Tensor) -> RQVAEModel:
    torch.manual_seed(0)
    layers = (64, 32) if setting.tiny else LAYERS
    model = RQVAEModel(RQVAEConfig(input_dim=WIDTH, hidden_dims=layers, codebook_sizes=SIZES)).to(setting.device)
    model.initialize_codebooks(table[:KMEANS_ROWS])
    return model


def training_steps(model: RQVAEModel, table: Tensor, batch: int, bf16: bool) -> Iterator[None]:
    """Steps of AdamW over random batches, as `align3gr scid` runs them, without end."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    while True:
        for rows in torch.randperm(len(table), device=table.device).split(batch)[:-1]:
            with torch.autocast(table.device.type, torch.bfloat16, enabled=bf16):
                loss = model(table[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def measure(setting: Setting, figures: Figures) -> None:
    """Seconds of an epoch over a million rows and of the assignment of ten million, and shares of the GEMM rate."""
    torch.set_float32_matmul_precision("highest")  # fp32, not TF32
    rows, items, batch = (4096, 8192, 512) if setting.tiny else (1_000_000, 10_000_000, 8192)
    table = mixture(setting, items)
    model = make_model(setting, table)
    with figures.attempt("assignment"):
        _measure_assignment(setting, figures, model.eval(), table)
    with figures.attempt("training"):
        _measure_training(setting, figures, model.train(), table[:rows], batch)


def _flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _measure_training(setting: Setting, figures: Figures, model: RQVAEModel, table: Tensor, batch: int) -> None:
    loops = {bf16: training_steps(model, table, batch, bf16) for bf16 in (False, True)}
    flops = _flops(lambda: next(loops[False]))
    steps = 5 if setting.tiny else 50
    seconds = setting.seconds(
        {"fp32": (lambda: next(loops[False]), steps), "bf16": (lambda: next(loops[True]), steps)}, rounds=2
    )
    epoch = len(table) // batch
    figures.record(
        epoch_s_fp32=epoch * seconds["fp32"],
        epoch_s_bf16=epoch * seconds["bf16"],
        train_bf16_ratio=seconds["fp32"] / seconds["bf16"],
        train_gemm_fraction=flops / seconds["fp32"] / setting.gemm_flops(torch.float32),
        train_gemm_fraction_bf16=flops / seconds["bf16"] / setting.gemm_flops(torch.bfloat16),
    )


def _measure_assignment(setting: Setting, figures: Figures, model: RQVAEModel, table: Tensor) -> None:
    codes = torch.empty(len(table), len(SIZES), dtype=torch.int16, device=setting.device)

    def exact() -> None:
        for block, kept in zip(table.split(BLOCK), codes.split(BLOCK), strict=True):
            kept.copy_(model.encode(block))

    def rounded(block: Tensor) -> Tensor:
        """Codes of latents that were computed in bf16: never used as ids, only to see what they would be."""
        with torch.inference_mode(), torch.autocast(setting.device.type, torch.bfloat16):
            latent = model.encoder(block)
        with torch.inference_mode():
            return model.quantizer.codes(latent.float())[0]

    def in_bf16() -> None:
        for block in table.split(BLOCK):
            rounded(block)

    seconds = setting.seconds({"fp32": (exact, 1), "bf16": (in_bf16, 1)}, rounds=2)
    flops = _flops(lambda: model.encode(table[:BLOCK])) * (len(table) / len(table[:BLOCK]))
    figures.record(
        assign_10m_s=10_000_000 * seconds["fp32"] / len(table),
        assign_items_per_s=len(table) / seconds["fp32"],
        assign_gemm_fraction=flops / seconds["fp32"] / setting.gemm_flops(torch.float32),
        assign_bf16_ratio=seconds["fp32"] / seconds["bf16"],
        assign_bf16_same=float((rounded(table[:BLOCK]) == codes[:BLOCK]).all(1).float().mean()),
    )
