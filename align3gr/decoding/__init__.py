"""From a prompt to items: the catalogue as a trie, constrained beam search, and the recommender on top."""

from align3gr.decoding.beam_search import ConstrainedBeamSearch, catalogue_search, generate_rankings
from align3gr.decoding.candidates import BeamOutput, LeafCandidates
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.history_cache import HistoryCache
from align3gr.decoding.item_filter import ItemFilter
from align3gr.decoding.logits_processor import SCIDLogitsProcessor
from align3gr.decoding.recommender import Recommender
from align3gr.decoding.requests import Recommendation
from align3gr.decoding.search import ConstrainedSearch
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.decoding.trie import SCIDTrie

__all__ = [
    "BeamOutput",
    "ConstrainedBeamSearch",
    "ConstrainedSearch",
    "ExhaustiveSearch",
    "HistoryCache",
    "ItemFilter",
    "LeafCandidates",
    "Recommendation",
    "Recommender",
    "SCIDLogitsProcessor",
    "SCIDTrie",
    "StochasticBeamSearch",
    "catalogue_search",
    "generate_rankings",
]
