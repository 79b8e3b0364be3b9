"""`intune train bpr-mf`, `lightgcn`, `sheaf` and `ans`: models of users and items learnt from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from intune.cli.pair_runs import RunOptions, run

SHOWN = ("recall@20", "ndcg@20", "ndcg@10", "f1@10", "hit_rate@10", "coverage@20")

_DATA = """\
DATA is a folder made by `intune data movielens` or `intune data amazon-reviews`. Pairs of users and items are read
from Parquet through the pipeline, whose last stage draws items that the user has not met. Training ends when the
metric on validation data has stopped rising; the best parameters are judged on the test's data, once. Seen items and
items never trained on are not recommended, and not asked for: of data that repeat interactions, such as those of
`intune data market`, only a user's first one with an item counts there.
"""

BPR_MF_HELP = f"""\
Train matrix factorisation with Bayesian personalised ranking (UAI 2009).

{_DATA}
Examples:
  intune train bpr-mf --data ml-100k
  intune train bpr-mf --data ml-100k --negatives dns --candidates 4 --learning-rate 0.003
"""

LIGHTGCN_HELP = f"""\
Train LightGCN (arXiv 2002.02126) with Bayesian personalised ranking.

{_DATA}
Examples:
  intune train lightgcn --data ml-100k
  intune train lightgcn --data ml-100k --negatives mixgcf --candidates 8
"""

SHEAF_HELP = f"""\
Train the sheaf network (arXiv 2304.09097): LightGCN's graph, whose edges learn how their ends compare.

{_DATA}
Examples:
  intune train sheaf --data ml-100k
  intune train sheaf --data ml-100k --stalk 2 --depth 3
  intune train sheaf --data ml-100k --plain --offset 1 --depth 1 --learning-rate 0.01 --l2 0.01
"""

ANS_HELP = f"""\
Train with augmented negative sampling (arXiv 2308.05972), on matrix factorisation or LightGCN.

{_DATA}
Examples:
  intune train ans --data ml-100k
  intune train ans --data ml-100k --encoder lightgcn --candidates 2
"""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and its optimiser.

    Attributes:
        dim: Width of the embeddings.
        l2: Weight of half of the squared norms of a row's embeddings.
        learning_rate: Of Adam.
        batch_size: Rows per step.
        shuffle: Row groups whose rows are mixed; 0 keeps the order of time, and the same negatives in every epoch.
        device: Where the model is: cpu, cuda or cuda:N.
    """

    dim: int = 64
    l2: float = 1e-5
    learning_rate: float = 1e-3
    batch_size: int = 2048
    shuffle: int = 8
    device: str = "cpu"


_RUN = RunOptions()


def bpr_mf(
    *,
    data: str,
    negatives: Literal["uniform", "popularity", "dns"] = "uniform",
    candidates: int = 8,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = _RUN,
) -> None:
    """Train matrix factorisation with BPR.

    Args:
        data: Folder of interactions.
        negatives: How negatives are chosen: uniformly, by popularity, or the hardest of several (dns).
        candidates: Negatives of each row to choose among, with dns.
        model: The model and its optimiser.
        run: How it is run.
    """
    _train(data, model, run, "BPR-MF", encoder="mf", negatives=negatives, candidates=candidates)


def lightgcn(
    *,
    data: str,
    negatives: Literal["uniform", "popularity", "dns", "mixgcf"] = "uniform",
    candidates: int = 8,
    depth: int = 3,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = _RUN,
) -> None:
    """Train LightGCN.

    Args:
        data: Folder of interactions.
        negatives: How negatives are chosen: uniformly, by popularity, the hardest of several (dns), or mixed (mixgcf).
        candidates: Negatives of each row to choose among, with dns and mixgcf.
        depth: Layers.
        model: The model and its optimiser.
        run: How it is run.
    """
    choices = {"negatives": negatives, "candidates": candidates, "depth": depth}
    _train(data, model, run, "LightGCN", encoder="lightgcn", **choices)


def sheaf(
    *,
    data: str,
    depth: int = 5,
    stalk: int = 1,
    step: float = 1.0,
    plain: bool = False,
    offset: float = 0.0,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = _RUN,
) -> None:
    """Train the sheaf network.

    Args:
        data: Folder of interactions.
        depth: Layers.
        stalk: Dimension of the stalks, a divisor of the width.
        step: How far a layer goes against the Laplacian.
        plain: Leave out the trained linear map of every layer; MovieLens 100k is learnt better without.
        offset: Added to the maps inside the tanh; with 1 and --plain, training begins near LightGCN.
        model: The model and its optimiser.
        run: How it is run.
    """
    choices = {"depth": depth, "stalk": stalk, "step": step, "linear": not plain, "offset": offset}
    _train(data, model, run, "sheaf network", encoder="sheaf", **choices)


def ans(
    *,
    data: str,
    encoder: Literal["mf", "lightgcn"] = "mf",
    candidates: int = 4,
    gamma: float = 0.01,
    epsilon: float = 1.0,
    depth: int = 3,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = _RUN,
) -> None:
    """Train with augmented negative sampling.

    Args:
        data: Folder of interactions.
        encoder: What makes the embeddings.
        candidates: Negatives of each row to augment and choose among.
        gamma: Weight of the losses that teach the gate.
        epsilon: Weight of what a candidate has gained by being augmented.
        depth: Layers of LightGCN.
        model: The model and its optimiser.
        run: How it is run.
    """
    choices = {"candidates": candidates, "gamma": gamma, "epsilon": epsilon, "depth": depth}
    _train(data, model, run, f"ANS on {encoder}", encoder=encoder, negatives="ans", **choices)


def _train(data: str, model: ModelOptions, options: RunOptions, title: str, **choices: Any) -> None:
    from dataclasses import asdict

    from intune.workloads.pairs.data import find_rating_data
    from intune.workloads.pairs.recommender import PairOptions, PairRecommender

    chosen = PairOptions(**asdict(model), **choices, seed=options.feeding.seed)
    recommender = PairRecommender(data=find_rating_data(data), options=chosen)
    run(recommender, options, title=title, shown=SHOWN)
    if repeated := recommender.held_out["test"].repeated:
        print(f"not asked for: {repeated:,} of the test's interactions, whose user had met the item before")
