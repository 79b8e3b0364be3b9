"""LLMSeqSim (Harte et al. 2023, arXiv 2309.09261): recommend the items whose text is nearest the session's.

A session's embedding is made of its items' text embeddings; the items most similar to it follow. Nothing is
trained. Where the embeddings come from is `llm_embeddings.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.whole import at_least
from intune.workloads.sequences.stages import Window

Strategy: TypeAlias = Literal[
    "last",
    "mean",
    "linear",
    "share",
    "share-squared",
    "share-cubed",
    "log",
    "reciprocal",
    "reciprocal-squared",
]
Similarity: TypeAlias = Literal["dot", "cosine", "euclidean"]

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": lambda i, n: (i == 1).float(),
    "mean": lambda i, n: torch.ones_like(i),
    "linear": lambda i, n: (1 - 0.1 * (i - 1)).clamp(min=1e-5),
    "share": lambda i, n: 1 - (i - 1) / n,
    "share-squared": lambda i, n: (1 - (i - 1) / n) ** 2,
    "share-cubed": lambda i, n: (1 - (i - 1) / n) ** 3,
    "log": lambda i, n: 1 / (i.log() + 1),
    "reciprocal": lambda i, n: 1 / i,
    "reciprocal-squared": lambda i, n: 1 / i**2,
}
"""Weight of the item i steps from the end of a session of n items; the last item has i = 1."""


@dataclass(frozen=True, kw_only=True)
class LLMSeqSimConfig:
    """How sessions are embedded and compared.

    Attributes:
        strategy: how a session's items are weighed, a key of `WEIGHTS`; the session's embedding is the weighted mean.
        similarity: of the session and an item: ``"dot"``, ``"cosine"``, or ``"euclidean"``, 1/(1 + distance).
        length: items of a session that are looked at; older ones are left out.
    """

    strategy: Strategy = "last"
    similarity: Similarity = "cosine"
    length: int = 20

    def __post_init__(self) -> None:
        at_least("length", self.length, 1)
        if self.strategy not in WEIGHTS:
            raise ConfigError(f"`strategy`={self.strategy!r} is unknown; use {', '.join(WEIGHTS)}")
        if self.similarity not in ("dot", "cosine", "euclidean"):
            raise ConfigError(
                f"`similarity`={self.similarity!r} is unknown; use 'dot', 'cosine' or 'euclidean'"
            )


class LLMSeqSim:
    """Similarity of sessions and items in a space of text embeddings.

    Args:
        embeddings: float, shape ``(items, dimensions)``.
        config: how to compare.
    """

    def __init__(self, embeddings: Tensor, config: LLMSeqSimConfig | None = None) -> None:
        if embeddings.ndim != 2 or not len(embeddings):
            raise SchemaError(
                f"`embeddings` must have shape (items, dimensions), but {tuple(embeddings.shape)} was found"
            )
        self.config = config if config is not None else LLMSeqSimConfig()
        self.embeddings = embeddings.float()
        self._units = F.normalize(self.embeddings, dim=1)

    def session_embeddings(self, sequence: Tensor) -> Tensor:
        """Embeddings of sessions, shape ``(rows, dimensions)``.

        Args:
            sequence: int64 ids padded on the left with the number of items, shape ``(rows, length)``.
        """
        items = len(self.embeddings)
        present = sequence != items
        steps = torch.arange(sequence.shape[1], 0, -1, device=sequence.device).float()
        lengths = present.sum(dim=1, keepdim=True).float()
        weights = WEIGHTS[self.config.strategy](steps.expand(len(sequence), -1), lengths)
        weights = torch.where(present, weights, 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("rn,rnd->rd", weights, self.embeddings[sequence.clamp(max=items - 1)])

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Similarities of all items, shape ``(rows, items)``; ``sequence`` as from `Window`."""
        sessions = self.session_embeddings(batch["sequence"])
        if self.config.similarity == "dot":
            return sessions @ self.embeddings.T
        if self.config.similarity == "cosine":
            return F.normalize(sessions, dim=1) @ self._units.T
        return 1 / (1 + torch.cdist(sessions, self.embeddings))

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes."""
        return pipeline.map(Window(length=self.config.length, items=len(self.embeddings)), name="window")
