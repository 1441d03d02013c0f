"""Comparison systems that need no training to speak of. A model below them has not been trained yet."""

from align3gr.baselines.simple import Baseline, HistoryRepeat, HistoryThenItemKNN, ItemKNN, Popularity

__all__ = ["Baseline", "HistoryRepeat", "HistoryThenItemKNN", "ItemKNN", "Popularity"]
