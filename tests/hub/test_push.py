"""Everything of a run goes to a server that speaks the Hub's API and loads from there, without a cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest
from httpx2 import ConnectError
from huggingface_hub import HfApi, ModelCard

from align3gr.errors import InputError
from align3gr.hub import lineage, push_run
from align3gr.hub.run_card import card
from tests.conftest import ROOT
from tests.hub.server import TOKEN
from tests.sft.backbones import save_backbone


class Hub:
    """The server, and processes that know no other Hub."""

    def __init__(self, address: str, folder: Path, caches: Path) -> None:
        self.address, self.folder, self.caches = address, folder, caches
        self.number = 0

    def python(self, code: str, *arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess:
        """Runs code with an empty cache."""
        self.number += 1
        secret = {"HF_TOKEN": token} if token else {}
        environment = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": self.address, "HF_HOME": str(self.caches / str(self.number))}
        environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | secret
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)

    def run(self, code: str, *arguments: object) -> dict:
        """What the code printed last, as JSON."""
        done = self.python(code, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.server", str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    yield Hub(server.stdout.readline().strip(), folder, tmp_path_factory.mktemp("caches"))
    server.kill()
    server.wait()


PUSH = """
import json, sys
from align3gr.hub import push_run
run_dir = sys.argv[1]
urls = [
    push_run(run_dir, "me/shop"),
    push_run(run_dir, "me/shop-users", model="sft", with_users=True, license="mit", private=True),
    push_run(run_dir, "me/shop-scid", artefact="scid"),
    push_run(run_dir, "me/shop-items", artefact="items"),
]
print(json.dumps(urls))
"""

LOAD = """
import json, sys
import datasets
from align3gr import Recommender
from align3gr.scid import DualSCIDModel, SCIDAssigner

