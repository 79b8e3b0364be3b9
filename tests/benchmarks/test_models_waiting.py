"""Waiting before and after tuning: what is read of a run, how it is ended, what is concluded; no model is trained."""

from __future__ import annotations

import sys

import pytest

from benchmarks.models.__main__ import CLAIMS, DATA
from benchmarks.models.waiting import WORKLOADS, Result, Run, read, table, train

SUMMARY = """\
1,616,160 rows in 4.8 s, 20 epochs, step 800: 421,074 rows/s while training, loss 0.2318
waited for data 36.2% of the time; evaluated for 0.8 s
"""

TWO = """\
next items: 3 epochs, step 9, 1.0 s, 1,000 rows/s while training, waited for data 10.0% of the time; kept epoch 3
acceleration: 3 epochs, step 9, 1.0 s, 2,000 rows/s while training, waited for data 30.0% of the time; kept epoch 1
"""


def test_a_summary_is_read() -> None:
    assert read(SUMMARY) == Run(waited=pytest.approx(0.362), rows_per_s=421_074.0)


def test_of_two_trainings_the_mean_share_is_taken() -> None:
    assert read(TWO) == Run(waited=pytest.approx(0.2), rows_per_s=2000.0)


def test_a_run_that_says_nothing_of_waiting_is_an_error() -> None:
    with pytest.raises(ValueError, match="NotFoundError"):
        read("NotFoundError: no such folder")


def test_a_run_that_does_not_end_is_asked_to_and_its_summary_read() -> None:
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    print({SUMMARY!r}); sys.exit(0)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "time.sleep(600)\n"
    )
    # A second is enough to have set the handler; too little would be an error, not a wrong number.
    assert train([sys.executable, "-S", "-c", program], seconds=2.0).rows_per_s == 421_074.0


def test_a_row_of_the_table_has_means_over_rounds() -> None:
    untuned = [Run(waited=0.2, rows_per_s=100.0), Run(waited=0.4, rows_per_s=300.0)]
    tuned = [Run(waited=0.1, rows_per_s=400.0), Run(waited=0.1, rows_per_s=600.0)]
    assert table([Result.of("ans", untuned, tuned)]).splitlines()[-1] == "| `ans` | 30.0% | 10.0% | 2.50 |"


def test_every_data_set_is_one_that_the_command_makes() -> None:
    waiting = CLAIMS["waiting"]
    made = {waiting.data, *waiting.more}
    assert {folder for folder, *_ in WORKLOADS.values()} == made
    assert all({measurement.data, *measurement.more} <= DATA.keys() for measurement in CLAIMS.values())
