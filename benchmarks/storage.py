"""Section: storage that waits. An S3 server on this machine behind a proxy that delays every request.

Bare thread pools against our loader, at each number of threads or load slots, reading only; and our loader
with the transform, against the tighter of what the fastest pool reads and what the CPUs can do beside the
server. Also alone: ``python -m benchmarks.storage --json FILE``. Needs the extra ``s3``.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import pyarrow as pa
import tyro
from pyarrow import fs
from rich.console import Console
from rich.table import Table

from benchmarks import data, harness, report, s3_server, stats
from benchmarks import storage_readers as readers
from benchmarks.context import Bar, Context
from benchmarks.delay_proxy import DelayProxy
from benchmarks.harness import ContenderFailed
from benchmarks.s3_server import S3Server
from benchmarks.stats import Estimate

TITLE = "Storage that waits"

DELAYS_MS = (40, 150)
"""To the first byte: S3 from the same region, and from another continent or under load."""
WIDTHS = (1, 2, 4, 8, 16)
SPEED_UP = {40: 4.0, 150: 7.0}
"""Over one load slot, at the best width."""
BUCKET = "benchmark"

OPENING, ONE_REQUEST = "pool, opens each time", "pool, one request"
READ, TRANSFORM = "ours, read only", "ours, transform"
LOCAL = "ours, transform, local files"
POOLS = (OPENING, ONE_REQUEST)
CONTENDERS: tuple[str, ...] = (*POOLS, READ, TRANSFORM, LOCAL)

Epoch = Callable[[int], int]
"""Reads all rows with so many threads or load slots; how many rows came."""


class Meter(Protocol):
    """A server whose CPU seconds can be read."""

    def cpu_s(self) -> float:
        """CPU seconds used so far."""


@dataclass(frozen=True, kw_only=True)
class Far:
    """The servers and the ways to read from them."""

    epochs: Mapping[str, Epoch]
    proxy: DelayProxy
    servers: Sequence[Meter]
    rows: int


def measure(context: Context) -> dict[str, Any]:
    """Every way to read at every delay and width, interleaved."""
    if importlib.util.find_spec("moto") is None:
        return {"missing": "moto is not installed; pip install 'intune[s3]'"}
    spec = data.scaled(context.rows // 2)
    context.progress("storage: starting the S3 server, uploading")
    with _far(spec, [name for name in CONTENDERS if context.wants(name)]) as far:
        contenders = {
            key(delay, width, name): _run(far, name, delay, width)
            for delay in DELAYS_MS
            for width in ((2, 8) if context.quick else WIDTHS)
            for name in far.epochs
            if name != LOCAL
        }
        if LOCAL in far.epochs:
            contenders[LOCAL] = _run(far, LOCAL, 0, _cpus())
        runs, failures = harness.interleave(
            contenders, rounds=context.repeats, seed=context.seed, progress=context.progress
        )
    return {"rows": spec.rows, "cpus": _cpus(), "runs": runs, "failures": failures}


def key(delay_ms: int, width: int, name: str) -> str:
    """What a run is called in the results."""
    return f"{delay_ms} ms, {width} wide: {name}"


@contextmanager
def _far(spec: data.DataSpec, names: Sequence[str]) -> Iterator[Far]:
    files = data.ensure(spec)
    threads = pa.io_thread_count()
    with ExitStack() as stack:
        # The pools read on Arrow's own threads; with its default of 8 they would stop there.
        stack.callback(pa.set_io_thread_count, threads)
        pa.set_io_thread_count(max(threads, 2 * max(WIDTHS)))
        server = stack.enter_context(S3Server())
        proxy = stack.enter_context(DelayProxy(server.port))
        paths = s3_server.upload(files, BUCKET, server.port)
        filesystem = s3_server.filesystem(proxy.port)
        store = readers.Store.open(filesystem, paths)
        cpus = _cpus()
        epochs: dict[str, Epoch] = {}
        for name, make in ((OPENING, readers.opening), (ONE_REQUEST, readers.one_request)):
            if name in names:
                epochs[name] = _pool(store, make(store))
        loaders: dict[str, tuple[Any, readers.Kind]] = {
            READ: (filesystem, "read"),
            TRANSFORM: (filesystem, "transform"),
            LOCAL: (fs.LocalFileSystem(), "transform"),
        }
        for name, (where, kind) in loaders.items():
            if name in names:
                here = [str(file.resolve()) for file in files] if name == LOCAL else paths
                epochs[name] = stack.enter_context(readers.ours(where, here, kind, cpus))
        for epoch in epochs.values():
            epoch(cpus)  # warm up: connections, threads, open files
        yield Far(epochs=epochs, proxy=proxy, servers=[server, proxy], rows=store.rows)


def _pool(store: readers.Store, read: readers.Read) -> Epoch:
    return lambda width: readers.pool(store, read, width)


def _run(far: Far, name: str, delay_ms: int, width: int) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        far.proxy.delay(delay_ms / 1000)
        far.proxy.counts()
        server, own = sum(meter.cpu_s() for meter in far.servers), time.process_time()
        began = time.perf_counter()
        rows = far.epochs[name](width)
        seconds = time.perf_counter() - began
        if rows != far.rows:
            raise ContenderFailed(f"{name}: {rows} rows came where there are {far.rows}")
        return {
            "rows": rows,
            "seconds": seconds,
            "own_cpu_s": time.process_time() - own,
            "server_cpu_s": sum(meter.cpu_s() for meter in far.servers) - server,
            **far.proxy.counts(),
        }

    return run


# ---- what follows from the runs ------------------------------------------------------------------------------


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Speed-up over one slot, distance to the fastest pool and, with the transform, to what is possible."""
    found: list[Bar] = []
    for delay in DELAYS_MS:
        where = f"S3 at {delay} ms"
        found += [
            Bar(
                name=f"{where}: best width / one load slot",
                limit=SPEED_UP[delay],
                unit="×",
                measured=max(speed_ups(result, delay).values(), key=_median, default=None),
            ),
            Bar(
                name=f"{where}: ours / fastest pool, at the worst width",
                limit=0.95,
                unit="×",
                measured=min(against_pools(result, delay).values(), key=_median, default=None),
            ),
            Bar(
                name=f"{where}: with transform / possible, at the worst width",
                limit=0.9,
                unit="×",
                measured=min(against_possible(result, delay).values(), key=_median, default=None),
            ),
        ]
    return found