with_users, without = (Recommender.from_pretrained(name, device="cpu") for name in ("me/shop-users", "me/shop"))
history = with_users.items["item_id"].head(3).to_list()
user = with_users.users["user_id"][0]
assigner = SCIDAssigner.from_pretrained("me/shop-scid")
items = datasets.load_dataset("me/shop-items", split="train")
print(json.dumps({
    "history": history,
    "user": user,
    "lists": [
        [item.item_id for item in recommender.recommend([history], user_ids=[user], k=5)[0]]
        for recommender in (with_users, without)
    ],
    "users": without.users is None,
    "new_user": [item.item_id for item in without.recommend([history], user_profiles=["likes red shoes"], k=5)[0]],
    "codes": assigner.add_items(history, ["", "", ""]).tolist(),
    "levels": len(DualSCIDModel.from_pretrained("me/shop-scid", subfolder="model").item_rqvae.config.codebook_sizes),
    "items": [items[0]["item_id"], items[0]["codes"], len(items)],
}))
"""


@pytest.fixture(scope="module")
def pushed(hub, smoke_run) -> list[str]:
    return hub.run(PUSH, smoke_run)


def test_everything_loads_with_nothing_but_its_id(hub, pushed, smoke_run):
    from align3gr import Recommender

    found = hub.run(LOAD)
    here = [Recommender.from_pretrained(smoke_run / stage / "model", device="cpu") for stage in ("sft", "rf_dpo")]
    known = (found["user"], None)  # the second was pushed without users
    expected = [
        [item.item_id for item in recommender.recommend([found["history"]], user_ids=[user], k=5)[0]]
        for recommender, user in zip(here, known, strict=True)
    ]
    assert found["lists"] == expected and found["users"] is True and len(found["new_user"]) == 5
    codes = pl.read_parquet(smoke_run / "scid" / "item_codes.parquet")
    assert found["codes"] == codes["codes"].head(3).to_list() and found["levels"] == 3
    assert found["items"] == [codes["item_id"][0], codes["codes"][0].to_list(), len(codes)]


def test_users_stay_behind_unless_asked_for(hub, pushed, smoke_run):
    user = pl.read_parquet(smoke_run / "data" / "users.parquet")["user_id"][0]
    open_to_all = [path for name in ("shop", "shop-scid") for path in (hub.folder / "models/me" / name).rglob("*.*")]
    assert not [path for path in open_to_all if path.name == "user_codes.parquet"]
    assert not [path for path in open_to_all if path.is_file() and f'"{user}"'.encode() in path.read_bytes()]
    assert (hub.folder / "models/me/shop-users/main/user_codes.parquet").is_file()
    assert (hub.folder / "models/me/shop-users/main/scid/user_codes.parquet").is_file()


def test_no_file_holds_the_token_or_a_folder_of_this_machine(hub, pushed, smoke_run):
    files = [path for path in hub.folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    for word in (TOKEN, str(smoke_run)):
        assert [path for path in files if word.encode() in path.read_bytes()] == []


def test_the_card_says_what_was_run(hub, pushed, smoke_run):
    card = ModelCard.load(hub.folder / "models/me/shop/main/README.md")
    results = json.loads((smoke_run / "evaluation" / "results.json").read_text())
    row = results["RF-DPO, best stage on validation"]
    assert f"| RF-DPO, best stage on validation | {row['seen_allowed']['recall@10']:.4f} |" in card.text
    assert f"| item-kNN | {results['item-kNN']['seen_allowed']['recall@10']:.4f} |" in card.text
    assert "one training (seed 42)" in card.text and "recommends the 80 items" in card.text
    assert "| interactions | 3,670 |" in card.text and "- items: 100%, 100%, 100% of the codes used" in card.text
    assert "No licence is stated" in card.text and "SCIDs of known users are not part" in card.text
    measured = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert measured["test split, seen items masked", "ndcg@10"] == round(row["seen_masked"]["ndcg@10"], 4)
    other = ModelCard.load(hub.folder / "models/me/shop-users/main/README.md")
    assert other.data.license == "mit" and "No licence" not in other.text and "| SFT | " in other.text
    stages = json.loads((hub.folder / "models/me/shop/main/lineage.json").read_text())
    assert list(stages) == ["prepare", "embed", "scid", "sft", "sp_dpo", "rf_dpo"]
    assert stages["sft"]["settings"]["learning_rate"] == 0.003 and stages["sft"]["seed"] == 42
    assert list(json.loads((hub.folder / "models/me/shop-users/main/lineage.json").read_text())) == list(stages)[:4]


@pytest.mark.long
def test_the_five_lines_of_each_card_run(hub, pushed):
    for kind, name in (("models", "shop"), ("models", "shop-scid"), ("datasets", "shop-items")):
        text = (hub.folder / kind / "me" / name / "main" / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0]
        done = hub.python(code)
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
def test_a_second_push_is_another_commit_and_an_unknown_token_is_refused(hub, pushed, smoke_run):
    code = "import sys; from align3gr.cli import main; main(sys.argv[1:])"
    again = hub.python(code, "push", "--run_dir", smoke_run, "--repo_id", "me/shop", "--model", "sft")
    assert again.returncode == 0 and again.stdout.strip() not in pushed and "/me/shop/commit/" in again.stdout
    for token in ("hf_of_nobody", ""):
        done = hub.python(code, "push", "--run_dir", smoke_run, "--repo_id", "me/other", token=token)
        assert done.returncode == 2 and "repo_id: me/other: the Hub answers 401; log in" in done.stderr
        assert len(done.stderr.strip().splitlines()[-1]) < 200 and "hf_of" not in done.stderr


ADAPTER = """
import json, sys
from align3gr.hub import push_run
from align3gr.sft import merge_adapter
from recipes import sft
from transformers import AutoModelForCausalLM, AutoTokenizer

run_dir, base, config, *options = sys.argv[1:]
for published in (AutoModelForCausalLM, AutoTokenizer):
    published.from_pretrained(base).push_to_hub("me/base")
sys.argv = ["sft", "--config", config, "--run_dir", run_dir, "--base_model", "me/base", *options]
sft.main()
merge_adapter(f"{run_dir}/sft/model", f"{run_dir}/merged")
push_run(run_dir, "me/adapter")
push_run(run_dir, "me/merged", model=f"{run_dir}/merged")
print(json.dumps(""))
"""

LISTS = """
import json, sys
from align3gr import Recommender

lists = {}
for name in sys.argv[1:]:
    recommender = Recommender.from_pretrained(name, device="cpu")
    found = recommender.recommend([recommender.items["item_id"].head(3).to_list()], k=5)[0]
    lists[name] = [[item.item_id, item.score] for item in found]
