"""Recommenders that embed users and items, ready to be trained on a data set of interactions.

Matrix factorisation, LightGCN and the sheaf network with any of the objectives; what is done with them is
`training/recommender_job.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.evaluation import RankingMetrics, metric_names, rank_all
from intune.workloads.pairs.ans import ANS
from intune.workloads.pairs.data import HeldOut, RatingData
from intune.workloads.pairs.lightgcn import LightGCN
from intune.workloads.pairs.matrix_factorisation import MatrixFactorisation
from intune.workloads.pairs.mixgcf import MixGCF
from intune.workloads.pairs.negatives import NegativeOptions, NegativeSampler
from intune.workloads.pairs.pairwise import BPR, Encoder, Nodes
from intune.workloads.pairs.sheaf import SheafNetwork
from intune.workloads.training.batch_sizes import redrawn
from intune.workloads.training.devices import check_device
from intune.workloads.training.fitting import check_seed
from intune.workloads.training.trainer import NO_MATTER, Batch

EncoderName: TypeAlias = Literal["mf", "lightgcn", "sheaf"]
ObjectiveName: TypeAlias = Literal["uniform", "popularity", "dns", "mixgcf", "ans"]
ENCODERS, OBJECTIVES = get_args(EncoderName), get_args(ObjectiveName)


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What is trained, and how.

    Attributes:
        encoder: what makes embeddings.
        negatives: where negatives come from: one drawn uniformly or by popularity; the hardest of several
            (``"dns"``); mixed from several (``"mixgcf"``, LightGCN only); or augmented (``"ans"``).
        candidates: negatives of each row to choose among, with ``"dns"``, ``"mixgcf"`` and ``"ans"``.
        power: see `NegativeOptions`.
        dim: width of the trained embeddings.
        depth: layers of LightGCN (its authors' 3) or the sheaf network (5).
        stalk, step, linear, offset: of the sheaf network.
        gamma, epsilon: of ANS.
        l2: weight of ½ of the squared norms of a row's trained embeddings.
        learning_rate: of Adam.
        batch_size: rows a step.
        shuffle: window in row groups, 0 for the order of time, in which every epoch has the same negatives.
        seed: of everything random.
        cutoffs: values of k of the metrics.
        device: where the model is.
    """

    encoder: EncoderName = "mf"
    negatives: ObjectiveName = "uniform"
    candidates: int = 8
    power: float = 0.75
    dim: int = 64
    depth: int | None = None
    stalk: int = 1
    step: float = 1.0
    linear: bool = True
    offset: float = 0.0
    gamma: float = 0.01
    epsilon: float = 1.0
    l2: float = 1e-5
    learning_rate: float = 1e-3
    batch_size: int = 2048
    shuffle: int = 8
    seed: int = 0
    cutoffs: tuple[int, ...] = (10, 20)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ConfigError(f"`encoder`={self.encoder!r} is unknown; use {', '.join(ENCODERS)}")
        if self.negatives not in OBJECTIVES:
            raise ConfigError(f"`negatives`={self.negatives!r} is unknown; use {', '.join(OBJECTIVES)}")
        if self.negatives == "mixgcf" and self.encoder != "lightgcn":
            raise ConfigError(
                f"`negatives`='mixgcf' needs LightGCN's layers, but `encoder` is {self.encoder!r}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"`learning_rate` must be above 0, but {self.learning_rate} was found")
        for name, least in (("candidates", 1), ("batch_size", 1), ("shuffle", 0)):
            at_least(name, getattr(self, name), least)
        check_seed(self.seed)
        self.sampling()

    def sampling(self) -> NegativeOptions:
        """Which negatives the pipeline draws."""
        several = self.negatives in ("dns", "mixgcf", "ans")
        return NegativeOptions(
            distribution="popularity" if self.negatives == "popularity" else "uniform",
            count=self.candidates if several else 1,
            power=self.power,
            seed=self.seed,
        )


class PairModel(nn.Module):
    """An encoder and an objective, whose parameters are trained together."""

    def __init__(self, encoder: Encoder, objective: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch with ``user`` ``(rows,)``, ``item`` ``(rows,)`` and ``negative`` ``(rows, count)``."""
        users = self.encoder.users
        loss: Tensor = self.objective(
            self.encoder,
            Nodes(batch["user"], batch["item"] + users, (batch["negative"] + users).t().contiguous()),
        )
        return loss


@dataclass(frozen=True, kw_only=True, eq=False)
class PairRecommender:
    """One model on one data set; a `Recommender`."""

    data: RatingData
    options: PairOptions = field(default_factory=PairOptions)

    def __post_init__(self) -> None:
        check_device(self.options.device)

    @cached_property
    def model(self) -> PairModel:
        """Made anew from the seed."""
        encoder = make_encoder(self.data, self.options)
        return PairModel(encoder, make_objective(encoder, self.options)).to(self.options.device)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over everything, in one pass: its eight over the tables would be a fifth of a step of BPR-MF."""
        return torch.optim.Adam(self.model.parameters(), lr=self.options.learning_rate, fused=True)

    @property
    def pipeline(self) -> Pipeline:
        """Pairs from Parquet, shuffled, batched, negatives drawn."""
        options = self.options
        pipeline = self.data.pipeline("ratings/train", ["user", "item"])
        if options.shuffle:
            pipeline = pipeline.shuffle(options.shuffle, seed=options.seed)
        sampler = NegativeSampler.of(self.data, options.sampling())
        rows = self.data.rows("ratings/train")
        batch_size = redrawn(options.batch_size, rows, shuffle=options.shuffle, drawn="negatives")
        return pipeline.batch(batch_size).map(sampler, name="negatives").to(options.device)

    @property
    def config(self) -> Mapping[str, Any]:
        """What a checkpoint belongs to: it may go on elsewhere, and be judged at other places."""
        options = {name: value for name, value in asdict(self.options).items() if name not in NO_MATTER}
        return {**options, "users": self.data.users, "items": self.data.items}

    def prepare(self) -> tuple[str, ...]:
        """Find what is held out; the names of all metrics."""
        _ = self.held_out
        return metric_names(self.options.cutoffs)

    def loss(self, batch: Batch) -> Tensor:
        """See `PairModel.forward`."""
        loss: Tensor = self.model(batch)
        return loss

    def evaluate(self, split: Literal["valid", "test"]) -> dict[str, float]:
        """Ranking metrics over all users of `split`."""
        return self.rank(split).compute()

    def rank(self, split: Literal["valid", "test"]) -> RankingMetrics:
        """The same, with what was measured of each user."""
        held_out = self.held_out[split]
        encoder = self.model.encoder
        with torch.no_grad():
            final = encoder()
            users = final[torch.from_numpy(held_out.users).to(final.device)]
            items = final[encoder.users :].t().contiguous()
            return rank_all(lambda rows: users[rows] @ items, held_out, cutoffs=self.options.cutoffs)

    @cached_property
    def held_out(self) -> Mapping[str, HeldOut]:
        """What is asked for in each of the two splits."""
        return {"valid": self.data.held_out("valid"), "test": self.data.held_out("test")}


def make_encoder(data: RatingData, options: PairOptions) -> Encoder:
    """The encoder that `options` names, its graph that of what is trained on."""
    if options.encoder == "mf":
        return MatrixFactorisation(data.users, data.items, options.dim, seed=options.seed)
    user, item = data.train_edges
    size = {"users": data.users, "items": data.items, "dim": options.dim, "seed": options.seed}
    if options.encoder == "lightgcn":
        return LightGCN(user, item, **size, depth=3 if options.depth is None else options.depth)
    depth = 5 if options.depth is None else options.depth
    return SheafNetwork(
        user,
        item,
        **size,
        depth=depth,
        stalk=options.stalk,
        step=options.step,
        linear=options.linear,
        offset=options.offset,
    )


def make_objective(encoder: Encoder, options: PairOptions) -> nn.Module:
    """The objective that `options.negatives` names."""
    if options.negatives == "ans":
        return ANS(
            encoder.width, gamma=options.gamma, epsilon=options.epsilon, l2=options.l2, seed=options.seed + 1
        )
    return MixGCF(options.l2) if options.negatives == "mixgcf" else BPR(options.l2)