def speed_ups(result: Mapping[str, Any], delay: int) -> dict[int, Estimate]:
    """Our rate at each width over that of one load slot."""
    one = rates(result, delay, 1, READ)
    return {
        width: stats.ratio(mine, one)
        for width in widths(result)
        if one and (mine := rates(result, delay, width, READ))
    }


def against_pools(result: Mapping[str, Any], delay: int) -> dict[int, Estimate]:
    """Our rate at each width over that of the pool that is fastest there."""
    ratios: dict[int, Estimate] = {}
    for width in widths(result):
        mine, pool = rates(result, delay, width, READ), fastest_pool(result, delay, width)
        if mine and pool:
            ratios[width] = stats.ratio(mine, pool)
    return ratios


def against_possible(result: Mapping[str, Any], delay: int) -> dict[int, Estimate]:
    """Our rate with the transform at each width over what is possible there, round by round."""
    ratios: dict[int, Estimate] = {}
    local = [_rate(run) for run in result.get("runs", {}).get(LOCAL, [])]
    for width in widths(result):
        runs = result["runs"].get(key(delay, width, TRANSFORM), [])
        pool = fastest_pool(result, delay, width)
        if runs and pool and local:
            limits = [
                min(read, beside_server(alone, run["server_cpu_s"] / run["rows"], result["cpus"]))
                for read, alone, run in zip(pool, local, runs, strict=True)
            ]
            ratios[width] = stats.ratio([_rate(run) for run in runs], limits)
    return ratios


def beside_server(alone: float, server_cpu_s_per_row: float, cpus: int) -> float:
    """Rows/s on the CPUs that a server leaves.

    Alone all `cpus` do `alone` rows/s. At rate r the server takes ``r * server_cpu_s_per_row`` of them, and
    ``r = alone * (1 - r * server_cpu_s_per_row / cpus)``.
    """
    return 1 / (1 / alone + server_cpu_s_per_row / cpus)


def fastest_pool(result: Mapping[str, Any], delay: int, width: int) -> list[float]:
    """Rates of the pool with the highest median."""
    return max(
        (rates(result, delay, width, name) for name in POOLS), key=lambda found: median(found or [0.0])
    )


def rates(result: Mapping[str, Any], delay: int, width: int, name: str) -> list[float]:
    """Rows/s of every round; empty if it did not run to the end."""
    return [_rate(run) for run in result.get("runs", {}).get(key(delay, width, name), [])]


def widths(result: Mapping[str, Any]) -> list[int]:
    runs = result.get("runs", {})
    return [width for width in WIDTHS if any(f", {width} wide: " in name for name in runs)]


def show(result: Mapping[str, Any], console: Console) -> None:
    if "missing" in result:
        console.print(f"[yellow]not run:[/yellow] {result['missing']}")
        return
    names = (*POOLS, READ, TRANSFORM)
    for delay in DELAYS_MS:
        table = Table(
            title=f"{result['rows']:,} rows from S3, {delay} ms a request; rows/s", title_justify="left"
        )
        table.add_column("threads or load slots", justify="right")
        ratios = {
            "ours / fastest pool": against_pools(result, delay),
            "ours / one slot": speed_ups(result, delay),
            "transform / possible": against_possible(result, delay),
        }
        for heading in (*names, *ratios):
            table.add_column(heading, justify="right")
        for width in widths(result):
            found = [rates(result, delay, width, name) for name in names]
            table.add_row(
                str(width),
                *(report.millions(median(values)) if values else "–" for values in found),
                *(f"{ratio[width].median:.2f}×" if width in ratio else "–" for ratio in ratios.values()),
            )
        console.print(table)
    for name, error in result["failures"].items():
        console.print(f"[red]{name} failed:[/red] {error}", highlight=False)


def _median(found: Estimate) -> float:
    return found.median


def _rate(run: Mapping[str, Any]) -> float:
    return float(run["rows"]) / float(run["seconds"])


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    from benchmarks import throughput

    # The same command with this section alone, so that options, output and JSON are the same.
    raise SystemExit(
        throughput.main(
            tyro.cli(
                throughput.Options,
                prog="python -m benchmarks.storage",
                description=__doc__,
                default=throughput.Options(sections=("storage",)),
            )
        )
    )
