"""Every variant of the token level, through the recipes, on the smoke market."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from sklearn.cluster import KMeans

from align3gr import InputError, Recommender
from align3gr.data import Split
from align3gr.encoders import Embeddings
from align3gr.scid import RQVAEConfig, load_codebook_sizes, load_codes
from align3gr.scid.collisions import ADDED_LEVEL, STRATEGIES

ITEM_SIDE = {"sides": "item"}
QUICK = {"alignment_epochs": 1, "autoencoder_epochs": 1, "quantization_epochs": 1}
KMEANS = {"sides": "item", "sc_encoder": "none", "quantization_epochs": 0}


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, run_stage):
    """A smoke run up to its embeddings. Read only."""
    run_dir = tmp_path_factory.mktemp("embedded")
    for name in ("prepare", "embed"):
        run_stage(name, run_dir)
    return run_dir


@pytest.fixture
def scid(embedded, tmp_path, run_stage):
    """Runs the scid stage on the smoke embeddings: `scid(sides="item")` gives its folder and its report."""

    def run(name="run", **options):
        run_dir = tmp_path / name
        for folder in ("data", "embeddings"):
            shutil.copytree(embedded / folder, run_dir / folder)
        run_stage("scid", run_dir, **options)
        return run_dir / "scid", json.loads((run_dir / "scid" / "report.json").read_text())

    return run


def item_codes(folder):
    return np.stack(pl.read_parquet(folder / "item_codes.parquet")["codes"].to_list())


def unique(codes):
    return len(np.unique(codes, axis=0))


def user_table(folder):
    return pl.read_parquet(folder / "user_codes.parquet")


def test_dual_by_default(scid):
    folder, report = scid(**QUICK)
    codes = item_codes(folder)
    assert codes.shape == (80, 3) and unique(codes) == 80
    assert report["raw_auc"] is not None and len(report["auc"]) == 3
    assert load_codebook_sizes(folder / "codebooks.json") == ([8, 8, 8], [8, 8])
    users = np.stack(user_table(folder)["codes"].to_list())
    assert users.shape == (200, 2) and report["distinct_user_codes"] == unique(users)
    assert [entry["phase"] for entry in report["log"] if "loss" in entry] == ["align", "autoencode", "quantize"]


def test_items_alone(scid):
    folder, report = scid(**ITEM_SIDE, **QUICK)
    assert unique(item_codes(folder)) == 80 and report["auc"] == []
    assert load_codebook_sizes(folder / "codebooks.json") == ([8, 8, 8], [])
    assert user_table(folder)["codes"].list.len().to_list() == [0] * 200


def test_without_u2i(scid):
    _, report = scid(**{**QUICK, "alignment_epochs": 0}, alpha=0)
    assert {entry["phase"] for entry in report["log"]} == {"autoencode", "quantize"}


@pytest.mark.parametrize(
    "options",
    [
        {"contrastive_weight": 0.02, "diversity_weight": 0.0001},
        {"estimator": "rotation"},
        {"codebook_update": "ema"},
        {"sinkhorn_epsilon": 0.05},
        {"logq_correction": True, "u2i_temperature": 0.1},
        {"bf16": True},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.long
def test_a_variant_differs_from_the_default_and_gives_unique_codes(options, scid):
    default, _ = scid("default")
    folder, report = scid("variant", **options)
    assert unique(item_codes(folder)) == 80
    assert not np.array_equal(item_codes(folder), item_codes(default))
    assert min(report["item_utilisation"]) > 0.5
    config = json.loads((folder / "model" / "config.json").read_text())
    quantizer = RQVAEConfig(**config["item_rqvae"])
    for option, value in options.items():
        if option in config or hasattr(quantizer, option):
            assert config.get(option, getattr(quantizer, option, None)) == value


def test_residual_kmeans_is_that_of_scikit_learn(scid):
    folder, report = scid(**KMEANS, collisions="none", semantic_weight=0.5)
    split = Split.load(folder.parent / "data")
    vectors = Embeddings.load(folder.parent / "embeddings" / "items.parquet", "item_id", split.items["item_id"])
    parts = [
        weight * part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-12)
        for weight, part in ((0.5, vectors.semantic), (1.0, vectors.collaborative))
    ]
    residual, expected = np.concatenate(parts, axis=1).astype(np.float32), []
    for _ in range(3):
        kmeans = KMeans(8, n_init=1, max_iter=50, random_state=42).fit(residual)
        expected.append(kmeans.labels_)
        residual = residual - kmeans.cluster_centers_[kmeans.labels_]
    assert (item_codes(folder) == np.stack(expected, axis=1)).mean() > 0.99
    assert report["item_quantization_error"] == pytest.approx(np.square(residual).sum(1).mean(), rel=1e-3)


@pytest.mark.parametrize("sides", ["item", "dual"])
def test_texts_alone(sides, embedded, tmp_path, run_stage):
    run_dir = tmp_path / "run"
    shutil.copytree(embedded / "data", run_dir / "data")
    (tmp_path / "embed.yaml").write_text("semantic_dim: 16\ncollaborative: none\n")
    run_stage("embed", run_dir, config=tmp_path / "embed.yaml")
    run_stage("scid", run_dir, sides=sides, **QUICK)
    assert unique(item_codes(run_dir / "scid")) == 80
    config = json.loads((run_dir / "scid" / "model" / "config.json").read_text())
    assert config["item_collaborative_dim"] == 0 and config["item_semantic_dim"] == 16
    assert config["user_semantic_dim"] == (16 if sides == "dual" else 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_collision_strategy(strategy, scid):
    plain, _ = scid("plain", **KMEANS, collisions="none")
    folder, report = scid("resolved", **KMEANS, collisions=strategy)
    raw, codes = item_codes(plain), item_codes(folder)
    _, inverse, counts = np.unique(raw, axis=0, return_inverse=True, return_counts=True)
    shared = counts[inverse.ravel()] > 1
    cost = report["item_collisions"]
    assert shared.any() and cost["strategy"] == strategy and cost["collided"] == shared.sum()
    if strategy == "none":
        assert np.array_equal(codes, raw) and cost["remaining"] == shared.sum()
        return
    assert unique(codes) == 80 and cost["remaining"] == 0
    levels = 4 if strategy in ADDED_LEVEL else 3
    sizes = [8, 8, 8, 80 if strategy == "item-token" else int(counts.max())][:levels]
    assert codes.shape == (80, levels) and load_codebook_sizes(folder / "codebooks.json") == (sizes, [])
    if strategy in ADDED_LEVEL:
        assert np.array_equal(codes[:, :3], raw)
    else:
        assert cost["moved"] == (codes != raw).any(1).sum() > 0
    if strategy == "nearest-free":
        assert np.array_equal(codes[~shared], raw[~shared])


def write_index(path, ids, codes):
    index = {
        name: [f"<{'abcd'[level]}_{code}>" for level, code in enumerate(row)]
        for name, row in zip(ids, codes, strict=True)
    }
    path.write_text(json.dumps(index))


def test_imported_codes(scid, embedded, tmp_path):
    ids = Split.load(embedded / "data").items["item_id"].to_list()
    codes = [[i % 5, i // 40] for i in range(80)]  # eight items to each
    write_index(tmp_path / "shop.index.json", ids[::-1], codes[::-1])
    options = {**ITEM_SIDE, "item_codes": tmp_path / "shop.index.json"}
    kept, report = scid("kept", **options, collisions="none")
    assert item_codes(kept).tolist() == codes and report["item_collisions"]["remaining"] == 80
    folder, _ = scid("numbered", **options, collisions="extra-level")
    assert item_codes(folder)[:, :2].tolist() == codes and unique(item_codes(folder)) == 80
    assert load_codebook_sizes(folder / "codebooks.json") == ([5, 2, 8], [])
    assert not (folder / "model").exists()
    write_index(tmp_path / "shop.index.json", ids[1:], codes[1:])
    with pytest.raises(InputError, match="has no codes"):
        scid("short", **options, collisions="none")


def test_codebook_sizes_from_the_catalogue(scid, tmp_path):
    config = tmp_path / "scid.yaml"
    config.write_text("user_codebook_sizes: [8, 8]\nauto_codebook_sizes: true\nalignment_epochs: 0\n")
    folder, _ = scid(**QUICK | {"config": config})
    # 8 x 8 x 8 holds 80 items four times over; 16 x 16 prefixes would leave most items without a neighbour.
    assert load_codebook_sizes(folder / "codebooks.json") == ([8, 8, 8], [8, 8])


def test_codes_of_an_earlier_run_are_kept(scid):
    first, _ = scid("first", **QUICK)
    items, users = (pl.read_parquet(first / f"{side}_codes.parquet") for side in ("item", "user"))
    # As if the last items and users had come since: the earlier run knows the others only, in another order.
    items[:60].sample(fraction=1, shuffle=True, seed=0).write_parquet(first / "item_codes.parquet")
    users[:150].write_parquet(first / "user_codes.parquet")
    options = {**QUICK, "previous": first, "seed": 7}
    pinned, report = scid("pinned", **options)
    codes = item_codes(pinned)
    assert codes[:60].tolist() == items["codes"].to_list()[:60] and unique(codes) == 80
    assert user_table(pinned)["codes"].to_list()[:150] == users["codes"].to_list()[:150]
    assert (report["drift"]["item"]["rows"], report["drift"]["user"]["rows"]) == (60, 150)
    kept = report["drift"]["item"]["same_prefix"]
    assert kept[0] > 0.5 and kept == sorted(kept, reverse=True)  # code books start where the earlier codes were
    free, again = scid("free", **options, pin=False)
    assert again["drift"] == report["drift"] and item_codes(free)[:60].tolist() != items["codes"].to_list()[:60]
    other = {**options, "item_codebook_sizes": [8, 8]}
    with pytest.raises(InputError, match="item_codebook_sizes: previous codes have 3 levels, got 2"):
        scid("levels", **other)
    with pytest.raises(InputError, match="item_codebook_sizes: level 0 has 4 codes and a previous code is 7"):
        scid("small", **{**options, "item_codebook_sizes": [4, 8, 8]})


def test_fine_tuning_on_item_codes_alone(scid, run_stage):
    run_dir = scid(**KMEANS)[0].parent
    with pytest.raises(InputError, match="user_scid: the codes of this run have no user side; set user_scid: false"):
        run_stage("sft", run_dir)
    run_stage("sft", run_dir, user_scid=False, num_train_epochs=1)
    split = Split.load(run_dir / "data")
    recommender = Recommender.from_pretrained(run_dir / "sft" / "model")
    [found] = recommender.recommend([split.train["items"][0].to_list()], [split.users["user_id"][0]], k=5)
    assert len({each.item_id for each in found}) == 5 and {each.item_id for each in found} <= set(
        split.items["item_id"]
    )
    codes = load_codes(run_dir / "scid" / "item_codes.parquet", "item_id", split.items["item_id"])
    assert codes.shape == (80, 3)


def test_rows_of_item_tokens_start_where_their_items_are(scid, run_stage):
    """Distances between rows are those of the collaborative vectors, of items and of the means behind first codes."""
    folder, _ = scid(**QUICK, item_codebook_sizes=[8], collisions="item-token")
    codes, run_dir = item_codes(folder), folder.parent
    assert load_codebook_sizes(folder / "codebooks.json")[0] == [8, 80]
    assert codes[:, 1].tolist() == list(range(80))
    start = {"embedding_init": "collaborative", "embedding_scale": 5, "tie_embeddings": True, "hidden_size": 64}
    run_stage("sft", run_dir, **start, max_steps=1, learning_rate=0.0)
    recommender = Recommender.from_pretrained(run_dir / "sft" / "model")
    rows = recommender.model.get_input_embeddings().weight.detach()
    first, own = recommender.prompt_builder.vocabulary.item_ids(codes).T
    ids = pl.read_parquet(folder / "item_codes.parquet")["item_id"]
    vectors = Embeddings.load(folder / "encoders" / "items.parquet", "item_id", ids).collaborative
    used = np.unique(codes[:, 0])
    means = np.stack([vectors[codes[:, 0] == code].mean(0) for code in used])
    tokens = [first[codes[:, 0] == code][0] for code in used]
    expected = np.concatenate([vectors, means])
    found = rows[np.concatenate([own, tokens])].numpy()
    pairs = np.triu_indices(len(expected), 1)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1)[pairs] for x in (found, expected)]
    assert np.corrcoef(*distances)[0, 1] > 0.9  # but for a little noise, and the longest that are cut
    words = rows[: min(first.min(), own.min())]
    assert 3 < found.std() / words.std() < 7
    kept = folder / "encoders" / "items.parquet"
    pl.read_parquet(kept).drop("collaborative").write_parquet(kept)
    with pytest.raises(InputError, match="embedding_init: collaborative needs collaborative vectors in"):
        run_stage("sft", run_dir, **start | {"hidden_size": 32}, max_steps=1)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["extra-level", "item-token", "none"])
def test_the_whole_pipeline_on_item_codes_alone(strategy, scid, run_stage):
    run_dir = scid(**KMEANS, collisions=strategy)[0].parent
    run_stage("sft", run_dir, user_scid=False)
    run_stage("sp_dpo", run_dir)
    run_stage("evaluate", run_dir)
    results = json.loads((run_dir / "evaluation" / "results.json").read_text())
    assert results["SFT"]["seen_allowed"]["recall@10"] > results["popularity"]["seen_allowed"]["recall@10"] / 2
