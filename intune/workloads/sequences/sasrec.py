"""SASRec (Kang & McAuley 2018, arXiv 1808.09781): a causal transformer that predicts each session's next item.

Learned positions, pre-norm blocks x + dropout(f(LN(x))) with ReLU (section 3.3), scores are products with the item
table (section 3.4). The paper's loss is binary cross-entropy with one negative for each target, drawn in the
pipeline; softmax over the catalogue, which later work found to be better, is there as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.sequences.attention import Block, BlockConfig, attend_to, initialise, share
from intune.workloads.sequences.draws import DrawEnd, DrawNegatives
from intune.workloads.sequences.stages import IGNORED, ShiftTargets, Window
from intune.workloads.training.dropout import Dropout


@dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """Shape of a SASRec and how it is trained. Defaults are the paper's, but for the length of sessions.

    Attributes:
        items: number n of items of the catalogue; n is padding.
        length: positions; older items of a session are left out. (The paper: 50, and 200 for ML-1M.)
        width: of embeddings and hidden vectors.
        layers, heads: of the transformer.
        dropout: of embeddings, sublayers and attention weights.
        loss: ``"bce"``, with one negative a target, or ``"softmax"`` over the catalogue.
        learning_rate, weight_decay, clip, batch_size: of Adam; `clip` is the largest norm of the gradient.
    """

    items: int
    length: int = 20
    width: int = 50
    layers: int = 2
    heads: int = 1
    dropout: float = 0.5
    loss: Literal["bce", "softmax"] = "bce"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 5.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("items", "length", "layers", "batch_size"):
            at_least(name, getattr(self, name), 1)
        share("dropout", self.dropout)
        if self.loss not in ("bce", "softmax"):
            raise ConfigError(f"`loss`={self.loss!r} is unknown; use 'bce' or 'softmax'")
        self.block  # noqa: B018 - checks width and heads

    @property
    def block(self) -> BlockConfig:
        """Shape of each block."""
        return BlockConfig(
            width=self.width,
            heads=self.heads,
            feed_forward=self.width,
            dropout=self.dropout,
            activation="relu",
            norm="pre",
            causal=True,
        )


class SASRec(nn.Module):
    """The model of a `SASRecConfig`.

    Args:
        config: the shape.
        seed: decides the initial values.
    """

    def __init__(self, config: SASRecConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.items + 1, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.block) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.block.eps)
        initialise(self.modules(), torch.Generator().manual_seed(seed))

    def encode(self, sequence: Tensor) -> Tensor:
        """Hidden vectors, shape ``(rows, length, width)``, of int64 ids padded on the left, ``(rows, length)``."""
        # Scaled as in the paper's public code and in Vaswani et al. (section 3.4), to weigh items against positions.
        x = self.items(sequence) * self.config.width**0.5 + self.positions.weight
        x = self.dropout(x)
        allowed = attend_to(sequence != self.config.items, causal=True)
        for block in self.blocks:
            x = block(x, allowed)
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores of all items as the one after each position, shape ``(rows, length, items)``."""
        return F.linear(self.encode(sequence), self.items.weight[: self.config.items])

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean loss of the targets of a batch with ``sequence``, ``target`` and, for bce, ``negative``; 0 where there
        are none."""
        target = batch["target"]
        known = target != IGNORED
        if not known.any():
            return self.items.weight.sum() * 0.0
        hidden = self.encode(batch["sequence"])[known]
        if self.config.loss == "softmax":
            return F.cross_entropy(F.linear(hidden, self.items.weight[: self.config.items]), target[known])
        better = (hidden * self.items(target[known])).sum(dim=1)
        worse = (hidden * self.items(batch["negative"][known])).sum(dim=1)
        return F.softplus(-better).mean() + F.softplus(worse).mean()

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of all items as the next one, shape ``(rows, items)``; ``sequence`` as from `Window`."""
        return F.linear(self.encode(batch["sequence"])[:, -1], self.items.weight[: self.config.items])

    def training_stages(self, pipeline: Pipeline, *, seed: int) -> Pipeline:
        """The stages from batches of sessions to what `loss` takes; see `draws`."""
        config = self.config
        pipeline = (
            pipeline.map(DrawEnd(length=config.length + 1, seed=seed), name="draw")
            .map(Window(length=config.length + 1, items=config.items, column="drawn"), name="window")
            .map(ShiftTargets(items=config.items), name="shift")
        )
        if config.loss == "bce":
            pipeline = pipeline.map(DrawNegatives(items=config.items, seed=seed), name="negatives")
        return pipeline

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes."""
        return pipeline.map(Window(length=self.config.length, items=self.config.items), name="window")
