"""Policies are whole between the stages and divided inside one."""

import torch
from accelerate.state import AcceleratorState
from transformers.integrations import deepspeed

from align3gr.dpo.undivided_policy import divided
from align3gr.undivided import ZERO3_MARK, undivided


class ZeRO:
    """Stands for a DeepSpeed configuration."""

    def __init__(self, stage):
        self.stage = stage

    def is_zero3(self):
        return self.stage == 3


def test_the_private_names_are_there():
    assert hasattr(deepspeed, ZERO3_MARK) and callable(AcceleratorState._reset_state)


def test_a_divided_copy_is_trained_and_the_policy_stays_whole(llama):
    policy, zero3 = llama(), ZeRO(3)
    deepspeed.set_hf_deepspeed_config(zero3)
    try:
        with undivided() as configuration:
            assert configuration is zero3 and not deepspeed.is_deepspeed_zero3_enabled()
            with divided(policy, configuration) as trained:
                assert deepspeed.is_deepspeed_zero3_enabled()
                assert trained is not policy
                for name, weights in trained.state_dict().items():
                    assert torch.equal(weights, policy.state_dict()[name])
                    assert weights.data_ptr() != policy.state_dict()[name].data_ptr()
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_what_is_not_divided_is_trained_itself(llama):
    policy = llama()
    for configuration in (None, ZeRO(2)):
        with divided(policy, configuration) as trained:
            assert trained is policy
