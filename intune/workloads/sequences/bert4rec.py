"""BERT4Rec (Sun et al. 2019, arXiv 1904.06690): a bidirectional transformer that fills in masked items.

Learned positions, post-norm blocks with GELU and a feed-forward net four times as wide, output
softmax(gelu(dense(h)) Eᵀ + b) over the catalogue with E the item table (section 3.5). Masking is a pipeline stage,
`draws.Cloze`; starting values from text are `llm2bert4rec.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.sequences.attention import Block, BlockConfig, attend_to, initialise, share
from intune.workloads.sequences.draws import Cloze, DrawEnd
from intune.workloads.sequences.stages import IGNORED, MaskNext, Window
from intune.workloads.training.dropout import Dropout


@dataclass(frozen=True, kw_only=True)
class BERT4RecConfig:
    """Shape of a BERT4Rec and how it is trained.

    Attributes:
        items: number n of items of the catalogue; n and n + 1 are padding and the mask.
        length: positions N; older items of a session are left out.
        width: of embeddings and hidden vectors.
        layers, heads: of the encoder.
        dropout: of embeddings, sublayers and attention weights.
        mask_share: probability that an item is masked in training.
        learning_rate, weight_decay, clip, batch_size: of AdamW; `clip` is the largest norm of the gradient.
    """

    items: int
    length: int = 20
    width: int = 512
    layers: int = 2
    heads: int = 2
    dropout: float = 0.25
    mask_share: float = 0.65
    learning_rate: float = 1e-4
    weight_decay: float = 0.004
    clip: float = 5.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name, least in (("items", 1), ("length", 2), ("layers", 1), ("batch_size", 1)):
            at_least(name, getattr(self, name), least)
        share("dropout", self.dropout)
        if not 0 < self.mask_share <= 1:
            raise ConfigError(f"`mask_share` must be above 0 and at most 1, but {self.mask_share} was found")
        self.block  # noqa: B018 - checks width and heads

    @property
    def block(self) -> BlockConfig:
        """Shape of each block of the encoder."""
        return BlockConfig(
            width=self.width, heads=self.heads, feed_forward=4 * self.width, dropout=self.dropout
        )

    @classmethod
    def beauty(cls, *, items: int) -> BERT4RecConfig:
        """As tuned for Amazon Beauty after arXiv 2309.09261; the defaults."""
        return cls(items=items)

    @classmethod
    def beauty_from_text(cls, *, items: int) -> BERT4RecConfig:
        """The same for a table that starts from text embeddings (LLM2BERT4Rec)."""
        return cls(items=items, width=208, layers=3, heads=3, dropout=0.0, mask_share=0.5, weight_decay=0.002)


class BERT4Rec(nn.Module):
    """The model of a `BERT4RecConfig`.

    Args:
        config: the shape.
        seed: decides the initial values.
    """

    def __init__(self, config: BERT4RecConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.items + 2, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.block.eps)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.block) for _ in range(config.layers))
        self.dense = nn.Linear(config.width, config.width)
        self.bias = nn.Parameter(torch.zeros(config.items))
        initialise(self.modules(), torch.Generator().manual_seed(seed))

    def encode(self, sequence: Tensor) -> Tensor:
        """Hidden vectors, shape ``(rows, length, width)``.

        Args:
            sequence: int64 ids, shape ``(rows, length)``, padding and mask included.
        """
        x = self.items(sequence) + self.positions.weight
        x = self.dropout(self.norm(x))
        allowed = attend_to(sequence != self.config.items)
        for block in self.blocks:
            x = block(x, allowed)
        hidden: Tensor = x
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all items for hidden vectors of shape ``(…, width)``; shape ``(…, items)``."""
        table = self.items.weight[: self.config.items]
        return F.linear(F.gelu(self.dense(hidden)), table, self.bias)

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores at every position, shape ``(rows, length, items)``; arguments as of `encode`."""
        return self.logits(self.encode(sequence))

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of the masked items of a batch with ``sequence`` and ``target`` (see `Cloze`); 0 where
        there are none."""
        target = batch["target"]
        masked = target != IGNORED
        if not masked.any():
            return self.bias.sum() * 0.0
        hidden = self.encode(batch["sequence"])
        # The output layer is most of the work where the catalogue is large: only masked positions need it.
        return F.cross_entropy(self.logits(hidden[masked]), target[masked])

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of all items as the next one, shape ``(rows, items)``; ``sequence`` as from `MaskNext`."""
        return self.logits(self.encode(batch["sequence"])[:, -1])

    def training_stages(self, pipeline: Pipeline, *, seed: int) -> Pipeline:
        """The stages from batches of sessions to what `loss` takes; see `draws`."""
        config = self.config
        return (
            pipeline.map(DrawEnd(length=config.length, seed=seed), name="draw")
            .map(Window(length=config.length, items=config.items, column="drawn"), name="window")
            .map(Cloze(items=config.items, mask_share=config.mask_share, seed=seed), name="mask")
        )

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes."""
        config = self.config
        return pipeline.map(Window(length=config.length, items=config.items), name="window").map(
            MaskNext(items=config.items), name="mask"
        )
