"""How true simulated twins of real pipelines are: ``python -m benchmarks.fidelity --json FILE``.

Every pipeline runs in a process of its own under some allocations that a twin is fitted to and others that it is
asked to predict. All are visited several times, each time in another random order, and the medians count: one visit of
a second or two on a machine of two cores is off by a tenth. How well one visit tells the order of the others' mean is
reported as well: no twin can be better than that. A file that exists already is gone on with: pipelines in it are not
run again. Storage is an S3 server on this machine behind a proxy that delays every request (extra ``s3``).

Beside them stand pipelines in virtual time (`virtual.py`): the real scheduler without a machine's noise. What twins
of those get wrong is the physics' own doing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import data, environment, report, s3_server, virtual
from benchmarks.fidelity_cases import CASES, Case, allocations
from benchmarks.fidelity_report import Bar, Noise, bars, draw, noise, summarise

BATCH = 8192
DATA = data.DataSpec(rows=524_288, files=8)
REPEATS = 16
"""How often an epoch lists the files: an epoch that ends within a measurement would be part of what is measured."""
BUCKET = "fidelity"
BUSY = 0.15
"""Share of the processors that other programs take from which on rates vary by more than the bars allow."""
PATIENCE_S = 1200.0
"""Seconds for one pipeline, which takes about a hundred on a machine that does nothing else."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Calibrate on some allocations of real pipelines, predict others.

    Attributes:
        json: Where to write the results; what is in it already is kept.
        plot: Where to draw them (PNG, SVG or PDF; needs matplotlib).
        only: Run the pipelines whose names contain one of these.
        seconds: Measured under each allocation.
        settle: Seconds before that.
        visits: How often each allocation is measured.
        seed: Of the allocations to predict, and of the order in which all are measured.
        quick: Short measurements: does everything work? Its numbers mean little.
        again: Run also what is in the file already.
        virtual_only: Only pipelines in virtual time.
        strict: End with status 1 if a bar does not hold.
        one: Run one pipeline in this process and print what was measured (used by itself).
        port: Of the proxy before the S3 server, for `one`.
    """

    json: Path | None = None
    plot: Path | None = None
    only: tuple[str, ...] = ()
    seconds: float = 1.1
    settle: float = 0.3
    visits: int = 3
    seed: int = 0
    quick: bool = False
    again: bool = False
    virtual_only: bool = False
    strict: bool = False
    one: str | None = None
    port: int = 0

    def __post_init__(self) -> None:
        report.check_plot(self.plot)
        if not self.names:
            raise SystemExit(f"`--only` chooses none of {', '.join(CASES)}")

    @property
    def names(self) -> list[str]:
        return [name for name in CASES if not self.only or any(part in name for part in self.only)]


def main(options: Options) -> int:
    if options.one is not None:
        print(json.dumps(run_case(options.one, options)), flush=True)
        return 0
    console = Console()
    document = _load(options)
    left = [name for name in options.names if options.again or name not in document["cases"]]
    left = [] if options.virtual_only else left
    far = any(CASES[name].delay_ms is not None for name in left)
    if far:
        s3_server.check()
    began = time.monotonic()
    document["virtual"] = {name: run_virtual(name, options) for name in virtual.SPECS}
    document["virtual_summary"] = summarise(document["virtual"])
    with _storage(far) as storage:
        for number, name in enumerate(left, start=1):
            console.print(f"{number}/{len(left)} {name} ({time.monotonic() - began:.0f} s)", highlight=False)
            # Looked at while nothing of this benchmark runs.
            others = psutil.cpu_percent(interval=0.5) / 100
            document["cases"][name] = {**_in_process(name, options, storage), "others": others}
            report.write(options.json, document)
    document["summary"] = summarise(document["cases"])
    document["seconds"] = document.get("seconds", 0.0) + time.monotonic() - began
    verdicts = bars(document["cases"])
    document["noise"] = asdict(noise(document["cases"]))
    document["bars"] = [asdict(bar) | {"passed": bar.passed} for bar in verdicts]
    document["virtual_bars"] = [asdict(bar) | {"passed": bar.passed} for bar in bars(document["virtual"])]
    show(
        "Real pipelines: predictions of allocations that were held out",
        document["summary"],
        verdicts,
        console,
    )
    tell(noise(document["cases"]), console)
    busy = [name for name, case in document["cases"].items() if case.get("others", 0.0) > BUSY]
    if busy:
        console.print(
            f"[yellow]other programs took more than {BUSY:.0%} of the processors before {len(busy)} of the pipelines "
            f"ran ({', '.join(busy)}): these figures say little of the twins[/yellow]",
            highlight=False,
        )
    title = "The same in virtual time, without a machine's noise"
    show(title, document["virtual_summary"], bars(document["virtual"]), console)
    report.write(options.json, document)
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(document, options.plot)
    return int(options.strict and not all(bar.passed for bar in verdicts))


def _load(options: Options) -> dict[str, Any]:
    if options.json is not None and options.json.exists():
        document: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8"))
        return document
    return {"environment": environment.describe(), "cases": {}}


@contextmanager
def _storage(needed: bool) -> Iterator[Any]:
    """The proxy, with the data behind it; None where nobody needs it."""
    files = data.ensure(DATA)
    if not needed:
        yield None
        return
    from benchmarks.delay_proxy import DelayProxy

    with s3_server.S3Server() as server, DelayProxy(server.port) as proxy:
        s3_server.upload(files, BUCKET, server.port)
        yield proxy


def _in_process(name: str, options: Options, storage: Any) -> dict[str, Any]:
    """What a pipeline's own process says; its error, in place of that, if it failed."""
    case = CASES[name]
    port = 0
    if case.delay_ms is not None:
        storage.delay(case.delay_ms / 1000)
        port = storage.port
    command = [sys.executable, "-m", "benchmarks.fidelity", "--one", name, "--port", str(port)]
    command += [
        "--seconds",
        str(options.seconds),
        "--settle",
        str(options.settle),
        "--seed",
        str(options.seed),
        "--visits",
        str(options.visits),
    ]
    command += ["--quick"] if options.quick else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {PATIENCE_S:.0f} s"}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# ---- one pipeline --------------------------------------------------------------------------------------------


