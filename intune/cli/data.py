"""`intune data …`: make a data set to train on. What is done lives in `intune.workloads.data`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from intune.cli.defaults import otherwise
from intune.cli.progress import Progress

ROWS_PER_GROUP = 65_536

# tyro joins the lines of a paragraph and keeps breaks before lines that do not begin with a letter.
SYNTHETIC_HELP = """\
Write a Criteo-like data set to train on: OUT/train, OUT/test and OUT/dataset.json.

Columns: label, the counts I1 … I13 and the ids C1 … C26, with missing values as in Criteo's logs, few frequent and
many rare ids. Labels are drawn from a planted teacher, so that the best AUC that any model can reach (about 0.80) is
known: it is printed, and kept in dataset.json and in each file's metadata. The same seed gives the same rows, however
they are cut into files. Memory does not grow with the rows.

Examples:
  intune data synthetic --rows 1000000 --out data
  intune data synthetic --rows 4194304 --files 16 --missing 0 --out bench-data
  intune data synthetic --rows 200000 --multi-hot --out data-multi-hot
"""

CRITEO_HELP = """\
Convert Criteo's click logs to Parquet: OUT/train, OUT/test (if asked for) and OUT/dataset.json.

Each FILE is one of the logs, the Kaggle challenge's train.txt or the terabyte's day_0 … day_23, plain, gzip or zstd, or
a pipe that brings one: lines of a label, thirteen whole numbers and 26 hexadecimal ids, separated by tabs; an empty
field is a missing value, null in Parquet. Lines that are not like that are left out, counted, and the first few shown.
Memory does not grow with the logs.

Examples:
  intune data criteo train.txt --test-every 7 --out criteo-kaggle
  intune data criteo day_0.gz day_1.gz --test day_23.gz --out criteo-terabyte
  aws s3 cp s3://bucket/day_0.gz - | intune data criteo /dev/stdin --out criteo-day-0
"""


def _files(default: str) -> object:
    """Help of a list of files: whether it is required, or what its default is."""
    return tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint=f"({default})")


def synthetic(
    *,
    rows: int,
    out: Path,
    test_rows: Annotated[int | None, otherwise("a tenth of the rows", metavar="N")] = None,
    seed: int = 0,
    scale: Annotated[float | None, otherwise("rows / 45840617, the size of that data", metavar="N")] = None,
    missing: float = 1.0,
    multi_hot: bool = False,
    strings: bool = False,
    files: Annotated[int | None, otherwise("one for every four row groups", metavar="N")] = None,
    row_group_rows: int = ROWS_PER_GROUP,
    threads: Annotated[int | None, otherwise("the CPUs this process may use, at most 4", metavar="N")] = None,
) -> None:
    """Write a Criteo-like data set with a known best AUC.

    Args:
        rows: Rows to train on.
        out: Folder to write to; it must be new or empty.
        test_rows: Rows held out in OUT/test.
        seed: Decides everything random.
        scale: Factor on the numbers of distinct ids in Criteo's Kaggle data (10,131,227 for C3); features of
            up to a thousand ids keep all.
        missing: Factor on Criteo's shares of missing values: 1 as in Criteo, 0 for no nulls at all.
        multi_hot: Make C1 … C26 lists of ids, of uneven lengths, some empty, on average as long as MLPerf's.
        strings: Write ids as text of 8 hexadecimal digits, as in the logs, instead of int64.
        files: Number of files in OUT/train.
        row_group_rows: Rows per row group, the unit that a pipeline loads.
        threads: Files written at once; each holds about one row group in memory.
    """
    from intune.workloads.data.synthetic import SyntheticConfig, write_synthetic

    config = SyntheticConfig(
        rows=rows,
        test_rows=test_rows,
        seed=seed,
        scale=scale,
        missing=missing,
        multi_hot=multi_hot,
        strings=strings,
        files=files,
        row_group_rows=row_group_rows,
    )
    started = time.monotonic()
    with Progress(f"writing {out}") as progress:
        description = write_synthetic(config, out, threads=threads, progress=progress)
    _print_summary(out, description, time.monotonic() - started)
    auc = {
        split: "undefined" if area is None else f"{area:.4f}" for split, area in _areas(description).items()
    }
    print(f"best AUC that the data allows: {auc['train']} on train, {auc['test']} on test")


def criteo(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, _files("required")],
    /,
    *,
    out: Path,
    test: Annotated[tuple[Path, ...], _files("none")] = (),
    test_every: Annotated[int | None, otherwise("none", metavar="N")] = None,
    strings: bool = False,
    max_bad_lines: int = 1000,
    rows_per_file: int = 16 * ROWS_PER_GROUP,
    row_group_rows: int = ROWS_PER_GROUP,
) -> None:
    """Convert Criteo's click logs to Parquet.

    Args:
        files: Log files, in the order in which their rows shall stand.
        out: Folder to write to; it must be new or empty.
        test: Log files to hold out in OUT/test.
        test_every: Hold out every N-th row group of FILES in OUT/test instead; 10 is a tenth.
        strings: Keep ids as text of 8 hexadecimal digits; otherwise they become int64.
        max_bad_lines: Give up when more lines than this cannot be used.
        rows_per_file: Rows per Parquet file.
        row_group_rows: Rows per row group, the unit that a pipeline loads.
    """
    from intune.workloads.data.criteo import CriteoConfig, convert_criteo

    config = CriteoConfig(
        files=files,
        test_files=test,
        test_every=test_every,
        strings=strings,
        max_bad_lines=max_bad_lines,
        rows_per_file=rows_per_file,
        row_group_rows=row_group_rows,
    )
    started = time.monotonic()
    with Progress(f"writing {out}") as progress:
        description = convert_criteo(config, out, progress=progress)
    _print_summary(out, description, time.monotonic() - started)
    bad = description["bad_lines"]
    print(f"bad lines left out: {bad['count']:,}")
    for example in bad["examples"]:
        print(f"  {example}")


def _areas(description: Mapping[str, Any]) -> dict[str, float | None]:
    return dict(description["teacher"]["auc"])


def _print_summary(out: Path, description: Mapping[str, Any], seconds: float) -> None:
    from intune.pipelines.budget import format_bytes
    from intune.workloads.data.writer import folder_bytes

    rows, files = description["rows"], description["files"]
    total = sum(rows.values())
    print(
        f"{out}: {rows['train']:,} rows to train on in {files['train']} files, "
        f"{rows['test']:,} held out in {files['test']}; {format_bytes(folder_bytes(out))}, "
        f"{seconds:.1f} s, {total / max(seconds, 1e-9):,.0f} rows/s"
    )
