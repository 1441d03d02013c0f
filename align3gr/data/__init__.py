"""From raw logs to tables: readers, checks, k-core, leave-one-out splits, user profiles, the built-in market."""

from align3gr.data.readers import read_lcrec, read_movielens_100k, read_tables
from align3gr.data.splits import k_core, leave_one_out
from align3gr.data.synthetic import SyntheticMarket, SyntheticMarketConfig
from align3gr.data.tables import EvaluationSet, Split, Tables

__all__ = [
    "EvaluationSet",
    "Split",
    "SyntheticMarket",
    "SyntheticMarketConfig",
    "Tables",
    "k_core",
    "leave_one_out",
    "read_lcrec",
    "read_movielens_100k",
    "read_tables",
]
