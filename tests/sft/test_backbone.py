import pytest
import torch

from align3gr.sft import SmallLlamaConfig, add_dropout, small_llama


def test_dropout_acts_in_training_only_and_is_no_part_of_the_model(scid_tokenizer):
    model = small_llama(
        SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2), scid_tokenizer, 0
    )
    ids, names = torch.tensor([[1, 2, 3]]), set(model.state_dict())
    before = model.eval()(ids).logits
    add_dropout(model, 0.5)
    assert torch.equal(model(ids).logits, before)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert set(model.state_dict()) == names
    with pytest.raises(ValueError, match="dropout"):
        add_dropout(model, 1.0)
