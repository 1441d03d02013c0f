"""Comparison systems, their tuning, and published results. A model below them has not been trained yet."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.baselines.bert4rec import BERT4Rec, BERT4RecModel
    from align3gr.baselines.caser import Caser, CaserModel
    from align3gr.baselines.generative import GenerativeSystem, StageChain, stage_chains
    from align3gr.baselines.generative_systems import GENERATIVE
    from align3gr.baselines.hgn import HGN, HGNModel
    from align3gr.baselines.lightgcn import LightGCN
    from align3gr.baselines.matrix_factorization import MatrixFactorization
    from align3gr.baselines.published import PUBLISHED, PublishedRow
    from align3gr.baselines.sasrec import SASRec, SASRecModel
    from align3gr.baselines.settings import StudySettings
    from align3gr.baselines.simple import (
        Baseline,
        HistoryRepeat,
        HistoryThenItemKNN,
        ItemKNN,
        Popularity,
        judge_simple_systems,
    )
    from align3gr.baselines.study import Study
    from align3gr.baselines.systems import SYSTEMS, System, draw_trials
    from align3gr.baselines.tables import fair_play, how_tuned, over_seeds, results_table, tuning_table
    from align3gr.baselines.two_tower import TwoTower, TwoTowerModel
    from align3gr.baselines.vectors import VectorBaseline, rank_by_vectors

__getattr__, __all__ = attach(
    __name__,
    {
        "bert4rec": ("BERT4Rec", "BERT4RecModel"),
        "caser": ("Caser", "CaserModel"),
        "generative": ("GenerativeSystem", "StageChain", "stage_chains"),
        "generative_systems": ("GENERATIVE",),
        "hgn": ("HGN", "HGNModel"),
        "lightgcn": ("LightGCN",),
        "matrix_factorization": ("MatrixFactorization",),
        "published": ("PUBLISHED", "PublishedRow"),
        "sasrec": ("SASRec", "SASRecModel"),
        "settings": ("StudySettings",),
        "simple": (
            "Baseline",
            "HistoryRepeat",
            "HistoryThenItemKNN",
            "ItemKNN",
            "Popularity",
            "judge_simple_systems",
        ),
        "study": ("Study",),
        "systems": ("SYSTEMS", "System", "draw_trials"),
        "tables": ("fair_play", "how_tuned", "over_seeds", "results_table", "tuning_table"),
        "two_tower": ("TwoTower", "TwoTowerModel"),
        "vectors": ("VectorBaseline", "rank_by_vectors"),
    },
)
