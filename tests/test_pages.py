"""Every code block of the README and of docs/ runs, from the top of its page to its end, or says why it cannot."""

import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from align3gr.pipeline import STAGES
from tests.conftest import ROOT, SMOKE
from tests.page_setups import SETUPS
from tests.pages import PAGES, RUN, SHOWN, PageRunner, read_blocks, shell_commands

LONG = {"own-data", "preference-level", "encoders", "sft", "feedback", "tracking", "tutorial"}  # these train
OWN_TEST = {"softmax-dpo": "tests/dpo/test_softmax_dpo_docs.py"}  # which looks at the figures, too
RUNS = ("yelp", "ml-100k")
# The pages name users and items of Yelp, the smoke run has the built-in market's.
IDS = {'"17"': '"item_017"', '"4"': '"item_004"', '"231"': '"item_031"', '"42"': '"user_042"'}
PORT = "8123"  # of the server of own-data.md; another program may have it


def runnable(page: Path) -> bool:
    return any(block.language in RUN and not block.not_run for block in read_blocks(page))


@pytest.fixture
def workplace(smoke_run, tmp_path) -> Path:
    """A folder with the finished smoke run under the names of the pages' runs, and its settings as their recipes."""
    for name in RUNS:
        shutil.copytree(smoke_run, tmp_path / "runs" / name)
        (tmp_path / "recipes" / name).mkdir(parents=True)
        for stage in STAGES:
            options = yaml.safe_load((SMOKE / f"{stage}.yaml").read_text()) | {"run_dir": f"runs/{name}"}
            (tmp_path / "recipes" / name / f"{stage}.yaml").write_text(yaml.safe_dump(options))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.long] * (page.stem in LONG), id=page.stem)
        for page in PAGES
        if runnable(page) and page.stem not in OWN_TEST
    ],
)
def test_the_blocks_of_a_page_run(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = PageRunner(workplace, monkeypatch, SETUPS[page.stem]() if page.stem in SETUPS else {})
    for block in read_blocks(page):
        if block.language in RUN and not block.not_run:
            print(f"--- {block}")
            code = block.code
            for published, ours in (IDS | {PORT: str(port)}).items():
                code = code.replace(published, ours)
            runner.run(replace(block, code=code))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_is_passed_over_silently(page):
    for block in read_blocks(page):
        assert block.language in (*RUN, *SHOWN), f"{block}: language '{block.language}'; is it to be run?"
        assert block.not_run is None or block.language in RUN, f"{block}: a marker where nothing would run"


def test_what_this_file_says_of_pages_is_true():
    stems = {page.stem for page in PAGES}
    assert LONG | set(OWN_TEST) | set(SETUPS) <= stems
    assert all(Path(SMOKE.parent.parent, file).is_file() for file in OWN_TEST.values())


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page, outside of code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs").glob("*/*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}: no such heading"


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {"README.md", "index.md"} == listed


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Two `words`, here\n## A_b-c (d)\n```sh\n# no heading\n```\n")
    assert anchors(page) == {"two-words-here", "a_b-c-d"}


def test_markers_and_fences_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```sh\nmake\n```\ntext\n```python\nx = 1\n\ny = 2\n```\n")
    first, second = read_blocks(page)
    assert (first.line, first.language, first.code, first.not_run) == (2, "sh", "make\n", "needs a GPU")
    assert (second.line, second.language, second.code, second.not_run) == (6, "python", "x = 1\n\ny = 2\n", None)
    page.write_text("<!-- not run: far off -->\n\n```sh\nmake\n```\n")
    with pytest.raises(ValueError, match="not the line above"):
        read_blocks(page)
    page.write_text("```sh\nmake\n")
    with pytest.raises(ValueError, match="not closed"):
        read_blocks(page)


def test_commands_are_read_as_a_shell_reads_them(monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    code = "# first\nalign3gr a --b \\\n    'c d'  # why\nls $PLACE\n"
    assert shell_commands(code) == [["align3gr", "a", "--b", "c d"], ["ls", "here"]]


def test_plain_commands_and_python_work_in_the_folder_of_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 2\n```\n```sh\nmkdir made\n```\n```python\nopen('made/file', 'w').write(str(x))\n```\n"
    )
    runner = PageRunner(tmp_path, monkeypatch, {})
    for block in read_blocks(page):
        runner.run(block)
    assert (tmp_path / "made" / "file").read_text() == "2"


def test_a_block_that_fails_is_named(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```sh\nalign3gr results nowhere --output r.md\n```\n```sh\nfalse | false\n```\n")
    runner = PageRunner(tmp_path, monkeypatch, {})
    for block, words in zip(read_blocks(page), ("page.md:1: status 2", "page.md:4: status 1"), strict=True):
        with pytest.raises(AssertionError, match=words):
            runner.run(block)
