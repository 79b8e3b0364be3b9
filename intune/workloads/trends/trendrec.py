"""TrendRec (RecSys 2023, "Trending Now: Modeling Trend Recommendations"), after the paper.

Two components share one item embedding: a two-tower next-item model, whose user tower is a GRU (GRU4Rec, arXiv
1511.06939), and an autoregressive forecaster of acceleration (DeepAR, arXiv 1704.04110) that has the item's embedding
as an input. Items that the same users turn to next have embeddings that are alike, and the forecaster can expect them
to accelerate alike. First the next item is learnt, then acceleration.

Velocity W(t) is the number of an item's interactions in step t, acceleration A(t) = W(t) − W(t−1). The paper's text
was not at hand: scaling, seasons and sizes are DeepAR's or ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.sequences.attention import share
from intune.workloads.sequences.stages import IGNORED

LEAST_SCALE = 0.05
"""Of a forecast's standard deviation, in units of an item's mean velocity: a series of zeros would otherwise be
forecast with ever more certainty, and outweigh all others."""

LEAST_FREEDOM = 2.0
"""Of Student's t: its variance is finite above."""


@dataclass(frozen=True, kw_only=True)
class TrendRecConfig:
    """Shape of a TrendRec.

    Attributes:
        items: number n of items of the catalogue; n is padding.
        width: of the item embedding and the user tower's state.
        hidden: of the forecaster's state.
        layers: of the forecaster.
        dropout: of embeddings and hidden states.
        embedding: what the forecaster knows of an item beside its series: the embedding that both components share,
            or nothing, which is plain DeepAR.
        season: steps after which a season comes again, told to the forecaster; 0 for none.
        harmonics: sine waves that tell it where in the season a step is.
        likelihood: of acceleration.
        length: items of a session that the user tower reads.
    """

    items: int
    width: int = 32
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.1
    embedding: Literal["shared", "none"] = "shared"
    season: int = 0
    harmonics: int = 3
    likelihood: Literal["gaussian", "student-t"] = "gaussian"
    length: int = 20

    def __post_init__(self) -> None:
        for name in ("items", "width", "hidden", "layers", "harmonics", "length"):
            at_least(name, getattr(self, name), 1)
        at_least("season", self.season, 0)
        share("dropout", self.dropout)
        if self.embedding not in ("shared", "none"):
            raise ConfigError(f"`embedding`={self.embedding!r} is unknown; use 'shared' or 'none'")
        if self.likelihood not in ("gaussian", "student-t"):
            raise ConfigError(f"`likelihood`={self.likelihood!r} is unknown; use 'gaussian' or 'student-t'")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Distributions of the next step's acceleration, each tensor of shape ``(rows, steps)``.

    Attributes:
        mean: interactions; also the distribution's place.
        scale: above 0, interactions; of a Gaussian its standard deviation.
        freedom: degrees of freedom of Student's t; None for a Gaussian.
    """

    mean: Tensor
    scale: Tensor
    freedom: Tensor | None = None

    def negative_log_likelihood(self, acceleration: Tensor) -> Tensor:
        """−log of the density at `acceleration`, nats, same shape."""
        z = (acceleration - self.mean) / self.scale
        if self.freedom is None:
            return 0.5 * z.square() + self.scale.log() + 0.5 * math.log(2 * math.pi)
        half = 0.5 * (self.freedom + 1)
        norm = torch.lgamma(half) - torch.lgamma(0.5 * self.freedom) - 0.5 * (self.freedom * math.pi).log()
        return half * torch.log1p(z.square() / self.freedom) + self.scale.log() - norm


def acceleration_of(velocity: Tensor) -> Tensor:
    """A(1) … A(T−1) of W(0) … W(T−1) along the last dimension."""
    return velocity.diff(dim=-1)


def running_scale(velocity: Tensor) -> Tensor:
    """1 + mean of W(0) … W(t) for every t: DeepAR's scale of a series, of what is known by then; shape as given."""
    counts = torch.arange(1, velocity.shape[-1] + 1, device=velocity.device, dtype=velocity.dtype)
    return 1 + velocity.cumsum(dim=-1) / counts


