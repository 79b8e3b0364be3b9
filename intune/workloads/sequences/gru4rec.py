"""GRU4Rec (Hidasi et al. 2016, arXiv 1511.06939; Hidasi & Karatzoglou 2018, arXiv 1706.03847): a GRU over sessions.

Trained with cross-entropy over the whole catalogue, one of the two losses that the second paper found best; its
sampled softmax is a shortcut for catalogues too large for that. Input and output share one table (its "constrained
embedding"). Sessions are rows of a padded batch rather than slots refilled as sessions end: the gradients are those
of whole sessions, and the pipeline can shuffle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines import Pipeline
from intune.pipelines.whole import at_least
from intune.workloads.sequences.attention import share
from intune.workloads.sequences.draws import DrawEnd
from intune.workloads.sequences.stages import IGNORED, ShiftTargets, Window


@dataclass(frozen=True, kw_only=True)
class GRU4RecConfig:
    """Shape of a GRU4Rec and how it is trained.

    Attributes:
        items: number n of items of the catalogue; n is padding.
        length: items of a session that are read; older ones are left out.
        width: of embeddings and of the GRU's state.
        layers: GRUs on top of each other.
        dropout: of embeddings and hidden states.
        learning_rate, weight_decay, clip, batch_size: of Adam; `clip` is the largest norm of the gradient.
    """

    items: int
    length: int = 20
    width: int = 100
    layers: int = 1
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 5.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("items", "length", "width", "layers", "batch_size"):
            at_least(name, getattr(self, name), 1)
        share("dropout", self.dropout)


class GRU4Rec(nn.Module):
    """The model of a `GRU4RecConfig`.

    Args:
        config: the shape.
        seed: decides the initial values, uniform within ±1/√width as in the authors' code and torch's GRU.
    """

    def __init__(self, config: GRU4RecConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.items + 1, config.width)
        self.gru = nn.GRU(
            config.width,
            config.width,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(config.items))
        generator = torch.Generator().manual_seed(seed)
        bound = config.width**-0.5
        for parameter in (self.items.weight, *self.gru.parameters()):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def encode(self, sequence: Tensor) -> Tensor:
        """States after each item, shape ``(rows, length, width)``.

        Args:
            sequence: int64 ids padded on the right, shape ``(rows, length)``: states at padding mean nothing.
        """
        states: Tensor = self.gru(self.dropout(self.items(sequence)))[0]
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all items for states of shape ``(…, width)``; shape ``(…, items)``."""
        return F.linear(self.dropout(states), self.items.weight[: self.config.items], self.bias)

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores of all items as the one after each position, shape ``(rows, length, items)``."""
        return self.logits(self.encode(sequence))

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of the targets of a batch with ``sequence`` and ``target``; 0 where there are none."""
        target = batch["target"]
        known = target != IGNORED
        if not known.any():
            return self.bias.sum() * 0.0
        return F.cross_entropy(self.logits(self.encode(batch["sequence"])[known]), target[known])

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of all items as the next one, shape ``(rows, items)``; ``sequence`` padded on the right."""
        sequence = batch["sequence"]
        last = (sequence != self.config.items).sum(dim=1) - 1
        states = self.encode(sequence)
        return self.logits(states[torch.arange(len(states), device=states.device), last])

    def training_stages(self, pipeline: Pipeline, *, seed: int) -> Pipeline:
        """The stages from batches of sessions to what `loss` takes; see `draws`."""
        config = self.config
        window = Window(length=config.length + 1, items=config.items, column="drawn", side="right")
        return (
            pipeline.map(DrawEnd(length=config.length + 1, seed=seed), name="draw")
            .map(window, name="window")
            .map(ShiftTargets(items=config.items), name="shift")
        )

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes."""
        return pipeline.map(
            Window(length=self.config.length, items=self.config.items, side="right"), name="window"
        )
