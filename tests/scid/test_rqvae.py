import pytest
import torch
from transformers import AutoModel, Trainer, TrainingArguments

from align3gr.scid import RQVAEConfig, RQVAEModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RQVAEModel(RQVAEConfig(input_dim=12, codebook_sizes=(8, 8), codebook_dim=4))


def test_codebooks_are_initialised(model):
    assert all(0.05 < book.std() < 0.15 for book in model.quantizer.codebooks)


def test_codes_are_the_nearest_of_each_residual(model):
    features = torch.randn(20, 12)
    codes = model.encode(features)
    latent = model.encoder(features)
    for row in range(20):
        residual = latent[row]
        for level, book in enumerate(model.quantizer.codebooks):
            nearest = ((residual - book) ** 2).sum(1).argmin()
            assert codes[row, level] == nearest
            residual = residual - book[nearest]


def test_loss_is_reconstruction_plus_codebook_plus_commitment(model):
    features = torch.randn(6, 12)
    output = model(features)
    latent = model.encoder(features)
    residual, total, expected = latent, 0, 0.0
    for level, book in enumerate(model.quantizer.codebooks):
        chosen = book[output.codes[:, level]]
        expected += 1.25 * ((chosen - residual) ** 2).mean()
        total, residual = total + chosen, residual - chosen
    torch.testing.assert_close(output.quantization_loss, expected)
    reconstruction = model.decoder(total)
    torch.testing.assert_close(output.reconstruction, reconstruction)
    torch.testing.assert_close(output.loss, ((reconstruction - features) ** 2).sum(1).mean() + expected)


def test_other_targets_and_passing_the_quantiser_by(model):
    features, target = torch.randn(6, 12), torch.randn(6, 3)
    wide = RQVAEModel(RQVAEConfig(input_dim=12, output_dim=3, codebook_sizes=(8, 8), codebook_dim=4))
    output = wide(features, target, quantize=False)
    assert output.codes is None and output.quantization_loss == 0
    expected = ((wide.decoder(wide.encoder(features)) - target) ** 2).sum(1).mean()
    torch.testing.assert_close(output.loss, expected)


def test_gradient_passes_straight_through_to_the_encoder(model):
    output = model(torch.randn(6, 12))
    output.reconstruction_loss.backward()
    assert model.encoder[0].weight.grad.abs().sum() > 0
    assert all(book.grad is None or book.grad.abs().sum() == 0 for book in model.quantizer.codebooks)


def test_kmeans_start_uses_every_code(model):
    features = torch.randn(400, 12)
    model.initialize_codebooks(features)
    codes = model.encode(features)
    assert len(codes[:, 0].unique()) == 8 and len(codes[:, 1].unique()) == 8


def test_kmeans_start_with_fewer_rows_than_codes(model):
    features = torch.randn(3, 12)
    model.initialize_codebooks(features)
    assert model(features).quantization_loss.item() < 1e-6


def test_dead_codes_come_back(model):
    model.config.revive_after = 3
    with torch.no_grad():
        model.quantizer.codebooks[0][1:] = 1e3  # all but one code far away from everything
    model.train()
    features = torch.randn(64, 12)
    assert len(model(features).codes[:, 0].unique()) == 1
    for _ in range(5):
        codes = model(features).codes
    assert len(codes[:, 0].unique()) > 4


def test_save_and_load_gives_the_same_codes(model, tmp_path):
    features = torch.randn(50, 12)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, RQVAEModel)
    assert torch.equal(again.encode(features), model.encode(features))


def test_codes_do_not_depend_on_autocast(model):
    features = torch.randn(500, 12)
    with torch.autocast("cpu", torch.bfloat16):
        codes = model.encode(features)
    assert torch.equal(codes, model.encode(features))


def test_config_refuses_codebooks_of_one_code():
    with pytest.raises(ValueError, match="codebook_sizes"):
        RQVAEConfig(codebook_sizes=(256, 1))


def test_a_stock_trainer_trains_it_on_rows_of_features(tmp_path):
    torch.manual_seed(1)
    model = RQVAEModel(RQVAEConfig(input_dim=12, codebook_sizes=(16, 16), codebook_dim=8, revive_after=5))
    centres = torch.randn(8, 12)
    rows = [{"features": centres[i % 8] + 0.1 * torch.randn(12)} for i in range(256)]
    stacked = torch.stack([row["features"] for row in rows])
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=20,
        per_device_train_batch_size=64,
        learning_rate=1e-2,
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    before = model.eval()(stacked).loss.item()
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 and losses[-1] < 0.5 * losses[0]
    after = model.eval()(stacked)
    assert after.loss.item() < 0.5 * before
    # The reconstruction knows which of the eight centres a row comes from.
    nearest = torch.cdist(after.reconstruction, centres).argmin(1)
    assert (nearest == torch.arange(256) % 8).float().mean() > 0.8


def test_vectors_themselves_are_quantised_without_an_autoencoder():
    model = RQVAEModel(RQVAEConfig(input_dim=4, codebook_sizes=(8, 8), codebook_dim=4, hidden_dims=None))
    rows = torch.randn(10, 4)
    assert torch.equal(model.latent(rows), rows)
    output = model(rows)
    torch.testing.assert_close(output.reconstruction, output.quantized)
    with pytest.raises(ValueError, match="hidden_dims: None quantises the vectors themselves"):
        RQVAEConfig(input_dim=5, codebook_dim=4, hidden_dims=None)
