"""The benchmark of wrapped DataLoaders runs, and says what it measured."""

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import wrapped
from intune.pipelines import Allocation


def test_every_contender_is_timed_and_shown(monkeypatch) -> None:
    case = wrapped.Case(dataset=wrapped.Waits, batches=4, batch_size=2, allocation=Allocation.shared(2))
    monkeypatch.setattr(wrapped, "CASES", {"waits": case})
    found = wrapped.measure(wrapped.Options(repeats=2, workers=()), Console(quiet=True))
    runs = found["waits"]
    assert set(runs) == {wrapped.OURS, wrapped.NONE}
    assert all(len(several) == 2 for several in runs.values())
    assert all(one["seconds"] >= 0.009 for one in runs[wrapped.NONE])  # two samples of 5 ms each
    where = runs[wrapped.OURS][-1]["where"]
    assert where in ("thread", "process")  # on a busy machine the first batches look as if they computed
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    wrapped.show(found, console)
    assert f"waits ({where})" in console.export_text()
    console.file.close()


def test_results_are_written_into_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results" / "wrapped.json"
    monkeypatch.setattr(wrapped, "CASES", {})
    monkeypatch.setattr(sys, "argv", ["wrapped", "--repeats", "1", "--json", str(file)])
    wrapped.main()
    assert json.loads(file.read_text())["repeats"] == 1
