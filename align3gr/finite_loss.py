"""A loss or gradient that is no number stops a training before weights of it are saved, with the batch on disk."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3gr.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

NONFINITE = "nonfinite-batch"


class FiniteLoss:
    """A part of a Trainer: it checks the loss of every batch, and the gradient of every step before it is taken.

    A Trainer by itself goes on with a loss of nan, shows the last finite one in its log
    (`logging_nan_inf_filter`), and saves the ruined weights; so it does with a gradient of nan, whose loss may have
    been finite. Here the last checkpoint stays the last good state.

    The processes of a launch stop together: one that went on alone would take the step with the others' gradients,
    and might save what comes of it.

    Raises:
        InputError: in training, the loss of a batch or the norm of a gradient is nan or infinite in some process.
            `output_dir` then holds the batch as it came from the collator, of a gradient the last one of its step
            (`nonfinite-batch.safetensors`, `nonfinite-batch-1.safetensors` in process 1), and the step
            (`nonfinite-batch.json`).
    """

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> "Tensor":
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self._last_batch = inputs
        several = self.args.world_size > 1
        self._check_finite("loss", self.accelerator.gather(loss.detach().reshape(1)).tolist() if several else [loss])
        return loss

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        """Private to Trainer, which computes the norm in any case between the backward pass and the step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        # In fp16 the scaler looks for such gradients itself, and leaves the step out.
        if norm is not None and not self.args.fp16:
            self._check_finite("gradient", [norm] * self.args.world_size)  # of all processes together
        return norm

    def _check_finite(self: Any, what: str, values: Sequence[Any]) -> None:
        """Keeps the batch and ends the training where the value of some process is no number."""
        ruined = [process for process, value in enumerate(values) if not math.isfinite(value)]
        if not ruined:
            return
        step, rate = self.state.global_step + 1, float(self.optimizer.param_groups[0]["lr"])
        folder, own, first = Path(self.args.output_dir), self.args.process_index, ruined[0]
        if own in ruined:
            facts = {"step": step, what: str(float(values[own])), "learning_rate": rate, "process": own}
            _keep(folder / _name(own), self._last_batch, facts)
        self.accelerator.wait_for_everyone()  # the first to end takes the others with it
        raise InputError(
            f"learning_rate: the {what} of step {step} is {float(values[first])} at a rate of {rate:.2g}; lower it or "
            f"max_grad_norm, or train without bf16; the batch is kept in {folder / _name(first)}.safetensors"
        )


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
