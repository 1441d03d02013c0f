"""Log-probabilities of many completions of one prompt in a single sequence.

The usual way runs `1 + N` copies of the prompt, one a completion. Here a row holds the prompt once and, after it, a
tree: its root is the last token of the prompt, its branches are the completions without their last token. A tree token
sees the prompt and its own ancestors, through a 4D attention mask with explicit position ids, so every hidden state is
the one that the full sequence would have given. Prompts are padded on the left, trees on the right: the tree is the
tail of every row, and `logits_to_keep` asks the head for that tail alone.

With `merge=True` completions that begin alike share their nodes; the hard stage of the curriculum consists of such.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.errors import InputError
from align3gr.tree_attention import tree_attention, tree_mask

IGNORED_LABEL = -100
OTHERWISE = "set prefix_sharing='naive'"  # for a model that cannot follow a tree mask


def tree_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    merge: bool = False,
    pad_to_multiple_of: int | None = None,
) -> dict[str, Tensor]:
    """Lay out each prompt once, followed by the tree of its completions.

    Args:
        prompts: Token ids, at least one a prompt.
        completions: For each prompt the token ids of its completions, at least one token each. Prompts may have
            different numbers of them.
        merge: Completions that begin alike share their nodes.
        pad_to_multiple_of: Pads the row length up to a multiple of this.

    Returns:
        `input_ids` and `position_ids` (batch, trunk + nodes), `trunk_mask` (batch, trunk) true at prompt tokens,
        `tree_mask` (batch, nodes, nodes) true where a node sees another, and the labels: `label_ids` (batch,
        completions, length), -100 where there is none, with `label_nodes` of the same shape, the row of the flattened
        (batch * nodes) logits that predicts each.
    """
    trees = [
        _completion_tree(prompt[-1], branches, merge) for prompt, branches in zip(prompts, completions, strict=True)
    ]
    num_nodes = max(len(tokens) for tokens, _, _, _ in trees)
    trunk = max(len(prompt) for prompt in prompts) - 1
    if pad_to_multiple_of:
        trunk += -(trunk + num_nodes) % pad_to_multiple_of
    batch = len(trees)
    input_ids = np.zeros((batch, trunk + num_nodes), dtype=np.int64)  # nothing sees padding, so any id serves
    position_ids = np.zeros_like(input_ids)
    trunk_mask = np.zeros((batch, trunk), dtype=bool)
    tree_mask = np.zeros((batch, num_nodes, num_nodes), dtype=bool)
    label_ids = _padded_labels(completions)
    label_nodes = np.zeros_like(label_ids)
    for row, (prompt, (tokens, depths, visible, paths)) in enumerate(zip(prompts, trees, strict=True)):
        length, nodes = len(prompt) - 1, len(tokens)
        input_ids[row, trunk - length : trunk] = prompt[:-1]
        input_ids[row, trunk : trunk + nodes] = tokens
        position_ids[row, trunk - length : trunk] = np.arange(length)
        position_ids[row, trunk : trunk + nodes] = length + depths
        trunk_mask[row, trunk - length :] = True
        tree_mask[row, :nodes, :nodes] = visible
        for slot, path in enumerate(paths):
            label_nodes[row, slot, : len(path)] = row * num_nodes + np.asarray(path)
    arrays = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "trunk_mask": trunk_mask,
        "tree_mask": tree_mask,
        "label_ids": label_ids,
        "label_nodes": label_nodes,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def sequence_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    pad_to_multiple_of: int | None = None,
) -> dict[str, Tensor]:
    """Lay out one full sequence a completion: the reference of `tree_batch`, and the way for other attention kernels.

    The arguments are those of `tree_batch`. Prompts end at the same column, so that what predicts labels is the tail.

    Args:
        prompts: token ids of each row.
        completions: token ids of each completion of each row.
        pad_to_multiple_of: the length is rounded up to a multiple of it.

    Returns:
        `input_ids`, `position_ids` and `attention_mask` (sequences, length), and the labels as in `tree_batch`, with
        `label_nodes` counted in the flattened (sequences * tail) logits.
    """
    label_ids = _padded_labels(completions)
    label_nodes = np.zeros_like(label_ids)
    tail = label_ids.shape[2]
    trunk = max(len(prompt) for prompt in prompts) - 1
    if pad_to_multiple_of:
        trunk += -(trunk + tail) % pad_to_multiple_of
    sequences = sum(len(branches) for branches in completions)
    input_ids = np.zeros((sequences, trunk + tail), dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    attention_mask = np.zeros_like(input_ids)
    sequence = 0
    for row, (prompt, branches) in enumerate(zip(prompts, completions, strict=True)):
        start = trunk - len(prompt) + 1
        for slot, completion in enumerate(branches):
            ids = [*prompt, *completion[:-1]]
            filled = slice(start, start + len(ids))
            input_ids[sequence, filled] = ids
            position_ids[sequence, filled] = np.arange(len(ids))
            attention_mask[sequence, filled] = 1
            label_nodes[row, slot, : len(completion)] = sequence * tail + np.arange(len(completion))
            sequence += 1
    arrays = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": attention_mask,
        "label_ids": label_ids,
        "label_nodes": label_nodes,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def shared_prefix_logps(model: Any, batch: dict[str, Tensor], likelihood: CatalogueLikelihood | None = None) -> Tensor:
    """Sum of the log-probabilities of each completion's tokens, from a batch of `tree_batch`.

    Args:
        model: A causal LM, plain, with adapters or wrapped by a launcher, whose attention is "sdpa" or "eager".
        batch: The tensors of `tree_batch`, on the model's device.
        likelihood: Of a model that was trained so; completions are SCIDs, normalised over its catalogue.

    Returns:
        Tensor (batch, completions), fp32; 0 where a prompt has fewer completions than the widest.

    Raises:
        InputError: The model's attention cannot follow a tree mask, or slides over fewer tokens than the row has; or
            there is a likelihood, and a completion is no SCID of its catalogue.
    """
    attention = tree_attention(model, batch["input_ids"].shape[1], OTHERWISE)
    visible = _visible_tokens(batch["trunk_mask"], batch["tree_mask"])
    mask = tree_mask(visible, attention, next(model.parameters()).dtype)
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        position_ids=batch["position_ids"],
        use_cache=False,
        logits_to_keep=batch["tree_mask"].shape[1],
    )
    return _label_logps(outputs.logits, batch["label_ids"], batch["label_nodes"], likelihood)


def naive_logps(model: Any, batch: dict[str, Tensor], likelihood: CatalogueLikelihood | None = None) -> Tensor:
    """The same values as `shared_prefix_logps`, from a batch of `sequence_batch`: one full sequence a completion.

    Args:
        model: a causal LM.
        batch: what [`sequence_batch`] laid out.
        likelihood: SCIDs are normalised over its catalogue; over the vocabulary where it is None.
    """
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        logits_to_keep=batch["label_ids"].shape[2],
    )
    return _label_logps(outputs.logits, batch["label_ids"], batch["label_nodes"], likelihood)


def _completion_tree(
    root: int, completions: Sequence[Sequence[int]], merge: bool
) -> tuple[list[int], np.ndarray, np.ndarray, list[list[int]]]:
    """Tokens and depths of the nodes, who sees whom (nodes, nodes), and the nodes predicting each completion."""
    tokens, parents, depths = [root], [0], [0]
    children: dict[tuple[int, int], int] = {}
    paths = []
    for completion in completions:
        node, path = 0, [0]
        for token in completion[:-1]:
            child = children.get((node, token)) if merge else None
            if child is None:
                child = children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                depths.append(len(path))
            node = child
            path.append(node)
        paths.append(path)
    visible = np.eye(len(tokens), dtype=bool)
    for node in range(1, len(tokens)):
        visible[node] |= visible[parents[node]]  # parents come first, so theirs is complete
    return tokens, np.asarray(depths), visible, paths


def _padded_labels(completions: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """Completion tokens as (batch, completions, length), padded with -100."""
    width = max(len(branches) for branches in completions)
    length = max(len(completion) for branches in completions for completion in branches)
    labels = np.full((len(completions), width, length), IGNORED_LABEL, dtype=np.int64)
    for row, branches in enumerate(completions):
        for slot, completion in enumerate(branches):
            labels[row, slot, : len(completion)] = completion
    return labels


def _visible_tokens(trunk_mask: Tensor, tree_mask: Tensor) -> Tensor:
    """Boolean mask (batch, 1, trunk + nodes, trunk + nodes), true where a token sees another."""
    batch, trunk = trunk_mask.shape
    length = trunk + tree_mask.shape[1]
    # The diagonal stays true at padding: a row without anything to see is NaN in SDPA.
    mask = torch.eye(length, dtype=torch.bool, device=trunk_mask.device).repeat(batch, 1, 1)
    mask[:, :, :trunk] |= trunk_mask[:, None, :]
    mask[:, :trunk, :trunk].tril_()
    mask[:, trunk:, trunk:] |= tree_mask
    return mask[:, None]


def _label_logps(
    logits: Tensor, label_ids: Tensor, label_nodes: Tensor, likelihood: CatalogueLikelihood | None
) -> Tensor:
    """Sum over each completion's labels; logits (rows, kept, vocabulary), labels (batch, completions, length)."""
    labelled = label_ids != IGNORED_LABEL
    if likelihood is not None:
        there = labelled.any(-1)
        if labelled.shape[-1] != likelihood.trie.levels or not labelled[there].all():
            raise InputError(
                f"a completion is no SCID of {likelihood.trie.levels} tokens; the model is normalised over a "
                "catalogue, so its completions are items"
            )
        logps = likelihood.log_probs(logits.flatten(0, 1), label_nodes[there], label_ids[there])
        return torch.zeros_like(there, dtype=logps.dtype).masked_scatter(there, logps.sum(-1))
    logps = _SelectedLogProbs.apply(logits.flatten(0, 1), label_nodes.flatten(), label_ids.clamp_min(0).flatten())
    return (logps.view_as(label_ids) * labelled).sum(-1)


class _SelectedLogProbs(torch.autograd.Function):
    """Log-softmax at chosen entries: logits (rows, vocabulary), row and column (entries,) -> (entries,), fp32.

    A row serves many labels (the root predicts the first token of every completion). Autograd would hold three arrays
    of the logits' size in the backward pass, this holds one.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        normaliser = torch.logsumexp(logits.float(), dim=-1)
        ctx.save_for_backward(logits, normaliser, rows, columns)
        return logits[rows, columns].float() - normaliser[rows]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, normaliser, rows, columns = ctx.saved_tensors
        row_grad = torch.zeros_like(normaliser).index_add_(0, rows, grad)
        logits_grad = logits.float().sub(normaliser[:, None]).exp_().mul_(-row_grad[:, None])
        logits_grad.index_put_((rows, columns), grad, accumulate=True)
        return logits_grad.to(logits.dtype), None, None
