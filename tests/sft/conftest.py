import numpy as np
import polars as pl
import pytest

from align3gr.scid import SCIDTokenizer, train_base_tokenizer
from align3gr.sft import TaskData, UserCodes

# Three topics, each shared by at least three items; titles of one and two words.
ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{row}" for row in range(8)],
        "title": ["Red Hat", "Blue Hat", "Hat", "Red Shoe", "Blue Shoe", "Shoe", "Old Harp", ""],
        "text": [
            *["Red Hat. hats, wool", "Blue Hat. hats, wool", "Hat. hats, wool", "Red Shoe. shoes", "Blue Shoe. shoes"],
            *["Shoe. shoes", "Old Harp. music", "shoes"],
        ],
    }
)
USERS = pl.DataFrame({"user_id": ["a", "b", "c"], "profile": ["Likes wool.", "", "A walker."]})
SEQUENCES = [np.array([0, 1, 2, 0]), np.array([3, 4]), np.array([5])]
ITEM_CODES = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]])
USER_CODES = np.array([[0], [1], [2]])


@pytest.fixture(scope="session")
def scid_tokenizer():
    texts = [*ITEMS["text"], *USERS["profile"]]
    return SCIDTokenizer.from_base(train_base_tokenizer(texts, 300), [4, 4], [4])


@pytest.fixture
def task_data(scid_tokenizer):
    vocabulary = scid_tokenizer.scid
    return TaskData(
        ITEMS, USERS, SEQUENCES, vocabulary.item_ids(ITEM_CODES), vocabulary, UserCodes(USER_CODES), max_history=3
    )
