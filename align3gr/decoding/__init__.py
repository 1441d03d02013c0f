"""From a prompt to items: the catalogue as a trie, constrained beam search, and the recommender on top."""

from align3gr.decoding.beam_search import ConstrainedBeamSearch, generate_rankings
from align3gr.decoding.candidates import BeamOutput, LeafCandidates
from align3gr.decoding.recommender import Recommendation, Recommender
from align3gr.decoding.trie import SCIDTrie

__all__ = [
    "BeamOutput",
    "ConstrainedBeamSearch",
    "LeafCandidates",
    "Recommendation",
    "Recommender",
    "SCIDTrie",
    "generate_rankings",
]