print(json.dumps(lists))
"""
SHORT = {"use_lora": "true", "max_steps": 2, "learning_rate": 0.01, "bf16": "false", "user_scid": "false"}
SHORT |= {"save_strategy": "no", "gradient_checkpointing": "false", "report_to": "none", "max_length": 512}


@pytest.mark.long
def test_an_adapter_and_its_merged_model_load_with_their_ids_alone(hub, smoke_run, tmp_path):
    run_dir = tmp_path / "run"
    for name in ("data", "scid"):
        shutil.copytree(smoke_run / name, run_dir / name)
    base = save_backbone(tmp_path / "base", max_position_embeddings=512)
    (tmp_path / "sft.yaml").write_text("templates: natural\nobjective: prefix\nmax_history: 5\n")
    words = [word for name, value in SHORT.items() for word in (f"--{name}", value)]
    hub.run(ADAPTER, run_dir, base, tmp_path / "sft.yaml", *words)
    shutil.rmtree(base)
    adapter, merged = (hub.folder / "models/me" / name / "main" for name in ("adapter", "merged"))
    assert not (adapter / "model.safetensors").exists() and not (merged / "adapter_config.json").exists()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
    assert ModelCard.load(adapter / "README.md").data.base_model == "me/base"
    for path in (path for folder in (adapter, merged) for path in folder.rglob("*") if path.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    lists = hub.run(LISTS, "me/adapter", "me/merged", run_dir / "merged")
    assert len(lists) == 3 and lists["me/merged"] == lists[str(run_dir / "merged")] != []
    for (item, score), (expected, its_score) in zip(lists["me/adapter"], lists["me/merged"], strict=True):
        assert item == expected and score == pytest.approx(its_score, abs=1e-4)


def test_an_adapter_on_a_folder_of_this_machine_is_not_pushed(smoke_run, tmp_path):
    shutil.copytree(smoke_run / "sft" / "model", tmp_path / "model")
    adapter = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(InputError, match=r"is an adapter on .*base, a folder of this machine; write one plain model"):
        push_run(smoke_run, "me/x", model=str(tmp_path / "model"))


def test_a_model_that_was_trained_from_a_folder_says_so(smoke_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(smoke_run, run_dir)
    manifest = run_dir / "sft" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["settings"]["base_model"] = "/models/Llama-2-7b"
    manifest.write_text(json.dumps(content))
    page = card(run_dir, "me/x", "recommender", run_dir / "sft" / "model", True)
    assert "A local copy of Llama-2-7b that recommends" in page.text and "/models" not in str(page)
    assert page.data.base_model is None and "No licence is stated" in page.text


def test_a_hub_that_cannot_be_reached_ends_in_one_line(smoke_run, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", Mock(side_effect=ConnectError("no route to host")))
    with pytest.raises(InputError, match=r"repo_id: me/x: the Hub cannot be reached: no route to host; nothing was"):
        push_run(smoke_run, "me/x")


PIECES = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from align3gr.scid import DualSCIDModel, RQVAEConfig, RQVAEModel, SCIDTokenizer

run_dir = sys.argv[1]
RQVAEModel(RQVAEConfig(input_dim=4, codebook_sizes=(4, 4))).push_to_hub("me/rqvae")
DualSCIDModel.from_pretrained(f"{run_dir}/scid/model").push_to_hub("me/dual")
SCIDTokenizer.from_pretrained(f"{run_dir}/sft/model").push_to_hub("me/tokenizer")
for stage, name in (("sft", "me/lm"), ("rf_dpo", "me/preferences")):
    AutoModelForCausalLM.from_pretrained(f"{run_dir}/{stage}/model").push_to_hub(name)
    AutoTokenizer.from_pretrained(f"{run_dir}/{stage}/model").push_to_hub(name)
print(json.dumps(""))
"""

OPEN_PIECES = """
import json
from transformers import AutoModelForCausalLM, AutoTokenizer

found = {}
for name in ("me/lm", "me/preferences"):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    ids = tokenizer("<i0_3><i1_0>", return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=3, do_sample=False)
    found[name] = [model.config.vocab_size, len(tokenizer), tokenizer.tokenize("<i0_3><i1_0>"), answer.tolist()]
found["me/tokenizer"] = AutoTokenizer.from_pretrained("me/tokenizer")("<i0_3><i1_0>").input_ids
import sys
assert "align3gr" not in sys.modules
print(json.dumps(found))
"""

