"""How many prompts one search takes: by the memory that is free, and by half of that where it was too much."""

import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import torch

from align3gr.decoding.search import ConstrainedSearch
from align3gr.errors import InputError

BatchSize = int | Literal["auto"]
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_LARGEST = {"cpu": 64}  # more prompts at once are not faster on a CPU
_LARGEST_ON_A_GPU = 512
_SHARE = 0.5  # of the free memory: what is counted below is most of what a search holds, not all
_BLOCK = 512  # nodes a level that are counted at most; an exhaustive search takes more of them block by block


def check_batch_size(batch_size: BatchSize) -> None:
    """Raises:
    InputError: it is neither "auto" nor a positive number.
    """
    if batch_size != "auto" and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise InputError(f'batch_size: got {batch_size!r}, expected at least 1, or "auto"')


def fitting_batch_size(search: ConstrainedSearch, length: int) -> int:
    """A power of two of prompts that should fit into the free memory, 1 to 64 on a CPU, to 512 on a GPU.

    Args:
        search: the search to run.
        length: tokens of the longest prompt.
    """
    device = search.model.device
    fitting = int(_SHARE * _free_bytes(device) / bytes_per_prompt(search, length))
    largest = _LARGEST.get(device.type, _LARGEST_ON_A_GPU)
    return min(largest, 1 << max(0, fitting.bit_length() - 1))


def bytes_per_prompt(search: ConstrainedSearch, length: int) -> int:
    """What a search holds for each prompt at its peak: cache, activations of a layer, masks, logits, candidates."""
    config = search.model.config.get_text_config(decoder=True)
    hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    number = search.model.dtype.itemsize
    trie = search.trie
    kept = [min(width, nodes, _BLOCK) for width, nodes in zip(search.widths, trie.num_nodes[:-1], strict=False)]
    tokens, widest = length + sum(kept), max([1, *kept])
    cache = 2 * layers * key_heads * head_size * tokens * number
    activations = max(length, widest) * (8 * hidden + 3 * inner) * number
    masks = heads * max(length, widest) * tokens * 4
    logits = widest * config.vocab_size * (number + 4)
    width = min(search.widths[-2], trie.num_nodes[-2]) if trie.levels > 1 else 1
    candidates = min(width * trie.max_children[-2], trie.num_nodes[-1]) * 64  # ids, tokens, scores, sort keys
    return cache + activations + masks + logits + candidates


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        kept_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_back
    import psutil

    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on a GPU or a CPU."""
    text = str(error).lower()
    told = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and told)


class FittingBatches:
    """Runs work on batches, in smaller parts from the first one on that does not fit into the memory.

    Args:
        size: the largest part at the beginning.
    """

    def __init__(self, size: int):
        self.size = size

    def run(self, rows: np.ndarray, work: Callable[[np.ndarray], Result]) -> list[Result]:
        """Results of the parts of `rows`, in order.

        Raises:
            Exception: what `work` raises, also for too little memory where a part is a single row.
        """
        results: list[Result] = []
        start = 0
        while start < len(rows):
            part = rows[start : start + self.size]
            try:
                results.append(work(part))
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self.size = len(part) // 2
                logger.warning("%d prompts do not fit into the memory; going on with %d", len(part), self.size)
            else:
                start += len(part)
                continue
            if torch.cuda.is_available():  # here the error and what its frames held are gone
                torch.cuda.empty_cache()
        return results
