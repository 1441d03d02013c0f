"""Ranking metrics under the protocols that published tables use, and the evaluation of models."""

from align3gr.evaluation.beyond_accuracy import (
    catalogue_coverage,
    exposure,
    exposure_gini,
    prefix_diversity,
    recommendation_popularity,
    shows_disliked,
    vector_diversity,
)
from align3gr.evaluation.evaluate_metric import ranking_metric
from align3gr.evaluation.evaluator import evaluate_policy, rank_histories, rank_policy, sample_users
from align3gr.evaluation.full_evaluation import FullEvaluation
from align3gr.evaluation.metrics import (
    is_repeat,
    mean_metrics,
    mrr_at_k,
    ndcg_at_k,
    recall_at_k,
    reported_ks,
    target_ranks,
    three_columns,
)
from align3gr.evaluation.per_user import PER_USER_FILE, compare, read_per_user
from align3gr.evaluation.policies import judge_policies, latest_then, read_curriculum, stage_policies
from align3gr.evaluation.report import (
    beyond_accuracy_table,
    curriculum_table,
    metrics_table,
    ranking_table,
    results_page,
    segments_table,
    stages_table,
)
from align3gr.evaluation.segments import lost_levels, segment_metrics, segment_users, shared_levels
from align3gr.evaluation.significance import PairedTest, SeedTest, paired_test, seeds_test

__all__ = [
    "FullEvaluation",
    "PER_USER_FILE",
    "PairedTest",
    "SeedTest",
    "beyond_accuracy_table",
    "catalogue_coverage",
    "compare",
    "curriculum_table",
    "evaluate_policy",
    "exposure",
    "exposure_gini",
    "is_repeat",
    "judge_policies",
    "latest_then",
    "lost_levels",
    "mean_metrics",
    "metrics_table",
    "mrr_at_k",
    "ndcg_at_k",
    "paired_test",
    "prefix_diversity",
    "rank_histories",
    "rank_policy",
    "ranking_metric",
    "ranking_table",
    "read_curriculum",
    "read_per_user",
    "recall_at_k",
    "recommendation_popularity",
    "reported_ks",
    "results_page",
    "sample_users",
    "seeds_test",
    "segment_metrics",
    "segment_users",
    "segments_table",
    "shared_levels",
    "shows_disliked",
    "stage_policies",
    "stages_table",
    "target_ranks",
    "three_columns",
    "vector_diversity",
]
