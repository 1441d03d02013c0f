"""Every comparison system with the values that its tuning may try."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from align3gr.baselines.bert4rec import BERT4Rec
from align3gr.baselines.caser import Caser
from align3gr.baselines.hgn import HGN
from align3gr.baselines.lightgcn import LightGCN
from align3gr.baselines.matrix_factorization import MatrixFactorization
from align3gr.baselines.sasrec import SASRec
from align3gr.baselines.simple import HistoryRepeat, HistoryThenItemKNN, ItemKNN, Popularity
from align3gr.baselines.two_tower import TwoTower


@dataclass(frozen=True)
class System:
    """A comparison system.

    Attributes:
        make: takes one value of each entry of `space`; where `seeded`, also `seed`.
        space: the values of each setting, the default first.
        seeded: whether anything in it is random; such a system is judged with several seeds.
        in_epochs: whether it trains in epochs, whose number `epochs` limits.
        reads_texts: whether it is made with `item_texts`, the text of each item.
        least_k: length of its lists on test where the study asks for shorter ones.
        generative: whether it is a chain of stages of the pipeline; see [`GenerativeSystem`]. Its files and its space
            stand in the settings of the study.
    """

    make: Callable[..., Any]
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeded: bool = False
    in_epochs: bool = False
    reads_texts: bool = False
    least_k: int = 0
    generative: bool = False


def history_then_item_knn(num_repeated: int, max_history: int, decay: float) -> HistoryThenItemKNN:
    """[`HistoryThenItemKNN`] from plain values."""
    return HistoryThenItemKNN(num_repeated, ItemKNN(max_history, decay))


SYSTEMS = {
    "popularity": System(Popularity),
    "history, latest first": System(HistoryRepeat),
    "item-kNN": System(ItemKNN, {"max_history": (20, 5, 10, 50), "decay": (0.8, 0.5, 0.9, 1.0)}),
    "history, then item-kNN": System(
        history_then_item_knn,
        {"num_repeated": (5, 0, 1, 3, 10), "max_history": (20, 5, 10, 50), "decay": (0.8, 0.5, 0.9, 1.0)},
    ),
    "MF": System(
        MatrixFactorization,
        {"dim": (128, 64, 256), "alpha": (10.0, 1.0, 3.0, 40.0), "regularization": (0.1, 1.0, 10.0, 30.0)},
        seeded=True,
    ),
    "LightGCN": System(
        LightGCN,
        {"learning_rate": (2e-2, 1e-2), "l2": (1e-4, 1e-3, 1e-5), "layers": (2, 3), "dim": (64, 128)},
        seeded=True,
        in_epochs=True,
    ),
    "Caser": System(
        Caser,
        {"learning_rate": (3e-3, 1e-3), "dropout": (0.5, 0.2), "window": (5, 10), "ahead": (3, 1), "dim": (64, 128)},
        seeded=True,
        in_epochs=True,
    ),
    "HGN": System(
        HGN,
        {
            "loss": ("sampled_softmax", "bpr"),
            "learning_rate": (1e-3, 3e-3),
            "l2": (1e-6, 1e-5, 1e-4),
            "window": (5, 10),
            "ahead": (3, 1),
            "dim": (64, 128),
        },
        seeded=True,
        in_epochs=True,
    ),
    "BERT4Rec": System(
        BERT4Rec,
        {
            "masked": (0.4, 0.2, 0.6),
            "dropout": (0.2, 0.1, 0.4),
            "learning_rate": (3e-3, 1e-3),
            "only_last": (0.1, 0.3),
            "dim": (64, 128),
        },
        seeded=True,
        in_epochs=True,
    ),
    "SASRec": System(
        SASRec,
        {
            "dim": (128, 64),
            "learning_rate": (1e-3, 3e-3),
            "dropout": (0.3, 0.5, 0.2),
            "negatives": (4096, 1024),
            "max_history": (50, 20),
        },
        seeded=True,
        in_epochs=True,
    ),
    "two-tower": System(
        TwoTower,
        {
            "temperature": (0.1, 0.05, 0.2),
            "features": ("text+collaborative", "none", "text", "collaborative"),
            "learning_rate": (3e-3, 1e-3),
            "l2": (0.0, 1e-6, 1e-5),
            "dim": (64, 128),
        },
        seeded=True,
        in_epochs=True,
        reads_texts=True,
        # Table 2 of the Align3GR paper judges this system by Recall@100.
        least_k=100,
    ),
}


def draw_trials(space: Mapping[str, Sequence[Any]], trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """The settings to try: the defaults, then others of the grid in random order, none twice.

    Args:
        space: the values to try, by option; the first is the default.
        trials: most trials.
        seed: of the order.

    >>> draw_trials({"dim": (8, 16)}, 5)
    [{'dim': 8}, {'dim': 16}]
    """
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    order = np.random.default_rng(seed).permutation(np.arange(1, len(grid)))
    return [grid[0], *(grid[at] for at in order)][:trials]
