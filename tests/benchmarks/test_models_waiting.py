"""Waiting before and after tuning: what a run says, how it is ended, what is concluded; no model is trained."""

from __future__ import annotations

import json
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from benchmarks.models.__main__ import CLAIMS, DATA
from benchmarks.models.waiting import WORKLOADS, Result, Run, read, run_watched, table
from intune.workloads.training.trainer import Trainer, TrainSummary


def line(waited: float, rate: float) -> str:
    return "measured: " + json.dumps({"waited": waited, "rows_per_s": rate})


def test_what_a_training_measured_is_read_among_all_else() -> None:
    assert read(f"step 3\n{line(0.362, 421.0)}\nstopped\n") == Run(waited=0.362, rows_per_s=421.0)


def test_of_two_trainings_the_mean_share_is_taken() -> None:
    found = read(f"{line(0.1, 1000.0)}\n{line(0.3, 2000.0)}")
    assert found == Run(waited=pytest.approx(0.2), rows_per_s=2000.0)


def test_a_run_that_trained_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="NotFoundError"):
        read("NotFoundError: no such folder")


def test_a_training_is_asked_to_stop_and_tells_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Asked(Exception):
        pass

    def forever(self: Trainer) -> TrainSummary:
        with pytest.raises(Asked):
            threading.Event().wait(60)
        return SimpleNamespace(wait_share=0.25, rows_per_s=8.0)  # type: ignore[return-value]

    def ask(number: int, frame: object) -> None:
        raise Asked

    monkeypatch.setattr(Trainer, "fit", forever)
    monkeypatch.setattr("intune.cli.main.main", lambda: Trainer.fit(None))  # type: ignore[arg-type]
    monkeypatch.setattr("sys.argv", ["before"])
    before = signal.signal(signal.SIGINT, ask)
    try:
        run_watched(["ans", "--quiet"], 0.01)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sys.argv == ["intune", "train", "ans", "--quiet"]
    assert read(capsys.readouterr().out) == Run(waited=0.25, rows_per_s=8.0)


def test_a_row_of_the_table_has_means_over_rounds() -> None:
    untuned = [Run(waited=0.2, rows_per_s=100.0), Run(waited=0.4, rows_per_s=300.0)]
    tuned = [Run(waited=0.1, rows_per_s=400.0), Run(waited=0.1, rows_per_s=600.0)]
    assert table([Result.of("ans", untuned, tuned)]).splitlines()[-1] == "| `ans` | 30.0% | 10.0% | 2.50 |"


def test_every_data_set_is_one_that_the_command_makes() -> None:
    waiting = CLAIMS["waiting"]
    made = {waiting.data, *waiting.more}
    assert {folder for folder, *_ in WORKLOADS.values()} == made
    assert all({measurement.data, *measurement.more} <= DATA.keys() for measurement in CLAIMS.values())
