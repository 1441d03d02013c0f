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

    The processes of a launch stop together: one that went on alone would take the step with the others' gradients,
    and might save what comes of it.

    Raises:
        InputError: in training, the loss of a batch is nan or infinite in some process. `output_dir` then holds the
            batch as it came from the collator (`nonfinite-batch.safetensors`, `nonfinite-batch-1.safetensors` in
            process 1) and the step (`nonfinite-batch.json`).
    """

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> "Tensor":
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        values = self.accelerator.gather(loss.detach().reshape(1)).tolist() if self.args.world_size > 1 else [loss]
        ruined = [process for process, value in enumerate(values) if not math.isfinite(value)]
        if ruined:
            step, rate = self.state.global_step + 1, float(self.optimizer.param_groups[0]["lr"])
            folder, process, value = Path(self.args.output_dir), ruined[0], float(values[ruined[0]])
            if self.args.process_index in ruined:
                own = float(values[self.args.process_index])
                facts = {"step": step, "loss": str(own), "learning_rate": rate, "process": self.args.process_index}
                _keep(folder / _name(self.args.process_index), inputs, facts)
            self.accelerator.wait_for_everyone()  # the first to end takes the others with it
            raise InputError(
                f"learning_rate: the loss of step {step} is {value} at a rate of {rate:.2g}; lower it or "
                f"max_grad_norm, or train without bf16; the batch is kept in {folder / _name(process)}.safetensors"
            )
        return loss


def _name(process: int) -> str:
    return f"{NONFINITE}-{process}" if process else NONFINITE


def _keep(path: Path, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes a batch and what is known of it."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: part.cpu().contiguous() for name, part in _tensors(inputs)}
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, "Tensor"]]:
    """The tensors of a batch by name; those of a dictionary in it as `outer.inner`."""
    from torch import Tensor

    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key))
