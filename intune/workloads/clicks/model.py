"""What DLRM and DCN-V2 have in common: features of two kinds in, one logit a row out, and how they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.whole import at_least
from intune.workloads.clicks.embedding import FeatureEmbedding, Ids, StackedEmbedding, numbered
from intune.workloads.clicks.unified_embedding import UnifiedConfig, UnifiedEmbedding

OptimizerName: TypeAlias = Literal["sgd", "adagrad", "rowwise-adagrad", "adam"]
Schedule: TypeAlias = Literal["constant", "linear"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a configuration is trained, as published with it.

    Attributes:
        optimizer: ``"sgd"``, ``"adagrad"``, ``"rowwise-adagrad"`` (see `optim.Adagrad`) or ``"adam"``.
        learning_rate: step size, > 0.
        table_learning_rate: that of the embedding tables, if another.
        table_eps: Adagrad's ε for the tables, ≥ 0. It is added to the root of a row's summed squared gradients,
            those of a batch's *mean* loss: one of about that size keeps small the steps of ids seen only now and
            then, which otherwise are as long as the first steps of frequent ones and are mostly noise.
        batch_size: rows per step, ≥ 1.
        drop_last: whether rows that do not fill a batch are left out; an epoch shuffles others to its end.
        schedule: ``"constant"``, or ``"linear"``: all learning rates fall in a straight line to zero at the end of the
            last epoch, wherever `max_steps` ends the run before (see `optim.decay_linearly`).
    """

    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    table_learning_rate: float | None = None
    table_eps: float = 1e-10
    batch_size: int = 128
    drop_last: bool = True
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ConfigError(f"`learning_rate` must be > 0, but {self.learning_rate} was found")
        if self.table_learning_rate is not None and not self.table_learning_rate > 0:
            raise ConfigError(f"`table_learning_rate` must be > 0, but {self.table_learning_rate} was found")
        if not self.table_eps >= 0:
            raise ConfigError(f"`table_eps` must be ≥ 0, but {self.table_eps} was found")
        at_least("batch_size", self.batch_size, 1)
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"`schedule`={self.schedule!r} is unknown; use {', '.join(get_args(Schedule))}")


@dataclass(frozen=True, kw_only=True)
class ClickModelConfig:
    """What every click model needs to know.

    Attributes:
        table_sizes: rows of each categorical feature's embedding table; with `unified`, their number is that of the
            features, and their sizes mean nothing.
        embedding_dim: width d of every embedding.
        dense_features: number of dense inputs.
        sparse_gradients: whether the tables' gradients are sparse. They must not be for Adam, nor for
            `DistributedDataParallel`, which knows only those of torch's own embeddings.
        check_ids: whether each batch's ids are compared with the table sizes.
        feature_names: names of the categorical features, in order; ``C1`` … where left out.
        unified: one table for all features, instead of one for each.
        recipe: optimiser, learning rate and batch size that belong to this shape.
    """

    table_sizes: tuple[int, ...]
    embedding_dim: int = 16
    dense_features: int = 13
    sparse_gradients: bool = True
    check_ids: bool = True
    feature_names: tuple[str, ...] = ()
    unified: UnifiedConfig | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not self.table_sizes or min(self.table_sizes) < 1:
            raise ConfigError(
                f"`table_sizes` needs one size of at least 1 per categorical feature, "
                f"but {self.table_sizes} was found"
            )
        at_least("embedding_dim", self.embedding_dim, 1)
        at_least("dense_features", self.dense_features, 0)
        if self.feature_names and len(self.feature_names) != len(self.table_sizes):
            raise ConfigError(
                f"`feature_names` must name each of the {len(self.table_sizes)} features, "
                f"but {len(self.feature_names)} were found"
            )
        if self.recipe.optimizer == "adam" and self.sparse_gradients:
            raise ConfigError("Adam moves every row at every step; with it, set `sparse_gradients` to False")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categorical features."""
        return self.feature_names or numbered(len(self.table_sizes))

    @property
    def embedding_widths(self) -> tuple[int, ...]:
        """Width of each feature's embedding."""
        count = len(self.table_sizes)
        return (self.embedding_dim,) * count if self.unified is None else self.unified.widths_of(count)

    @property
    def embedding_parameters(self) -> int:
        """Numbers in all tables."""
        if self.unified is not None:
            return self.unified.parameters
        return sum(self.table_sizes) * self.embedding_dim

    def make_embedding(self, device: torch.device | str) -> FeatureEmbedding:
        """The tables, not initialised."""
        if self.unified is not None:
            return UnifiedEmbedding(self.names, self.unified, sparse=self.sparse_gradients, device=device)
        return StackedEmbedding(
            self.table_sizes,
            self.embedding_dim,
            sparse=self.sparse_gradients,
            names=self.names,
            check_ids=self.check_ids,
            device=device,
        )


class ClickModel(nn.Module, ABC):
    """A model of the probability of a click: `forward` gives logits of dense inputs and ids.

    Attributes:
        embeddings: the tables of the categorical features; all other parameters are dense.
    """

    embeddings: FeatureEmbedding

    def __init__(self, config: ClickModelConfig) -> None:
        super().__init__()
        self.shape = config

    @abstractmethod
    def forward(self, dense: Tensor, sparse: Ids) -> Tensor:
        """Logits, shape ``(rows,)``.

        Args:
            dense: shape ``(rows, dense_features)``, in the parameters' type (float32).
            sparse: int64 ids, shape ``(rows, features)``; or one column per feature, each a tensor ``(rows,)``,
                ``(rows, length)`` for a feature with so many ids a row, or a `Ragged` for one with any number.

        Raises:
            SchemaError: a wrong shape or type.
            DataError: an id outside its table.
        """

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of a batch with the ids in ``sparse``, or in a column for each feature, called by its name.

        A model without dense inputs needs no ``dense``.
        """
        missing = [name for name in self.embeddings.names if name not in batch]
        if "sparse" not in batch and missing:
            raise SchemaError(
                f"a batch needs the ids as `sparse` or as a column for each feature, but it has no "
                f"{', '.join(missing)}; it has {', '.join(batch)}"
            )
        ids = batch["sparse"] if "sparse" in batch else [batch[name] for name in self.embeddings.names]
        if self.shape.dense_features:
            logits: Tensor = self(batch["dense"], ids)
        else:
            rows = len(ids) if isinstance(ids, Tensor) else len(ids[0])
            logits = self(self.embeddings.weight.new_empty(rows, 0), ids)
        return logits

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean binary cross-entropy of a batch with columns ``dense``, ``label`` and the ids (see `logits`)."""
        logits = self.logits(batch)
        return F.binary_cross_entropy_with_logits(logits, batch["label"].to(logits.dtype))

    def others(self) -> list[nn.Parameter]:
        """All parameters but the embedding tables."""
        return [parameter for parameter in self.parameters() if parameter is not self.embeddings.weight]

    def _check_dense(self, dense: Tensor, rows: int | None = None) -> None:
        """A `SchemaError` unless `dense` has its shape, and as many rows as the ids have."""
        if dense.ndim != 2 or dense.shape[1] != self.shape.dense_features:
            raise SchemaError(
                f"`dense` must have shape (rows, {self.shape.dense_features}), but {tuple(dense.shape)} was found"
            )
        if rows is not None and dense.shape[0] != rows:
            raise SchemaError(f"`dense` has {dense.shape[0]} rows, but `sparse` has {rows}")
