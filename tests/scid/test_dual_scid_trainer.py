import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from transformers import TrainingArguments

from align3gr import InputError
from align3gr.scid import (
    DualSCIDConfig,
    DualSCIDModel,
    DualSCIDTrainingConfig,
    FeatureTable,
    RQVAEConfig,
    RQVAEModel,
    assign_codes,
    train_dual_scid,
)
from align3gr.scid.dual_scid_metrics import CollapsedCodebookError, score_auc
from align3gr.scid.dual_scid_trainer import DualSCIDTrainer, PairCollator, PairDataset
from tests.scid.test_dual_scid import market, small_model

SHORT = DualSCIDTrainingConfig(
    batch_size=32,
    alignment_epochs=1,
    autoencoder_epochs=1,
    quantization_epochs=2,
    learning_rate=5e-3,
    holdout=0.2,
)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_phase_1_moves_the_sc_encoders_alone_and_phase_2_everything(tmp_path, monkeypatch):
    model, (users, items, sequences) = small_model(), market()
    start, seen = state(model), []
    initialize = RQVAEModel.initialize_codebooks

    def spy(self, *args, **kwargs):
        seen.append(state(model))
        initialize(self, *args, **kwargs)
        seen.append(state(model))

    monkeypatch.setattr(RQVAEModel, "initialize_codebooks", spy)
    config = dataclasses.replace(SHORT, alignment_epochs=2, autoencoder_epochs=0, alpha=0.0)
    train_dual_scid(model, users, items, sequences, config, tmp_path)
    aligned, started = seen[0], seen[-1]
    encoders = {name for name in start if "rqvae" not in name}
    assert len(encoders) == 10 and moved(start, aligned) == encoders
    assert moved(aligned, started) == {name for name in start if "codebooks" in name}
    # Without U2I in phase 2 what moves the encoders is the quantisation alone.
    assert moved(started, state(model)) == set(start)


def test_loss_is_eq_2(tmp_path):
    model, (users, items, _) = small_model(), market()
    matrix = sp.csr_matrix(np.eye(60, 40))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    collator = PairCollator(users, items, matrix, align=True, quantize=True)
    pairs = np.stack([np.arange(20), np.arange(20)], 1)
    trainer = DualSCIDTrainer(
        model=model, args=arguments, alpha=0.3, gamma=0.7, auc_pairs=pairs, collator=collator, books=False,
        train_dataset=PairDataset(pairs),
    )  # fmt: skip
    batch = collator(torch.from_numpy(pairs))
    loss, output = trainer.compute_loss(model.eval(), batch, return_outputs=True)
    expected = 0.3 * output.u2i_loss + 0.7 * (output.user_rq_loss + output.item_rq_loss)
    torch.testing.assert_close(loss, expected)
    assert min(output.u2i_loss, output.user_rq_loss, output.item_rq_loss) > 0.01


def test_collator_masks_what_users_took_and_says_how_often_items_come():
    _, items, _ = market()
    users = FeatureTable(items.semantic[:3], items.collaborative[:3])
    took = sp.csr_matrix(np.array([[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 1, 0]]))  # the 2 is one item, taken twice
    collator = PairCollator(users, items, took, align=True, quantize=False, log_q=True)
    batch = collator(torch.tensor([[0, 0], [1, 1], [2, 2]]))
    assert batch["false_negatives"].tolist() == [[True, True, False], [False, True, False], [False, True, True]]
    assert batch["log_q"].tolist() == pytest.approx([math.log(1 / 5), math.log(3 / 5), math.log(1 / 5)])
    assert "quantize_items" not in batch
    plain = PairCollator(users, items, took, align=True, quantize=False)(torch.tensor([[0, 0]]))
    assert "log_q" not in plain


def test_logq_correction_changes_what_is_learnt(tmp_path):
    users, items, sequences = market()
    sequences = [np.union1d(sequence, [user % 2]) for user, sequence in enumerate(sequences)]  # two popular items
    config = dataclasses.replace(SHORT, quantization_epochs=0, autoencoder_epochs=0)
    first = [
        train_dual_scid(
            small_model(), users, items, sequences, dataclasses.replace(config, logq_correction=on), tmp_path
        ).log[0]["loss"]
        for on in (False, True)
    ]
    assert abs(first[0] - first[1]) > 0.01


def test_every_quantising_epoch_logs_the_health_of_both_sides(tmp_path):
    model, (users, items, sequences) = small_model(), market()
    history = train_dual_scid(model, users, items, sequences, SHORT, tmp_path)
    logged = [entry for entry in history.log if "eval_item_collisions" in entry]
    assert [(entry["phase"], entry["epoch"]) for entry in logged] == [("quantize", 1.0), ("quantize", 2.0)]
    codes = assign_codes(model, users, items)
    for side in ("item", "user"):
        health, last = codes.health[side], logged[-1]
        for name in ("utilisation", "perplexity", "entropy"):
            assert [last[f"eval_{side}_{name}_{level}"] for level in range(3)] == pytest.approx(health[name])
        assert last[f"eval_{side}_quantization_error"] == pytest.approx(health["quantization_error"])
        assert last[f"eval_{side}_collisions"] == health["collisions"]
        assert 2 ** last[f"eval_{side}_entropy_0"] == pytest.approx(last[f"eval_{side}_perplexity_0"])
    assert {entry["phase"] for entry in history.log if "loss" in entry} == {"align", "autoencode", "quantize"}


