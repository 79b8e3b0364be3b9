"""DLRM, the deep learning recommendation model (arXiv 1906.00091), as a module that returns logits.

Bottom MLP over dense features, an embedding bag per categorical feature, dot products of all pairs, top MLP.
Training lives in `training/trainer.py`; the command in `intune.cli.train_click`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from intune.pipelines.errors import ConfigError
from intune.workloads.clicks.embedding import Ids
from intune.workloads.clicks.mlp import initialise_mlp, mlp
from intune.workloads.clicks.model import ClickModel, ClickModelConfig, Recipe
from intune.workloads.clicks.table_sizes import DEMO_TABLE_ROWS, KAGGLE_SIZES, MLPERF_SIZES, TERABYTE_SIZES


@dataclass(frozen=True, kw_only=True)
class DLRMConfig(ClickModelConfig):
    """Shape of a DLRM.

    Attributes:
        bottom: widths of the bottom MLP's layers after the input; the last must equal the embeddings' width.
        top: widths of the top MLP's layers after the interactions; the last must be 1.
    """

    bottom: tuple[int, ...] = (512, 256, 64, 16)
    top: tuple[int, ...] = (512, 256, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dense_features < 1:
            raise ConfigError(
                f"`dense_features` must be at least 1 for the bottom MLP, but {self.dense_features} was found; "
                f"DCN-V2 does without dense inputs"
            )
        for name, widths in (("bottom", self.bottom), ("top", self.top)):
            if not widths or min(widths) < 1:
                raise ConfigError(
                    f"`{name}` needs at least one layer of width 1 or more, but {widths} was found"
                )
        if set(self.embedding_widths) != {self.embedding_dim}:
            raise ConfigError(
                f"every feature's chunks must add up to `embedding_dim` ({self.embedding_dim}), because dot products "
                f"need vectors of one length, but widths of {sorted(set(self.embedding_widths))} were found"
            )
        if self.bottom[-1] != self.embedding_dim:
            raise ConfigError(
                f"the last width of `bottom` must equal `embedding_dim` ({self.embedding_dim}), "
                f"because dot products need vectors of one length, but {self.bottom[-1]} was found"
            )
        if self.top[-1] != 1:
            raise ConfigError(f"the last width of `top` must be 1, the logit, but {self.top[-1]} was found")

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
                learning_rate=0.04,
                table_learning_rate=1.0,
                table_eps=0.1,
                batch_size=2048,
                schedule="linear",
            ),
        )


class DLRM(ClickModel):
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
        super().__init__(config)
        self.config = config
        # Drawn on the CPU even for a CUDA model, so that a seed means the same values everywhere.
        home = "meta" if torch.device(device).type == "meta" else "cpu"
        self.bottom = mlp((config.dense_features, *config.bottom), last_relu=True, device=home)
        self.embeddings = config.make_embedding(home)
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
        """See `ClickModel.forward`."""
        self._check_dense(dense)
        projected: Tensor = self.bottom(dense)
        embedded = self.embeddings(sparse)
        self._check_dense(dense, embedded.shape[0])
        vectors = torch.cat([projected.unsqueeze(1), embedded], dim=1)
        dots = PairwiseDots.apply(vectors, self.pairs, self.mirror)  # type: ignore[no-untyped-call]
        logits: Tensor = self.top(torch.cat([projected, dots], dim=1))
        return logits.squeeze(1)


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
        # Under autocast the products are of fewer bits than the vectors.
        symmetric = gradient.to(vectors.dtype).index_select(1, mirror).view(-1, count, count)
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
