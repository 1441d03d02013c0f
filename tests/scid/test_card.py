from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModel

from align3gr.scid import DualSCIDConfig, DualSCIDModel, RQVAEConfig, RQVAEModel

HEALTH = {
    "utilisation": [1.0, 0.75],
    "perplexity": [3.9, 2.5],
    "entropy": [1.96, 1.32],
    "collisions": 12345,
    "quantization_error": 0.12345,
}


def dual(health=None) -> DualSCIDModel:
    torch.manual_seed(0)
    books = RQVAEConfig(codebook_sizes=(4, 4), codebook_dim=2)
    model = DualSCIDModel(DualSCIDConfig(3, 2, 3, 2, hidden_dim=4, sc_dim=4, item_rqvae=books, user_rqvae=books))
    model.config.item_rqvae["health"] = health
    return model


def test_the_card_says_how_healthy_each_sides_code_books_are(tmp_path):
    dual(HEALTH).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "align3gr" and "align3gr_dual_scid" in card.data.tags
    items, users = card.text.split("## Code books of items")[1].split("## Code books of users")
    assert "| 0 | 100.0% | 3.9 | 1.96 |" in items and "| 1 | 75.0% | 2.5 | 1.32 |" in items
    assert "- collisions: 12,345" in items and "- quantization error: 0.1235" in items
    assert "Not measured" in users and "Not measured" not in items


def test_health_comes_back_with_the_model(tmp_path):
    dual(HEALTH).save_pretrained(tmp_path / "dual")
    again = AutoModel.from_pretrained(tmp_path / "dual")
    assert again.config.item_rqvae["health"] == HEALTH and again.item_rqvae.config.health == HEALTH
    assert again.config.user_rqvae.get("health") is None
    RQVAEModel(RQVAEConfig(input_dim=4, codebook_sizes=(4, 4), health=HEALTH)).save_pretrained(tmp_path / "one")
    assert AutoModel.from_pretrained(tmp_path / "one").config.health == HEALTH
    text = (tmp_path / "one" / "README.md").read_text()
    assert "## Code books\n" in text and "| 1 | 75.0% | 2.5 | 1.32 |" in text


@pytest.fixture
def uploads(monkeypatch):
    """What would be sent to the Hub: repository, files, card and options of each commit."""
    sent = []

    class Hub:
        def create_repo(self, repo_id, **kwargs):
            return RepoUrl(f"https://huggingface.co/somebody/{repo_id}")

        def create_commit(self, repo_id, operations, **kwargs):
            files = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}
            sent.append((repo_id, set(files), Path(files["README.md"]).read_text(), kwargs))

    def no_card_there(*args, **kwargs):
        raise EntryNotFoundError("README.md")

    monkeypatch.setattr("transformers.utils.hub._hf_api", Hub())
    monkeypatch.setattr("huggingface_hub.repocard.hf_hub_download", no_card_there)
    return sent


def test_the_card_that_is_pushed_is_ours(uploads):
    dual(HEALTH).push_to_hub("codes", tags=["shop"], create_pr=True)
    [(repository, files, card, options)] = uploads  # one commit: the card goes where the weights go
    assert repository == "somebody/codes" and {"model.safetensors", "config.json", "README.md"} <= files
    assert "| 1 | 75.0% | 2.5 | 1.32 |" in card and "library_name: align3gr" in card and "- shop" in card
    assert options["create_pr"] is True


def test_saving_with_a_push_pushes_our_card_too(uploads, tmp_path):
    dual(HEALTH).save_pretrained(tmp_path / "codes", push_to_hub=True)
    [(_, _, card, _)] = uploads
    assert "| 1 | 75.0% | 2.5 | 1.32 |" in card
