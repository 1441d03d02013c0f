import math

import numpy as np
import pytest
import torch

from align3gr import InputError
from align3gr.scid import (
    DualSCIDConfig,
    DualSCIDModel,
    DualSCIDTrainingConfig,
    FeatureTable,
    RQVAEConfig,
    assign_codes,
    train_dual_scid,
    u2i_loss,
)


def small_model():
    torch.manual_seed(0)
    quantizer = RQVAEConfig(codebook_sizes=(4, 4, 16), codebook_dim=4)
    return DualSCIDModel(
        DualSCIDConfig(6, 5, 6, 5, hidden_dim=16, sc_dim=8, item_rqvae=quantizer, user_rqvae=quantizer)
    )


def market(num_users=60, num_items=40):
    """Two kinds of users and items; users take items of their kind. The features hold the kind and noise."""
    rng = np.random.default_rng(0)

    def table(rows):
        kind = np.arange(rows)[:, None] % 2
        noise = rng.normal(size=(rows, 11)).astype(np.float32)
        noise[:, :1] += 4 * kind - 2
        return FeatureTable(torch.from_numpy(noise[:, :6]), torch.from_numpy(noise[:, 6:]))

    sequences = [rng.choice(np.arange(user % 2, num_items, 2), 8, replace=False) for user in range(num_users)]
    return table(num_users), table(num_items), sequences


def test_u2i_loss_by_hand():
    users = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    items = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    # scores: user 0: 1, 3; user 1: 2, 2. The positives stand on the diagonal.
    expected = (math.log(math.exp(1) + math.exp(3)) - 1 + math.log(2)) / 2
    assert u2i_loss(users, items).item() == pytest.approx(expected, abs=1e-6)


def test_u2i_loss_masks_false_negatives_and_never_the_positive():
    users = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    items = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    known = torch.tensor([[True, True], [False, True]])  # user 0 also took item 1
    assert u2i_loss(users, items, known).item() == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_alignment_moves_the_encoders_only_and_quantisation_moves_everything():
    model, (users, items, _) = small_model(), market()
    for encoder in (model.user_encoder, model.item_encoder):
        # The MLP adds nothing at the start, so its first layer has no gradient.
        assert not encoder.mlp[-1].weight.any()
        torch.nn.init.normal_(encoder.mlp[-1].weight)
    some_users, some_items = users.rows(slice(0, 40)), items.rows(slice(0, 40))
    model(some_users, some_items).u2i_loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in model.named_parameters() if "rqvae" not in name}
    model.zero_grad()
    output = model(some_users, some_items, quantize_users=some_users, quantize_items=some_items)
    (output.user_rq_loss + output.item_rq_loss).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert still == []


def test_training_aligns_users_with_their_items_and_codes_are_unique(tmp_path):
    model, (users, items, sequences) = small_model(), market()
    config = DualSCIDTrainingConfig(
        batch_size=32, alignment_epochs=15, quantization_epochs=5, learning_rate=5e-3, patience=15, holdout=0.2
    )
    history = train_dual_scid(model, users, items, sequences, config, tmp_path)
    assert history.auc[-1] > 0.65
    codes = assign_codes(model, users, items)
    assert len(np.unique(codes.items, axis=0)) == len(items)
    assert codes.users.shape == (60, 3)
    again = small_model()
    train_dual_scid(again, users, items, sequences, config, tmp_path)
    second = assign_codes(again, users, items)
    assert np.array_equal(second.items, codes.items) and np.array_equal(second.users, codes.users)


def test_alignment_stops_when_the_auc_is_flat(tmp_path):
    model, (users, items, sequences) = small_model(), market()
    config = DualSCIDTrainingConfig(
        batch_size=32,
        alignment_epochs=30,
        autoencoder_epochs=2,
        quantization_epochs=1,
        patience=2,
        min_auc_gain=1.0,
        holdout=0.2,
    )
    history = train_dual_scid(model, users, items, sequences, config, tmp_path)
    assert len(history.auc) == 6  # the first epoch counts as growth, two without; two autoencoding, one quantising


