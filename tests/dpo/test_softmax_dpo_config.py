"""Defaults, and options that are refused rather than ignored."""

import pytest

from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig


def test_defaults(tmp_path):
    config = SoftmaxDPOConfig(str(tmp_path), use_cpu=True)
    assert (config.num_rejected, config.prefix_sharing, config.beta) == (20, "shared", 0.1)
    assert (config.preference_coefficient, config.sft_coefficient) == (1.0, 0.0)
    assert config.precompute_ref_log_probs and config.append_eos and not config.length_normalization
    assert not config.bf16 and not config.gradient_checkpointing


@pytest.mark.parametrize(
    "option",
    [
        {"loss_type": "hinge"},
        {"loss_weights": [2.0]},
        {"label_smoothing": 0.1},
        {"label_smoothing_factor": 0.1},
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"f_divergence_type": "forward_kl"},
        {"f_alpha_divergence_coef": 0.1},
        {"discopop_tau": 0.1},
        {"padding_free": True},
        {"ref_model_mixup_alpha": 0.1},
        {"ref_model_sync_steps": 1},
        {"use_liger_kernel": True},
        {"truncation_mode": "keep_end"},
        {"pad_token": "<pad>"},
        {"router_aux_loss_coef": 0.1},
        {"num_rejected": 0},
        {"prefix_sharing": "tree"},
        {"beta": 0.0},
        {"sft_coefficient": -0.5},
        {"preference_coefficient": -0.5},
        {"preference_coefficient": 0.0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_without_effect_are_refused(tmp_path, option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=rf"^{name}=.*{value}"):
        SoftmaxDPOConfig(str(tmp_path), use_cpu=True, **option)


def test_parses_from_a_command_line(tmp_path):
    from trl import TrlParser

    arguments = [
        "--output_dir",
        str(tmp_path),
        "--prefix_sharing",
        "merged",
        "--num_rejected",
        "5",
        "--use_cpu",
        "True",
    ]
    (config,) = TrlParser(SoftmaxDPOConfig).parse_args_and_config(arguments)
    assert (config.prefix_sharing, config.num_rejected) == ("merged", 5)
