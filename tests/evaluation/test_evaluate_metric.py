import sys

import pytest

from align3gr.errors import InputError
from align3gr.evaluation import ranking_metric


def test_batches_by_hand(tmp_path):
    pytest.importorskip("evaluate", reason="evaluate is not installed")
    metric = ranking_metric(ks=(1, 3), cache_dir=str(tmp_path))
    metric.add_batch(predictions=[[4, 2, 7], [1]], references=[7, 1])
    metric.add_batch(predictions=[[5, 6, 8]], references=[9])
    found = metric.compute()
    # Ranks 2, 0 and absent.
    expected = {"recall@1": 1 / 3, "ndcg@1": 1 / 3, "mrr@1": 1 / 3}
    expected |= {"recall@3": 2 / 3, "ndcg@3": (1 / 2 + 1) / 3, "mrr@3": (1 / 3 + 1) / 3, "users": 3}
    assert found == pytest.approx(expected)


def test_lists_that_cannot_answer_are_refused(tmp_path):
    pytest.importorskip("evaluate", reason="evaluate is not installed")
    with pytest.raises(InputError, match="predictions: got lists of 2 items at most, which cannot answer k=5"):
        ranking_metric(ks=(5,), cache_dir=str(tmp_path)).compute(predictions=[[1, 2]], references=[1])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(InputError, match="needs the library 'evaluate'; run pip install evaluate"):
        ranking_metric()
