import logging
import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import deepspeed

from align3gr.errors import InputError
from align3gr.sft.pretrained import load_backbone
from align3gr.undivided import ZERO3_MARK
from tests.sft.backbones import FAMILIES, SPARE_ROWS, save_backbone


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_old_tokens_keep_ids_and_rows_and_new_ones_get_rows(family, tied, tmp_path):
    folder = save_backbone(tmp_path, family, tied)
    model, tokenizer = load_backbone(folder, [4, 3], [2])
    base, base_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    old = len(base_tokenizer)
    assert len(tokenizer) == old + 4 + 3 + 2
    assert tokenizer("red shoes")["input_ids"] == base_tokenizer("red shoes")["input_ids"]
    assert tokenizer.scid.token_ids == list(range(old, old + 9))
    # Rows behind the vocabulary are taken first; otherwise there is one row a token, none in excess.
    assert model.config.vocab_size == max(old + SPARE_ROWS.get(family, 0), len(tokenizer))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for name, head in (("embeddings", False), ("head", True)):
        new, before = (m.lm_head.weight if head else m.model.embed_tokens.weight for m in (model, base))
        assert torch.equal(new[:old], before[:old]), name
        assert torch.pdist(new[tokenizer.scid.token_ids]).min() > 1e-3, name
    ids = torch.tensor([base_tokenizer("blue shoes")["input_ids"]])
    torch.testing.assert_close(model(ids).logits[..., :old], base(ids).logits[..., :old], rtol=0, atol=1e-6)


def test_codebooks_and_seed_decide_how_new_rows_start(tmp_path):
    folder = save_backbone(tmp_path)
    # Codes 0 and 1 have one vector.
    codebooks = {"item": [torch.tensor([[1.0, 0.0], [1.0, 0.0], [-3.0, 1.0], [0.0, 2.0]])]}

    def rows(**options):
        model, tokenizer = load_backbone(folder, [4], **options)
        return model.model.embed_tokens.weight[tokenizer.scid.token_ids].detach()

    near = rows(init="codebook", codebooks=codebooks)
    assert (near[0] - near[1]).norm() < 0.5 * (near[0] - near[2]).norm()
    assert torch.equal(rows(seed=3), rows(seed=3)) and not torch.equal(rows(seed=3), rows(seed=4))


def test_a_model_that_has_scids_keeps_their_rows(tmp_path, caplog):
    model, tokenizer = load_backbone(save_backbone(tmp_path / "base"), [4, 3], [2])
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight[tokenizer.scid.token_ids] += 1.0  # as if they had been trained
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    codebooks = {"item": [torch.randn(4, 2), torch.randn(3, 2)]}
    for options in ({"seed": 5}, {"init": "codebook", "codebooks": codebooks}):
        with caplog.at_level(logging.INFO):
            again, same = load_backbone(tmp_path / "trained", [4, 3], [2], **options)
        assert same.scid.token_ids == tokenizer.scid.token_ids and "9 SCID tokens, whose rows are kept" in caplog.text
        for name, weight in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight), name


def test_dtype_attention_and_padding_follow_the_arguments(tmp_path):
    folder = save_backbone(tmp_path, pad=False, dtype=torch.bfloat16)
    model, tokenizer = load_backbone(folder, [4], attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert tokenizer.pad_token == "</s>" and model.config.pad_token_id == tokenizer.pad_token_id == 1
    assert load_backbone(folder, [4], dtype="float32")[0].dtype == torch.float32


def test_what_cannot_be_extended_is_refused_in_one_line(tmp_path):
    folder = save_backbone(tmp_path / "model")
    with pytest.raises(InputError, match=r"base_model .*nowhere: cannot be loaded"):
        load_backbone(tmp_path / "nowhere", [4])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="its tokenizer has 291 tokens, the model 290 rows"):
        load_backbone(folder, [4])
    tokenizer.init_kwargs["legacy"] = True
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"base_model .*legacy=False") as error:
        load_backbone(folder, [4])
    assert "\n" not in str(error.value)


def test_the_whole_model_is_loaded_although_a_zero3_configuration_is_known(tmp_path, monkeypatch):
    class Configuration:
        config: dict = {}  # noqa: RUF012

        def is_zero3(self):
            return True

    folder = save_backbone(tmp_path)
    # transformers would cut the model up through this module.
    init = types.SimpleNamespace(Init=lambda **options: pytest.fail("the model was divided on loading"))
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=init))
    monkeypatch.setattr(deepspeed, ZERO3_MARK, None)
    configuration = Configuration()
    deepspeed.set_hf_deepspeed_config(configuration)
    model, tokenizer = load_backbone(folder, [4])
    assert model.lm_head.weight.shape == (len(tokenizer), 16)
    assert deepspeed.is_deepspeed_zero3_enabled()


def test_what_was_loaded_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "align3gr"):
        load_backbone(save_backbone(tmp_path), [4, 4], [2])
    assert "290 tokens and 10 SCID tokens" in caplog.text
