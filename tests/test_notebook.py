"""The notebook runs from top to end, and says of its models what their files say."""

import json
import re

import pytest

from align3gr.demo import open_demo
from tests.conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "align3gr.ipynb"


def test_the_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 10 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 50_000


def test_the_pages_that_it_leads_to_exist():
    text = NOTEBOOK.read_text(encoding="utf-8")
    pages = set(re.findall(r"docs/[\w-]+\.md", text))
    assert pages and all((ROOT / page).is_file() for page in pages)


@pytest.mark.long
def test_the_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; pip install 'align3gr[dev]'")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed; pip install 'align3gr[dev]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; pip install 'align3gr[dev]'")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The kernel of this interpreter, whatever kernels the machine knows.
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in shown if "image/png" in output.get("data", {})]
    printed = "".join(output.get("text", "") for output in shown)
    assert re.search(r"level 3: 20 of 200 prefixes, \d+% of the probability", printed)
    record = json.loads((tmp_path / "notebook-run" / "sp_dpo" / "curriculum.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["easy", "medium", "hard"]
    session = open_demo(tmp_path / "notebook-run", device="cpu")
    assert session.names == ["SFT", "SP-DPO"] and len(session.users) == 800
