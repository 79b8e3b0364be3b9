"""What the storage section concludes from runs, and a small run against a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs
from rich.console import Console

from benchmarks import data, s3_server, storage
from benchmarks import storage_readers as readers
from benchmarks.child import Child, ChildFailed
from benchmarks.context import Context
from benchmarks.delay_proxy import DelayProxy
from benchmarks.s3_server import S3Server

ROWS = 1_000_000


def run(rate: float, server: float = 0.0) -> dict[str, Any]:
    return {"rows": ROWS, "seconds": ROWS / rate, "server_cpu_s": server}


def results(
    rates: Callable[[int, int, str], float], server: float = 0.0, widths: Any = storage.WIDTHS
) -> dict[str, Any]:
    """Three equal rounds of every run, at the rate (millions) that `rates` gives."""
    runs = {
        storage.key(delay, width, name): [run(1e6 * rates(delay, width, name), server)] * 3
        for delay in storage.DELAYS_MS
        for width in widths
        for name in (*storage.POOLS, storage.READ, storage.TRANSFORM)
    }
    runs[storage.LOCAL] = [run(2e6)] * 3
    return {"rows": ROWS, "cpus": 2, "runs": runs, "failures": {}}


def verdicts(result: dict[str, Any]) -> dict[str, bool | None]:
    return {bar.name: bar.passed for bar in storage.bars(result)}


def ideal(delay: int, width: int, name: str) -> float:
    """Latency alone: a row group of 65,536 rows takes a request, or two where the file is opened each time."""
    requests = 2 if name == storage.OPENING else 1
    return min(65.536 / (delay * requests + 20) * width, 9.0)


def test_all_bars_hold_where_latency_alone_decides() -> None:
    assert set(verdicts(results(ideal)).values()) == {True}
    assert len(storage.bars(results(ideal))) == 6


def test_the_faster_pool_counts_and_the_worst_width() -> None:
    def rates(delay: int, width: int, name: str) -> float:
        slower = name == storage.READ and (delay, width) == (40, 8)
        return ideal(delay, width, name) * (0.9 if slower else 1.0)

    failed = [name for name, passed in verdicts(results(rates)).items() if not passed]
    assert failed == ["S3 at 40 ms: ours / fastest pool, at the worst width"]
    ratios = storage.against_pools(results(rates), 40)
    assert ratios[8].median == pytest.approx(0.9)
    assert ratios[4].median == pytest.approx(1.0)


def test_slots_that_do_not_speed_up_are_seen() -> None:
    failed = [
        name for name, passed in verdicts(results(lambda delay, width, name: 1.0)).items() if not passed
    ]
    assert failed == [f"S3 at {delay} ms: best width / one load slot" for delay in (40, 150)]


def test_with_the_transform_the_tighter_limit_counts() -> None:
    """The pool reads 1M rows/s. Alone the CPUs do 2M; a server that takes 1 µs a row of 2 CPUs leaves 1M."""
    flat = results(lambda delay, width, name: 0.8 if name == storage.TRANSFORM else 1.0)
    assert storage.against_possible(flat, 40)[8].median == pytest.approx(0.8)
    busy = results(lambda delay, width, name: 0.8 if name == storage.TRANSFORM else 5.0, server=ROWS * 1e-6)
    assert storage.against_possible(busy, 40)[8].median == pytest.approx(0.8)


def test_rate_beside_a_server_uses_all_cpus() -> None:
    rate = storage.beside_server(2e6, 0.5e-6, 4)
    assert rate * 0.5e-6 + 4 * rate / 2e6 == pytest.approx(4)
    assert storage.beside_server(2e6, 0.0, 4) == pytest.approx(2e6)


def test_what_was_not_run_is_not_judged() -> None:
    console = Console(file=open(os.devnull, "w"), width=200)  # noqa: SIM115
    for result in (
        {"missing": "moto is not installed"},
        {"rows": 1, "cpus": 2, "runs": {}, "failures": {"x": "y"}},
    ):
        assert set(verdicts(result).values()) == {None}
        storage.show(result, console)
    console.file.close()


def test_the_table_shows_rates_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    storage.show(results(ideal), Console(width=200))
    shown = capsys.readouterr().out
    assert "1,000,000 rows from S3, 150 ms a request" in shown
    assert "0.39M" in shown  # one slot, one request: 65,536 rows in 170 ms
    assert "1.00×" in shown


# ---- a server in a process of its own ----------------------------------------------------------------------------


def test_a_server_that_does_not_start_says_so() -> None:
    with pytest.raises(ChildFailed, match=r"benchmarks\.no_such_module"), Child("benchmarks.no_such_module"):
        pass


def test_a_server_ends_with_an_owner_that_is_killed() -> None:
    """The child lives in the killed process's child; that it is gone is seen by its port."""
    owner = (
        "import time; from benchmarks.delay_proxy import DelayProxy\n"
        "with DelayProxy(1) as proxy:\n    print(proxy.pid, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    limit = time.monotonic() + 10
    while _runs(child) and time.monotonic() < limit:
        os.sched_yield()
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- with a real S3 server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Any:
    pytest.importorskip("moto")
    with S3Server() as started:
        yield started


SMALL = data.DataSpec(rows=8_000, files=2, row_group_rows=1_000, dense=1, ids=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return data.ensure(SMALL, tmp_path_factory.mktemp("small"))


def test_every_way_reads_every_row_in_as_few_requests_as_it_says(server: S3Server, files: list[Path]) -> None:
    with DelayProxy(server.port) as proxy:
        paths = s3_server.upload(files, "small", server.port)
        filesystem = s3_server.filesystem(proxy.port)
        store = readers.Store.open(filesystem, paths)
        assert store.rows == SMALL.rows
        assert len(store.row_groups()) == 8
        for make, requests in ((readers.opening, 2), (readers.one_request, 1)):
            read = make(store)
            proxy.counts()
            assert readers.pool(store, read, 4) == SMALL.rows
            assert proxy.counts()["requests"] == requests * 8
            assert read(store.row_groups()[3]).num_rows == 1_000
        with readers.ours(filesystem, paths, "transform", 2) as epoch:
            assert [epoch(width) for width in (1, 4)] == [SMALL.rows] * 2


def test_a_pool_passes_on_what_a_thread_met(server: S3Server, files: list[Path]) -> None:
    paths = s3_server.upload(files, "broken", server.port)
    store = readers.Store.open(s3_server.filesystem(server.port), paths)

    def read(row_group: readers.RowGroup) -> Any:
        raise pa.ArrowInvalid("a broken page")

    with pytest.raises(pa.ArrowInvalid, match="a broken page"):
        readers.pool(store, read, 3)


def test_the_address_names_the_same_store(server: S3Server, files: list[Path]) -> None:
    (path, _) = s3_server.upload(files, "named", server.port)
    filesystem, found = fs.FileSystem.from_uri(s3_server.uri(server.port, path))
    assert found == path
    assert filesystem.get_file_info(found).size > 0


def test_the_section_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    monkeypatch.chdir(tmp_path)  # data go to ./bench-data
    monkeypatch.setattr(storage, "DELAYS_MS", (1,))
    monkeypatch.setattr(storage, "SPEED_UP", {1: 1.0})
    said: list[str] = []
    threads = pa.io_thread_count()
    context = Context(rows=1_000, repeats=1, seed=0, quick=True, only=(), progress=said.append)
    result = storage.measure(context)
    assert result["failures"] == {}
    assert set(result["runs"]) == {
        storage.LOCAL,
        *(
            storage.key(1, width, name)
            for width in (2, 8)
            for name in (*storage.POOLS, storage.READ, storage.TRANSFORM)
        ),
    }
    for name, (found,) in result["runs"].items():
        assert found["rows"] == 500, name
        assert (found["requests"] > 0) == (name != storage.LOCAL)
    assert len(said) == 1 + len(result["runs"])
    assert pa.io_thread_count() == threads, "set back as it was"


def test_without_moto_the_section_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    context = Context(rows=1_000, repeats=1, seed=0, quick=True, only=(), progress=print)
    assert "intune[s3]" in storage.measure(context)["missing"]
