"""On what the parts run, how they measure time and memory, and the models that several of them share."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

Run = Callable[[], object]

LLAMA2_7B: dict[str, Any] = {  # 32,000 words and 768 SCID tokens
    "vocab_size": 32_768,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
TINY: dict[str, Any] = {
    "vocab_size": 3100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@dataclass(frozen=True)
class Setting:
    """Where the parts run and how large they are.

    Attributes:
        tiny: a few layers and rows, to see that everything runs; the figures mean nothing.
        device: one GPU, or in the tiny form the CPU.
    """

    tiny: bool
    device: torch.device

    @classmethod
    def here(cls, tiny: bool) -> "Setting":
        """The GPU where there is one.

        Raises:
            RuntimeError: there is none, and the setting is not tiny.
        """
        if torch.cuda.is_available():
            return cls(tiny, torch.device("cuda"))
        if not tiny:
            raise RuntimeError("no GPU here; --tiny runs every part on the CPU")
        return cls(tiny, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of weights: bf16, and fp32 in the tiny form, where both sides of a comparison must agree."""
        return torch.float32 if self.tiny else torch.bfloat16

    def seconds(self, variants: Mapping[str, tuple[Run, int]], rounds: int) -> dict[str, float]:
        """Median seconds of each variant, interleaved round by round, after one call of each that does not count.

        By events of the GPU, which also see the gaps between kernels; on the CPU by the time of the process.

        Args:
            variants: what to run, and how often in a row in each round.
            rounds: rounds that count.
        """
        taken: dict[str, list[float]] = {name: [] for name in variants}
        for run, _ in variants.values():
            run()
        for _ in range(rounds):
            for name, (run, repeats) in variants.items():
                taken[name] += [self._once(run) for _ in range(repeats)]
        return {name: statistics.median(values) for name, values in taken.items()}

    def _once(self, run: Run) -> float:
        if self.device.type != "cuda":
            start = time.process_time()
            run()
            return max(time.process_time() - start, 1e-9)
        start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start_event.record()
        run()
        end_event.record()
        torch.cuda.synchronize()
        return start_event.elapsed_time(end_event) / 1000

    def peak_gb(self, run: Run) -> float | None:
        """GB by which the memory of the GPU grows at most during one call; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def gemm_flops(self, dtype: torch.dtype) -> float:
        """FLOP a second of a large square product of random matrices, the rate that this machine reaches."""
        size = 256 if self.tiny else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / self.seconds({"gemm": (lambda: a @ b, 5)}, rounds=3)["gemm"]

    def llama(self, dtype: torch.dtype | None = None, layers: int | None = None) -> LlamaForCausalLM:
        """A model of Llama2-7B's shape with random weights, made on the device itself.

        Args:
            dtype: of its weights; that of the setting if None.
            layers: fewer than the shape has.
        """
        sizes = (TINY if self.tiny else LLAMA2_7B) | ({"num_hidden_layers": layers} if layers else {})
        config = LlamaConfig(**sizes, max_position_embeddings=4096, pad_token_id=0, attn_implementation="sdpa")
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model = model.to(dtype or self.dtype).to_empty(device=self.device)
        # Its buffers are no part of a checkpoint and are computed when it is made, here of nothing.
        with self.device:
            model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.normal_(0, 0.02, generator=generator)
                else:
                    weight.fill_(1.0)
        return model.eval()


def relative_distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Norm of the difference over the norm of the second, all tensors together, in fp32."""
    difference = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return (difference / sum(float(b.float().square().sum()) for b in theirs)) ** 0.5
