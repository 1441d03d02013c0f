"""The catalogue tree against codes small enough to draw by hand."""

import pytest
import torch

from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

# Sorted: 00(1) 01(0,3) 12(4) 20(2); item 0 and 3 share a SCID.
CODES = torch.tensor([[0, 1], [0, 0], [2, 0], [0, 1], [1, 2]])


@pytest.fixture
def trie() -> SCIDTrie:
    return SCIDTrie.from_codes(CODES, (3, 3))


def test_shape_of_the_tree(trie):
    assert (trie.levels, trie.num_items) == (2, 5)
    assert trie.num_nodes == (3, 4)
    assert trie.max_children == (3, 2, 2)


def test_children_and_codes_by_hand(trie):
    roots = torch.tensor([[0]])
    assert trie.children(0, roots).tolist() == [[[0, 1, 2]]]
    children = trie.children(1, torch.tensor([[0, 2, -1]]))
    assert children.tolist() == [[[0, 1], [3, -1], [-1, -1]]]
    assert trie.codes(2, children).tolist() == [[[0, 1], [0, 0], [0, 0]]]
    assert trie.items(torch.tensor([[0, 1, 2, 3, -1]])).tolist() == [[[1, -1], [0, 3], [4, -1], [2, -1], [-1, -1]]]


def test_paths_are_the_distinct_prefixes_in_code_order(trie):
    assert trie.paths(1).tolist() == [[0], [1], [2]]
    assert trie.paths(2).tolist() == [[0, 0], [0, 1], [1, 2], [2, 0]]


def test_large_random_tree_holds_each_item_once_at_its_codes():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 7, (1000, 4), generator=generator)
    trie = SCIDTrie.from_codes(codes, (7, 7, 9, 8))
    paths = trie.paths(4)
    assert paths.tolist() == [list(row) for row in sorted({tuple(row) for row in codes.tolist()})]
    items = trie.items(torch.arange(len(paths))[None])[0]
    leaf, place = (items >= 0).nonzero(as_tuple=True)
    assert items[leaf, place].sort().values.tolist() == list(range(1000))
    assert torch.equal(codes[items[leaf, place]], paths[leaf])


def test_save_and_load(trie, tmp_path):
    trie.save(tmp_path / "trie.safetensors")
    loaded = SCIDTrie.load(tmp_path / "trie.safetensors")
    assert loaded.codebook_sizes == (3, 3)
    assert torch.equal(loaded.paths(2), trie.paths(2))
    assert torch.equal(loaded.items(torch.arange(4)[None]), trie.items(torch.arange(4)[None]))


def test_load_names_a_file_that_is_no_trie(tmp_path):
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(InputError, match="broken: cannot be read as a trie"):
        SCIDTrie.load(tmp_path / "broken")


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (torch.zeros(0, 2, dtype=torch.long), (3, 3), "no items"),
        (torch.zeros(4, 2), (3, 3), "expected integers"),
        (torch.zeros(4, 2, dtype=torch.long), (3, 3, 3), "2 levels but codebook_sizes names 3"),
        (torch.tensor([[0, 0], [1, 3]]), (3, 3), "item 1 has code 3 at level 1, expected 0 to 2"),
        (torch.tensor([[0, -1]]), (3, 3), "item 0 has code -1 at level 1"),
    ],
)
def test_codes_that_cannot_be_used_are_named(codes, sizes, message):
    with pytest.raises(InputError, match=message):
        SCIDTrie.from_codes(codes, sizes)
