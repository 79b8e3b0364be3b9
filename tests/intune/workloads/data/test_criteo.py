"""Criteo's logs to Parquet: files in, files out, bad lines, what is held out."""

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from intune.errors import ConfigError, CorruptError, NotFoundError, SkipLimitError, StorageError
from intune.workloads.data import criteo, tsv
from intune.workloads.data.columns import CATEGORICAL, COLUMNS
from intune.workloads.data.criteo import CriteoConfig, convert_criteo
from intune.workloads.data.description import read_description
from intune.workloads.data.synthetic import SyntheticConfig, SyntheticRows


def _line(number: int, label: bool = False) -> str:
    return "\t".join([str(int(label)), str(number), *["1"] * 12, f"{number:08x}", *["0000002a"] * 25])


def _log(path: Path, start: int, stop: int, *extra: str) -> Path:
    path.write_text(
        "\n".join([*(_line(number, number % 4 == 0) for number in range(start, stop)), *extra]) + "\n"
    )
    return path


def _numbers(out: Path, split: str = "train") -> list[int]:
    return [int(number) for number in pq.read_table(out / split).column("I1").to_pylist()]


def test_logs_become_parquet_in_order(tmp_path: Path) -> None:
    first, second = _log(tmp_path / "a", 0, 300), _log(tmp_path / "b", 300, 450)
    out = tmp_path / "out"
    config = CriteoConfig(files=(first, second), rows_per_file=200, row_group_rows=100)
    description = convert_criteo(config, out)
    assert _numbers(out) == list(range(450))
    assert [pq.ParquetFile(path).metadata.num_rows for path in sorted((out / "train").iterdir())] == [
        200,
        200,
        50,
    ]
    assert pq.ParquetFile(out / "train" / "part-00000.parquet").num_row_groups == 2
    table = pq.read_table(out / "train")
    assert table.column("C1").to_pylist() == list(range(450))
    assert table.column_names == list(COLUMNS)
    assert read_description(out) == {"schema_version": 1, **description}
    assert description["rows"] == {"train": 450, "test": 0}
    assert description["files"] == {"train": 3, "test": 0}
    assert description["positive_share"] == pytest.approx(113 / 450)
    assert description["bad_lines"] == {"count": 0, "examples": []}


@pytest.mark.parametrize("strings", [False, True])
def test_a_synthetic_data_set_survives_the_way_over_text(tmp_path: Path, strings: bool) -> None:
    rows = 1000
    source = SyntheticRows.of(SyntheticConfig(rows=rows, scale=0.01, strings=True))
    table = pa.Table.from_batches([batch for batch, _, _ in source.batches("train", 0, rows)])
    text = [
        column if pa.types.is_string(column.type) else pc.cast(column, pa.int64()) for column in table.columns
    ]
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pyarrow.csv.write_csv(pa.table(text, names=table.column_names), tmp_path / "log", options)
    convert_criteo(CriteoConfig(files=(tmp_path / "log",), strings=strings), tmp_path / "out")
    converted = pq.read_table(tmp_path / "out" / "train")
    for name in COLUMNS:
        expected = table.column(name)
        if name in CATEGORICAL and not strings:
            expected = [None if text is None else int(text, 16) for text in expected.to_pylist()]
            assert converted.column(name).to_pylist() == expected
        else:
            assert converted.column(name).combine_chunks().equals(expected.combine_chunks())


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compressed_logs_are_told_by_their_content(tmp_path: Path, codec: str) -> None:
    plain = _log(tmp_path / "a", 0, 100).read_bytes()
    packed = tmp_path / "b.txt"
    with pa.CompressedOutputStream(str(packed), codec) as stream:
        stream.write(plain)
    convert_criteo(CriteoConfig(files=(packed,)), tmp_path / "out")
    assert _numbers(tmp_path / "out") == list(range(100))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_log_may_come_through_a_pipe(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    content = compress(_log(tmp_path / "log", 0, 50).read_bytes())
    reader, writer = os.pipe()
    # A pipe holds 64 KiB, more than this.
    with os.fdopen(writer, "wb") as file:
        file.write(content)
    try:
        convert_criteo(CriteoConfig(files=(Path(f"/dev/fd/{reader}"),)), tmp_path / "out")
    finally:
        os.close(reader)
    assert _numbers(tmp_path / "out") == list(range(50))


def test_gzip_members_one_after_another_are_all_read(tmp_path: Path) -> None:
    parts = [_log(tmp_path / "x", start, start + 50).read_bytes() for start in (0, 50)]
    (tmp_path / "a.gz").write_bytes(b"".join(gzip.compress(part) for part in parts))
    convert_criteo(CriteoConfig(files=(tmp_path / "a.gz",)), tmp_path / "out")
    assert _numbers(tmp_path / "out") == list(range(100))


def test_bad_lines_are_left_out_counted_and_shown_with_file_and_line(tmp_path: Path) -> None:
    first = _log(tmp_path / "a", 0, 3, "garbage", _line(3))
    second = _log(tmp_path / "b", 4, 6, *(f"bad {number}" for number in range(9)), _line(6))
    description = convert_criteo(CriteoConfig(files=(first, second)), tmp_path / "out")
    assert _numbers(tmp_path / "out") == list(range(7))
    bad = description["bad_lines"]
    assert bad["count"] == 10
    assert len(bad["examples"]) == 3
    assert bad["examples"][0] == f'{first}, line 4: 1 fields instead of 40 ("garbage")'
    assert bad["examples"][1].startswith(f"{second}, line 3: ")


def test_line_numbers_count_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo, "read_blocks", lambda stream: tsv.read_blocks(stream, 1000))
    log = _log(tmp_path / "a", 0, 200, "bad", *(_line(number) for number in range(200, 300)), "worse")
    description = convert_criteo(CriteoConfig(files=(log,)), tmp_path / "out")
    assert _numbers(tmp_path / "out") == list(range(300))
    assert [example.split(":")[0] for example in description["bad_lines"]["examples"]] == [
        f"{log}, line 201",
        f"{log}, line 302",
    ]