def run_case(name: str, options: Options) -> dict[str, Any]:
    """Measure a pipeline under all its allocations, fit, predict; ready for JSON."""
    from intune.envs.measurement import Measurement
    from intune.envs.observer import Observer
    from intune.envs.probe import ProbeSettings, probe

    case = CASES[name]
    settings = ProbeSettings(
        seconds=0.25 if options.quick else options.seconds,
        settle=0.1 if options.quick else options.settle,
        step=case.step,
    )
    with _loader(case, options.port) as loader:
        known, unknown = allocations(case.most, loader.stages, options.seed)
        everything = [*known, *unknown]
        rng = np.random.default_rng(options.seed)
        order = np.concatenate([rng.permutation(len(everything)) for _ in range(options.visits)])
        _warm(loader)
        observer = Observer(loader)
        found = probe(loader, [everything[at] for at in order], settings, observer=observer)
    visits = [
        [found.measured[place] for place in np.flatnonzero(order == at)] for at in range(len(everything))
    ]
    measured = Measurement.joined([middle_of(each) for each in visits])
    result = evaluate(loader.stages, everything, len(known), measured, found.block_rows)
    for row, each in zip(result["runs"], visits, strict=True):
        row["rates"] = [float(visit.delivered[0]) for visit in each]
        row["memories"] = [float(visit.memory_used[0]) for visit in each]
    return {"case": asdict(case), **result}


def middle_of(visits: Sequence[Any]) -> Any:
    """The medians of what was measured of one allocation."""
    last = visits[-1]
    values = {
        field.name: np.median([getattr(each, field.name) for each in visits], axis=0)
        for field in fields(last)
        if field.name not in ("present", "killed")
    }
    return replace(last, **values, killed=np.any([each.killed for each in visits], axis=0))


def run_virtual(name: str, options: Options) -> dict[str, Any]:
    """The same of a pipeline in virtual time."""
    from intune.envs.measurement import Measurement

    spec = virtual.SPECS[name]
    _, stages = virtual.plan_of(spec)
    known, unknown = allocations(spec.most, stages, options.seed)
    runs = [virtual.run(spec, each, seed=at) for at, each in enumerate([*known, *unknown])]
    measured = Measurement.joined([each for each, _ in runs])
    result = evaluate(stages, [*known, *unknown], len(known), measured, runs[0][1])
    return {"case": {"kind": "virtual"}, **result}