def test_alignment_keeps_the_weights_of_its_best_epoch(tmp_path, monkeypatch):
    model, (users, items, sequences) = small_model(), market()
    falling, seen = iter([0.6, 0.7, 0.65, 0.62]), []

    def scripted_auc(*_):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(falling)

    monkeypatch.setattr("align3gr.scid.dual_scid_trainer.pair_auc", scripted_auc)
    config = DualSCIDTrainingConfig(
        batch_size=32, alignment_epochs=9, autoencoder_epochs=0, quantization_epochs=0, patience=2, holdout=0.2
    )
    history = train_dual_scid(model, users, items, sequences, config, tmp_path)
    assert history.auc == [0.6, 0.7, 0.65, 0.62]
    for name, value in model.state_dict().items():
        if "codebooks" not in name:  # which k-means moved afterwards
            assert torch.equal(value, seen[1][name]), name
    assert not torch.equal(model.item_encoder.projection.weight, seen[3]["item_encoder.projection.weight"])


def test_save_and_load(tmp_path):
    model, (users, items, _) = small_model().eval(), market()
    model.save_pretrained(tmp_path)
    again = DualSCIDModel.from_pretrained(tmp_path)
    assert torch.equal(again.encode_items(items.rows(slice(0, 40))), model.encode_items(items.rows(slice(0, 40))))
    assert torch.equal(again.encode_users(users.rows(slice(0, 60))), model.encode_users(users.rows(slice(0, 60))))


def items_only(**options):
    torch.manual_seed(0)
    quantizer = RQVAEConfig(codebook_sizes=(4, 4, 16), codebook_dim=4)
    return DualSCIDModel(DualSCIDConfig(6, 5, 0, 0, hidden_dim=16, sc_dim=8, item_rqvae=quantizer, **options))


def test_an_item_side_alone_has_no_parts_for_users_and_says_so(tmp_path):
    model, (users, items, _) = items_only(), market()
    assert not any("user" in name for name, _ in model.named_parameters())
    for ask in (model.embed_users, model.encode_users, lambda rows: model(quantize_users=rows)):
        with pytest.raises(InputError, match="users: the model has an item side only"):
            ask(users.rows(slice(0, 3)))
    model.eval().save_pretrained(tmp_path)
    rows = items.rows(slice(None))
    assert torch.equal(DualSCIDModel.from_pretrained(tmp_path).encode_items(rows), model.encode_items(rows))


def test_without_sc_encoder_the_weighted_unit_features_are_quantised():
    model, (_, items, _) = items_only(sc_encoder="none", semantic_weight=0.5), market()
    expected = torch.cat(
        [
            0.5 * items.semantic / items.semantic.norm(dim=1, keepdim=True),
            items.collaborative / items.collaborative.norm(dim=1, keepdim=True),
        ],
        1,
    )
    torch.testing.assert_close(model.embed_items(items.rows(slice(None))), expected)
    assert {name.split(".")[2] for name, _ in model.named_parameters()} == {"codebooks"}
    assert model.item_rqvae.config.codebook_dim == 11


def test_letters_regularisers_come_with_their_weights():
    torch.manual_seed(0)
    model, (_, items, _) = items_only(contrastive_weight=0.3).train(), market()
    rows = torch.tensor([0, 1, 2, 1])
    features = items.rows(rows)
    output = model(quantize_items=features, item_rows=rows)
    quantized = model.item_rqvae.quantizer(model.item_rqvae.latent(model.embed_items(features)))[0]
    unit = features["collaborative"] / features["collaborative"].norm(dim=1, keepdim=True)
    scores = quantized @ (unit @ model.collaborative_head.weight.T).T
    scores[1, 3] = scores[3, 1] = -torch.inf  # one item twice
    expected = (scores.logsumexp(1) - scores.diagonal()).mean()
    torch.testing.assert_close(output.regularization, 0.3 * expected)
    output.regularization.backward()
    assert model.collaborative_head.weight.grad.any() and model.item_encoder.projection.weight.grad.any()
    assert model(quantize_items=features).regularization > output.regularization  # nothing masked
    diverse = items_only(diversity_weight=0.5).train()
    output = diverse(quantize_items=items.rows(slice(None)))
    output.regularization.backward()
    touched = {name for name, parameter in diverse.named_parameters() if parameter.grad is not None}
    assert touched == {f"item_rqvae.quantizer.codebooks.{level}" for level in range(3)}
    diverse.quantize = False
    assert diverse(quantize_items=features).regularization is None


def test_temperature_of_the_model_divides_its_scores():
    users, items, _ = market()
    pairs = users.rows(slice(0, 8)), items.rows(slice(0, 8))
    sharp = small_model()
    sharp.config.u2i_temperature = 0.25
    scores = sharp.embed_users(pairs[0]) @ sharp.embed_items(pairs[1]).T * 4
    torch.testing.assert_close(sharp(*pairs).u2i_loss, (scores.logsumexp(1) - scores.diagonal()).mean())
