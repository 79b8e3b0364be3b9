"""Nobody skips work: every contender delivers the same rows, transformed, on a small data set.

In this process, where that is possible: one of its own has to import torch. Those in the rivals' environment are
tested where it has been made (`make peers`).
"""

import importlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import contender, data, families, harness
from benchmarks.harness import Contender
from benchmarks.rivals.common import arrays
from benchmarks.transform import transform

SPEC = data.DataSpec(rows=4_000, files=2, row_group_rows=1_000)
BATCH = 250

DATALOADER = [
    families.DATALOADER.contender(
        {"workers": workers, "prefetch": 2, "arrow_threads": False, "layout": layout, "unit": unit}
    )
    for workers, layout, unit in [(0, "columns", "batch"), (0, "columns", "group"), (2, "packed", "batch")]
]
HERE = [families.BARE.contender(families.BARE.configs[0]), *DATALOADER, families.THREADS, families.SHUFFLED]
PEERS = [
    *(families.SPDL.contender(config) for config in (families.SPDL.configs[2], families.SPDL.configs[3])),
    *(families.TFDATA.contender(families.TFDATA.configs[number]) for number in (0, 3, 5, 6)),
    *(families.RAY_DATA.contender(families.RAY_DATA.configs[number]) for number in (0, 3)),
    families.GRAIN.contender(families.GRAIN.configs[0]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.ensure(SPEC, tmp_path_factory.mktemp("bench"))[0].parent


def epoch_of(one: Contender, folder: Path) -> contender.Epoch:
    files = sorted(str(path) for path in folder.iterdir())
    job = contender.Job(files=files, batch=BATCH, config=one.config)
    made: contender.Epoch = importlib.import_module(one.module).build(job)
    return made


def check(found: dict[str, Any], folder: Path) -> None:
    expected = contender.checksum(transform(arrays(pq.read_table(path))) for path in sorted(folder.iterdir()))
    assert found["rows"] == SPEC.rows
    assert found["batches"] == SPEC.rows / BATCH
    assert found["checksum"].keys() == expected.keys()
    for name, value in expected.items():
        exact = isinstance(value, int)
        assert found["checksum"][name] == (value if exact else pytest.approx(value, rel=1e-6)), name


def check_apart(one: Contender, folder: Path) -> None:
    # Looks at the memory of Ray's many processes are dear, and one is enough.
    found = harness.run_command(one.command(folder, BATCH, ["--check"]), name=one.name, interval=2.0)
    check(found, folder)
    assert found["peak_bytes"] > 2**20


def identify(one: Any) -> str:
    return f"{one.name} {list(one.config.values())}"


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable", "ignore:.*fork")
@pytest.mark.parametrize("one", HERE, ids=identify)
def test_every_row_is_delivered_transformed_in_this_process(one: Contender, folder: Path) -> None:
    epoch = epoch_of(one, folder)
    found = contender.consume(epoch, 0.0)
    check({**found, "checksum": contender.checksum(epoch())}, folder)


@pytest.mark.timeout(600)  # a cluster starts, on a machine that may be busy
def test_every_row_is_delivered_transformed_in_a_process_of_its_own(folder: Path) -> None:
    check_apart(families.RAY, folder)


@pytest.mark.skipif(
    not harness.PYTHONS["peers"].exists(), reason="no environment for the rivals; run `make peers`"
)
@pytest.mark.parametrize("one", PEERS, ids=identify)
def test_rivals_in_their_own_environment_deliver_every_row_transformed(one: Contender, folder: Path) -> None:
    check_apart(one, folder)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_reading_alone_counts_all_rows(folder: Path) -> None:
    epoch = epoch_of(families.ARROW.contender(families.ARROW.configs[0]), folder)
    assert contender.consume(epoch, 0.0)["rows"] == SPEC.rows