def evaluate(
    stages: Sequence[str], everything: Sequence[Any], count: int, measured: Any, block_rows: Sequence[float]
) -> dict[str, Any]:
    """Fit to the first `count` allocations, predict all; ready for JSON."""
    from intune.envs.calibrate import calibrate

    began = time.perf_counter()
    fitted = calibrate(measured.take(slice(0, count)), stages, block_rows=block_rows)
    seconds = time.perf_counter() - began
    predicted = fitted.predict(measured.slots, measured.pool)
    rows = [
        {
            "allocation": allocation.as_dict(),
            "held_out": at >= count,
            "rate": float(measured.delivered[at]),
            "predicted_rate": float(predicted.delivered[at]),
            "memory": float(measured.memory_used[at]),
            "predicted_memory": float(predicted.memory_used[at]),
            "cpus_used": float(measured.cpus_used[at]),
            "busy_per_row": (measured.busy / np.maximum(measured.rate, 1e-9))[at].tolist(),
            "cpu_per_row": (measured.cpu / np.maximum(measured.rate, 1e-9))[at].tolist(),
        }
        for at, allocation in enumerate(everything)
    ]
    jobs = fitted.jobs
    names = ("cpu", "wait", "contention", "crowding", "slot_bytes", "row_bytes", "block_rows")
    return {
        "stages": list(stages),
        "base_bytes": float(measured.memory_base[0]),
        "fit_s": seconds,
        "misfit": fitted.misfit,
        "uncertainty": dict(fitted.uncertainty),
        "job": {
            **{field: getattr(jobs, field)[0].tolist() for field in names},
            **{
                field: float(getattr(jobs, field)[0])
                for field in ("step", "step_cpu", "base_bytes", "switching", "knee")
            },
            "memory_bandwidth": _number(jobs.memory_bandwidth[0]),
            "storage_rate": _number(jobs.storage_rate[0]),
        },
        "runs": rows,
    }


@contextmanager
def _loader(case: Case, port: int) -> Iterator[Any]:
    from benchmarks import fidelity_cases, s3_server
    from intune.pipelines import Budget, Pipeline

    files = data.ensure(DATA)
    filesystem = None
    paths = [str(file.resolve()) for file in files]
    if case.delay_ms is not None:
        filesystem = s3_server.filesystem(port)
        paths = [f"{BUCKET}/{file.name}" for file in files]
    pipeline = Pipeline.from_parquet(paths * REPEATS, filesystem=filesystem)
    if case.shuffle:
        pipeline = pipeline.shuffle(row_groups=case.shuffle, seed=0)
    work = getattr(fidelity_cases, case.work)
    pipeline = pipeline.batch(BATCH).map(work).to("cpu")
    if case.executor == "ray":
        import ray

        ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    with pipeline.loader(executor=case.executor, budget=Budget.detect(memory="3GiB")) as loader:
        yield loader


def _warm(loader: Any) -> None:
    """Open files, connections, threads; lazy imports."""
    for number, _ in enumerate(loader):
        if number == 16:
            return


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---- what a person reads -------------------------------------------------------------------------------------


def show(title: str, summary: Mapping[str, Any], verdicts: Sequence[Bar], console: Console) -> None:
    """A table of the pipelines, one of the bars."""
    if not summary:
        return
    table = Table(title=title, title_justify="left")
    table.add_column("pipeline")
    for heading in (
        "rows/s",
        "rate error, median",
        "90th percentile",
        "rank correlation",
        "memory error, worst",
        "fitted rate error",
    ):
        table.add_column(heading, justify="right")
    for name, each in summary.items():
        if "error" in each:
            table.add_row(name, f"[red]{each['error']}[/red]")
            continue
        table.add_row(
            name,
            f"{each['slowest'] / 1e6:.2f}–{each['fastest'] / 1e6:.2f}M",
            f"{each['rate_error_median']:.1%}",
            f"{each['rate_error_p90']:.1%}",
            "–" if each["rank"] is None else f"{each['rank']:.2f}",
            f"{each['memory_error_worst']:.1%}",
            f"{each['fitted_rate_error_median']:.1%}",
        )
    console.print(table)
    found = Table(title="Bars", title_justify="left")
    for heading in ("what", "must be", "measured", ""):
        found.add_column(heading)
    for bar in verdicts:
        sign = "≥" if bar.at_least else "≤"
        verdict = "[green]pass[/green]" if bar.passed else "[red]FAIL[/red]"
        found.add_row(bar.name, f"{sign} {bar.limit:g}", f"{bar.measured:.3f}", verdict)
    console.print(found)


def tell(found: Noise, console: Console) -> None:
    """How far visits of one allocation agree among each other."""
    if found.pairs:
        console.print(
            f"one visit against the mean of the others: rate {found.rate_median:.1%} off in the median, "
            f"{found.rate_p90:.1%} in the 90th percentile; rank correlation {found.rank:.2f}; memory "
            f"{found.memory_p90:.1%} in the 90th percentile",
            highlight=False,
        )


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, prog="python -m benchmarks.fidelity")))