class TwoTower(nn.Module):
    """The next-item model: a GRU over a user's items, and a linear map of an item's embedding; score is their product.

    Args:
        items: the shared embedding, a row for padding at its end.
        dropout: of embeddings and states.
    """

    def __init__(self, items: nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.items = items
        width = items.embedding_dim
        self.user_tower = nn.GRU(width, width, batch_first=True)
        self.item_tower = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(items.num_embeddings - 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor) -> Tensor:
        """Scores of all items after each position, shape ``(rows, length, items)``; `sequence` padded on the right."""
        states = self.user_tower(self.dropout(self.items(sequence)))[0]
        return self.score(states)

    def score(self, states: Tensor) -> Tensor:
        """Scores of all items for states of shape ``(…, width)``."""
        items = self.item_tower(self.dropout(self.items.weight[:-1]))
        return F.linear(self.dropout(states), items, self.bias)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of the targets of a batch with ``sequence`` and ``target``; 0 where there are none."""
        target = batch["target"]
        known = target != IGNORED
        states = self.user_tower(self.dropout(self.items(batch["sequence"])))[0]
        scores = self.score(states[known])
        return F.cross_entropy(scores, target[known], reduction="sum") / max(int(known.sum()), 1)


class Forecaster(nn.Module):
    """DeepAR on acceleration: an LSTM that has read A(1) … A(t) gives a distribution of A(t+1).

    Args:
        config: the shape.
        items: the shared embedding; None to know nothing of an item but its series.
    """

    def __init__(self, config: TrendRecConfig, items: nn.Embedding | None) -> None:
        super().__init__()
        self.config = config
        self.items = items
        known = 3 + (2 * config.harmonics if config.season else 0)
        if items is not None:
            self.norm = nn.LayerNorm(config.width)
            known += config.width
        self.lstm = nn.LSTM(known, config.hidden, config.layers, batch_first=True)
        self.head = nn.Linear(config.hidden + known, 2 if config.likelihood == "gaussian" else 3)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, item: Tensor, velocity: Tensor) -> Forecast:
        """Forecasts of A(2) … A(T), the last of them of a step that `velocity` does not have.

        The forecast of A(t+1) depends on W(0) … W(t) only.

        Args:
            item: int64, shape ``(rows,)``.
            velocity: W(0) … W(T−1), shape ``(rows, T)``, T ≥ 2.
        """
        scale = running_scale(velocity)[:, 1:]
        inputs = [
            (acceleration_of(velocity) / scale)[..., None],
            (velocity[:, 1:] / scale)[..., None],
            scale.log()[..., None],
        ]
        if self.config.season:
            # Of the step that is forecast.
            inputs.append(self._season(torch.arange(2, velocity.shape[1] + 1, device=velocity.device), scale))
        if self.items is not None:
            known = self.dropout(self.norm(self.items(item)))
            inputs.append(known[:, None].expand(-1, scale.shape[1], -1))
        made = torch.cat(inputs, dim=-1)
        # Many CPUs have no LSTM of fewer bits.
        with torch.autocast(made.device.type, enabled=False):
            states = self.dropout(self.lstm(made)[0])
        out = self.head(torch.cat([states, made], dim=-1))
        return Forecast(
            mean=out[..., 0] * scale,
            scale=(F.softplus(out[..., 1]) + LEAST_SCALE) * scale,
            freedom=LEAST_FREEDOM + F.softplus(out[..., 2]) if out.shape[-1] == 3 else None,
        )

    def _season(self, step: Tensor, like: Tensor) -> Tensor:
        waves = torch.arange(1, self.config.harmonics + 1, device=step.device)
        angle = (2 * math.pi / self.config.season) * (step[:, None] * waves)
        made = torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)
        return made[None].expand(len(like), -1, -1)

    def losses(self, item: Tensor, velocity: Tensor) -> Tensor:
        """Negative log-likelihood of A(2) … A(T−1), shape ``(rows, T − 2)``.

        In units of each series' scale, so that large items do not outweigh small ones. Arguments as of `forward`,
        T ≥ 3.
        """
        known: Forecast = self(item, velocity[:, :-1])
        found = known.negative_log_likelihood(acceleration_of(velocity)[:, 1:])
        return found - running_scale(velocity)[:, 1:-1].log()

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean of `losses` over a batch with ``item`` and ``velocity``."""
        return self.losses(batch["item"], batch["velocity"]).mean()


class TrendRec(nn.Module):
    """Both components.

    Args:
        config: the shape.
        seed: decides the initial values.
    """

    def __init__(self, config: TrendRecConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.items = nn.Embedding(config.items + 1, config.width)
            nn.init.normal_(self.items.weight, std=config.width**-0.5)
            self.next_item = TwoTower(self.items, config.dropout)
            self.forecaster = Forecaster(config, self.items if config.embedding == "shared" else None)
