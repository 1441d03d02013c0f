import json
import re
import shutil
import socket
import threading
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from align3gr import Recommender
from align3gr.cli import main
from align3gr.data import Split
from align3gr.errors import InputError
from align3gr.report import write_run_report
from tests import launching

HEADINGS = [
    *("Results", "Where targets are lost", "Examples", "Data"),
    *("SCIDs", "Training", "Curriculum", "Settings and lineage"),
]
BAD = "<script>alert('x')</script><img src=//example.invalid/a.png>"


class Page(HTMLParser):
    """Elements, headings and tables of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def section(self, heading: str) -> str:
        after = self.source.partition(f">{heading}</h2>")[2]
        return after.partition("</section>")[0]


@pytest.fixture(scope="module")
def page(smoke_run) -> Page:
    """What the stage `evaluate` wrote."""
    return Page(smoke_run / "report.html")


def copy_run(source: Path, run_dir: Path, *stages: str) -> Path:
    run_dir.mkdir()
    for name in stages:
        shutil.copytree(source / name, run_dir / name)
    return run_dir


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]


def test_evaluation_leaves_a_report_with_the_figures_of_the_run(smoke_run, page):
    assert page.texts["h2"] == HEADINGS and "missing" not in [e[1].get("class") for e in page.elements]
    results = json.loads((smoke_run / "evaluation" / "results.json").read_text())
    bars = re.findall(r"<title>(.*?), recall@10: ([\d.]+)</title>", page.section("Results"))
    assert bars == [(name, f"{columns['seen_allowed']['recall@10']:.4f}") for name, columns in results.items()]
    assert next(iter(results)) == "popularity" and "SFT" in results
    lost = re.findall(r"<title>SFT, lost at level (\d): ([\d.]+)</title>", page.section("Where targets are lost"))
    shares = results["SFT"]["lost_levels"]
    assert lost == [(str(level + 1), f"{shares[str(level)]:.3f}") for level in range(3)]
    statistics = json.loads((smoke_run / "data" / "statistics.json").read_text())
    assert ["train interactions", f"{statistics['train_interactions']:,}"] in cells(page.section("Data"))


def test_curves_and_difficulty_are_those_of_the_logs(smoke_run, page):
    training = page.section("Training")
    log = json.loads((smoke_run / "sft" / "log.json").read_text())
    (line,) = re.findall(r'd="([^"]*)"><title>train loss', training)
    assert line.count("L") + 1 == len([entry for entry in log if "loss" in entry])
    for name in ("sp_dpo", "rf_dpo"):
        record = json.loads((smoke_run / name / "curriculum.json").read_text())
        trained = [stage for stage in record["stages"] if stage["decision"] != "skipped"]
        assert trained
        for number, stage in enumerate(record["stages"]):
            if stage in trained:
                steps = json.loads((smoke_run / name / f"{number}-{stage['name']}" / "log.json").read_text())
                assert (steps[0]["loss"], steps[-1]["loss"]) == (stage["first_loss"], stage["last_loss"])
                assert f"<title>{stage['name']}</title>" in training
                row = next(row for row in cells(page.section("Curriculum")) if row[:1] == [stage["name"]])
                assert f"{stage['statistics']['start_accuracy']:.3f}" in row
    assert "older version" not in training


def test_examples_are_what_the_last_model_recommends(smoke_run, page):
    examples = page.section("Examples")
    users = re.findall(r"<h3>User (.*?)</h3>", examples)
    assert len(users) == len(set(users)) == 6
    split = Split.load(smoke_run / "data")
    questions = split.histories("test")
    recommender = Recommender.from_pretrained(smoke_run / "rf_dpo" / "model")
    titles = dict(split.items.select("item_id", "title").iter_rows())
    for user, card in zip(users, examples.split("<h3>User ")[1:], strict=True):
        row = questions.user_rows.tolist().index(split.user_index[user])
        history = [split.items["item_id"][int(item)] for item in questions.histories[row]]
        expected = [item.title for item in recommender.recommend([history], [user], k=10)[0]]
        items = re.findall(r"<li([^>]*)>([^<]*) \([\d.]+%\)</li>", card.partition("<ol>")[2])
        assert [title for _, title in items] == expected
        target = titles[split.items["item_id"][int(questions.targets[row])]]
        assert [title for kind, title in items if "hit" in kind] == [target] * (target in expected)
        shown = re.findall(r"<li>([^<]*)</li>", card.partition("<ul>")[2].partition("</ul>")[0])
        assert shown == [titles[item] for item in history[-10:]]
        assert f"What came next: {target}" in card


def test_settings_and_lineage_are_those_of_the_manifests(smoke_run, page):
    lineage = page.section("Settings and lineage")
    for folder in ("data", "scid", "sft", "rf_dpo", "evaluation"):
        manifest = json.loads((smoke_run / folder / "manifest.json").read_text())
        for path, digest in manifest["inputs"].items():
            assert [manifest["stage"], path, digest] in cells(lineage)
        assert f"Settings of {manifest['stage']}<" in lineage
    assert "hub_token" not in page.source
    assert manifest["versions"]["transformers"] in cells(lineage.partition("Versions")[2])[1]


def test_nothing_comes_from_outside_and_nothing_runs(page):
    fetching = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background", "formaction"}
    links = [(name, value) for _, attrs in page.elements for name, value in attrs.items() if name in fetching]
    assert links and all(name == "href" and value.startswith("#") for name, value in links)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert sorted(value[1:] for _, value in links) == sorted(set(ids))
    assert not {tag for tag, _ in page.elements} & {"script", "img", "link", "iframe", "object", "embed", "base"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "url(" not in page.source and "@import" not in page.source
    policies = [a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_a_page_stays_small(page):
    assert len(page.source) < 150_000


def test_titles_and_settings_of_others_are_only_text(smoke_run, tmp_path):
    run_dir = copy_run(smoke_run, tmp_path / "run", "data", "embeddings", "scid", "sft", "sp_dpo")
    for path in (run_dir / "data" / "items.parquet", run_dir / "sp_dpo" / "model" / "item_codes.parquet"):
        pl.read_parquet(path).with_columns(pl.lit(BAD).alias("title")).write_parquet(path)
    manifest = run_dir / "sft" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["settings"]["base_model"], content["command"] = f"</pre>{BAD}", BAD
    content["inputs"] = {BAD: "0" * 64}
    manifest.write_text(json.dumps(content))
    record = run_dir / "sp_dpo" / "curriculum.json"
    record.write_text(record.read_text().replace('"0-easy"', json.dumps(BAD)))
    page = Page(write_run_report(run_dir, examples=2))
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert page.source.count("&lt;script&gt;") > 40 and page.texts["h2"] == HEADINGS
    assert [text for text in page.texts["li"] if text.startswith(BAD)]


def test_a_partial_run_says_what_is_missing(smoke_run, tmp_path):
    run_dir = copy_run(smoke_run, tmp_path / "run", "data")
    (run_dir / "scid.partial").mkdir()
    page = Page(write_run_report(run_dir))
    assert page.texts["h2"] == HEADINGS
    assert "stage &#x27;evaluate&#x27; (not run)" in page.section("Results")
    assert "stage &#x27;scid&#x27; (interrupted)" in page.section("SCIDs")
    assert "no stage that leaves a model" in page.section("Examples")
    for stage in ("embeddings", "sft"):
        shutil.copytree(smoke_run / stage, run_dir / stage)
    (run_dir / "scid.partial").rmdir()
    shutil.copytree(smoke_run / "scid", run_dir / "scid")
    (run_dir / "sft" / "log.json").unlink()
    page = Page(write_run_report(run_dir, examples=1))
    assert "Missing" in page.section("Results") and "Missing" not in page.section("SCIDs")
    assert "of stage &#x27;sft&#x27;" in page.section("Examples") and "No sft/log.json" in page.section("Training")
    assert "Stage &#x27;rf_dpo&#x27; is not run." in page.section("Curriculum")
    assert "Not finished: sp_dpo, rf_dpo, evaluate." in page.source
    assert [path.name for path in run_dir.glob("*.partial")] == []


def test_an_older_run_without_logs_of_its_stages_shows_the_ends_of_their_curves(smoke_run, tmp_path):
    run_dir = copy_run(smoke_run, tmp_path / "run", "data", "sp_dpo")
    for path in (run_dir / "sp_dpo").glob("*/log.json"):
        path.unlink()
    page = Page(write_run_report(run_dir, examples=0))
    record = json.loads((run_dir / "sp_dpo" / "curriculum.json").read_text())
    stage = next(stage for stage in record["stages"] if "first_loss" in stage)
    ends = [stage["name"], f"{stage['first_loss']:.3f}", f"{stage['last_loss']:.3f}"]
    assert ends in cells(page.section("Training")) and "Left out, as asked for." in page.section("Examples")


def test_a_phase_whose_epochs_begin_again_has_another_curve(smoke_run, tmp_path):
    run_dir = copy_run(smoke_run, tmp_path / "run", "scid")
    epochs = [("align", 1.0), ("align", 2.0), ("quantize", 1.0), ("quantize", 2.0), ("quantize", 1.0)]
    log = [{"phase": phase, "epoch": epoch, "loss": 1.0} for phase, epoch in epochs]
    (run_dir / "scid" / "report.json").write_text(json.dumps({"log": log}))
    training = Page(write_run_report(run_dir)).section("Training")
    curves = re.findall(r'class="line"[^>]*d="([^"]*)"><title>(.*?)</title>', training)
    assert [(path.count("L") + 1, name) for path, name in curves] == [(2, "phase align"), (2, "phase quantize")]
    assert re.findall(r"<circle [^>]*><title>(.*?)</title>", training) == ["phase quantize, part 2"]


def test_wrong_input_is_named(smoke_run, tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder"):
        write_run_report(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no finished stage \(data, "):
        write_run_report(tmp_path)
    with pytest.raises(InputError, match="examples: got -1"):
        write_run_report(smoke_run, tmp_path / "a.html", examples=-1)
    run_dir = copy_run(smoke_run, tmp_path / "run", "data", "sft")
    with pytest.raises(InputError, match=r"--output .*no/a.html: No such file"):
        write_run_report(run_dir, tmp_path / "no" / "a.html", examples=0)
    (run_dir / "sft" / "log.json").write_text("[")
    with pytest.raises(InputError, match=r"log.json: not valid JSON .*run stage 'sft' again"):
        write_run_report(run_dir, examples=0)
    (run_dir / "data" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: not valid JSON .*run stage 'prepare' again"):
        write_run_report(run_dir)


def test_the_command_writes_where_it_is_told(smoke_run, tmp_path, capsys):
    run_dir = copy_run(smoke_run, tmp_path / "run", "data")
    for arguments, path in (
        ([], run_dir / "report.html"),
        (["--output", str(tmp_path / "a.html")], tmp_path / "a.html"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["report", str(run_dir), "--examples", "0", *arguments])
        assert left.value.code == 0 and capsys.readouterr().out == f"{path}\n"
        assert Page(path).texts["h2"] == HEADINGS


# Chromium asks its maker for the time and for accounts on its own, whatever page is open; no report names these hosts.
OF_THE_BROWSER = re.compile(r"\b(accounts|www|clients\d|update|optimizationguide-pa)\.google(apis)?\.com\b")


class Listener:
    """A proxy that notes the first line of each request and answers none."""

    def __init__(self):
        self.requests: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.requests.append(connection.recv(4096).decode(errors="replace").split("\r\n")[0])

    def close(self):
        self._socket.close()


def browse(path: Path, folder: Path) -> tuple[str, list[str]]:
    """The document as a browser has it after loading, and the requests for anything but the file itself."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium; install Debian's package of that name")
    listener = Listener()
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
        "--disable-default-apps",
    ]
    command += ["--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter"]
    command += [f"--user-data-dir={folder}", f"--proxy-server=http://127.0.0.1:{listener.port}"]
    status, printed = launching.run([*command, "--dump-dom", path.resolve().as_uri()], folder.with_suffix(".txt"), 120)
    listener.close()
    assert status == 0, printed[-2000:]
    return printed, [line for line in listener.requests if not OF_THE_BROWSER.search(line)]


@pytest.mark.long
def test_a_browser_opens_it_and_asks_for_nothing(smoke_run, tmp_path):
    # What this would find, it finds in a page that asks for a picture.
    (tmp_path / "asks.html").write_text("<!DOCTYPE html><p>asks<img src='http://example.invalid/a.png'>")
    _, requests = browse(tmp_path / "asks.html", tmp_path / "first")
    assert [line for line in requests if "example.invalid/a.png" in line], requests
    document, requests = browse(smoke_run / "report.html", tmp_path / "second")
    assert requests == [] and not OF_THE_BROWSER.search((smoke_run / "report.html").read_text())
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", document) == HEADINGS
    assert document.count("<svg") == (smoke_run / "report.html").read_text().count("<svg") > 5
