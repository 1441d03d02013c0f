"""A curriculum under ZeRO-3: the policy is whole between the stages, and divided while a stage trains.

ZeRO-3 cuts a model up for good, and a second trainer cannot take over its parts. So each stage trains a copy; its
weights are gathered at the end and given to the policy in every process. Between the stages each process can so search
on its own, and the work is shared out; inside one every forward is one of all processes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import deepspeed

from align3gr.checkpoints import gathered_weights


@contextmanager
def divided(policy: Any, configuration: Any) -> Iterator[Any]:
    """Inside, the configuration that was put aside counts again; gives what is to be trained in place of the policy.

    That is the policy itself, but under ZeRO-3 a copy of it, while the policy waits on the CPU.
    """
    if not is_zero3(configuration):
        # ZeRO-1 and 2 leave a model whole, and nothing of transformers asks for their configuration.
        yield policy
        return
    device, trained = policy.device, copy.deepcopy(policy)
    policy.to("cpu")
    deepspeed.set_hf_deepspeed_config(configuration)
    try:
        yield trained
    finally:
        deepspeed.unset_hf_deepspeed_config()
        policy.to(device)


def is_zero3(configuration: Any) -> bool:
    """Whether a DeepSpeed configuration, or None, divides models."""
    return configuration is not None and configuration.is_zero3()


def take_over(policy: Any, trainer: Any) -> None:
    """Gives the policy the weights of the copy of it that was trained; all processes must call it."""
    weights = gathered_weights(trainer)
    if weights is not None:
        policy.load_state_dict(weights)
    # The first process alone has them; by tensor, so that no process holds all of them twice.
    for tensor in policy.state_dict().values():
        torch.distributed.broadcast(tensor.data, src=0)
