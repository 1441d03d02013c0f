import pytest
from trl import SFTConfig

from align3gr.errors import InputError
from align3gr.recipe import parse
from align3gr.sft import LoRAArguments, SFTArguments, SmallLlamaConfig, T5Arguments, small_t5
from tests.conftest import ROOT

T5_RECIPES = [path for path in sorted(ROOT.glob("recipes/*/sft-*.yaml")) if "architecture: t5" in path.read_text()]


def check(t5, lora=None, training=None, **options):
    arguments = SFTArguments(run_dir="run", **({"objective": "prefix"} | options))
    plain = {"output_dir": "out", "use_cpu": True, "bf16": False}
    t5.check(arguments, lora or LoRAArguments(), SFTConfig(**plain, **(training or {})))


def test_the_shape_is_the_one_asked_for(scid_tokenizer):
    t5 = T5Arguments("t5", decoder_layers=1, head_size=5)
    model = small_t5(16, 24, 2, 3, scid_tokenizer, t5, seed=0)
    assert len(model.encoder.block) == 2 and len(model.decoder.block) == 1
    attention = model.encoder.block[0].layer[0].SelfAttention
    assert attention.q.weight.shape == (15, 16)  # 3 heads of 5
    assert model.encoder.block[0].layer[1].DenseReluDense.wi.weight.shape == (24, 16)
    assert model.get_input_embeddings().weight.shape == (len(scid_tokenizer), 16)
    assert model.config.dropout_rate == 0
    assert model.config.decoder_start_token_id == scid_tokenizer.pad_token_id
    followed = small_t5(16, 24, 2, 4, scid_tokenizer, T5Arguments("t5"), seed=0)
    smaller = small_t5(16, 24, 2, 4, scid_tokenizer, T5Arguments("t5", initializer_factor=0.3), seed=0)
    assert smaller.shared.weight.std().item() == pytest.approx(0.3 * followed.shared.weight.std().item(), rel=1e-4)
    assert len(followed.decoder.block) == 2 and followed.config.d_kv == 4


def test_a_manifest_of_a_causal_model_does_not_know_of_t5():
    assert T5Arguments().recorded() == {}
    assert T5Arguments("t5", head_size=8).recorded() == {
        "architecture": "t5",
        "decoder_layers": 0,
        "head_size": 8,
        "initializer_factor": 1.0,
        "loss_temperature": 1.0,
    }


@pytest.mark.parametrize(
    ("t5", "options", "message"),
    [
        (T5Arguments(head_size=8), {}, "head_size: applies to architecture t5 only"),
        (T5Arguments(loss_temperature=0.8), {}, "loss_temperature: applies to architecture t5 only"),
        (T5Arguments("t5", decoder_layers=-1), {}, "decoder_layers, head_size: got -1"),
        (T5Arguments("t5", loss_temperature=0.0), {}, "loss_temperature: got 0.0"),
        (T5Arguments("t5", head_size=8), {"base_model": "t5-small"}, "head_size: base_model has a shape and weights"),
        (T5Arguments("t5", initializer_factor=0.5), {"base_model": "t5-small"}, "initializer_factor: base_model has"),
        (T5Arguments("t5", initializer_factor=0.0), {}, "initializer_factor: got 0.0, expected more than 0"),
        (
            T5Arguments("t5"),
            {"objective": "every_item"},
            "objective: got 'every_item'.* set objective: prefix or prefix_lm",
        ),
        (T5Arguments(), {"objective": "prefix_lm"}, "objective: prefix_lm is for architecture t5"),
        (T5Arguments("t5"), {"lora": LoRAArguments(use_lora=True)}, "use_lora: adapters are for causal LMs"),
        (T5Arguments("t5"), {"training": {"packing": True}}, "packing: got True, it applies to causal LMs only"),
    ],
)
def test_options_that_have_no_effect_are_refused(t5, options, message):
    with pytest.raises(InputError, match=message):
        check(t5, **options)


def test_what_goes_together_is_accepted():
    check(T5Arguments("t5", 1, 8, 0.8), training={"max_length": 64, "pad_to_multiple_of": 8})
    check(T5Arguments("t5"), base_model="t5-small", objective="prefix_lm")
    check(T5Arguments(), objective="every_item", training={"packing": True})


@pytest.mark.parametrize("path", T5_RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_files_have_no_option_without_effect(path):
    types = [SFTArguments, SmallLlamaConfig, T5Arguments, LoRAArguments, SFTConfig]
    arguments, _, t5, lora, training = parse(types, ["--config", str(path)])
    t5.check(arguments, lora, training)


def test_there_are_recipes_of_all_four_systems():
    for data in ("yelp", "ml-100k", "smoke"):
        names = {path.stem for path in T5_RECIPES if path.parent.name == data}
        assert names >= {"sft-tiger", "sft-letter-tiger", "sft-p5-semid", "sft-p5-cid"}
        assert {path.stem for path in (ROOT / "recipes" / data).glob("scid-*.yaml")} >= {
            name.replace("sft", "scid") for name in names
        }
