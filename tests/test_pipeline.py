import json
import shutil

import pytest

from align3gr.errors import InputError
from align3gr.pipeline import (
    content_hash,
    lineage_hash,
    named_files,
    option_words,
    options_hash,
    read_manifest,
    stage,
    stage_folder,
)


def run(run_dir, settings, source, text="result"):
    """One stage that writes a file; tells whether the block ran, and whether it found a resumed folder."""
    with stage(run_dir, "embed", settings, [source], seed=1) as work:
        if work is None:
            return "skipped"
        (work.folder / "out.txt").write_text(text)
        return "resumed" if work.resumed else "fresh"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("input")
    return path


def test_a_finished_stage_is_skipped_until_settings_or_inputs_change(tmp_path, source):
    assert run(tmp_path, {"dim": 1}, source) == "fresh"
    assert run(tmp_path, {"dim": 1}, source, "other") == "skipped"
    folder = stage_folder(tmp_path, "embed")
    assert (folder / "out.txt").read_text() == "result"
    assert run(tmp_path, {"dim": 2}, source, "new settings") == "fresh"
    assert (folder / "out.txt").read_text() == "new settings"
    source.write_text("changed")
    assert run(tmp_path, {"dim": 2}, source, "new input") == "fresh"
    assert (folder / "out.txt").read_text() == "new input"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings", "source.txt"]


