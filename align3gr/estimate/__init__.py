"""What a training will need: parameters, memory, disk, arithmetic and time, before anything is loaded."""

from align3gr.estimate.memory import Activations, Memory, activations, adapter_bytes, memory
from align3gr.estimate.setting import LoRA, Parameters, Setting, count
from align3gr.estimate.shape import PRESETS, ModelShape, cache_bytes
from align3gr.estimate.work import Duration, Flop, duration, flop_per_token

__all__ = [
    "PRESETS",
    "Activations",
    "Duration",
    "Flop",
    "LoRA",
    "Memory",
    "ModelShape",
    "Parameters",
    "Setting",
    "activations",
    "adapter_bytes",
    "cache_bytes",
    "count",
    "duration",
    "flop_per_token",
    "memory",
]
