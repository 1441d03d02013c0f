import math
import re

import pytest
from trl import SFTConfig

from align3gr.errors import InputError
from align3gr.scid import PromptBuilder
from align3gr.sft import SmallLlamaConfig, copying_rows, learn_to_copy, small_llama

from .conftest import ITEM_CODES


def test_rows_repeat_their_items_and_the_loss_is_on_the_repetition(scid_tokenizer):
    prompts = PromptBuilder(scid_tokenizer, max_history=9, template="[{user}]chose{history}")
    rows = copying_rows(prompts, ITEM_CODES, 50, seed=0)
    orders = set()
    for row in rows:
        learnt = [token for token in row["labels"] if token != -100]
        shown = row["input_ids"][: -len(learnt)]
        assert row["input_ids"][-len(learnt) :] == learnt
        first, second = (re.findall(r"<i0_\d><i1_\d>", scid_tokenizer.decode(ids)) for ids in (shown, learnt))
        assert len(first) == 5 and sorted(first) == sorted(second)  # half of the 10 items that a row can hold
        assert scid_tokenizer.decode(shown).startswith("<s>chose<i0_")
        orders.add(first == second)
    assert False in orders
    assert rows["input_ids"] == copying_rows(prompts, ITEM_CODES, 50, seed=0)["input_ids"]
    assert rows["input_ids"] != copying_rows(prompts, ITEM_CODES, 50, seed=1)["input_ids"]


def test_a_model_learns_to_copy(scid_tokenizer, tmp_path):
    config = SmallLlamaConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, tie_embeddings=True)
    model = small_llama(config, scid_tokenizer, seed=0)
    prompts = PromptBuilder(scid_tokenizer, max_history=6)
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, learning_rate=5e-3, adam_beta2=0.98)
    loss = learn_to_copy(model, scid_tokenizer, prompts, ITEM_CODES, training, steps=200)
    # A model that knows the catalogue but not the row needs ln(8) nats for an item of two tokens.
    assert loss < 0.9 * math.log(8) / 2


@pytest.mark.parametrize("max_history, items", [(2, 8), (20, 8)])
def test_nothing_to_repeat_is_refused(scid_tokenizer, max_history, items):
    with pytest.raises(InputError, match="copying_steps"):
        copying_rows(PromptBuilder(scid_tokenizer, max_history), ITEM_CODES[:items], 5, seed=0)
