import pytest
import torch
from torch import nn

from align3gr.errors import InputError
from align3gr.sft import SmallLlamaConfig, T5Arguments, add_dropout, small_llama, small_t5
from align3gr.sft.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for_and_the_mean_stays(probability):
    torch.manual_seed(0)
    values = torch.ones(333, 1001, requires_grad=True)  # no multiple of four
    out = dropout(values, probability)
    share = (out == 0).double().mean().item()
    sigma = (probability * (1 - probability) / values.numel()) ** 0.5
    assert share == pytest.approx(probability, abs=5 * sigma + 2**-17)
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - probability)], rel=1e-3)
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())  # what was dropped has no gradient


def test_numbers_of_one_draw_are_dropped_independently():
    torch.manual_seed(0)
    fours = (dropout(torch.ones(200_000, 4), 0.3) == 0).double()
    correlation = torch.corrcoef(fours.T) - torch.eye(4)
    assert correlation.abs().max() < 0.015


def test_the_generator_of_torch_decides():
    values = torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(values, 0.5), dropout(values, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(values, 0.5), first) and not torch.equal(first, second)


def test_all_embeddings_and_blocks_of_a_t5_are_dropped(scid_tokenizer):
    model = small_t5(16, 24, 1, 2, scid_tokenizer, T5Arguments("t5"), seed=0)
    ids, names = torch.tensor([[1, 2, 3]]), set(model.state_dict())
    before = model.eval()(input_ids=ids, labels=ids).logits
    add_dropout(model, 0.5)
    assert torch.equal(model(input_ids=ids, labels=ids).logits, before) and set(model.state_dict()) == names
    zeros = {}

    def note(name):
        def hook(module, inputs, output):
            zeros[name] = ((output[0] if isinstance(output, tuple) else output) == 0).double().mean().item()

        return hook

    for name, module in model.named_modules():  # behind the hooks that drop
        if (isinstance(module, nn.Embedding) and module.embedding_dim == 16) or name.endswith(("Attention", "Dense")):
            module.register_forward_hook(note(name.rpartition("layer.")[2] if "layer." in name else "embedding"))
    torch.manual_seed(0)
    model.train()(input_ids=ids.repeat(20, 1), labels=ids.repeat(20, 1))
    assert set(zeros) == {
        "embedding",
        "0.SelfAttention",
        "1.DenseReluDense",
        "1.EncDecAttention",
        "2.DenseReluDense",
    }
    assert all(share == pytest.approx(0.5, abs=0.08) for share in zeros.values())


def test_no_probability_is_refused(scid_tokenizer):
    shape = SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match=r"dropout must lie in \[0, 1\), got 1"):
        add_dropout(small_llama(shape, scid_tokenizer, 0), 1.0)
