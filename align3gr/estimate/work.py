"""Arithmetic of a training: floating-point operations, steps and hours."""

import math
from dataclasses import dataclass

from align3gr.errors import InputError
from align3gr.estimate.setting import Setting, count
from align3gr.estimate.shape import ModelShape


@dataclass(frozen=True)
class Flop:
    """Floating-point operations for one token, a multiplication and an addition counted as two.

    Args:
        model: of forward and backward pass; what a share of a device's peak (MFU) is measured by.
        computed: with what checkpointing computes again.
    """

    model: int
    computed: int


def flop_per_token(shape: ModelShape, setting: Setting) -> Flop:
    """FLOP for one token of a training step.

    N weights of matrix products cost 2N forward, 2N for the gradient of their inputs and 2N for their own: 6N where
    all train (Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, appendix F), 4N for those frozen under an
    adapter. N is that of blocks and head, without the input embeddings. PEFT makes the gradient of the whole head
    where rows of it train. Attention adds 12 x layers x length x width, as if every token saw all (Chowdhery et al.
    2022, appendix B).

    Args:
        shape: of the model.
        setting: of the training.

    >>> from align3gr.estimate.shape import PRESETS
    >>> flop_per_token(PRESETS["llama2-7b"], Setting(length=1)).model / 6 / PRESETS["llama2-7b"].parameters
    0.980...
    """
    counted = count(shape, setting)
    products = shape.matrices + shape.embedding + counted.adapter
    attention = 4 * shape.num_layers * setting.length * shape.query_width
    head_trains = setting.lora is None or counted.rows + counted.matrices > 0
    trained = (shape.matrices if setting.lora is None else counted.adapter) + (shape.embedding if head_trains else 0)
    model = 4 * products + 2 * trained + 3 * attention
    if not setting.checkpointing:
        return Flop(model, model)
    # PyTorch stops computing again at the last product of a block, whose result nothing needs.
    last = shape.num_layers * shape.intermediate_size * shape.hidden_size if setting.lora is None else 0
    return Flop(model, model + 2 * (products - shape.embedding - last) + attention)


@dataclass(frozen=True)
class Duration:
    """Steps of the optimizer, tokens with padding, tokens/s of a device, and hours.

    Attributes:
        steps: of the optimizer.
        tokens: of the whole training, with padding.
        tokens_per_second: of one device.
        hours: of the whole training.
    """

    steps: int
    tokens: int
    tokens_per_second: float
    hours: float


def duration(
    shape: ModelShape,
    setting: Setting,
    rows: int,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    peak_tflops: float | None = None,
) -> Duration:
    """What a training on so many sequences takes.

    Args:
        shape, setting: of the training.
        rows: sequences of `setting.length` tokens, those of all epochs together.
        tokens_per_second: measured rate of one device.
        mfu, peak_tflops: in its place, the share of the device's peak that is reached, and that peak.

    Raises:
        InputError: neither or both ways of a rate are given, or a number is out of range.

    >>> from align3gr.estimate.shape import PRESETS
    >>> duration(PRESETS["llama2-7b"], Setting(batch_size=16, processes=4, length=256), 64_000, 5000.0)
    Duration(steps=1000, tokens=16384000, tokens_per_second=5000.0, hours=0.2275...)
    """
    for name, value in (("rows", rows), ("tokens_per_second", tokens_per_second), ("peak_tflops", peak_tflops)):
        if value is not None and value <= 0:
            raise InputError(f"{name}: got {value}, expected more than 0")
    if mfu is not None and not 0 < mfu <= 1:
        raise InputError(f"mfu: got {mfu}, expected a share in (0, 1], such as 0.4")
    if tokens_per_second is None and mfu is not None and peak_tflops is not None:
        tokens_per_second = mfu * peak_tflops * 1e12 / flop_per_token(shape, setting).model
    elif tokens_per_second is None or mfu is not None or peak_tflops is not None:
        raise InputError("tokens_per_second: give it, or mfu and peak_tflops together")
    steps = math.ceil(rows / (setting.batch_size * setting.accumulation * setting.processes))
    tokens = rows * setting.length
    return Duration(steps, tokens, tokens_per_second, tokens / (tokens_per_second * setting.processes) / 3600)
