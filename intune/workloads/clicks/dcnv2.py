"""DCN-V2, the deep & cross network (arXiv 2008.13535), as a module that returns logits.

Cross layers multiply the input with a linear map of what the layers before made of it, so that layer l holds products
of up to l + 1 features; an MLP stands behind them (stacked) or beside them (parallel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.clicks.embedding import Ids
from intune.workloads.clicks.mlp import initialise_mlp, mlp
from intune.workloads.clicks.model import ClickModel, ClickModelConfig, Recipe
from intune.workloads.clicks.table_sizes import DEMO_TABLE_ROWS, KAGGLE_SIZES, MLPERF_V2_SIZES

Structure: TypeAlias = Literal["stacked", "parallel"]


@dataclass(frozen=True, kw_only=True)
class DCNv2Config(ClickModelConfig):
    """Shape of a DCN-V2.

    Attributes:
        bottom: widths of an MLP over the dense inputs; empty to take them as they are, as in the paper.
        cross_layers: number of cross layers; 0 leaves an MLP over the embeddings.
        rank: rank of their weights; None for full matrices.
        deep: widths of the hidden layers of the MLP; may be empty.
        structure: ``"stacked"``, where the MLP takes what the cross layers give (figure 1a), or ``"parallel"``, where
            it takes the input and both outputs are joined before the last layer (figure 1b).
    """

    bottom: tuple[int, ...] = ()
    cross_layers: int = 3
    rank: int | None = None
    deep: tuple[int, ...] = (512, 256)
    structure: Structure = "stacked"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, widths in (("bottom", self.bottom), ("deep", self.deep)):
            if widths and min(widths) < 1:
                raise ConfigError(f"the widths of `{name}` must be 1 or more, but {widths} was found")
        if self.bottom and not self.dense_features:
            raise ConfigError("`bottom` needs dense inputs, but `dense_features` is 0; leave `bottom` out")
        at_least("cross_layers", self.cross_layers, 0)
        if self.rank is not None and not 1 <= self.rank <= self.width:
            raise ConfigError(
                f"`rank` must be from 1 to the input's width, {self.width}, or None for full matrices (0 on the "
                f"command line), but {self.rank} was found"
            )
        if self.structure not in ("stacked", "parallel"):
            raise ConfigError(f"`structure`={self.structure!r} is unknown; use stacked or parallel")
        if self.structure == "parallel" and not (self.cross_layers and self.deep):
            raise ConfigError(
                f"`structure`='parallel' needs cross layers and a `deep` part beside them, but "
                f"`cross_layers`={self.cross_layers} and `deep`={self.deep} were found; use 'stacked'"
            )

    @property
    def width(self) -> int:
        """Width n of x₀: the dense part and all embeddings side by side."""
        dense = self.bottom[-1] if self.bottom else self.dense_features
        return dense + sum(self.embedding_widths)

    @property
    def head_width(self) -> int:
        """Width of what the last layer, that of the logit, takes."""
        if not self.deep:
            return self.width
        return self.deep[-1] + (self.width if self.structure == "parallel" else 0)

    @classmethod
    def mlperf(cls, *, table_sizes: Sequence[int] = MLPERF_V2_SIZES) -> DCNv2Config:
        """MLPerf training v2's shape (d 128, 3 cross layers of rank 512); Adagrad 0.006, batch 16,384.

        With the published sizes the table takes 105 GB.
        """
        return cls(
            table_sizes=tuple(table_sizes),
            embedding_dim=128,
            bottom=(512, 256, 128),
            rank=512,
            deep=(1024, 1024, 512, 256),
            recipe=Recipe(optimizer="adagrad", learning_rate=0.006, batch_size=16_384),
        )

    @classmethod
    def demo(cls, *, table_sizes: Sequence[int] = KAGGLE_SIZES) -> DCNv2Config:
        """Small enough to train on two cores that it shares with the input pipeline."""
        return cls(
            table_sizes=tuple(min(size, DEMO_TABLE_ROWS) for size in table_sizes),
            cross_layers=2,
            rank=32,
            deep=(128, 64),
            recipe=Recipe(
                optimizer="rowwise-adagrad",
                learning_rate=0.01,
                table_learning_rate=1.0,
                table_eps=0.1,
                batch_size=2048,
                schedule="linear",
            ),
        )

    @classmethod
    def mlp(cls, *, table_sizes: Sequence[int] = KAGGLE_SIZES) -> DCNv2Config:
        """No cross layers: an MLP 128-64-1 over the embeddings and dense inputs, with Adam 0.01 and batch 8,192.

        The model of Unified Embedding's public demonstration (arXiv 2305.12102), there on MovieLens 100k.
        """
        return cls(
            table_sizes=tuple(min(size, DEMO_TABLE_ROWS) for size in table_sizes),
            cross_layers=0,
            deep=(128, 64),
            sparse_gradients=False,
            recipe=Recipe(optimizer="adam", learning_rate=0.01, batch_size=8192, drop_last=False),
        )


class CrossLayer(nn.Module):
    """x ↦ x₀ ⊙ (W x + b) + x, with W an n × n matrix or, of low rank r, U V (section 3.1 and 3.2 of the paper).

    Args:
        width: n.
        rank: r; None for a full matrix.
        device: where the parameters live.

    The parameters are not initialised here; see `initialise`.
    """

    def __init__(self, width: int, rank: int | None = None, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.down = None if rank is None else nn.Parameter(torch.empty(rank, width, device=device))
        self.weight = nn.Parameter(torch.empty(width, width if rank is None else rank, device=device))
        self.bias = nn.Parameter(torch.empty(width, device=device))

    def initialise(self, rng: np.random.Generator) -> None:
        """Matrices ~ N(0, √(2/(m + n))) for m outputs and n inputs; b = 0."""
        with torch.no_grad():
            self.bias.zero_()
            for matrix in (self.down, self.weight):
                if matrix is not None:
                    outputs, inputs = matrix.shape
                    values = rng.normal(0.0, (2 / (outputs + inputs)) ** 0.5, size=(outputs, inputs))
                    matrix.copy_(torch.from_numpy(values))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """The next layer's input, shape ``(rows, n)``, of x₀ and this layer's input, of the same shape."""
        inner = x if self.down is None else F.linear(x, self.down)
        return torch.addcmul(x, first, F.linear(inner, self.weight, self.bias))


class DCNv2(ClickModel):
    """The model of a `DCNv2Config`.

    Args:
        config: the shape.
        seed: all initial values come from it, through `numpy.random.Generator`s; layers and tables draw from
            streams of their own, so one's size does not change another's values.
        device: where the parameters live; ``"meta"`` allocates and initialises nothing.
    """

    def __init__(self, config: DCNv2Config, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        super().__init__(config)
        self.config = config
        # Drawn on the CPU even for a CUDA model, so that a seed means the same values everywhere.
        home = "meta" if torch.device(device).type == "meta" else "cpu"
        self.bottom = mlp((config.dense_features, *config.bottom), last_relu=True, device=home)
        self.embeddings = config.make_embedding(home)
        self.cross = nn.ModuleList(
            CrossLayer(config.width, config.rank, device=home) for _ in range(config.cross_layers)
        )
        self.deep = mlp((config.width, *config.deep), last_relu=True, device=home)
        self.head = mlp((config.head_width, 1), last_relu=False, device=home)
        if home != "meta":
            streams = np.random.default_rng(seed).spawn(4 + config.cross_layers)
            for layers, stream in zip((self.bottom, self.deep, self.head), streams[:3], strict=True):
                initialise_mlp(layers, stream)
            self.embeddings.initialise(streams[3])
            for layer, stream in zip(self._cross_layers(), streams[4:], strict=True):
                layer.initialise(stream)
            self.to(device)

    def forward(self, dense: Tensor, sparse: Ids) -> Tensor:
        """See `ClickModel.forward`."""
        embedded = self.embeddings.flat(sparse)
        self._check_dense(dense, embedded.shape[0])
        first = torch.cat([self.bottom(dense), embedded], dim=1)
        crossed = first
        for layer in self._cross_layers():
            crossed = layer(first, crossed)
        joined: Tensor
        if self.config.structure == "parallel":
            joined = torch.cat([crossed, self.deep(first)], dim=1)
        else:
            joined = self.deep(crossed)
        logits: Tensor = self.head(joined)
        return logits.squeeze(1)

    def _cross_layers(self) -> list[CrossLayer]:
        return [layer for layer in self.cross if isinstance(layer, CrossLayer)]
