"""The load test starts servers, asks, stops them, and finds every list again."""

import json
import sys

import pytest

from tests import launching
from tests.conftest import ROOT


@pytest.mark.long
def test_under_load_nothing_is_lost_and_all_is_logged(recommender, tmp_path):
    recommender.save_pretrained(tmp_path / "model")
    command = [sys.executable, ROOT / "benchmarks" / "serving.py", "--model", tmp_path / "model"]
    status, output = launching.run([*command, "--clients", 6, "--requests", 60], tmp_path / "output.txt")
    assert status == 0, output
    for size, figures in json.loads(output.splitlines()[-1])["by_batch_size"].items():
        assert figures["requests"] == 60 and figures["lost"] == 0 and figures["not_logged"] == 0
        assert 1 <= figures["mean_batch"] <= min(6, int(size))
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] and figures["requests_per_cpu_second"] > 0