def test_too_many_bad_lines_fail_and_leave_nothing(tmp_path: Path) -> None:
    log = _log(tmp_path / "a", 0, 3, "x", "y", "z")
    with pytest.raises(SkipLimitError, match=r'3 bad lines .*`max_bad_lines`=2: .*a, line 4: .*"x"'):
        convert_criteo(CriteoConfig(files=(log,), max_bad_lines=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert_criteo(CriteoConfig(files=(log,), max_bad_lines=3), tmp_path / "out")


def test_every_nth_row_group_is_held_out(tmp_path: Path) -> None:
    log = _log(tmp_path / "a", 0, 100)
    description = convert_criteo(
        CriteoConfig(files=(log,), test_every=3, row_group_rows=10, rows_per_file=20), tmp_path / "out"
    )
    held_out = [number for number in range(100) if number // 10 % 3 == 2]
    assert sorted(_numbers(tmp_path / "out", "test")) == held_out
    assert sorted(_numbers(tmp_path / "out")) == sorted(set(range(100)) - set(held_out))
    assert description["rows"] == {"train": 70, "test": 30}


def test_rows_too_few_for_any_to_be_held_out_are_refused_with_what_helps(tmp_path: Path) -> None:
    log = _log(tmp_path / "a", 0, 100)
    with pytest.raises(
        ConfigError, match=r"`test_every`=3 holds nothing out: 100 rows .* `row_group_rows` to 33"
    ):
        convert_criteo(CriteoConfig(files=(log,), test_every=3), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fewer = CriteoConfig(files=(log,), test_every=3, row_group_rows=33)
    assert convert_criteo(fewer, tmp_path / "out")["rows"] == {"train": 67, "test": 33}


def test_test_files_are_held_out(tmp_path: Path) -> None:
    train, test = _log(tmp_path / "a", 0, 50), _log(tmp_path / "b", 50, 80)
    convert_criteo(CriteoConfig(files=(train,), test_files=(test,)), tmp_path / "out")
    assert _numbers(tmp_path / "out") == list(range(50))
    assert _numbers(tmp_path / "out", "test") == list(range(50, 80))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a has no usable line; check"),
        (b"a\tb\nc\n", r"a has no usable line \(.*line 1: 2 fields instead of 40"),
        (b"x" * (4 << 20), "a: line 1 is longer than 1048576 bytes"),
        (b"\x1f\x8b" + b"x" * 100, "a does not decompress"),
        (gzip.compress(_line(0).encode() * 1000)[:-50], "a does not decompress .*[Tt]runcated"),
    ],
    ids=["empty", "bad", "endless", "not gzip", "truncated"],
)
def test_files_that_are_no_logs_are_named_and_nothing_is_left(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CorruptError, match=message):
        convert_criteo(CriteoConfig(files=(tmp_path / "a",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named_before_anything_is_read(tmp_path: Path) -> None:
    log = _log(tmp_path / "a", 0, 10)
    with pytest.raises(NotFoundError, match=r"no such file: .*missing"):
        convert_criteo(CriteoConfig(files=(log, tmp_path / "missing")), tmp_path / "out")
    with pytest.raises(ConfigError, match="is a folder"):
        convert_criteo(CriteoConfig(files=(tmp_path,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ()}, "`files` is empty"),
        ({"rows_per_file": 0}, "`rows_per_file`"),
        ({"row_group_rows": 0}, "`row_group_rows`"),
        ({"max_bad_lines": -1}, "`max_bad_lines`"),
        ({"test_every": 1}, "`test_every`=.* must be a whole number, 2 or more"),
        ({"test_every": 2, "test_files": (Path("b"),)}, "`test_every` and `test_files`"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CriteoConfig(**{"files": (Path("a"),), **options})


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match=r"no space left to write .*out/train/part-00000.parquet"):
        convert_criteo(CriteoConfig(files=(_log(tmp_path / "a", 0, 10),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_ends_with_all_rows(tmp_path: Path) -> None:
    reports: list[tuple[int, float]] = []
    logs = (_log(tmp_path / "a", 0, 100), _log(tmp_path / "b", 100, 150))
    convert_criteo(
        CriteoConfig(files=logs), tmp_path / "out", progress=lambda rows, share: reports.append((rows, share))
    )
    assert reports[0][0] == 100
    assert 0.5 < reports[0][1] < 0.8
    assert reports[-1] == (150, 1.0)


def test_memory_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo, "read_blocks", lambda stream: tsv.read_blocks(stream, 1 << 17))
    text = _log(tmp_path / "x", 0, 2000).read_bytes()

    def peak(repeats: int) -> int:
        (tmp_path / "log").write_bytes(text * repeats)
        seen = [0]
        before = pa.total_allocated_bytes()
        config = CriteoConfig(files=(tmp_path / "log",), row_group_rows=2000, rows_per_file=2000)
        convert_criteo(
            config,
            tmp_path / f"out-{repeats}",
            progress=lambda *_: seen.append(pa.total_allocated_bytes() - before),
        )
        return int(np.max(seen))

    peak(1)
    assert peak(24) < 1.3 * peak(3) + 1_000_000
