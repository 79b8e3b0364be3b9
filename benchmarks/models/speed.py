"""Rows trained on a second, against RecBole, on MovieLens 100k: matrix factorisation, LightGCN, BERT4Rec.

    make recbole
    python -m benchmarks.models.speed --folder ml-100k-random --sessions ml-100k-sessions --out models-speed.json

RecBole runs in an environment of its own. Both get the same training interactions, shapes, batch and optimiser, and
one core and one thread each, on which the pipeline's stages run too; sampling, shuffling and masking are counted.
Since others may use that core, rows are compared by processor time, that of all threads of a process. Rounds are
interleaved, each in a new process: warm-up, then a stretch that is timed. A row is a pair of user and item with one
negative, or a sequence that is padded to the same length. RecBole makes a sequence of every beginning of a session,
ours a window of each session every epoch, so that ours have more items that are not padding.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.environment import describe
from benchmarks.models.seeds import half_width
from benchmarks.report import write
from intune.workloads.pairs.data import RatingData, find_rating_data
from intune.workloads.pairs.recommender import PairOptions, PairRecommender
from intune.workloads.sequences.job import SequenceJob, ready
from intune.workloads.sequences.models import Learned, module_of
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.optim import ClippedAdamW
from intune.workloads.training.trainer import Batch, Trainer, TrainOptions

REPOSITORY = Path(__file__).resolve().parents[2]
RECBOLE = REPOSITORY / ".recbole" / "bin" / "python"
LENGTH = 50
"""Items of a sequence, RecBole's default."""

