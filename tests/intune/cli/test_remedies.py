"""What compare and profile say of data and functions that cannot be used: nothing that only a script could do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from intune.cli.main import main
from intune.cli.remedies import REMEDIES

MODULE = """
def fails(columns):
    raise ValueError("no such user")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one works: data that can be read, that need much memory, that do not agree; and a function that fails."""
    tables = {
        "good": [pa.table({"x": np.arange(1000)})],
        "large": [pa.table({"x": np.arange(300_000)})],
        "mixed": [pa.table({"x": np.arange(10)}), pa.table({"y": np.arange(10)})],
    }
    for name, several in tables.items():
        (tmp_path / name).mkdir()
        for number, table in enumerate(several):
            pq.write_table(table, tmp_path / name / f"{number}.parquet")
    (tmp_path / "failing.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    return tmp_path


@pytest.mark.parametrize("command", ["compare", "profile"])
@pytest.mark.parametrize(
    ("data", "transform", "said"),
    [
        ("good", "failing:fails", "fails raised ValueError: no such user; mend the function\n"),
        ("mixed", "none", "; write it everywhere, or leave the file out\n"),
        (
            "large",
            "none",
            "at once; allow more, shuffle over fewer row groups, write fewer columns or smaller",
        ),
    ],
)
def test_a_remedy_is_one_that_the_command_has(
    command: str, data: str, transform: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--data", data] if command == "compare" else ["profile", data, "--out", "job.toml"]
    options = [
        "--transform",
        transform,
        "--seconds",
        "1",
        "--batch-size",
        "100",
        "--cpus",
        "1",
        "--memory",
        "1MiB",
    ]
    assert main([*words, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not any(remedy in error for remedy in REMEDIES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_cuda_device_the_option_that_helps_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "synthetic", "--rows", "1000", "--out", "clicks"]) == 0
    assert main(["train", "dlrm", "--data", "clicks", "--device", "cuda", "--executor", "threads"]) == 2
    assert "no CUDA device is available; use `--device cpu`" in capsys.readouterr().err
