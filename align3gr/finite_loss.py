"""A loss that is no number stops a training before it reaches the weights, with the batch on disk."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3gr.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

NONFINITE = "nonfinite-batch"


class FiniteLoss:
    """A part of a Trainer: it checks the loss of every batch before the optimiser takes its step.

    A Trainer by itself goes on with a loss of nan, shows the last finite one in its log
    (`logging_nan_inf_filter`), and saves the ruined weights. Here the last checkpoint stays the last good state.

    Raises:
        InputError: in training, the loss of a batch is nan or infinite. `output_dir` then holds the batch as it came
            from the collator (`nonfinite-batch.safetensors`) and the step (`nonfinite-batch.json`).
    """

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> "Tensor":
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        value = float(loss)
        if not math.isfinite(value):
            from safetensors.torch import save_file

            step, process = self.state.global_step + 1, self.args.process_index
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            name = NONFINITE + (f"-{process}" if process else "")
            save_file({key: part.cpu().contiguous() for key, part in _tensors(inputs)}, folder / f"{name}.safetensors")
            rate = float(self.optimizer.param_groups[0]["lr"])
            facts = {"step": step, "loss": str(value), "learning_rate": rate, "process": process}
            (folder / f"{name}.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
            raise InputError(
                f"learning_rate: the loss of step {step} is {value} at a rate of {rate:.2g}; lower it "
                f"or max_grad_norm, or train without bf16; the batch is kept in {folder / name}.safetensors"
            )
        return loss


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, "Tensor"]]:
    """The tensors of a batch by name; those of a dictionary in it as `outer.inner`."""
    from torch import Tensor

    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key))