OPEN_OURS = """
import json
import numpy as np
from transformers import AutoModel
import align3gr.scid
from align3gr.scid import DualSCIDModel, SCIDTokenizer

dual, rqvae, tokenizer = (kind.from_pretrained(name) for kind, name in (
    (DualSCIDModel, "me/dual"), (AutoModel, "me/rqvae"), (SCIDTokenizer, "me/tokenizer")
))
books = [float(sum(book.double().abs().sum() for name, book in model.state_dict().items())) for model in (dual, rqvae)]
ids = tokenizer.scid.item_ids(np.array([[3, 0, 1]])).tolist()
print(json.dumps([type(rqvae).__name__, rqvae.config.input_dim, books[0], ids]))
"""


def test_single_models_and_tokenizers_go_the_way_of_transformers(hub, smoke_run):
    from transformers import AutoTokenizer

    from align3gr.scid import DualSCIDModel, SCIDTokenizer

    hub.run(PIECES, smoke_run)
    found = hub.run(OPEN_PIECES)
    for name, stage in (("me/lm", "sft"), ("me/preferences", "rf_dpo")):
        rows, tokens, words, answer = found[name]
        assert rows >= tokens > 100 and words == ["<i0_3>", "<i1_0>"]
        assert answer == _answer(smoke_run / stage / "model")
    assert found["me/tokenizer"] == AutoTokenizer.from_pretrained(smoke_run / "sft/model")("<i0_3><i1_0>").input_ids
    kind, width, numbers, ids = hub.run(OPEN_OURS)
    weights = DualSCIDModel.from_pretrained(smoke_run / "scid" / "model").state_dict().values()
    assert (kind, width) == ("RQVAEModel", 4) and numbers == float(sum(w.double().abs().sum() for w in weights))
    tokenizer = SCIDTokenizer.from_pretrained(smoke_run / "sft" / "model")
    assert ids == tokenizer.scid.item_ids(np.array([[3, 0, 1]])).tolist()
    for name, expected in (("rqvae", "model.config.input_dim"), ("dual", "model.config.has_users")):
        card = (hub.folder / f"models/me/{name}/main/README.md").read_text()
        code = card.split("```python\n")[1].split("```")[0].replace("<this repository>", f"me/{name}")
        assert hub.run(f"{code}\nimport json; print(json.dumps({expected}))") in (4, True)


def _answer(folder: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("<i0_3><i1_0>", return_tensors="pt").input_ids
    return model.generate(ids, max_new_tokens=3, do_sample=False).tolist()


def test_what_a_run_lacks_or_must_not_push_is_named(smoke_run, tmp_path):
    with pytest.raises(InputError, match=r"artefact: 'model', expected recommender, scid, items"):
        push_run(smoke_run, "me/x", artefact="model")
    with pytest.raises(InputError, match=r"has no finished stage rf_dpo or sp_dpo or sft; run it first"):
        push_run(tmp_path, "me/x")
    with pytest.raises(InputError, match=r"model: has no effect on the artefact scid"):
        push_run(smoke_run, "me/x", artefact="scid", model="sft")
    with pytest.raises(InputError, match=r"model: .*data is no folder of a recommender"):
        push_run(smoke_run, "me/x", model=str(smoke_run / "data"))
    shutil.copytree(smoke_run / "sft" / "model", tmp_path / "model")
    (tmp_path / "model" / "optimizer.pt").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"optimizer\.pt: only .* are pushed; remove it"):
        push_run(smoke_run, "me/x", model=str(tmp_path / "model"))
    (tmp_path / "model" / "optimizer.pt").unlink()
    (tmp_path / "key.txt").write_text("private")
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "key.txt")
    with pytest.raises(InputError, match=r"notes\.txt: is a link to .*key\.txt, outside the folder"):
        push_run(smoke_run, "me/x", model=str(tmp_path / "model"))
    with pytest.raises(InputError, match="is no name/repository of the Hub"):
        push_run(smoke_run, "a/b/c")


def test_lineage_holds_no_path_of_this_machine_and_no_secret(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    settings = {
        "source": "/home/somebody/logs.jsonl",
        "hub_token": "hf_secret",
        "files": ["~/a.csv"],
        "pad_token": "<p>",
    }
    manifest = {
        "settings": settings,
        "inputs": {},
        "seed": 1,
        "versions": {"torch": "2"},
        "seconds": 3.0,
        "command": "x",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert lineage(tmp_path, folder)["prepare"] == {
        "settings": {"source": "logs.jsonl", "files": ["a.csv"], "pad_token": "<p>"},
        "inputs": {},
        "seed": 1,
        "versions": {"torch": "2"},
        "seconds": 3.0,
    }
