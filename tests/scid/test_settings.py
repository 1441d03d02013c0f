import pytest

from align3gr import InputError
from align3gr.scid import SCIDSettings
from align3gr.scid.configuration_rqvae import RQVAEConfig


def test_the_defaults_are_the_papers():
    config = SCIDSettings().model_config(12_000, (128, 64), (96, 32))
    for side in (config.item_rqvae, config.user_rqvae):
        quantizer = RQVAEConfig(**side)
        assert quantizer.codebook_sizes == [256, 256, 256] and quantizer.codebook_dim == 32
        assert (quantizer.estimator, quantizer.codebook_update, quantizer.sinkhorn_epsilon) == (
            "straight-through",
            "loss",
            0.0,
        )
    assert config.has_users and config.u2i_temperature == 1 and config.sc_encoder == "mlp"
    assert (config.contrastive_weight, config.diversity_weight) == (0, 0)
    assert (config.item_semantic_dim, config.item_collaborative_dim) == (128, 64)
    assert (config.user_semantic_dim, config.user_collaborative_dim) == (96, 32)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("codebook_dim", 7),
        ("hidden_dims", [9]),
        ("commitment_weight", 0.5),
        ("estimator", "rotation"),
        ("codebook_update", "ema"),
        ("ema_decay", 0.8),
        ("sinkhorn_epsilon", 0.02),
        ("revive_after", 5),
    ],
)
def test_options_of_the_quantisers_reach_both_sides(option, value):
    config = SCIDSettings(**{option: value}).model_config(100, (4, 4), (4, 4))
    for side in (config.item_rqvae, config.user_rqvae):
        assert getattr(RQVAEConfig(**side), option) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("semantic_weight", 0.3),
        ("sc_encoder", "none"),
        ("hidden_dim", 11),
        ("sc_dim", 13),
        ("u2i_temperature", 0.1),
        ("contrastive_weight", 0.02),
        ("diversity_weight", 0.001),
        ("collaborative_input", False),
    ],
)
def test_options_of_the_model_reach_it(option, value):
    assert getattr(SCIDSettings(**{option: value}).model_config(100, (4, 4), (4, 4)), option) == value


def test_sides_and_sizes():
    settings = SCIDSettings(sides="item", item_codebook_sizes=[8, 16], user_codebook_sizes=[4])
    config = settings.model_config(100, (4, 4), (4, 4))
    assert not config.has_users and config.item_rqvae["codebook_sizes"] == [8, 16]
    automatic = SCIDSettings(auto_codebook_sizes=True, user_codebook_sizes=[4, 4])
    config = automatic.model_config(1682, (4, 4), (4, 4))
    assert config.item_rqvae["codebook_sizes"] == [32, 32, 32] and config.user_rqvae["codebook_sizes"] == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_codes": "x.index.json"}, "item_codes: .* set sides: item"),
        ({"item_codes": "x.index.json", "sides": "item"}, "collisions: 'assignment' needs a trained model"),
        (
            {"item_codes": "x", "sides": "item", "collisions": "none", "previous": "run"},
            "previous: does not apply to ready item_codes",
        ),
        ({"previous": "run/scid", "collisions": "extra-level"}, "pin: does not go with collisions 'extra-level'"),
        ({"previous": "run/scid", "collisions": "item-token"}, "pin: does not go with collisions 'item-token'"),
        ({"auto_codebook_sizes": True, "item_codebook_sizes": [8, 8]}, "auto_codebook_sizes: leave"),
        ({"sc_encoder": "none", "hidden_dims": [8]}, "sc_encoder: 'none'"),
        ({"codes": "clusters"}, "codes clusters: ready codes have no user side; set sides: item"),
        ({"codes": "categories", "sides": "item"}, "with codes categories take none, extra-level, item-token"),
        (
            {"codes": "clusters", "sides": "item", "collisions": "none", "item_codes": "x"},
            "item_codes: does not go with codes 'clusters'",
        ),
        ({"user_buckets": 8}, "user_buckets: got 8 with sides 'dual'"),
        ({"user_buckets": -1, "sides": "item"}, "user_buckets: got -1"),
        ({"sc_encoder": "none", "contrastive_weight": 0.1}, "sc_encoder: 'none'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SCIDSettings(**options)
    assert SCIDSettings(previous="run/scid", collisions="extra-level", pin=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_update": "ema", "diversity_weight": 0.1}, "diversity_weight: code vectors that are running means"),
        ({"codebook_update": "ema", "sc_encoder": "none"}, "codebook_update: 'ema' with sc_encoder 'none'"),
        ({"u2i_temperature": 0.0}, "u2i_temperature: got 0.0"),
        ({"ema_decay": 1.0}, "ema_decay: got 1.0"),
        ({"estimator": "gumbel"}, "estimator: got 'gumbel'"),
        ({"codebook_update": "never"}, "codebook_update: got 'never'"),
        ({"sinkhorn_epsilon": -1.0}, "sinkhorn_epsilon: got -1.0"),
        ({"sc_encoder": "transformer"}, "sc_encoder: got 'transformer'"),
        ({"item_codebook_sizes": [8, 1]}, "codebook_sizes"),
    ],
)
def test_models_that_could_not_learn_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SCIDSettings(**options).model_config(100, (4, 4), (4, 4))


