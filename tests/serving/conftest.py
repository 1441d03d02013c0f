import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from align3gr.decoding.recommender import Recommender
from align3gr.scid.vocabulary import scid_tokens
from tests.decoding.conftest import make_model

ITEMS = 40


@pytest.fixture(scope="session")
def recommender() -> Recommender:
    """40 items "0" to "39" with 10 beams, of a model with clear orders; users "u1" and "u2"."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<s>": 0, "[UNK]": 1}, unk_token="[UNK]")), bos_token="<s>"
    )
    tokenizer.add_tokens(scid_tokens("i", [4, 4, 4]) + scid_tokens("u", [4, 4, 4]))
    codes = np.random.default_rng(0).permutation(64)[:ITEMS]
    items = pl.DataFrame(
        {
            "item_id": [str(number) for number in range(ITEMS)],
            "title": [f"item {number}" for number in range(ITEMS)],
            "codes": np.stack(np.unravel_index(codes, (4, 4, 4)), axis=1).tolist(),
        }
    )
    users = pl.DataFrame({"user_id": ["u1", "u2"], "codes": [[1, 2, 3], [0, 0, 0]]})
    return Recommender(make_model(), tokenizer, items, users, num_beams=10)
