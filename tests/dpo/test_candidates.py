"""Generation of candidates: in parts, taken up again, and what it refuses."""

import itertools
import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from align3gr.decoding import ConstrainedBeamSearch, SCIDTrie, StochasticBeamSearch
from align3gr.dpo.candidates import generate_candidates
from align3gr.errors import InputError
from align3gr.scid.prompts import PromptBuilder

CODES = np.array(list(itertools.product(range(4), range(4), range(2))))


@pytest.fixture
def searches(llama, tokenizer):
    """A beam search, a search by draws, and prompts of unequal lengths."""
    tokenizer.add_tokens([AddedToken(f"<{family}{level}_{code}>", normalized=False)
                          for family in "iu" for level in range(3) for code in range(4)])  # fmt: skip
    builder = PromptBuilder(tokenizer, user_scid=False)
    catalogue = SCIDTrie.from_codes(torch.tensor(CODES), (4, 4, 4)), builder.vocabulary.item_tokens
    model = llama(vocab_size=len(tokenizer))
    chance = np.random.default_rng(0)
    prompts = [builder.prompt(None, CODES[chance.integers(0, 32, 1 + at % 4)]) for at in range(11)]
    beam = ConstrainedBeamSearch(model, *catalogue, num_beams=6)
    return beam, StochasticBeamSearch(model, *catalogue, num_beams=6, seed=5), prompts


def test_candidates_are_the_lists_of_the_search_in_the_order_of_the_prompts(searches):
    beam, draws, prompts = searches
    for search in (beam, draws):
        candidates = generate_candidates(search, prompts, batch_size=2, part_prompts=3, progress=False)
        alone = [search.search(torch.tensor([prompt])).top(6).items[0].tolist() for prompt in prompts]
        assert candidates.tolist() == alone
        assert all(len(set(row)) == 6 for row in alone)


@pytest.mark.parametrize("sampling", [False, True])
def test_a_killed_generation_goes_on_from_its_last_part(searches, sampling, tmp_path, monkeypatch):
    search, prompts = searches[sampling], searches[2]
    options = {"batch_size": 2, "part_prompts": 4, "progress": False}
    expected = generate_candidates(search, prompts, folder=tmp_path / "straight", **options)
    asked = []
    ask = type(search).search

    def counted(self, input_ids, *args):
        asked.append(len(input_ids))
        if len(asked) == 4:  # parts of 4, 4 and 3 prompts are two searches each: in the second part
            raise KeyboardInterrupt
        return ask(self, input_ids, *args)

    monkeypatch.setattr(type(search), "search", counted)
    with pytest.raises(KeyboardInterrupt):
        generate_candidates(search, prompts, folder=tmp_path / "killed", **options)
    (tmp_path / "killed" / "000001.npy.99.partial").write_bytes(b"what a kill left")
    again = generate_candidates(search, prompts, folder=tmp_path / "killed", **options)
    assert np.array_equal(again, expected)
    assert (asked[:4], asked[4:]) == ([2, 2, 2, 2], [2, 2, 2, 1])  # the first part is not generated again
    names = ["000000.npy", "000001.npy", "000002.npy", "settings.json"]
    for folder in ("straight", "killed"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_candidates_of_another_call_are_refused(searches, tmp_path):
    beam, draws, prompts = searches
    generate_candidates(beam, prompts, folder=tmp_path, progress=False)
    with pytest.raises(InputError, match="holds candidates of another call \\(other prompts\\)"):
        generate_candidates(beam, prompts[1:], folder=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"\(other search, temperature, seed\)"):
        generate_candidates(draws, prompts, folder=tmp_path, progress=False)
    assert json.loads((tmp_path / "settings.json").read_text())["candidates"] == 6


def test_no_prompts_no_candidates(searches, tmp_path):
    assert generate_candidates(searches[0], [], folder=tmp_path, progress=False).shape == (0, 6)
