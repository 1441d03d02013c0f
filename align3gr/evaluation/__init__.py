"""Ranking metrics under the protocols that published tables use, and the evaluation of models."""

from align3gr.evaluation.evaluator import evaluate_policy, sample_users
from align3gr.evaluation.metrics import is_repeat, ndcg_at_k, recall_at_k, target_ranks, three_columns
from align3gr.evaluation.report import curriculum_table, metrics_table, stages_table

__all__ = [
    "curriculum_table",
    "evaluate_policy",
    "is_repeat",
    "metrics_table",
    "ndcg_at_k",
    "recall_at_k",
    "sample_users",
    "stages_table",
    "target_ranks",
    "three_columns",
]