ModelName = Literal["BPR-MF", "LightGCN", "BERT4Rec"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model in both libraries.

    Attributes:
        theirs: RecBole's name of it.
        settings: of RecBole, beyond its defaults.
        ours: settings of `PairOptions` or of a `SequenceJob`.
        batch: rows a step.
        limit: the least ratio of rows a second.
    """

    theirs: str
    settings: Mapping[str, Any]
    ours: Mapping[str, Any]
    batch: int
    limit: float = 1.5


def cases() -> dict[ModelName, Case]:
    """The three models; what is not set is the same by default: width 64, Adam, learning rate 0.001."""
    pairs = {
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "train_batch_size": 2048,
    }
    return {
        "BPR-MF": Case(theirs="BPR", settings=pairs, ours={"encoder": "mf", "l2": 0.0}, batch=2048),
        "LightGCN": Case(
            theirs="LightGCN",
            settings={**pairs, "n_layers": 3, "reg_weight": 1e-5},
            ours={"encoder": "lightgcn", "depth": 3, "l2": 1e-5},
            batch=2048,
        ),
        "BERT4Rec": Case(
            theirs="BERT4Rec",
            settings={
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "eval_args": {
                    "split": {"LS": "valid_and_test"},
                    "group_by": "user",
                    "order": "TO",
                    "mode": "full",
                },
                "train_neg_sample_args": None,
                "MAX_ITEM_LIST_LENGTH": LENGTH,
                "train_batch_size": 256,
            },
            ours={
                **{"length": LENGTH, "width": 64, "layers": 2, "heads": 2, "dropout": 0.2},
                **{"mask_share": 0.2, "learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 256},
            },
            batch=256,
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of a model.

    Attributes:
        name: of the model.
        settings: ours.
        ours, recbole: rows a processor-second, by round.
        ours_wall, recbole_wall: rows a second of the clock, by round, for which others on the machine matter.
        our_parameters, their_parameters: numbers that are trained. Ours have no row for padding, RecBole's one.
        ratio: mean of the rounds' ratios, by processor time.
        half_width: of its 95 % interval, by Student's t.
        limit, holds: the least ratio, and whether it is reached.
    """

    name: str
    settings: Mapping[str, Any]
    ours: tuple[float, ...]
    recbole: tuple[float, ...]
    ours_wall: tuple[float, ...]
    recbole_wall: tuple[float, ...]
    our_parameters: int
    their_parameters: int
    ratio: float
    half_width: float | None
    limit: float
    holds: bool


class _Clock:
    """Counts rows between a warm-up and an end, and stops the trainer then."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.opened = seconds, time.perf_counter()
        self.began: float | None = None
        self.spent = 0.0
        self.rows = self.steps = 0

    def take(self, rows: int) -> None:
        """A batch is about to be trained on.

        Raises:
            _Enough: the time is over.
        """
        now = time.perf_counter()
        if self.began is None and now - self.opened > self.seconds / 5:
            self.began, self.rows, self.steps = now, 0, 0
            self.spent = time.process_time()
        if self.began is not None and now - self.began > self.seconds:
            raise _Enough
        self.rows, self.steps = self.rows + rows, self.steps + 1


class _Enough(Exception):
    """The time is over."""


def run_ours(name: ModelName, folder: Path, seconds: float) -> dict[str, Any]:
    """Train one of ours for `seconds`, after a warm-up of a fifth of that, in this process."""
    import torch

    torch.set_num_threads(1)
    case = cases()[name]
    if name == "BERT4Rec":
        job = SequenceJob(
            model="bert4rec",
            data=str(folder),
            settings=case.ours,
            executor="threads",
            cpus=1,
            memory="1GiB",
        )
        with ready(job) as made:
            model = module_of(made.recommender)
            assert made.loader is not None
            assert model is not None
            assert isinstance(made.recommender, Learned)
            optimizer = ClippedAdamW(model.parameters(), lr=1e-3, weight_decay=0.0, clip=5.0)
            return _timed(model, optimizer, made.loader, made.recommender.loss, "sequence", seconds)
    options = PairOptions(batch_size=case.batch, learning_rate=1e-3, **case.ours)
    recommender = PairRecommender(data=find_rating_data(folder), options=options)
    with feeding(recommender.pipeline, FeedOptions(executor="threads", cpus=1, memory="1GiB")) as loader:
        return _timed(recommender.model, recommender.optimizer, loader, recommender.loss, "user", seconds)


def _timed(model: Any, optimizer: Any, loader: Any, loss: Any, column: str, seconds: float) -> dict[str, Any]:
    clock = _Clock(seconds)

    def counted(batch: Batch) -> Any:
        clock.take(len(batch[column]))
        return loss(batch)

    options = TrainOptions(epochs=1_000_000, checkpoint_every=0)
    trainer = Trainer(model, optimizer, loader, loss=counted, options=options)
    with contextlib.suppress(_Enough):
        trainer.fit()
    assert clock.began is not None
    return {
        "rows_per_s": clock.rows / (time.perf_counter() - clock.began),
        "rows_per_cpu_s": clock.rows / (time.process_time() - clock.spent),
        "steps": clock.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def write_interactions(data: RatingData, folder: Path, *, parts: bool) -> None:
    """The data as RecBole reads it: ``ml/ml.inter``, or a file for each part.

    Args:
        data: from where.
        folder: where the folder ``ml`` is made.
        parts: whether what is held out is to be the same as in `data`.
    """
    (folder / "ml").mkdir(parents=True)
    lines: dict[str, list[str]] = {"": []}
    for split in ("train", "valid", "test"):
        table = data.table(f"ratings/{split}", ["user", "item", "timestamp"])
        made = [f"{user}\t{item}\t{when}" for user, item, when in zip(*_columns(table), strict=True)]
        lines[f".{split}"] = made
        lines[""] += made
    for part, rows in lines.items():
        if bool(part) == parts:
            head = "user_id:token\titem_id:token\ttimestamp:float"
            text = "\n".join([head, *rows]) + "\n"
            (folder / "ml" / f"ml{part}.inter").write_text(text, encoding="utf-8")


def _columns(table: Any) -> list[list[Any]]:
    return [
        np.asarray(table.column(name)).astype(np.int64).tolist() for name in ("user", "item", "timestamp")
    ]


def child(command: Sequence[str], core: int) -> dict[str, Any]:
    """What a process that is given one core prints last."""
    done = subprocess.run(
        list(command),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summarise(
    name: ModelName, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> Result:
    """Ratios of paired rounds."""
    case = cases()[name]
    rates, walls = (
        [tuple(float(run[unit]) for run in runs) for runs in (ours, theirs)]
        for unit in ("rows_per_cpu_s", "rows_per_s")
    )
    ratios = [one / other for one, other in zip(*rates, strict=True)]
    ratio = float(np.mean(ratios))
    return Result(
        name=name,
        settings={**case.ours, "batch": case.batch},
        ours=rates[0],
        recbole=rates[1],
        ours_wall=walls[0],
        recbole_wall=walls[1],
        our_parameters=int(ours[0]["parameters"]),
        their_parameters=int(theirs[0]["parameters"]),
        ratio=ratio,
        half_width=half_width(ratios),
        limit=case.limit,
        holds=ratio >= case.limit,
    )


def measure(name: ModelName, folder: Path, rounds: int, seconds: float) -> Result:
    """Both libraries in turn, each round in new processes."""
    case = cases()[name]
    core = min(os.sched_getaffinity(0))
    runs: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    with tempfile.TemporaryDirectory() as made:
        write_interactions(find_rating_data(folder), Path(made), parts="benchmark_filename" in case.settings)
        commands = (
            ["-m", "benchmarks.models.speed", "--child", name, "--folder", str(folder)],
            [
                "-m",
                "benchmarks.models.recbole_child",
                case.theirs,
                "--data",
                made,
                "--settings",
                json.dumps(dict(case.settings)),
            ],
        )
        for _ in range(rounds):
            for which, python in enumerate((sys.executable, str(RECBOLE))):
                found = child([python, *commands[which], "--seconds", str(seconds)], core)
                runs[which].append(found)
                print(
                    f"{name}, {('ours', 'RecBole')[which]}: {found['rows_per_cpu_s']:,.0f} rows a processor-second, "
                    f"{found['rows_per_s']:,.0f} rows/s",
                    flush=True,
                )
    return summarise(name, *runs)


def main(
    *,
    folder: Path,
    sessions: Path | None = None,
    out: Path | None = None,
    rounds: int = 3,
    seconds: float = 10.0,
    only: ModelName | None = None,
    child: ModelName | None = None,
) -> None:
    """Measure, print, and write JSON.

    Args:
        folder: The data set of interactions.
        sessions: That of sessions; beside `folder`, under the name ml-100k-sessions, by default.
        out: Where the JSON goes.
        rounds: How often each is measured.
        seconds: How long each time, after a warm-up.
        only: The one model to measure.
        child: Measure ours alone, in this process, and print the JSON of it.
    """
    if child is not None:
        print(json.dumps(run_ours(child, folder, seconds)))
        return
    if not RECBOLE.exists():
        raise SystemExit(f"{RECBOLE} is missing; make it with `make recbole`")
    sessions = folder.parent / "ml-100k-sessions" if sessions is None else sessions
    results = [
        measure(name, sessions if name == "BERT4Rec" else folder, rounds, seconds)
        for name in cases()
        if only in (None, name)
    ]
    for result in results:
        width = "" if result.half_width is None else f" ± {result.half_width:.2f}"
        verdict = "holds" if result.holds else "DOES NOT HOLD"
        print(f"{result.name}: {result.ratio:.2f}{width} × RecBole, at least {result.limit}: {verdict}")
    bars = [
        {"claim": f"{result.name} against RecBole", "value": result.ratio, "holds": result.holds}
        for result in results
    ]
    report = {
        "results": [asdict(result) for result in results],
        "bars": bars,
        "environment": {**describe(), "recbole": recbole_versions()},
    }
    write(out, report)


def recbole_versions() -> dict[str, str]:
    """Of RecBole and what it computes with."""
    program = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({name: m.version(name) for name in ('recbole', 'torch', 'numpy', 'scipy')}))"
    )
    done = subprocess.run([str(RECBOLE), "-c", program], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.models.speed", description=__doc__)
