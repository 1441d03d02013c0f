"""Models that ZeRO-3 does not cut up, whatever a launch says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations import deepspeed

# Relied on beyond the documented interface of transformers; named by a test.
ZERO3_MARK = "_hf_deepspeed_config_weak_ref"


@contextmanager
def undivided() -> Iterator[Any]:
    """Models that are loaded inside are whole: transformers cuts them up as soon as a ZeRO-3 configuration is known.

    Gives the DeepSpeed configuration that is put aside, None where there is none.
    """
    mark: Any = getattr(deepspeed, ZERO3_MARK)
    configuration = mark() if mark is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield configuration
    finally:
        if configuration is not None:
            deepspeed.set_hf_deepspeed_config(configuration)