def items_only(**options):
    torch.manual_seed(0)
    books = RQVAEConfig(codebook_sizes=(4, 4, 16), codebook_dim=4)
    return DualSCIDModel(DualSCIDConfig(6, 5, 0, 0, hidden_dim=16, sc_dim=8, item_rqvae=books, **options))


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_collapsed_code_books_end_with_advice(epochs, tmp_path):
    _, items, sequences = market()
    same = FeatureTable(torch.ones(len(items), 6), torch.ones(len(items), 5))
    config = dataclasses.replace(SHORT, quantization_epochs=epochs)
    advice = r"item_codebook_sizes: level \d of \d+ codes collapsed to perplexity 1\.0; .*sinkhorn_epsilon"
    with pytest.raises(CollapsedCodebookError, match=advice):
        train_dual_scid(items_only(), None, same, sequences, config, tmp_path)


def test_an_item_side_alone_is_trained_without_users(tmp_path):
    _, items, sequences = market()
    model = items_only()
    start = state(model)
    history = train_dual_scid(model, None, items, sequences, SHORT, tmp_path)
    assert history.auc == [] and history.raw_auc is None and not any("auc" in key for e in history.log for key in e)
    assert {entry["phase"] for entry in history.log} == {"autoencode", "quantize"}
    assert moved(start, state(model)) == set(start)
    codes = assign_codes(model, None, items)
    assert codes.users is None and list(codes.health) == ["item"]


def test_bf16_trains_otherwise_and_codes_stay_in_fp32(tmp_path):
    users, items, sequences = market()
    half, full = small_model(), small_model()
    bf16 = train_dual_scid(half, users, items, sequences, dataclasses.replace(SHORT, bf16=True), tmp_path)
    fp32 = train_dual_scid(full, users, items, sequences, SHORT, tmp_path)
    losses = [[entry["loss"] for entry in history.log if "loss" in entry] for history in (bf16, fp32)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    codes = assign_codes(half, users, items)
    with torch.autocast("cpu", torch.bfloat16):
        again = assign_codes(half, users, items)
    assert np.array_equal(codes.items, again.items) and np.array_equal(codes.users, again.users)


@pytest.mark.parametrize(
    "options", [{}, {"codebook_update": "ema", "revive_after": 3}, {"sinkhorn_epsilon": 0.05, "estimator": "rotation"}]
)
def test_one_seed_gives_one_set_of_codes(options, tmp_path):
    users, items, sequences = market()
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        books = RQVAEConfig(codebook_sizes=(4, 4, 16), codebook_dim=4, **options)
        model = DualSCIDModel(
            DualSCIDConfig(6, 5, 6, 5, hidden_dim=16, sc_dim=8, diversity_weight=0.0 if options else 0.01,
                           contrastive_weight=0.1, item_rqvae=books, user_rqvae=books)
        )  # fmt: skip
        history = train_dual_scid(model, users, items, sequences, SHORT, tmp_path)
        found.append((assign_codes(model, users, items), history))
    (first, log), (second, again) = found
    assert np.array_equal(first.items, second.items) and np.array_equal(first.users, second.users)
    assert log == again


def test_auc_by_hand():
    users, items = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [2.0], [2.0]])
    pairs = np.array([[0, 0], [0, 1], [1, 2], [1, 0]] * 50)
    negatives = np.random.default_rng(0).integers(3, size=200)
    wins = 0.0
    for (user, item), negative in zip(pairs, negatives, strict=True):
        gap = (users[user] * (items[item] - items[negative])).item()
        wins += 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
    assert score_auc(users, items, pairs) == pytest.approx(wins / 200)


def test_trained_embeddings_rank_better_than_the_features(tmp_path):
    model, (users, items, sequences) = small_model(), market()
    config = dataclasses.replace(SHORT, alignment_epochs=15, patience=15, quantization_epochs=0, autoencoder_epochs=0)
    history = train_dual_scid(model, users, items, sequences, config, tmp_path)
    assert 0.5 < history.raw_auc < history.auc[-1]
    other = FeatureTable(users.semantic)  # of another width than the items' features: nothing to compare
    torch.manual_seed(0)
    books = RQVAEConfig(codebook_sizes=(4, 4, 16), codebook_dim=4)
    uneven = DualSCIDModel(DualSCIDConfig(6, 5, 6, 0, hidden_dim=16, sc_dim=8, item_rqvae=books, user_rqvae=books))
    config = dataclasses.replace(config, alignment_epochs=1)
    assert train_dual_scid(uneven, other, items, sequences, config, tmp_path).raw_auc is None


def test_training_that_diverges_says_so(tmp_path):
    users, items, sequences = market()
    with pytest.raises(InputError, match=r"learning_rate: the loss of step 2 is nan at a rate of 1e\+30; lower it"):
        train_dual_scid(
            small_model(), users, items, sequences, dataclasses.replace(SHORT, learning_rate=1e30), tmp_path
        )


def test_a_second_gpu_changes_nothing(tmp_path, monkeypatch):
    # What Trainer then does needs no GPU: batches of twice the size, and nn.DataParallel around the model.
    users, items, sequences = market()
    config = dataclasses.replace(SHORT, autoencoder_epochs=0, quantization_epochs=0)
    alone = train_dual_scid(small_model(), users, items, sequences, config, tmp_path)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    assert TrainingArguments(output_dir=str(tmp_path), use_cpu=True).train_batch_size == 16
    assert train_dual_scid(small_model(), users, items, sequences, config, tmp_path) == alone


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("holdout", 0.0),
        ("holdout", 1.0),
        ("gamma", 0.0),
        ("alpha", -0.1),
        ("alignment_epochs", -1),
        ("autoencoder_epochs", -1),
        ("quantization_epochs", -1),
        ("batch_size", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
    ],
)
def test_schedule_refuses_what_cannot_be(option, value):
    with pytest.raises(InputError, match=f"{option}: got {value}"):
        DualSCIDTrainingConfig(**{option: value})
