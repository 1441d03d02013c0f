"""Scores of every item of a catalogue: the truth that a beam search approximates.

For tests, and to measure how much of the true best list a beam finds. It shares no machinery with the search: plain
causal continuations, no tree mask.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from align3gr.decoding.trie import SCIDTrie


@torch.inference_mode()
def exhaustive_scores(
    model: PreTrainedModel,
    trie: SCIDTrie,
    level_tokens: Tensor,
    prompt: list[int],
    batch_size: int = 128,
) -> Tensor:
    """Log-probability of every item's SCID after one prompt, normalised over the whole vocabulary.

    Args:
        model: a causal LM in eval mode.
        trie: the catalogue, on the model's device.
        level_tokens: token id of each code of each level.
            Shape: `(levels, codebook_size)`.
        prompt: token ids.
        batch_size: distinct prefixes scored in one forward; each copies the prompt's cache.

    Returns:
        Shape: `(index_bound,)`, float32; -inf where an index has no item any more.
    """
    levels = trie.levels
    tokens = torch.stack([level_tokens[level][codes] for level, codes in enumerate(trie.paths(levels).T)], dim=1)
    prompt_ids = torch.tensor([prompt], device=model.device)
    before = model(prompt_ids, use_cache=True)
    first = before.logits[0, -1].float().log_softmax(-1)
    if levels == 1:
        return _by_item(trie, first[tokens[:, 0]])
    prefixes, prefix_of_leaf = tokens[:, :-1].unique(dim=0, return_inverse=True)
    leaf_scores = torch.empty(len(tokens), device=model.device)
    layers = [(layer.keys, layer.values) for layer in before.past_key_values.layers]
    for start in range(0, len(prefixes), batch_size):
        block = prefixes[start : start + batch_size]
        cache = DynamicCache([(k.expand(len(block), -1, -1, -1), v.expand(len(block), -1, -1, -1)) for k, v in layers])
        log_probs = model(block, past_key_values=cache, use_cache=True).logits.float().log_softmax(-1)
        inner = log_probs[:, :-1].gather(-1, block[:, 1:, None]).squeeze(-1).sum(-1)  # levels 1 .. last - 1
        leaves = ((prefix_of_leaf >= start) & (prefix_of_leaf < start + len(block))).nonzero().squeeze(-1)
        row = prefix_of_leaf[leaves] - start
        leaf_scores[leaves] = first[block[row, 0]] + inner[row] + log_probs[row, -1, tokens[leaves, -1]]
    return _by_item(trie, leaf_scores)


def _by_item(trie: SCIDTrie, leaf_scores: Tensor) -> Tensor:
    leaves = torch.arange(trie.num_nodes[-1], device=leaf_scores.device)
    items = trie.items(leaves[None])[0]  # (leaves, items a leaf)
    leaf, place = (items >= 0).nonzero(as_tuple=True)
    scores = torch.full((trie.index_bound,), float("-inf"), device=leaf_scores.device)
    scores[items[leaf, place]] = leaf_scores[leaf]
    return scores
