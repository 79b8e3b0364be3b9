"""Share of training in which the trainer waits for data, for every bundled workload, untuned and under the tuner.

    python -m benchmarks.models.waiting --folder ml-100k --out waiting.json

``intune train NAME`` is run for a while as it is, from one shared pool of slots, and with ``--agent dqn``, in turn,
each in a new process and without what earlier runs have learnt. The shares are those of whole runs, in which the agent
is still finding out; the first batch is not counted. Models that are not trained by gradients have no trainer that
waits. Data sets lie beside `folder`, under the names in `WORKLOADS`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.environment import describe
from benchmarks.report import check_chosen, write

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT = "dqn"
MARK = "measured: "
ENDLESS = ("--epochs", "1000000", "--patience", "1000000", "--quiet")

WORKLOADS: Mapping[str, tuple[str, ...]] = {
    "dlrm": ("criteo-1m", "--epochs", "1000", "--quiet"),
    "dcnv2": ("criteo-1m", "--epochs", "1000", "--quiet"),
    "unified-embedding": ("ml-100k", "--epochs", "1000000", "--quiet"),
    "bpr-mf": ("ml-100k", *ENDLESS),
    "lightgcn": ("ml-100k", *ENDLESS),
    "ans": ("ml-100k", *ENDLESS),
    "sheaf": ("ml-100k", *ENDLESS),
    "bert4rec": ("ml-100k-sessions", "--width", "64", *ENDLESS),
    "sasrec": ("ml-100k-sessions", "--width", "64", *ENDLESS),
    "gru4rec": ("ml-100k-sessions", "--width", "64", *ENDLESS),
    "llm2bert4rec": ("ml-100k-sessions", "--width", "64", "--heads", "2", *ENDLESS),
    "llm-seq-prompt": ("ml-100k-sessions", *ENDLESS),
    "trendrec": ("market", "--season", "12", "--item-epochs", "6", "--epochs", "6"),
}
"""The data set of each, and options: those end no run, but TrendRec's, whose two trainings both belong to it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of ``intune train`` said of itself.

    Attributes:
        waited: share of training spent waiting; a mean over trainings, where a model has two.
        rows_per_s: while training; of the last training, where there are two.
    """

    waited: float
    rows_per_s: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of a workload.

    Attributes:
        name: as of ``intune train``.
        untuned, tuned: shares of time waiting, by round.
        untuned_rows_per_s, tuned_rows_per_s: by round.
    """

    name: str
    untuned: tuple[float, ...]
    tuned: tuple[float, ...]
    untuned_rows_per_s: tuple[float, ...]
    tuned_rows_per_s: tuple[float, ...]

    @classmethod
    def of(cls, name: str, untuned: Sequence[Run], tuned: Sequence[Run]) -> Result:
        return cls(
            name=name,
            untuned=tuple(run.waited for run in untuned),
            tuned=tuple(run.waited for run in tuned),
            untuned_rows_per_s=tuple(run.rows_per_s for run in untuned),
            tuned_rows_per_s=tuple(run.rows_per_s for run in tuned),
        )


def read(text: str) -> Run:
    """What a run that `run_watched` ran has written.

    Raises:
        ValueError: nothing was trained.
    """
    found = [json.loads(line.removeprefix(MARK)) for line in text.splitlines() if line.startswith(MARK)]
    if not found:
        raise ValueError(f"nothing was trained: {text[-2000:]}")
    return Run(
        waited=float(np.mean([each["waited"] for each in found])), rows_per_s=float(found[-1]["rows_per_s"])
    )


def run_watched(arguments: Sequence[str], seconds: float | None) -> None:
    """Run ``intune train``, write down what each training measured of itself, and ask it to stop after a while.

    A training that is asked to stop still tells what it did, but the command line does not say it.
    """
    from intune.cli.main import main as command_line
    from intune.workloads.training.trainer import Trainer, TrainSummary

    fit = Trainer.fit

    def watched(trainer: Trainer) -> TrainSummary:
        if seconds is not None:
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
            timer.daemon = True
            timer.start()
        summary = fit(trainer)
        print(MARK + json.dumps({"waited": summary.wait_share, "rows_per_s": summary.rows_per_s}), flush=True)
        return summary

    Trainer.fit = watched  # type: ignore[assignment, method-assign]
    sys.argv = ["intune", "train", *arguments]
    command_line()


def train(name: str, arguments: Sequence[str], seconds: float | None) -> Run:
    """A run in a process of its own, without what earlier ones have learnt."""
    limit = "" if seconds is None else str(seconds)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.models.waiting",
        "--watched",
        limit,
        "--",
        name,
        *arguments,
    ]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "INTUNE_CACHE": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return read(done.stdout)


def measure(name: str, data: Path, rounds: int, seconds: float) -> Result:
    """Untuned and tuned in turn."""
    folder, *options = WORKLOADS[name]
    arguments = ["--data", str(data / folder), "--executor", "threads", *options]
    runs: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(rounds):
        for which, more in enumerate(([], ["--agent", AGENT])):
            run = train(name, [*arguments, *more], None if name == "trendrec" else seconds)
            runs[which].append(run)
            print(
                f"{name}{' tuned' * which}: waited {run.waited:.1%}, {run.rows_per_s:,.0f} rows/s", flush=True
            )
    return Result.of(name, *runs)


def table(results: Sequence[Result]) -> str:
    """As Markdown, means over rounds."""
    lines = [
        "| workload | waiting, untuned | waiting, tuned | rows/s, tuned over untuned |",
        "|---|---|---|---|",
    ]
    for result in results:
        ratio = np.mean(result.tuned_rows_per_s) / np.mean(result.untuned_rows_per_s)
        before, after = np.mean(result.untuned), np.mean(result.tuned)
        lines.append(f"| `{result.name}` | {before:.1%} | {after:.1%} | {ratio:.2f} |")
    return "\n".join(lines)


def main(
    *,
    folder: Path,
    out: Path | None = None,
    rounds: int = 1,
    seconds: float = 25.0,
    only: tuple[str, ...] = (),
) -> None:
    """Measure, print, and write JSON.

    Args:
        folder: The data set ml-100k; the others lie beside it.
        out: Where the JSON goes, after every workload.
        rounds: How often each is run each way.
        seconds: Length of a training, evaluations included. TrendRec's two run to their end.
        only: Names of the workloads to run; all where none is given.
    """
    check_chosen(only, WORKLOADS)
    results: list[Result] = []
    for name in only or WORKLOADS:
        results.append(measure(name, folder.parent, rounds, seconds))
        report = {
            "agent": AGENT,
            "seconds": seconds,
            "results": [asdict(result) for result in results],
            "bars": [],
            "environment": describe(),
        }
        write(out, report)
    print(table(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        run_watched(sys.argv[4:], float(sys.argv[2]) if sys.argv[2] else None)
    else:
        tyro.cli(main, prog="python -m benchmarks.models.waiting", description=__doc__)
