"""Batches by free memory, and smaller ones where that was too many."""

import logging

import numpy as np
import psutil
import pytest
import torch

from align3gr.decoding.batch_size import FittingBatches, bytes_per_prompt, fitting_batch_size, is_out_of_memory
from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

LEVEL_TOKENS = torch.arange(10, 22).view(2, 6)
PROMPTS = [[1, 12, 18], [7], [1, 30, 31, 32], [9, 9], [5, 6, 7, 8, 9], [40, 41], [3, 3, 3]]


@pytest.fixture
def search(tiny_model) -> ConstrainedBeamSearch:
    codes = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    return ConstrainedBeamSearch(tiny_model(), SCIDTrie.from_codes(codes, (6, 6)), LEVEL_TOKENS, num_beams=4)


def fail_above(search: ConstrainedBeamSearch, rows: int, error: BaseException) -> list[int]:
    """Make the model fail for batches of more than `rows` prompts; returns a log of the batches it was asked."""
    asked = []

    def hook(_, args, options):
        asked.append(len(options["input_ids"]))
        if asked[-1] > rows:
            raise error

    search.model.register_forward_pre_hook(hook, with_kwargs=True)
    return asked


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
    ],
)
def test_too_large_batches_are_halved_and_the_lists_stay_the_same(search, caplog, error):
    histories = [[item] for item in range(len(PROMPTS))]
    expected = generate_rankings(search, PROMPTS, 3, 4, histories, progress=False)
    asked = fail_above(search, 2, error)
    with caplog.at_level(logging.WARNING):
        rankings = generate_rankings(search, PROMPTS, "auto", 4, histories, progress=False)
    # Seven prompts at once, then three, then one by one: 7 // 2 = 3, 3 // 2 = 1; two forwards a search of two levels.
    assert asked == [7, 3, *[1] * 14]
    assert caplog.messages[-2:] == [
        "7 prompts do not fit into the memory; going on with 3",
        "3 prompts do not fit into the memory; going on with 1",
    ]
    assert rankings.seen_allowed.tolist() == expected.seen_allowed.tolist()
    assert rankings.masked.tolist() == expected.masked.tolist()
    np.testing.assert_allclose(rankings.masked_scores, expected.masked_scores, atol=1e-5)


def test_what_is_no_want_of_memory_or_cannot_be_halved_is_raised(search):
    fail_above(search, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        generate_rankings(search, PROMPTS, "auto", 4, progress=False)
    with pytest.raises(torch.OutOfMemoryError):  # a number that was given is not changed
        generate_rankings(search, PROMPTS, 4, 4, progress=False)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        FittingBatches(4).run(np.arange(4), lambda rows: (_ for _ in ()).throw(RuntimeError("mat1 and mat2")))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2")) and not is_out_of_memory(ValueError("out of memory"))


def test_parts_stay_small_after_the_first_that_was_too_large():
    batches, seen = FittingBatches(8), []

    def work(rows: np.ndarray) -> int:
        seen.append(len(rows))
        if len(rows) > 4:
            raise MemoryError
        return int(rows.sum())

    assert batches.run(np.arange(8), work) == [6, 22]
    assert batches.run(np.arange(8, 16), work) == [38, 54]
    assert seen == [8, 4, 4, 4, 4]


def test_the_estimate_follows_the_free_memory(search, monkeypatch):
    each = bytes_per_prompt(search, length=20)
    # Keys and values of 24 tokens, 2 layers x 2 heads x 8 numbers in fp32, are in it, and logits of 4 beams.
    assert each > 2 * 24 * 2 * 2 * 8 * 4 + 4 * 60 * 4
    assert bytes_per_prompt(search, length=60) > each
    for free, expected in ((1e12, 64), (2.5 * 10 * each, 8), (2 * 2 * each, 2), (1, 1)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: type("Memory", (), {"available": int(free)}))
        assert fitting_batch_size(search, length=20) == expected


@pytest.mark.parametrize("batch_size", [0, -1, "all", 2.5, None])
def test_other_batch_sizes_are_refused(search, batch_size):
    with pytest.raises(InputError, match='expected at least 1, or "auto"'):
        generate_rankings(search, PROMPTS, batch_size, 4, progress=False)
