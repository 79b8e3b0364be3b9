"""`intune data` as a user calls it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from intune.cli import data
from intune.cli.main import main
from intune.cli.progress import Progress

FOREVER = ("data", "synthetic", "--rows", 10**9, "--row-group-rows", 4096, "--out")


def _intune(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def _faults(said: str) -> list[str]:
    """What it said on stderr, but for its progress: a machine may be slow."""
    return [line for line in said.splitlines() if not line.startswith("writing ")]


def test_a_synthetic_data_set_is_written_and_its_best_auc_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    code = _intune("data", "synthetic", "--rows", 10_000, "--files", 2, "--missing", 0, "--out", out)
    said = capsys.readouterr()
    assert (code, _faults(said.err)) == (0, [])
    assert f"{out}: 10,000 rows to train on in 2 files, 1,000 held out in 1" in said.out
    description = json.loads((out / "dataset.json").read_text())
    auc = description["teacher"]["auc"]
    assert (
        f"best AUC that the data allows: {auc['train']:.4f} on train, {auc['test']:.4f} on test" in said.out
    )
    table = pq.read_table(out / "train")
    assert table.num_rows == 10_000
    assert table.column("C1").null_count == 0


def test_criteos_logs_are_converted_and_bad_lines_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "\t".join(["1", *["5"] * 13, *["0000002a"] * 26])
    for name, extra in (("day_0", ["not a line"]), ("day_1", []), ("day_2", [])):
        (tmp_path / name).write_text("\n".join([line, *extra, line]) + "\n")
    out = tmp_path / "data"
    days = [tmp_path / f"day_{number}" for number in range(3)]
    code = _intune("data", "criteo", *days[:2], "--test", days[2], "--out", out)
    said = capsys.readouterr()
    assert (code, _faults(said.err)) == (0, [])
    assert "4 rows to train on in 1 files, 2 held out in 1" in said.out
    assert "bad lines left out: 1\n" in said.out
    assert f'{days[0]}, line 2: 1 fields instead of 40 ("not a line")' in said.out
    assert pq.read_table(out / "train").column("C7").to_pylist() == [42] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic", "--rows", "0", "--out", "new"], "`rows`=0 must be a whole number, 1 or more"),
        (["synthetic", "--rows", "9", "--out", "full"], "full holds 1 entries (file, …)"),
        (["criteo", "missing.tsv", "--out", "new"], "no such file: missing.tsv; check the path"),
        (["criteo", "--out", "new"], "`files` is empty"),
        (["synthetic", "--rows", "9", "--out", os.fsdecode(b"caf\xe9")], "is not written in UTF-8"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert _intune("data", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("intune: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_terminated_write_leaves_nothing_and_no_traceback(tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = [sys.executable, "-m", "intune.cli.main", *map(str, FOREVER), str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"writing {out}: 0%")
        assert list(out.rglob("*.parquet"))
        process.terminate()
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    class Interrupted(Progress):
        once = iter([sent])

        def __call__(self, *progress: Any) -> None:
            super().__call__(*progress)
            for number in self.once:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(data, "Progress", Interrupted)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under `nohup`
    try:
        left = _intune(*FOREVER, tmp_path / "data")
    except SystemExit as error:
        left = error.code  # type: ignore[assignment]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert left == code
    assert list(tmp_path.iterdir()) == []
