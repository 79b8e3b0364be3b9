"""Real jobs from a cold start, tuned or not, and the loaders people use: ``python -m benchmarks.live --json FILE``.

Every run is a fresh process that reads as many epochs as fit into its seconds; everything counts from the moment its
loader is made. Runs are written as they end, and joined with those that the file has already, so that a run cut
short goes on with ``--resume``, and single jobs are done again with ``--only``.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from benchmarks import data, environment, harness, live_plot, live_report, report, s3_server
from benchmarks.data import DataSpec
from benchmarks.delay_proxy import DelayProxy
from benchmarks.harness import Contender, ContenderFailed
from benchmarks.live_jobs import DEFAULT, ENTRANTS, JOBS, Entrant, LiveJob, allocations, entrant
from benchmarks.live_report import rate
from benchmarks.s3_server import S3Server

BUCKET = "live"
BESIDE_S = 3.5
"""Seconds that a run takes beside its own: Python, imports, the end."""
SHORTEST_S, LONGEST_S = 8.0, 25.0
EACH_S = 2.0
"""Seconds of each allocation in a sweep."""
LOOK_S = 0.25
"""Seconds between two looks at memory."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tuned pipelines against untuned ones and against the loaders people use, on real jobs.

    Attributes:
        json: Where to write the results; runs that are there already are kept.
        plot: Where to draw them (needs matplotlib).
        contenders: Who takes part: ours, untuned, planner, autotune, even, static, tfdata, dataloader, raydata, spdl,
            grain; or all.
        only: Jobs whose name contains one of these.
        minutes: For all runs together; each gets its share, 8 to 25 seconds.
        seconds: Of each run, instead. Where a loader has several settings, each gets them.
        sweep: Whether to measure many allocations of every job too (40 seconds a job).
        resume: Whether to leave out what the file has already.
        batch: Rows of a batch.
    """

    json: Path | None = None
    plot: Path | None = None
    contenders: tuple[str, ...] = DEFAULT
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …")] = ()
    minutes: float = 9.0
    seconds: float | None = None
    sweep: bool = False
    resume: bool = False
    batch: int = harness.BATCH

    def __post_init__(self) -> None:
        if not self.minutes > 0 or (self.seconds is not None and not self.seconds > 0):
            raise SystemExit(f"`--minutes` ({self.minutes}) and `--seconds` ({self.seconds}) must be above 0")
        if not self.jobs:
            raise SystemExit(f"`--only` chooses none of {', '.join(job.name for job in JOBS)}")
        for name in self.names:
            entrant(name)
        report.check_plot(self.plot)

    @property
    def jobs(self) -> list[LiveJob]:
        return [
            job
            for job in JOBS
            if not self.only or any(part.lower() in job.name.lower() for part in self.only)
        ]

    @property
    def names(self) -> list[str]:
        return [each.name for each in ENTRANTS] if "all" in self.contenders else list(self.contenders)

    def each_s(self) -> float:
        if self.seconds is not None:
            return self.seconds
        share = 60 * self.minutes / (len(self.jobs) * len(self.names))
        return min(LONGEST_S, max(SHORTEST_S, share - BESIDE_S))


def main(options: Options) -> int:
    console = Console()
    if any(job.far for job in options.jobs):
        s3_server.check()
    document = _begin(options)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ["INTUNE_BENCHMARK_DOOR"] = str(Path(folder) / "door")
        stores = Stores(stack)
        for number, job in enumerate(options.jobs, start=1):
            with stores.files(job) as files:
                # Whoever comes first is given memory that the machine has not used lately, which takes time.
                turn = number % len(options.names)
                for name in options.names[turn:] + options.names[:turn]:
                    console.print(
                        f"{time.monotonic() - began:5.0f} s  job {number} of {len(options.jobs)}, {job.name}: {name}",
                        highlight=False,
                    )
                    _one(options, document, job, entrant(name), files, console)
                if options.sweep:
                    console.print(f"{time.monotonic() - began:5.0f} s  {job.name}: sweep", highlight=False)
                    _sweep(options, document, job, files)
    document["bars"] = [bar.as_dict() for bar in live_report.bars(document)]
    report.write_whole(options.json, document)
    live_report.show(document, console)
    console.print(report.bars_table(live_report.bars(document)))
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        live_plot.draw(document, options.plot)
    return 0


def _begin(options: Options) -> dict[str, Any]:
    """The document to go on with."""
    document: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        document = json.loads(options.json.read_text())
    for name in ("runs", "sweeps"):
        document.setdefault(name, {})
    document["environment"] = environment.describe()
    return document


def _one(
    options: Options,
    document: dict[str, Any],
    job: LiveJob,
    who: Entrant,
    files: list[str],
    console: Console,
) -> None:
    runs = document["runs"].setdefault(job.name, {})
    if options.resume and who.label in runs and "error" not in runs[who.label]:
        return
    if not harness.available(who.contender(job, who.configs[0])):
        runs[who.label] = {"cannot": "not installed (make peers)"}
    else:
        runs[who.label] = _best_of(options, job, who, files)
    found = runs[who.label]
    console.print(
        f"         {rate(found):,.0f} rows/s {live_report.slots_text(found)}"
        if "rows" in found
        else f"         {found.get('cannot') or found['error'].splitlines()[-1]}",
        highlight=False,
    )
    report.write_whole(options.json, document)


def _best_of(options: Options, job: LiveJob, who: Entrant, files: list[str]) -> dict[str, Any]:
    """The run of the setting that delivered most. All have the whole time: in a shorter trial, those with worker
    processes would do little but start."""
    runs = []
    for config in who.configs:
        found = run(who.contender(job, config), job, files, seconds=options.each_s(), batch=options.batch)
        runs.append({**found, "config": config})
    runs.sort(key=lambda found: -rate(found) if "rows" in found else 0.0)
    tried = [{"config": found["config"], "rate": rate(found) if "rows" in found else 0.0} for found in runs]
    return {**runs[0], "tried": tried if len(runs) > 1 else []}


def _sweep(options: Options, document: dict[str, Any], job: LiveJob, files: list[str]) -> None:
    tried = allocations()
    config = {"processes": job.processes, "sweep": tried, "each_s": EACH_S}
    contender = Contender(name="sweep", module="benchmarks.tuned", config=config)
    # An allocation's interval ends with a batch, and the first begins with the first.
    seconds = (len(tried) + 1.5) * (EACH_S + 1.0)
    found = run(contender, job, files, seconds=seconds, batch=options.batch)
    document["sweeps"][job.name] = found.get("sweep", [])
    report.write_whole(options.json, document)


def run(
    contender: Contender, job: LiveJob, files: list[str], *, seconds: float, batch: int
) -> dict[str, Any]:
    """One fresh process; what it reports, or ``error``."""
    live = {"files": files, "function": job.function, "seconds": seconds, "step_s": job.step_s}
    command = [
        str(harness.PYTHONS[contender.python]), "-m", contender.module,
        "--batch", str(batch), "--config", json.dumps(contender.config), "--live", json.dumps(live),
    ]  # fmt: skip
    try:
        return harness.run_command(
            command, name=contender.name, timeout=2 * seconds + 60, interval=LOOK_S, leave=True
        )
    except ContenderFailed as error:
        return {"error": str(error)}


class Stores:
    """Where the jobs' files are: written when first needed, uploaded when first needed far away."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._server: S3Server | None = None
        self._paths: dict[DataSpec, list[str]] = {}

    @contextmanager
    def files(self, job: LiveJob) -> Iterator[list[str]]:
        """Paths or URIs, as long as the context lasts."""
        local = [str(path.resolve()) for path in data.ensure(job.spec)]
        if job.delay_ms is None:
            for path in local:
                Path(path).read_bytes()  # into the page cache: whoever comes first must not find it empty
            yield local
            return
        if self._server is None:
            self._server = self._stack.enter_context(S3Server())
        if job.spec not in self._paths:
            self._paths[job.spec] = s3_server.upload(
                [Path(path) for path in local], BUCKET, self._server.port
            )
        with DelayProxy(self._server.port, delay_s=job.delay_ms / 1000, bytes_per_s=job.bytes_per_s) as proxy:
            yield [s3_server.uri(proxy.port, path) for path in self._paths[job.spec]]


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, prog="python -m benchmarks.live")))
