"""Arguments of a Trainer that stays on one device, however many there are."""

from transformers import TrainingArguments


class OneDeviceArguments(TrainingArguments):
    """`TrainingArguments` for models that gain nothing from a second GPU.

    In one plain process that sees several GPUs, `Trainer` multiplies the batch by their number and splits it over them
    with `nn.DataParallel`. A loss over all pairs of a batch then sees a part of them only, and a batch with tensors of
    other lengths than the number of rows cannot be split at all.
    """

    @property
    def n_gpu(self) -> int:
        """One GPU at most."""
        return min(super().n_gpu, 1)
