"""The embed recipe with encoders other than the smoke run's."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from align3gr.data import Split
from align3gr.encoders import load_collaborative_encoder, load_text_encoder
from align3gr.errors import InputError
from align3gr.pipeline import read_manifest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, run_stage):
    run_dir = tmp_path_factory.mktemp("embed") / "run"
    run_stage("prepare", run_dir)
    return run_dir


def copy(prepared, run_dir):
    shutil.copytree(prepared / "data", run_dir / "data")
    return run_dir


def column(path, name) -> np.ndarray:
    return np.array(pl.read_parquet(path)[name].to_list(), dtype=np.float32)


def test_saved_encoders_give_the_vectors_of_the_tables(prepared, tmp_path, run_stage):
    run_dir = copy(prepared, tmp_path / "run")
    run_stage("embed", run_dir)
    folder, split = run_dir / "embeddings", Split.load(run_dir / "data")
    behaviour = load_collaborative_encoder(folder / "collaborative_encoder")
    text = load_text_encoder(folder / "semantic_encoder")
    assert np.array_equal(column(folder / "items.parquet", "collaborative"), behaviour.item_vectors)
    users = behaviour.encode_users(split.train_sequences())
    assert np.allclose(column(folder / "users.parquet", "collaborative"), users, atol=1e-6)
    texts = text.encode(split.items["text"].to_list())
    assert np.allclose(column(folder / "items.parquet", "semantic"), texts, atol=1e-6)


def test_din_never_sees_a_target(prepared, tmp_path, run_stage):
    config = tmp_path / "embed.yaml"
    config.write_text("semantic: none\ncollaborative: din\ncollaborative_dim: 8\nepochs: 2\n")
    contents = []
    for name in "ab":
        run_dir = copy(prepared, tmp_path / name)
        if name == "b":
            for part in ("validation", "test"):
                path = run_dir / "data" / f"{part}.parquet"
                frame = pl.read_parquet(path)
                frame.with_columns(pl.col("item_id").shuffle(seed=1)).write_parquet(path)
        run_stage("embed", run_dir, config=config)
        folder = run_dir / "embeddings"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
        contents.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert contents[0] == contents[1] and "collaborative_encoder/model.safetensors" in contents[0]
    report = json.loads(contents[0]["report.json"])
    assert len(report["auc"]) == 2 and report["collaborative_items"]["dim"] == 8
    assert set(read_manifest(run_dir / "embeddings")["inputs"]) == {
        f"data/{name}.parquet" for name in ("items", "users", "train")
    }


def test_ready_columns_stand_beside_an_encoder(prepared, tmp_path, run_stage):
    run_dir = copy(prepared, tmp_path / "run")
    split = Split.load(run_dir / "data")
    for kind, ids in (("item", split.items["item_id"]), ("user", split.users["user_id"])):
        vectors = [[float(i), 1.0] for i in range(1, len(ids))]
        frame = pl.DataFrame({f"{kind}_id": ids[1:], "vector": vectors}).reverse()
        frame.write_parquet(tmp_path / f"{kind}.parquet")
    config = tmp_path / "embed.yaml"
    paths = {f"{kind}_vectors": tmp_path / f"{kind}.parquet" for kind in ("item", "user")}
    config.write_text("semantic: column\ncollaborative_dim: 8\n")
    run_stage("embed", run_dir, config=config, **paths)
    vectors = column(run_dir / "embeddings" / "items.parquet", "semantic")
    assert vectors[:3].tolist() == [[0, 0], [1, 1], [2, 1]]
    report = json.loads((run_dir / "embeddings" / "report.json").read_text())
    assert report["semantic_items"] == {"dim": 2, "zero": 1} == report["semantic_users"]
    assert report["collaborative_items"]["dim"] == 8
    config.write_text("semantic: column\ncollaborative: column\n")
    with pytest.raises(InputError, match="column 'semantic' is missing"):
        run_stage("embed", run_dir, config=config, **paths)
