"""The metrics of one list as a metric of the `evaluate` library, for scripts that collect predictions batch by batch.

The functions of `metrics.py` do the work; on whole arrays they are the quicker and the plainer way.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from align3gr.errors import InputError
from align3gr.evaluation.metrics import mean_metrics, target_ranks

if TYPE_CHECKING:
    import evaluate


def ranking_metric(ks: Sequence[int] = (5, 10), **options: object) -> "evaluate.Metric":
    """Recall, NDCG and MRR at each k as an `evaluate.Metric`.

    Predictions are lists of item indices, best first; references are the targets. A shorter list has nothing more to
    show, but at least one list must reach the longest k.

    Args:
        ks: lengths of the lists that are judged.
        options: passed on to `evaluate.Metric`, such as `experiment_id`, `num_process` and `process_id`.

    Raises:
        InputError: the library `evaluate` is not installed; or, from `compute`, no list reaches the longest k.

    Example:

    ```python
    metric = ranking_metric(ks=(5, 10))
    for lists, targets in batches:
        metric.add_batch(predictions=lists, references=targets)
    metric.compute()  # {"recall@5": ..., "ndcg@5": ..., "mrr@5": ..., "recall@10": ..., "users": ...}
    ```
    """
    try:
        import datasets
        import evaluate
    except ImportError as error:
        raise InputError("ranking_metric: needs the library 'evaluate'; run pip install evaluate") from error

    class RankingMetric(evaluate.Metric):
        """See [`ranking_metric`]."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Recall@k, NDCG@k and MRR@k of leave-one-out evaluation: one relevant item a user.",
                citation="",
                inputs_description="predictions: lists of item indices, best first; references: the targets.",
                features=datasets.Features(
                    {
                        "predictions": datasets.Sequence(datasets.Value("int64")),
                        "references": datasets.Value("int64"),
                    }
                ),
            )

        def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[int]) -> dict[str, float]:
            longest = max(len(ranking) for ranking in predictions)
            if longest < max(ks):
                raise InputError(f"predictions: got lists of {longest} items at most, which cannot answer k={max(ks)}")
            rankings = np.full((len(predictions), longest), -1, dtype=np.int64)
            for row, ranking in enumerate(predictions):
                rankings[row, : len(ranking)] = ranking
            return mean_metrics(target_ranks(rankings, np.asarray(references)), ks)

    return RankingMetric(**options)
