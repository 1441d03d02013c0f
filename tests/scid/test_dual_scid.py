import math

import numpy as np
import pytest
import torch

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
        assert not encoder.mlp[
            -1
        ].weight.any()  # the MLP adds nothing at the start, so its first layer has no gradient
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
    assert np.array_equal(assign_codes(again, users, items).items, codes.items)


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


def test_save_and_load(tmp_path):
    model, (users, items, _) = small_model().eval(), market()
    model.save_pretrained(tmp_path)
    again = DualSCIDModel.from_pretrained(tmp_path)
    assert torch.equal(again.encode_items(items.rows(slice(0, 40))), model.encode_items(items.rows(slice(0, 40))))
    assert torch.equal(again.encode_users(users.rows(slice(0, 60))), model.encode_users(users.rows(slice(0, 60))))
