"""The example of docs/softmax-dpo.md runs and does what its comments say."""

import math
import re

from tests.conftest import ROOT


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "softmax-dpo.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "docs/softmax-dpo.md", "exec"), names)
    uniform = (math.log(4) + math.log(3) + math.log(2)) / 3
    assert abs(names["first"]["loss"] - uniform) < 1e-4 and abs(names["first"]["uniform_loss"] - uniform) < 1e-6
    assert "1.06 twice" in example and round(uniform, 2) == 1.06
    assert names["last"]["loss"] < 0.5 and names["last"]["rewards/accuracies"] == 1.0
    assert (tmp_path / "softmax-dpo" / "model" / "model.safetensors").is_file()
