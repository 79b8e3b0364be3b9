"""Nobody skips work: every contender delivers the same rows, transformed, on a small data set.

Those in the rivals' environment are tested where it has been made (`make peers`).
"""

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
    for workers, layout, unit in [(0, "columns", "batch"), (2, "columns", "group"), (2, "packed", "batch")]
]
PEERS = [
    *(families.SPDL.contender(config) for config in (families.SPDL.configs[2], families.SPDL.configs[3])),
    *(families.TFDATA.contender(families.TFDATA.configs[number]) for number in (0, 3, 5, 6)),
    *(families.RAY_DATA.contender(families.RAY_DATA.configs[number]) for number in (0, 3)),
    families.GRAIN.contender(families.GRAIN.configs[0]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.ensure(SPEC, tmp_path_factory.mktemp("bench"))[0].parent


def check(one: Contender, folder: Path) -> None:
    found = harness.run(one, folder, batch=BATCH, flags=["--check"])
    expected = contender.checksum(transform(arrays(pq.read_table(path))) for path in sorted(folder.iterdir()))
    assert found["rows"] == SPEC.rows
    assert found["batches"] == SPEC.rows / BATCH
    assert found["checksum"].keys() == expected.keys()
    for name, value in expected.items():
        exact = isinstance(value, int)
        assert found["checksum"][name] == (value if exact else pytest.approx(value, rel=1e-6)), name
    assert found["peak_bytes"] > 2**20


def identify(one: Any) -> str:
    return f"{one.name} {list(one.config.values())}"


@pytest.mark.parametrize(
    "one", [families.BARE.contender(families.BARE.configs[0]), *DATALOADER], ids=identify
)
def test_rivals_in_this_environment_deliver_every_row_transformed(one: Contender, folder: Path) -> None:
    check(one, folder)


@pytest.mark.parametrize("one", families.OURS, ids=identify)
def test_ours_delivers_every_row_transformed(one: Contender, folder: Path) -> None:
    check(one, folder)


@pytest.mark.skipif(
    not harness.PYTHONS["peers"].exists(), reason="no environment for the rivals; run `make peers`"
)
@pytest.mark.parametrize("one", PEERS, ids=identify)
def test_rivals_in_their_own_environment_deliver_every_row_transformed(one: Contender, folder: Path) -> None:
    check(one, folder)


def test_reading_alone_counts_all_rows(folder: Path) -> None:
    found = harness.run(families.ARROW.contender(families.ARROW.configs[0]), folder, batch=BATCH)
    assert found["rows"] == SPEC.rows
