"""Matrix factorisation: a trained embedding for each user and item, score = dot product (with BPR: UAI 2009)."""

from __future__ import annotations

from intune.workloads.pairs.pairwise import Encoder


class MatrixFactorisation(Encoder):
    """Embeddings as they are trained; (users + items) · dim parameters."""