def test_texts_alone_go_into_the_encoder_where_collaborative_features_only_regularise():
    settings = SCIDSettings(sides="item", collaborative_input=False, contrastive_weight=0.02)
    config = settings.model_config(100, (4, 3), (4, 3))
    assert config.encoder_dims("item") == (4, 0) and config.item_rqvae["output_dim"] == 4
    assert config.item_collaborative_dim == 3
    for items, users, name in (((0, 3), (0, 0), "items"), ((4, 3), (0, 3), "users")):
        with pytest.raises(InputError, match=f"collaborative_input: without it {name} need semantic features"):
            SCIDSettings(collaborative_input=False).model_config(100, items, users)


def test_later_options_are_in_a_manifest_only_where_they_are_set():
    # What manifests held before there were such options; more would make finished stages run again.
    before = {
        "sides", "item_codebook_sizes", "user_codebook_sizes", "auto_codebook_sizes", "codebook_dim", "hidden_dims",
        "semantic_weight", "sc_encoder", "hidden_dim", "sc_dim", "u2i_temperature", "contrastive_weight",
        "diversity_weight", "commitment_weight", "estimator", "codebook_update", "ema_decay", "sinkhorn_epsilon",
        "revive_after", "collisions", "item_codes", "previous", "pin",
    }  # fmt: skip
    assert set(SCIDSettings().recorded()) == before
    p5 = SCIDSettings(sides="item", codes="clusters", collisions="extra-level", largest_cluster=50)
    assert set(p5.recorded()) == before | {"codes", "largest_cluster"}


def test_contrast_needs_collaborative_features():
    with pytest.raises(InputError, match="contrastive_weight: needs collaborative features"):
        SCIDSettings(contrastive_weight=0.1).model_config(100, (4, 0), (4, 0))


def test_options_that_a_variant_does_not_look_at_are_named():
    from align3gr.scid import DualSCIDTrainingConfig

    training = DualSCIDTrainingConfig(alignment_epochs=3, quantization_epochs=0)
    assert SCIDSettings().without_effect(training) == []
    assert SCIDSettings(ema_decay=0.5).without_effect(training) == ["ema_decay"]
    assert SCIDSettings(sc_encoder="none", sc_dim=8).without_effect(training) == ["alignment_epochs", "sc_dim"]
    item_only = SCIDSettings(sides="item", user_codebook_sizes=[4], codebook_dim=8)
    assert item_only.without_effect(training) == ["alignment_epochs", "user_codebook_sizes"]
    imported = SCIDSettings(sides="item", item_codes="x.index.json", collisions="none", codebook_dim=8)
    assert imported.without_effect(training) == ["alignment_epochs", "codebook_dim", "quantization_epochs"]
    clusters = SCIDSettings(
        sides="item", codes="clusters", collisions="extra-level", clusters=5, category_levels=2, codebook_dim=8
    )
    assert clusters.without_effect(DualSCIDTrainingConfig(seed=3)) == ["category_levels", "codebook_dim"]
    categories = SCIDSettings(sides="item", codes="categories", collisions="none", clusters=5, category_levels=2)
    assert categories.without_effect(DualSCIDTrainingConfig(seed=3)) == ["clusters", "seed"]
    assert SCIDSettings(category_levels=2).without_effect(DualSCIDTrainingConfig()) == ["category_levels"]
