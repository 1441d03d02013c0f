"""Preferences among items of a model that is normalised over its catalogue: its searches give the same numbers."""

import math

import pytest
import torch
from datasets import Dataset

from align3gr.decoding import SCIDTrie
from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.dpo import SoftmaxDPOConfig, SoftmaxDPOTrainer
from align3gr.dpo.shared_prefix import naive_logps, sequence_batch, shared_prefix_logps, tree_batch
from align3gr.errors import InputError

LEVEL_TOKENS = torch.tensor([[40, 41, 42, 43], [44, 45, 46, 47], [48, 49, 50, 51]])
CODES = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 2, 3], [1, 1, 1], [1, 1, 2], [3, 0, 0], [3, 3, 3]])
TOKENS = torch.stack([LEVEL_TOKENS[level][CODES[:, level]] for level in range(3)], dim=1).tolist()
TRIE = SCIDTrie.from_codes(CODES, (4, 4, 4))
PROMPTS = [[1, 5, 9, 33, 20], [1, 7]]
ITEMS = [[1, 0, 2, 3], [6, 5]]  # the chosen one first
ROWS = [
    {"prompt_ids": prompt, "chosen_ids": TOKENS[items[0]], "rejected_ids": [TOKENS[item] for item in items[1:]]}
    for prompt, items in zip(PROMPTS, ITEMS, strict=True)
]
COMPLETIONS = [[TOKENS[item] for item in items] for items in ITEMS]


@pytest.fixture
def model(llama):
    model = llama()
    model.config.scid_normalizer = "catalogue"
    return model


@pytest.fixture
def likelihood():
    return CatalogueLikelihood(TRIE, LEVEL_TOKENS)


@pytest.mark.parametrize("form", ["shared", "merged", "naive"])
def test_log_probabilities_are_those_of_the_search(model, likelihood, form):
    if form == "naive":
        logps = naive_logps(model, sequence_batch(PROMPTS, COMPLETIONS), likelihood)
    else:
        logps = shared_prefix_logps(model, tree_batch(PROMPTS, COMPLETIONS, merge=form == "merged"), likelihood)
    search = ExhaustiveSearch(model, TRIE, LEVEL_TOKENS)
    for row, (prompt, items) in enumerate(zip(PROMPTS, ITEMS, strict=True)):
        output = search.search(torch.tensor([prompt])).top(len(CODES))
        scores = dict(zip(output.items[0].tolist(), output.scores[0].tolist(), strict=True))
        assert logps[row, : len(items)].tolist() == pytest.approx([scores[item] for item in items], abs=1e-5)
    assert logps[1, 2:].tolist() == [0, 0]


def test_all_forms_have_the_same_gradients(model, likelihood):
    found = []
    for merge in (False, True, None):
        model.zero_grad()
        batch = sequence_batch(PROMPTS, COMPLETIONS) if merge is None else tree_batch(PROMPTS, COMPLETIONS, merge)
        logps = (naive_logps if merge is None else shared_prefix_logps)(model, batch, likelihood)
        (logps * torch.tensor([[1.0, -2, 3, 0.5], [2, -1, 9, 9]])).sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, grad in found[0].items():
        scale = grad.abs().max().item()
        assert scale > 0, name
        for other in found[1:]:
            torch.testing.assert_close(other[name], grad, atol=1e-5 * scale, rtol=1e-5, msg=name)


def trainer(folder, tokenizer, model, likelihood):
    args = SoftmaxDPOConfig(
        str(folder), learning_rate=1e-2, max_steps=6, report_to="none", use_cpu=True, logging_steps=1, beta=1.0,
        per_device_train_batch_size=2, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list(ROWS)
    return SoftmaxDPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, likelihood=likelihood)


def test_training_starts_at_its_reference_and_learns(model, likelihood, tokenizer, tmp_path):
    run = trainer(tmp_path, tokenizer, model, likelihood)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx((math.log(4) + math.log(2)) / 2, abs=1e-4)
    assert losses[-1] < losses[0] / 2


def test_model_and_likelihood_must_agree(model, llama, likelihood, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"normalised over the catalogue .* no `likelihood`"):
        trainer(tmp_path, tokenizer, model, None)
    with pytest.raises(ValueError, match=r"normalised over the vocabulary .* a `likelihood`"):
        trainer(tmp_path, tokenizer, llama(), likelihood)


def test_completions_that_are_no_items_are_refused(model, likelihood):
    with pytest.raises(InputError, match="no SCID of 3 tokens"):
        shared_prefix_logps(model, tree_batch([[1, 5]], [[[40, 44], [41, 45]]]), likelihood)
    with pytest.raises(InputError, match="no SCID of 3 tokens"):
        naive_logps(model, sequence_batch([[1, 5]], [[[40, 44, 48], [41, 45]]]), likelihood)
    with pytest.raises(InputError, match="no SCID of the catalogue"):
        naive_logps(model, sequence_batch([[1, 5]], [[[40, 45, 48]]]), likelihood)
