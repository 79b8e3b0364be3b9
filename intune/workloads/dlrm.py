"""DLRM, the deep learning recommendation model (arXiv 1906.00091), as a module that returns logits.

Bottom MLP over dense features, an embedding bag per categorical feature, dot products of all pairs, top MLP.
Training lives in `training.py`; the command in `intune.cli.train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from intune.pipelines.errors import ConfigError, SchemaError
from intune.workloads.embedding import Ids, StackedEmbedding

KAGGLE_SIZES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Distinct values of C1 … C26 in Criteo's Kaggle data (7 days)."""

TERABYTE_SIZES = (
    *(10000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 10000000, 3067956, 405282, 10),
    *(2209, 11938, 155, 4, 976, 14, 10000000, 10000000, 10000000, 590152, 12973, 108, 36),
)
"""Distinct values of C1 … C26 in Criteo's 1 TB data (24 days), indices modulo 10 million."""

MLPERF_SIZES = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)
"""As in the MLPerf training benchmark v1: indices modulo 40 million."""

DEMO_TABLE_ROWS = 100_000
"""Cap of a table in the demo preset: 26 such tables of width 16 hold at most 166 MB."""

OptimizerName: TypeAlias = Literal["sgd", "adagrad", "rowwise-adagrad"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a configuration is trained, as published with it.

    Attributes:
        optimizer: ``"sgd"``, ``"adagrad"`` or ``"rowwise-adagrad"`` (see `optim.Adagrad`).
        learning_rate: step size, > 0.
        table_learning_rate: that of the embedding tables, if another.
        table_eps: Adagrad's ε for the tables, ≥ 0. It is added to the root of a row's summed squared gradients,
            those of a batch's *mean* loss: one of about that size keeps small the steps of ids seen only now and
            then, which otherwise are as long as the first steps of frequent ones and are mostly noise.
        batch_size: rows per step, ≥ 1.
    """

    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    table_learning_rate: float | None = None
    table_eps: float = 1e-10
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ConfigError(f"`learning_rate` must be > 0, but {self.learning_rate} was found")
        if self.table_learning_rate is not None and not self.table_learning_rate > 0:
            raise ConfigError(f"`table_learning_rate` must be > 0, but {self.table_learning_rate} was found")
        if not self.table_eps >= 0:
            raise ConfigError(f"`table_eps` must be ≥ 0, but {self.table_eps} was found")
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, but {self.batch_size} was found")


@dataclass(frozen=True, kw_only=True)
class DLRMConfig:
    """Shape of a DLRM.

    Attributes:
        table_sizes: rows of each categorical feature's embedding table.
        embedding_dim: width d of every embedding.
        dense_features: number of dense inputs.
        bottom: widths of the bottom MLP's layers after the input; the last must equal `embedding_dim`.
        top: widths of the top MLP's layers after the interactions; the last must be 1.
        sparse_gradients: whether the tables' gradients are sparse.
        check_ids: whether each batch's ids are compared with the table sizes.
        feature_names: names of the categorical features, in order; ``C1`` … where left out.
        recipe: optimiser, learning rate and batch size that belong to this shape.
    """

    table_sizes: tuple[int, ...]
    embedding_dim: int = 16
    dense_features: int = 13
    bottom: tuple[int, ...] = (512, 256, 64, 16)
    top: tuple[int, ...] = (512, 256, 1)
    sparse_gradients: bool = True
    check_ids: bool = True
    feature_names: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not self.table_sizes or min(self.table_sizes) < 1:
            raise ConfigError(
                f"`table_sizes` needs one size of at least 1 per categorical feature, "
                f"but {self.table_sizes} was found"
            )
        if self.dense_features < 1:
            raise ConfigError(f"`dense_features` must be at least 1, but {self.dense_features} was found")
        for name, widths in (("bottom", self.bottom), ("top", self.top)):
            if not widths or min(widths) < 1:
                raise ConfigError(
                    f"`{name}` needs at least one layer of width 1 or more, but {widths} was found"
                )
        if self.bottom[-1] != self.embedding_dim:
            raise ConfigError(
                f"the last width of `bottom` must equal `embedding_dim` ({self.embedding_dim}), "
                f"because dot products need vectors of one length, but {self.bottom[-1]} was found"
            )
        if self.top[-1] != 1:
            raise ConfigError(f"the last width of `top` must be 1, the logit, but {self.top[-1]} was found")
        if self.feature_names and len(self.feature_names) != len(self.table_sizes):
            raise ConfigError(
                f"`feature_names` must name each of the {len(self.table_sizes)} features, "
                f"but {len(self.feature_names)} were found"
            )

    @property
    def interactions(self) -> int:
        """Pairs i > j of the F + 1 vectors: F(F + 1)/2."""
        count = len(self.table_sizes)
        return count * (count + 1) // 2

    @property
    def top_input(self) -> int:
        """Width of the top MLP's input: d + F(F + 1)/2."""
        return self.embedding_dim + self.interactions

    @classmethod
    def kaggle(cls, *, table_sizes: Sequence[int] = KAGGLE_SIZES) -> DLRMConfig:
        """Criteo Kaggle: d 16, SGD 0.1, batch 128. With the published sizes the table takes 2.2 GB."""
        return cls(table_sizes=tuple(table_sizes))

    @classmethod
    def terabyte(cls, *, table_sizes: Sequence[int] = TERABYTE_SIZES) -> DLRMConfig:
        """Criteo 1 TB: d 64, SGD 0.1, batch 2,048. With the published sizes the table takes 14 GB."""
        return cls(
            table_sizes=tuple(table_sizes),
            embedding_dim=64,
            bottom=(512, 256, 64),
            top=(512, 512, 256, 1),
            recipe=Recipe(batch_size=2048),
        )

    @classmethod
    def mlperf(cls, *, table_sizes: Sequence[int] = MLPERF_SIZES) -> DLRMConfig:
        """MLPerf training v1: d 128, SGD 1.0, batch 2,048. With the published sizes the table takes 96 GB."""
        return cls(
            table_sizes=tuple(table_sizes),
            embedding_dim=128,
            bottom=(512, 256, 128),
            top=(1024, 1024, 512, 256, 1),
            recipe=Recipe(learning_rate=1.0, batch_size=2048),
        )

    @classmethod
    def demo(cls, *, table_sizes: Sequence[int] = KAGGLE_SIZES) -> DLRMConfig:
        """Small enough to train on two cores that it shares with the input pipeline."""
        return cls(
            table_sizes=tuple(min(size, DEMO_TABLE_ROWS) for size in table_sizes),
            bottom=(64, 16),
            top=(128, 64, 1),
            recipe=Recipe(
                optimizer="rowwise-adagrad",
                learning_rate=0.02,
                table_learning_rate=0.3,
                table_eps=1e-2,
                batch_size=2048,
            ),
        )


class DLRM(nn.Module):
    """The model of a `DLRMConfig`.

    Args:
        config: the shape.
        seed: all initial values come from it, through `numpy.random.Generator`s; layers and tables draw from
            streams of their own, so one's size does not change another's values.
        device: where the parameters live; ``"meta"`` allocates and initialises nothing.
    """

    pairs: Tensor
    mirror: Tensor

    def __init__(self, config: DLRMConfig, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config = config
        # Drawn on the CPU even for a CUDA model, so that a seed means the same values everywhere.
        home = "meta" if torch.device(device).type == "meta" else "cpu"
        self.bottom = mlp((config.dense_features, *config.bottom), last_relu=True, device=home)
        self.embeddings = StackedEmbedding(
            config.table_sizes,
            config.embedding_dim,
            sparse=config.sparse_gradients,
            names=config.feature_names,
            check_ids=config.check_ids,
            device=home,
        )
        self.top = mlp((config.top_input, *config.top), last_relu=False, device=home)
        pairs, mirror = pair_positions(len(config.table_sizes) + 1)
        self.register_buffer("pairs", pairs.to(home), persistent=False)
        self.register_buffer("mirror", mirror.to(home), persistent=False)
        if home != "meta":
            streams = np.random.default_rng(seed).spawn(3)
            initialise_mlp(self.bottom, streams[0])
            self.embeddings.initialise(streams[1])
            initialise_mlp(self.top, streams[2])
            self.to(device)

    def forward(self, dense: Tensor, sparse: Ids) -> Tensor:
        """Logits, shape ``(rows,)``.

        Args:
            dense: shape ``(rows, dense_features)``, in the parameters' type (float32).
            sparse: int64 ids, shape ``(rows, features)``; or one column per feature, each a tensor ``(rows,)``
                or a `Ragged` for a feature with any number of ids a row.

        Raises:
            SchemaError: a wrong shape or type.
            DataError: an id outside its table.
        """
        if dense.ndim != 2 or dense.shape[1] != self.config.dense_features:
            raise SchemaError(
                f"`dense` must have shape (rows, {self.config.dense_features}), "
                f"but {tuple(dense.shape)} was found"
            )
        projected: Tensor = self.bottom(dense)
        embedded = self.embeddings(sparse)
        if len(embedded) != len(projected):
            raise SchemaError(f"`dense` has {len(projected)} rows, but `sparse` has {len(embedded)}")
        vectors = torch.cat([projected.unsqueeze(1), embedded], dim=1)
        dots = PairwiseDots.apply(vectors, self.pairs, self.mirror)  # type: ignore[no-untyped-call]
        logits: Tensor = self.top(torch.cat([projected, dots], dim=1))
        return logits.squeeze(1)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of a batch with the ids in ``sparse``, or in a column for each feature, called by its name."""
        missing = [name for name in self.embeddings.names if name not in batch]
        if "sparse" not in batch and missing:
            raise SchemaError(
                f"a batch needs the ids as `sparse` or as a column for each feature, but it has no "
                f"{', '.join(missing)}; it has {', '.join(batch)}"
            )
        ids = batch["sparse"] if "sparse" in batch else [batch[name] for name in self.embeddings.names]
        logits: Tensor = self(batch["dense"], ids)
        return logits

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean binary cross-entropy of a batch with columns ``dense``, ``label`` and the ids (see `logits`)."""
        logits = self.logits(batch)
        return F.binary_cross_entropy_with_logits(logits, batch["label"].to(logits.dtype))


class PairwiseDots(torch.autograd.Function):
    """Dot products of all pairs i > j of a row's vectors: ``(rows, n, d) -> (rows, n(n − 1)/2)``.

    Written out because autograd's own backward of "pick the lower triangle" adds element by element into a
    zeroed square and then needs two matrix products; the square is symmetric, so one picks and one product do.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: Tensor, mirror: Tensor) -> Tensor:
        """`pairs` and `mirror` as from `pair_positions`."""
        ctx.save_for_backward(vectors, mirror)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return products.flatten(1).index_select(1, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """With Z = TTᵀ: dT = (G + Gᵀ) T, where G holds the gradient below the diagonal."""
        vectors, mirror = ctx.saved_tensors
        count = vectors.shape[1]
        symmetric = gradient.index_select(1, mirror).view(-1, count, count)
        symmetric.diagonal(dim1=1, dim2=2).zero_()
        return torch.bmm(symmetric, vectors), None, None


def pair_positions(count: int) -> tuple[Tensor, Tensor]:
    """Where the pairs i > j of `count` vectors lie in a flattened square, and the way back.

    Returns:
        ``pairs``, shape ``(count(count − 1)/2,)``: position in the square of each pair, row by row; ``mirror``,
        shape ``(count²,)``: the pair at each position of the square, in both triangles, 0 on the diagonal.
    """
    rows, columns = torch.tril_indices(count, count, offset=-1)
    mirror = torch.zeros(count, count, dtype=torch.int64)
    mirror[rows, columns] = mirror[columns, rows] = torch.arange(len(rows))
    return rows * count + columns, mirror.flatten()


def mlp(widths: Sequence[int], *, last_relu: bool, device: str) -> nn.Sequential:
    """Linear layers with ReLU between them, and after the last where `last_relu`; not initialised."""
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(pairwise(widths)):
        # skip_init, because a layer's own initialisation would draw from the global generator.
        linear: nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, inputs, outputs, device=device
        )
        layers.append(linear)
        if last_relu or position < len(widths) - 2:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise_mlp(layers: nn.Sequential, rng: np.random.Generator) -> None:
    """W ~ N(0, √(2/(m + n))), b ~ N(0, √(1/m)) for m outputs and n inputs (standard deviations)."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer, child in zip(linear, rng.spawn(len(linear)), strict=True):
        outputs, inputs = layer.weight.shape
        weight = child.normal(0.0, (2 / (outputs + inputs)) ** 0.5, size=(outputs, inputs))
        bias = child.normal(0.0, (1 / outputs) ** 0.5, size=outputs)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
