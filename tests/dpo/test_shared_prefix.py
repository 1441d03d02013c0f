"""The shared prompt gives the values and gradients of one full sequence a completion."""

import pytest
import torch

from align3gr.dpo.shared_prefix import OTHERWISE, naive_logps, sequence_batch, shared_prefix_logps, tree_batch
from align3gr.tree_attention import tree_attention


def columns(rows):
    return [row["prompt_ids"] for row in rows], [[row["chosen_ids"], *row["rejected_ids"]] for row in rows]


def one_by_one(model, rows):
    """Log-probabilities straight from the definition: no batch, no padding, no mask."""
    values = []
    for prompt, completions in zip(*columns(rows), strict=True):
        for completion in completions:
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            positions = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
            values.append(sum(logits[at, token] for at, token in zip(positions, completion, strict=True)))
    return torch.stack(values)


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_layout_by_hand():
    batch = tree_batch([[1, 5, 9], [7]], [[[20, 21], [20, 22]], [[30, 31]]])
    # Row 0: trunk 1 5, root 9, then the first tokens of both completions. Row 1: root 7, node 30, one node of padding.
    assert batch["input_ids"].tolist() == [[1, 5, 9, 20, 20], [0, 0, 7, 30, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3], [0, 0, 0, 1, 0]]
    assert batch["trunk_mask"].tolist() == [[True, True], [False, False]]
    assert batch["tree_mask"].int().tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
        [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
    ]
    assert batch["label_ids"].tolist() == [[[20, 21], [20, 22]], [[30, 31], [-100, -100]]]
    assert batch["label_nodes"].tolist() == [[[0, 1], [0, 2]], [[3, 4], [0, 0]]]


def test_merged_layout_shares_common_beginnings():
    batch = tree_batch([[9]], [[[20, 21, 22], [20, 21, 23], [20, 24, 25]]], merge=True)
    assert batch["input_ids"].tolist() == [[9, 20, 21, 24]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2]]
    assert batch["label_nodes"].tolist() == [[[0, 1, 2], [0, 1, 2], [0, 1, 3]]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("merge", [False, True])
def test_equals_full_sequences_one_by_one(llama, rows, attention, merge):
    model = llama(attention)
    batch = tree_batch(*columns(rows), merge=merge, pad_to_multiple_of=8)
    assert batch["input_ids"].shape[1] % 8 == 0
    logps = shared_prefix_logps(model, batch)
    present = (batch["label_ids"] != -100).any(-1)
    expected = one_by_one(model, rows)
    torch.testing.assert_close(logps[present], expected, atol=1e-5, rtol=1e-5)
    assert logps[~present].abs().max() == 0
    weights = torch.linspace(-1, 1, len(expected))
    ours, theirs = (gradients(model, (value * weights).sum()) for value in (logps[present], expected))
    assert ours.keys() == theirs.keys() and len(ours) == sum(1 for _ in model.parameters())
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, atol=1e-5 * grad.abs().max().item(), rtol=1e-5, msg=name)


def test_naive_equals_full_sequences_one_by_one(llama, rows):
    model = llama()
    batch = sequence_batch(*columns(rows), pad_to_multiple_of=8)
    assert batch["input_ids"].shape[1] % 8 == 0
    logps = naive_logps(model, batch)
    present = (batch["label_ids"] != -100).any(-1)
    torch.testing.assert_close(logps[present], one_by_one(model, rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("merge", [False, True])
def test_gradients_of_lora_and_trained_token_rows(llama, lora, rows, merge):
    model = lora(llama())
    weights = torch.linspace(-1, 1, 15).view(3, 5)
    ours = gradients(model, (shared_prefix_logps(model, tree_batch(*columns(rows), merge=merge)) * weights).sum())
    theirs = gradients(model, (naive_logps(model, sequence_batch(*columns(rows))) * weights).sum())
    assert ours.keys() == theirs.keys()
    assert sum("trainable_tokens_delta" in name for name in ours) == 2
    for name, grad in theirs.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(ours[name], grad, atol=1e-5 * grad.abs().max().item(), rtol=1e-5, msg=name)


def test_gpt2_learned_positions(rows):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    logps = shared_prefix_logps(model, tree_batch(*columns(rows)))
    torch.testing.assert_close(logps, naive_logps(model, sequence_batch(*columns(rows))), atol=1e-4, rtol=1e-5)


def test_bf16_model_is_close_to_fp32(llama, rows):
    model = llama()
    batch = tree_batch(*columns(rows), merge=True)
    expected = shared_prefix_logps(model, batch)
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        logps = shared_prefix_logps(model.bfloat16(), batch)
        assert logps.dtype == torch.float32
        torch.testing.assert_close(logps, expected, atol=0.4, rtol=0.05)


def test_attention_without_a_tree_is_refused(llama):
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"flash_attention_2.*sdpa.*prefix_sharing='naive'"):
        tree_attention(model, 0, OTHERWISE)


def test_rows_longer_than_a_sliding_window_are_refused():
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=6)
    model = MistralForCausalLM(config)
    assert tree_attention(model, 6, OTHERWISE) == "sdpa"
    with pytest.raises(ValueError, match="rows of 7 tokens exceed the model's sliding window of 6"):
        tree_attention(model, 7, OTHERWISE)
