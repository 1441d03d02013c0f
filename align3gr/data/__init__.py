"""From raw logs to tables: readers, checks, k-core, splits, user profiles, the built-in market."""

from align3gr.data.feedback import Feedback, RatingScale, train_levels
from align3gr.data.feedback_log import feedback_of_events, feedback_of_log, read_events, read_feedback
from align3gr.data.formats import FORMATS, FROM_HUB, find_files, read_log
from align3gr.data.frames import read_frames
from align3gr.data.movielens import read_movielens_1m, read_movielens_100k
from align3gr.data.readers import read_lcrec, read_tables
from align3gr.data.source import LogFiles, LogSource
from align3gr.data.splits import k_core, leave_one_out, time_split
from align3gr.data.synthetic import SyntheticMarket, SyntheticMarketConfig
from align3gr.data.tables import EvaluationSet, Split, Tables

__all__ = [
    "EvaluationSet",
    "FORMATS",
    "FROM_HUB",
    "Feedback",
    "LogFiles",
    "LogSource",
    "RatingScale",
    "Split",
    "SyntheticMarket",
    "SyntheticMarketConfig",
    "Tables",
    "feedback_of_events",
    "feedback_of_log",
    "find_files",
    "k_core",
    "leave_one_out",
    "read_events",
    "read_feedback",
    "read_frames",
    "read_lcrec",
    "read_log",
    "read_movielens_100k",
    "read_movielens_1m",
    "read_tables",
    "time_split",
    "train_levels",
]