def test_an_interrupted_stage_leaves_no_result_and_is_resumed(tmp_path, source):
    with pytest.raises(KeyboardInterrupt), stage(tmp_path, "embed", {"dim": 1}, [source]) as work:
        (work.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert not stage_folder(tmp_path, "embed").exists()
    with stage(tmp_path, "embed", {"dim": 1}, [source]) as work:
        assert work.resumed and (work.folder / "half.txt").read_text() == "half"
    with pytest.raises(KeyboardInterrupt), stage(tmp_path, "embed", {"dim": 2}, [source]) as work:
        (work.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt
    with stage(tmp_path, "embed", {"dim": 3}, [source]) as work:
        assert not work.resumed and not (work.folder / "half.txt").exists()


def test_two_runs_do_not_write_one_folder(tmp_path, source):
    for settings in ({"dim": 1}, {"dim": 2}):  # the second would put the first one's folder away
        with stage(tmp_path, "embed", {"dim": 1}, [source], seed=1) as work:
            (work.folder / "out.txt").write_text("first")
            with pytest.raises(InputError, match=r"embeddings\.partial: another process is at work in it.*stop it"):
                run(tmp_path, settings, source)
            assert (work.folder / "out.txt").read_text() == "first"
        assert run(tmp_path, {"dim": 1}, source) == "skipped"
        assert run(tmp_path, {"dim": 3}, source) == "fresh"


def test_wrong_input_found_inside_a_stage_leaves_nothing(tmp_path, source):
    with pytest.raises(InputError), stage(tmp_path / "run", "embed", {}, [source]) as work:
        (work.folder / "half.txt").write_text("half")
        raise InputError("a row is wrong")
    assert not (tmp_path / "run").exists()


def test_a_failing_rerun_keeps_the_last_good_result(tmp_path, source):
    run(tmp_path, {"dim": 1}, source)
    with pytest.raises(RuntimeError), stage(tmp_path, "embed", {"dim": 2}, [source]):
        raise RuntimeError
    assert (stage_folder(tmp_path, "embed") / "out.txt").read_text() == "result"


def test_the_manifest_ties_a_result_to_what_made_it(tmp_path, source):
    run(tmp_path, {"dim": 1}, source)
    manifest = read_manifest(stage_folder(tmp_path, "embed"))
    assert manifest["settings"] == {"dim": 1} and manifest["seed"] == 1
    assert manifest["inputs"] == {"source.txt": content_hash(source)}
    assert manifest["seconds"] >= 0 and manifest["peak_memory_mb"] > 10 and "transformers" in manifest["versions"]


def test_two_inputs_of_one_name_are_both_looked_at(tmp_path, source):
    others = [tmp_path.parent / f"{tmp_path.name}-{name}" / "vectors.parquet" for name in "ab"]
    for path in others:
        path.parent.mkdir()
        path.write_text(path.parent.name)

    def ran() -> bool:
        with stage(tmp_path, "embed", {}, [source, *others]) as work:
            return work is not None

    assert ran() and not ran()
    assert sorted(read_manifest(stage_folder(tmp_path, "embed"))["inputs"]) == [
        "source.txt",
        "vectors.parquet",
        "vectors.parquet#2",
    ]
    for path in others:
        path.write_text("changed " + path.parent.name)
        assert ran()


def test_null_is_no_word_of_a_command_line():
    with pytest.raises(InputError, match=r"^base_model: got null"):
        option_words({"base_model": None})


def test_files_that_options_name(tmp_path):
    options = {"templates": str(tmp_path), "base_model": "Qwen/Qwen3-1.7B", "seed": 3}
    assert named_files(options) == [tmp_path]


def test_the_hash_of_a_folder_sees_names_and_contents_but_not_the_manifest(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("1")
    before = content_hash(folder)
    (folder / "manifest.json").write_text(json.dumps({"seconds": 1}))
    assert content_hash(folder) == before
    (folder / "deep" / "a").write_text("2")
    changed = content_hash(folder)
    (folder / "deep" / "a").rename(folder / "deep" / "b")
    assert len({before, changed, content_hash(folder)}) == 3


def make_chain(run_dir, vectors="0.1", dim=1, log="a log", codes=2, model=None):
    """A run of three stages, the second with floating-point results."""
    made = [("prepare", {"source": str(run_dir)}, [], log), ("embed", {"dim": dim}, ["data/out.txt"], vectors)]
    made += [("scid", {"codes": codes}, ["data/out.txt", "embeddings/out.txt", *([model] if model else [])], vectors)]
    for name, settings, inputs, text in made:
        with stage(run_dir, name, settings, [run_dir / path for path in inputs], seed=1) as work:
            (work.folder / "out.txt").write_text(text)
    return run_dir


def test_the_lineage_of_a_stage_is_what_made_it_not_the_bytes_that_came_out(tmp_path):
    first = make_chain(tmp_path / "one")
    lineages = {name: lineage_hash(first / name) for name in ("embeddings", "scid")}
    assert len(set(lineages.values())) == 2
    elsewhere = make_chain(tmp_path / "two", vectors="0.10000000001")
    assert content_hash(elsewhere / "embeddings") != content_hash(first / "embeddings")
    assert {name: lineage_hash(elsewhere / name) for name in lineages} == lineages
    manifest = read_manifest(elsewhere / "embeddings") | {"versions": {"torch": "9"}, "seconds": 9, "command": "other"}
    (elsewhere / "embeddings" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "scid").symlink_to(elsewhere / "scid")  # without the embeddings beside it
    assert lineage_hash(tmp_path / "link" / "scid") == lineages["scid"]


@pytest.mark.parametrize("change", [{"dim": 2}, {"log": "another log"}])
def test_the_lineage_of_a_stage_sees_settings_and_data_of_all_stages_before(tmp_path, change):
    first, other = make_chain(tmp_path / "one"), make_chain(tmp_path / "two", **change)
    for name in ("embeddings", "scid"):
        assert lineage_hash(other / name) != lineage_hash(first / name)
    assert lineage_hash(make_chain(tmp_path / "three", codes=3) / "scid") != lineage_hash(first / "scid")
    model = tmp_path / "model"
    model.write_text("one")
    with_model = lineage_hash(make_chain(tmp_path / "four", model=model) / "scid")
    model.write_text("two")
    assert lineage_hash(make_chain(tmp_path / "five", model=model) / "scid") != with_model


def test_where_the_lineage_says_nothing_the_content_counts(tmp_path):
    run_dir = make_chain(tmp_path / "one")
    shutil.copytree(run_dir / "scid", tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    assert lineage_hash(tmp_path / "copy") == content_hash(tmp_path / "copy")
    assert lineage_hash(run_dir / "scid" / "out.txt") == content_hash(run_dir / "scid" / "out.txt")
    before = lineage_hash(run_dir / "scid")
    # Embeddings that were made anew with other settings are not those that the codes came from.
    with stage(run_dir, "embed", {"dim": 2}, [run_dir / "data" / "out.txt"], seed=1) as work:
        (work.folder / "out.txt").write_text("others")
    stale = lineage_hash(run_dir / "scid")
    shutil.rmtree(run_dir / "embeddings")
    assert stale != before and lineage_hash(run_dir / "scid") == stale
    with pytest.raises(InputError, match="not found; run the stage"):
        lineage_hash(run_dir / "embeddings")


def test_the_hash_of_options_sees_what_they_say_alone(tmp_path):
    def hash_of(text):
        (tmp_path / "sft.yaml").write_text(text)
        return options_hash(tmp_path / "sft.yaml")

    first = hash_of("run_dir: runs/a\ntasks: [b]\nlearning_rate: 0.001\n")
    assert hash_of("# A comment.\nlearning_rate: 1.0e-3\n\nrun_dir: runs/other\ntasks:\n  - b\n") == first
    assert len({first, hash_of("tasks: [b]\nlearning_rate: 0.002\n"), hash_of("tasks: [b]\n")}) == 3
    assert hash_of("base_model: /one/model\n") == hash_of("base_model: /two/model\n")
    assert hash_of("a: [\n") != hash_of("b: [\n")  # no valid YAML
    with pytest.raises(InputError, match="not found"):
        options_hash(tmp_path / "nothing.yaml")


def test_a_missing_input_and_a_run_dir_that_cannot_be_made_are_named(tmp_path, source):
    with (
        pytest.raises(InputError, match="not found; run the stage"),
        stage(tmp_path, "embed", {}, [tmp_path / "nothing.txt"]),
    ):
        pass
    with pytest.raises(InputError, match="run_dir: cannot write"):
        run(source / "below", {}, source)
    with pytest.raises(InputError, match="holds no finished stage"):
        read_manifest(tmp_path)


def test_a_stage_that_was_made_from_older_files_is_refused(tmp_path, source):
    def make(name, *inputs, text):
        with stage(tmp_path, name, {"text": text}, inputs) as work:
            (work.folder / "out.txt").write_text(text)

    make("prepare", source, text="one")
    make("embed", tmp_path / "data" / "out.txt", text="two")
    make("prepare", source, text="three")
    with pytest.raises(InputError, match=r"embeddings: was made from another .*out\.txt; run stage 'embed' again"):
        make("scid", tmp_path / "embeddings" / "out.txt", text="four")
    make("embed", tmp_path / "data" / "out.txt", text="two")
    make("scid", tmp_path / "embeddings" / "out.txt", text="four")


def test_training_that_was_begun_survives_wrong_input(tmp_path, source):
    with pytest.raises(InputError), stage(tmp_path, "sft", {}, [source]) as work:
        (work.folder / "trainer" / "checkpoint-1").mkdir(parents=True)
        raise InputError("a late discovery")
    with stage(tmp_path, "sft", {}, [source]) as work:
        assert work.resumed and (work.folder / "trainer" / "checkpoint-1").is_dir()


def test_a_kill_between_the_last_write_and_the_renaming_loses_nothing(tmp_path, source):
    run(tmp_path, {"dim": 1}, source)
    folder = stage_folder(tmp_path, "embed")
    folder.rename(folder.with_name("embeddings.partial"))
    folder.with_name("embeddings.old").mkdir()
    assert run(tmp_path, {"dim": 1}, source, "again") == "skipped"
    assert (folder / "out.txt").read_text() == "result"
    assert not list(tmp_path.glob("embeddings.*"))


def test_a_kill_between_two_renamings_leaves_one_good_result(tmp_path, source):
    run(tmp_path, {"dim": 1}, source)
    folder = stage_folder(tmp_path, "embed")
    old = folder.with_name("embeddings.old")
    shutil.copytree(folder, old)  # the new result has its place, the one before it was not removed yet
    assert run(tmp_path, {"dim": 1}, source, "again") == "skipped" and not old.exists()
    folder.rename(old)  # and now the new one has not even been moved
    assert run(tmp_path, {"dim": 1}, source, "again") == "skipped" and not old.exists()
    assert (folder / "out.txt").read_text() == "result"


def test_the_manifest_holds_no_token(tmp_path, monkeypatch):
    words = ["--lr", "1", "--hub_token", "hf_secret", "--hub_token=hf_secret", "--push_to_hub", "true"]
    monkeypatch.setattr("sys.argv", ["recipes/sft.py", *words])
    with stage(tmp_path, "prepare", {}, []):
        pass
    command = read_manifest(tmp_path / "data")["command"]
    assert command == "recipes/sft.py --lr 1 --hub_token '***' '--hub_token=***' --push_to_hub true"
