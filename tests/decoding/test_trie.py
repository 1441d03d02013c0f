"""The catalogue tree against codes small enough to draw by hand."""

import pytest
import torch

from align3gr.decoding.code_rows import codes_fingerprint
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


def test_items_come_and_go_without_moving_the_others(trie):
    smaller = trie.without([0, 2])  # left: 00(1) 01(3) 12(4)
    assert smaller.paths(2).tolist() == [[0, 0], [0, 1], [1, 2]]
    assert smaller.items(torch.tensor([[0, 1, 2]])).tolist() == [[[1], [3], [4]]]
    assert (smaller.num_items, smaller.index_bound) == (3, 5)
    assert smaller.places(torch.tensor([0, 1, 2, 3, 4, 5, -1])).tolist() == [-1, 0, -1, 1, 2, -1, -1]
    grown = smaller.with_items([[2, 2], [0, 1]])  # items 5 and 6: 0 and 2 are not given again
    assert grown.paths(2).tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]
    assert grown.items(torch.tensor([[0, 1, 2, 3]])).tolist() == [[[1, -1], [3, 6], [4, -1], [5, -1]]]
    assert grown.item_codes().tolist() == [[-1, -1], [0, 0], [-1, -1], [0, 1], [1, 2], [2, 2], [0, 1]]
    assert trie.num_items == 5 and trie.item_codes().tolist() == CODES.tolist()


@pytest.mark.parametrize("sizes", [(7, 7, 9, 8), (7, 2**31, 2**31, 8)])  # a SCID in one integer, and too long for it
def test_growing_step_by_step_is_building_at_once(sizes):
    codes = torch.randint(0, 7, (500, 4), generator=torch.Generator().manual_seed(0))
    at_once = SCIDTrie.from_codes(codes, sizes)
    grown = SCIDTrie.from_codes(codes[:200], sizes).with_items(codes[200:201]).with_items(codes[201:].numpy())
    leaves = torch.arange(at_once.num_nodes[-1])[None]
    assert at_once.paths(4).tolist() == [list(row) for row in sorted({tuple(row) for row in codes.tolist()})]
    assert torch.equal(grown.paths(4), at_once.paths(4))
    assert torch.equal(grown.items(leaves), at_once.items(leaves))
    back = grown.without(range(200, 500))
    assert torch.equal(back.item_codes()[:200], codes[:200]) and (back.item_codes()[200:] == -1).all()


def test_changes_that_cannot_be_made_are_named(trie):
    with pytest.raises(InputError, match="items: 5 is no item of the trie"):
        trie.without([1, 5])
    with pytest.raises(InputError, match="items: 0 is no item"):
        trie.without([0]).without([0])
    with pytest.raises(InputError, match="all items would be removed"):
        trie.without(range(5))
    with pytest.raises(InputError, match="item 0 has code 3 at level 1"):
        trie.with_items([[0, 3]])


def test_a_saved_tree_knows_the_codes_that_it_was_made_from(trie, tmp_path):
    path = tmp_path / "trie.safetensors"
    trie.without([0]).save(path)
    loaded = SCIDTrie.load(path)
    assert loaded.index_bound == 5 and loaded.item_codes().tolist() == trie.without([0]).item_codes().tolist()
    trie.save(path)
    SCIDTrie.load(path, fingerprint=codes_fingerprint(CODES.numpy().astype("int16"), (3, 3)))
    other = CODES.clone()
    other[0] = torch.tensor([2, 2])
    for table, sizes in ((other, (3, 3)), (CODES, (3, 4)), (CODES[:4], (3, 3))):
        with pytest.raises(InputError, match="made from another table of codes"):
            SCIDTrie.load(path, fingerprint=codes_fingerprint(table.numpy(), sizes))


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
