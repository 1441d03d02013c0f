import numpy as np
import polars as pl
import pytest
import torch

from align3gr.data.schema import ITEM_ID
from align3gr.encoders import Embeddings, PPMIFactorization, TfidfSVDEncoder
from align3gr.errors import InputError
from align3gr.scid import (
    CodeTable,
    DualSCIDConfig,
    DualSCIDModel,
    DualSCIDTrainingConfig,
    FeatureTable,
    RQVAEConfig,
    SCIDAssigner,
    assign_codes,
    save_codebook_sizes,
    save_codes,
    train_dual_scid,
)
from align3gr.scid import assigner as assigner_module

KINDS = ("pizza pasta oven", "bicycle wheel brake")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained token level of two kinds of items and users, saved as the scid stage does."""
    folder = tmp_path_factory.mktemp("scid")
    rng = np.random.default_rng(0)
    texts = [f"{KINDS[i % 2]} model{i % 7} size{i % 5}" for i in range(40)]
    sequences = [rng.choice(np.arange(u % 2, 40, 2), 8, replace=False) for u in range(60)]
    text_encoder, collaborative = TfidfSVDEncoder(8), PPMIFactorization(6)
    text_encoder.fit(texts)
    collaborative.fit(sequences, 40)
    vectors = Embeddings(text_encoder.encode(texts), collaborative.item_vectors)
    users = FeatureTable(
        torch.from_numpy(text_encoder.encode([KINDS[u % 2] for u in range(60)])),
        torch.from_numpy(collaborative.encode_users(sequences)),
    )
    items = FeatureTable.from_embeddings(vectors)
    torch.manual_seed(0)
    book = RQVAEConfig(codebook_sizes=(4, 4, 8), codebook_dim=6)
    model = DualSCIDModel(DualSCIDConfig(8, 6, 8, 6, hidden_dim=16, sc_dim=8, item_rqvae=book, user_rqvae=book))
    training = DualSCIDTrainingConfig(
        batch_size=32, alignment_epochs=4, quantization_epochs=6, holdout=0.2, learning_rate=5e-3
    )
    train_dual_scid(model, users, items, sequences, training, folder / "trainer")
    codes = assign_codes(model, users, items)
    ids = [str(i) for i in range(40)]
    model.save_pretrained(folder / "model")
    save_codes(folder / "item_codes.parquet", ITEM_ID, ids, codes.items)
    save_codebook_sizes(folder / "codebooks.json", [4, 4, 8], [4, 4, 8])
    text_encoder.save(folder / "encoders" / "semantic_encoder")
    collaborative.save(folder / "encoders" / "collaborative_encoder")
    vectors.save(folder / "encoders" / "items.parquet", ITEM_ID, pl.Series(ITEM_ID, ids))
    np.save(folder / "user_codes.npy", codes.users)
    return folder


def test_a_new_item_goes_where_its_kind_is_and_disturbs_nobody(folder):
    assigner = SCIDAssigner.from_pretrained(folder)
    before = assigner.item_codes.codes
    codes = assigner.add_items(["n0", "n1"], [KINDS[0], KINDS[1]])
    after = assigner.item_codes
    assert np.array_equal(after.codes[:40], before) and after.ids[40:] == ["n0", "n1"]
    assert len(np.unique(after.codes, axis=0)) == 42
    use = np.stack([np.bincount(before[kind::2, 0], minlength=4) for kind in (0, 1)])
    assert use[0, codes[0, 0]] > 2 * use[1, codes[0, 0]]
    assert use[1, codes[1, 0]] > 2 * use[0, codes[1, 0]]


def test_the_same_item_keeps_its_codes(folder):
    assigner = SCIDAssigner.from_pretrained(folder)
    first = assigner.add_items(["n0"], [KINDS[0]])
    again = assigner.add_items(["n1", "n0", "3"], [KINDS[0], "another text", "another text"])
    assert again[1].tolist() == first[0].tolist() != again[0].tolist()
    assert again[2].tolist() == assigner.item_codes.codes[3].tolist()
    assert SCIDAssigner.from_pretrained(folder).add_items(["n0"], [KINDS[0]]).tolist() == first.tolist()


def test_codes_given_in_many_calls_are_taken_and_a_refused_call_takes_none(folder):
    assigner, other = SCIDAssigner.from_pretrained(folder), SCIDAssigner.from_pretrained(folder)
    with pytest.raises(InputError, match="need free codes"):
        assigner.add_items([f"many{i}" for i in range(100)], [KINDS[0]] * 100)
    for number in range(5):  # all of one text, so that each meets the codes of those before it
        item = [f"n{number}"], [KINDS[0]]
        assert np.array_equal(assigner.add_items(*item), other.add_items(*item))
    codes = assigner.item_codes.codes
    assert len(codes) == 45 and len(np.unique(codes, axis=0)) == 45


def test_a_known_user_gets_the_codes_of_training_and_a_new_one_some(folder):
    assigner = SCIDAssigner.from_pretrained(folder)
    rng = np.random.default_rng(0)
    sequences = [rng.choice(np.arange(u % 2, 40, 2), 8, replace=False) for u in range(60)]
    codes = assigner.user_codes([KINDS[u % 2] for u in range(60)], [[str(i) for i in s] for s in sequences])
    assert np.array_equal(codes, np.load(folder / "user_codes.npy"))
    assert assigner.user_codes([KINDS[0], ""]).shape == (2, 3)


def test_the_behaviour_of_a_new_item_is_that_of_the_nearest_texts(folder):
    assigner = SCIDAssigner.from_pretrained(folder)
    known = assigner._vectors.collaborative
    guess = assigner._item_features([KINDS[1]]).collaborative[0].numpy()
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    similarity = unit @ guess
    assert similarity[1::2].mean() > similarity[::2].mean() + 0.3


def test_refusals(folder, tmp_path):
    assigner = SCIDAssigner.from_pretrained(folder)
    with pytest.raises(InputError, match="stands twice"):
        assigner.add_items(["a", "a"], ["x", "y"])
    with pytest.raises(InputError, match="has no SCID"):
        assigner.user_codes([""], [["unknown"]])
    with pytest.raises(InputError, match="for 1 profiles"):
        assigner.user_codes([""], [])
    with pytest.raises(InputError, match="holds no model"):
        SCIDAssigner.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="need free codes"):
        assigner.add_items([f"many{i}" for i in range(100)], [KINDS[0]] * 100)


def test_a_catalogue_of_other_scids_is_refused(folder):
    assigner = SCIDAssigner.from_pretrained(folder)
    ids, codes = assigner.item_codes.ids, assigner.item_codes.codes.tolist()
    assigner.check_catalogue(ids, codes)
    assigner.check_catalogue(["later", *ids], [[0, 0, 0], *codes])
    with pytest.raises(
        InputError, match=r"scid: gives item '1' the SCID \[.*\], the model knows it as \[9, 9, 9\]; take"
    ):
        assigner.check_catalogue(ids[:2], [codes[0], [9, 9, 9]])
    with pytest.raises(InputError, match="scid: knows no item of the model's catalogue"):
        assigner.check_catalogue(["x"], [[0, 0, 0]])


class Refusing:
    """An encoder of behaviour that must not be asked."""

    def encode_users(self, histories):
        raise AssertionError("asked for behaviour")


def texts_alone() -> SCIDAssigner:
    """Codes of texts alone, with behaviour as ready-made columns for LETTER's regulariser."""
    texts = [f"{KINDS[i % 2]} model{i % 7} size{i % 5}" for i in range(20)]
    encoder = TfidfSVDEncoder(8)
    encoder.fit(texts)
    torch.manual_seed(0)
    book = RQVAEConfig(codebook_sizes=(4, 8), codebook_dim=4)
    model = DualSCIDModel(
        DualSCIDConfig(8, 6, 8, 6, hidden_dim=8, sc_dim=8, collaborative_input=False, contrastive_weight=0.1,
                       item_rqvae=book, user_rqvae=book)
    )  # fmt: skip
    codes = np.stack([np.arange(20) % 4, np.arange(20) // 4], 1)
    vectors = Embeddings(encoder.encode(texts), np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    return SCIDAssigner(model, CodeTable([str(i) for i in range(20)], codes), vectors, encoder)


def test_behaviour_that_codes_do_not_depend_on_is_not_asked_for(monkeypatch):
    assigner = texts_alone()

    def guess(_):
        raise AssertionError("a guess for nothing")

    monkeypatch.setattr(assigner, "_guess_behaviour", guess)
    assert assigner.add_items(["new"], [KINDS[0]]).shape == (1, 2)
    codes = assigner.user_codes([KINDS[0]], [["1", "3"]])
    assigner.collaborative_encoder = Refusing()
    assert np.array_equal(assigner.user_codes([KINDS[0]], [["2"]]), codes)


def test_the_catalogue_is_normalised_once_and_added_items_are_no_neighbours(folder, monkeypatch):
    assigner, sizes = SCIDAssigner.from_pretrained(folder), []
    unit = assigner_module._unit

    def counted(rows):
        sizes.append(len(rows))
        return unit(rows)

    monkeypatch.setattr(assigner_module, "_unit", counted)
    first = assigner._item_features([KINDS[1]]).collaborative
    assigner.add_items(["n0"], [KINDS[0]])
    assert torch.equal(assigner._item_features([KINDS[1]]).collaborative, first)
    assert sizes.count(40) == 1 and sizes.count(1) == 3 and len(sizes) == 4
