"""Frozen encoders: vectors of items and users from texts and from the train split."""

from align3gr.encoders.collaborative import PPMIFactorization
from align3gr.encoders.embeddings import Embeddings
from align3gr.encoders.semantic import SentenceTransformerEncoder, TextEncoder, TfidfSVDEncoder

__all__ = ["Embeddings", "PPMIFactorization", "SentenceTransformerEncoder", "TextEncoder", "TfidfSVDEncoder"]
