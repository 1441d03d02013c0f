"""The catalogue as a `LogitsProcessor`, for those who want plain `generate`: its beams, its sampling."""

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from align3gr.decoding.search import token_rows
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError


class SCIDLogitsProcessor(LogitsProcessor):
    """Leaves only the tokens that continue an SCID of the catalogue.

    Under `num_beams > 1` `generate` adds up log-probabilities of the whole vocabulary that it took before this
    processor, so lists and scores are those of [`ConstrainedBeamSearch`] with equal widths and `num_beams`; it copies
    every prompt for each beam, which makes it slower. Under sampling the probabilities of the tokens left are scaled
    to sum to one at each level. Unlike the search, `generate` obeys the model's `generation_config`.

    Where a prompt has more beams than the catalogue has SCIDs, `generate` fills up with sequences of score -inf (or
    -1e9), which name no item: drop them.

    Args:
        trie: the catalogue; `trie.without(items)` leaves items out.
        level_tokens: token id of each code of each level, such as `SCIDVocabulary.item_tokens`.
            Shape: `(levels, codebook_size)`.
        prompt_length: tokens in front of the answer, padding included: `input_ids.shape[1]`.
        eos_token_id: the one token that may follow a whole SCID; with None `generate` must stop there, by
            `max_new_tokens=levels` and `eos_token_id=None`.

    Raises:
        InputError: the tokens do not fit the catalogue, or `prompt_length` is no length.

    Example:

    ```python
    processor = SCIDLogitsProcessor(trie, vocabulary.item_tokens, prompt_length=input_ids.shape[1])
    model.generate(
        input_ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([processor]),
        num_beams=20,
        num_return_sequences=20,
        length_penalty=0.0,
        max_new_tokens=trie.levels,
    )
    ```
    """

    def __init__(
        self, trie: SCIDTrie, level_tokens: np.ndarray | Tensor, prompt_length: int, eos_token_id: int | None = None
    ) -> None:
        tokens = token_rows(level_tokens, trie)
        if prompt_length < 1:
            raise InputError(f"prompt_length: got {prompt_length}, expected input_ids.shape[1]")
        self.trie = trie
        self.prompt_length = prompt_length
        self.eos_token_id = eos_token_id
        self._tokens = [row.to(trie.device) for row in tokens]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with -inf at every token that leads out of the catalogue.

        Shape: `input_ids` `(rows, length)`, `scores` `(rows, vocabulary)` -> `(rows, vocabulary)`.

        Raises:
            InputError: the sequence is shorter than the prompt, or the SCID is complete and there is no end token.
        """
        depth = input_ids.shape[1] - self.prompt_length
        if depth < 0:
            raise InputError(
                f"prompt_length: got {self.prompt_length}, but a sequence has {input_ids.shape[1]} tokens; "
                "give input_ids.shape[1]"
            )
        left = torch.full_like(scores, float("-inf"))
        if depth >= self.trie.levels:
            if self.eos_token_id is None:
                raise InputError(
                    f"max_new_tokens: the SCID of {self.trie.levels} tokens is complete; "
                    f"generate with max_new_tokens={self.trie.levels}, or give the processor an eos_token_id"
                )
            left[:, self.eos_token_id] = scores[:, self.eos_token_id]
            return left
        children = self.trie.children(depth, self._nodes(input_ids[:, self.prompt_length :].to(self.trie.device)))
        tokens = self._tokens[depth][self.trie.codes(depth + 1, children)]  # (rows, 1, fan)
        row, _, place = (children >= 0).nonzero(as_tuple=True)
        token = tokens[row, 0, place].to(scores.device)
        row = row.to(scores.device)
        left[row, token] = scores[row, token]
        return left

    def _nodes(self, answers: Tensor) -> Tensor:
        """The trie's node of each begun answer, -1 where it has left the catalogue. `(rows, depth)` -> `(rows, 1)`."""
        nodes = torch.zeros(len(answers), 1, dtype=torch.long, device=answers.device)
        for depth, token in enumerate(answers.T):
            children = self.trie.children(depth, nodes)[:, 0]  # (rows, fan)
            taken = self._tokens[depth][self.trie.codes(depth + 1, children)] == token.unsqueeze(-1)
            nodes = children.masked_fill(~taken, -1).amax(dim=-1, keepdim=True)
        return nodes
