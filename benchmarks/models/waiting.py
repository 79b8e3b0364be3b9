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
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.environment import describe

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT = "dqn"
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
        """From its runs."""
        return cls(
            name=name,
            untuned=tuple(run.waited for run in untuned),
            tuned=tuple(run.waited for run in tuned),
            untuned_rows_per_s=tuple(run.rows_per_s for run in untuned),
            tuned_rows_per_s=tuple(run.rows_per_s for run in tuned),
        )


def read(text: str) -> Run:
    """What a run's summary says.

    Raises:
        ValueError: it has no share of time waiting.
    """
    waited = [float(found) / 100 for found in re.findall(r"waited for data ([\d.]+)% of the time", text)]
    rates = [float(found.replace(",", "")) for found in re.findall(r"([\d,]+)\s+(?:rows|sessions)/s", text)]
    if not waited or not rates:
        raise ValueError(f"the summary says nothing of waiting: {text[-2000:]}")
    return Run(waited=float(np.mean(waited)), rows_per_s=rates[-1])


def train(command: Sequence[str], seconds: float) -> Run:
    """Run a command, ask it to stop after `seconds` (it then ends with its summary), and read what it said."""
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            list(command),
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "INTUNE_CACHE": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            text, _ = process.communicate()
    return read(text)


def measure(name: str, data: Path, rounds: int, seconds: float) -> Result:
    """Untuned and tuned in turn."""
    folder, *options = WORKLOADS[name]
    command = [sys.executable, "-W", "ignore", "-m", "intune.cli.main", "train", name]
    command += ["--data", str(data / folder), "--executor", "threads", *options]
    if name == "trendrec":
        seconds = 20 * seconds
    runs: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(rounds):
        for which, more in enumerate(([], ["--agent", AGENT])):
            run = train([*command, *more], seconds)
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
        seconds: Length of a run, start included. TrendRec runs to its end.
        only: Names of the workloads to run; all where none is given.
    """
    results: list[Result] = []
    for name in only or WORKLOADS:
        results.append(measure(name, folder.parent, rounds, seconds))
        if out is not None:
            report = {
                "agent": AGENT,
                "seconds": seconds,
                "results": [asdict(result) for result in results],
                "bars": [],
                "environment": describe(),
            }
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    tyro.cli(main)
