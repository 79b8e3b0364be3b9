from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.agents.outcomes import Trace, outcomes


def trace(rate: Any, **values: Any) -> Trace:
    rates = np.atleast_2d(np.array(rate, dtype=np.float32))
    shape = rates.shape
    given: dict[str, Any] = {"weight": 1.0, "memory": 0.5, "limit": 1.0, "slots": 1.0} | values
    arrays = {
        name: np.array(np.broadcast_to(np.float32(given[name]), shape))
        for name in ("weight", "memory", "limit", "slots")
    }
    flags = {
        name: np.array(np.broadcast_to(np.array(values.get(name, False)), shape))
        for name in ("killed", "resized")
    }
    feasible = np.array(np.broadcast_to(values.get("feasible", True), shape[:1]))
    return Trace(rate=rates, **arrays, **flags, feasible=feasible)


def test_shares_at_decisions_are_counted_from_one() -> None:
    found = outcomes(trace(np.arange(1, 21) / 20))
    assert found.at_5[0] == pytest.approx(5 / 20)
    assert found.at_10[0] == pytest.approx(10 / 20)
    assert found.last[0] == pytest.approx(39 / 40)


def test_the_whole_job_is_rows_over_rows() -> None:
    # Half of the best rate while that is 3, all of it while it is 1: 2.5 of 4.
    found = outcomes(trace([0.5, 1.0], weight=[1.5, 0.5]))
    assert found.whole[0] == pytest.approx(0.625)
    assert found.regret[0] == pytest.approx(0.75)


def test_reached_is_the_first_decision_and_only_before_a_resize() -> None:
    found = outcomes(
        trace(
            [[0.5, 0.96, 0.5, 1.0], [0.5, 0.6, 0.96, 1.0], [0.1, 0.1, 0.1, 0.1]],
            resized=[[False] * 4, [False, False, True, False], [True, False, False, False]],
        )
    )
    np.testing.assert_array_equal(found.reached, [2, np.nan, np.nan])
    np.testing.assert_array_equal(found.found, [1, 0, np.nan])


def test_recovery_counts_the_decision_that_knew_of_the_resize_as_one() -> None:
    resized = [False, True, False, False, True, False]
    at_once = outcomes(trace([1, 0.95, 1, 1, 0.95, 1], resized=resized))
    assert at_once.recovery[0] == 1.0
    later = outcomes(trace([1, 0.2, 0.95, 1, 0.2, 0.2], resized=resized))
    # Two decisions after the first, both that there were after the second, without success.
    assert later.recovery[0] == 2.0
    assert later.recovered[0] == 0.5


def test_a_job_without_a_resize_has_nothing_to_recover_from() -> None:
    found = outcomes(trace([[1.0, 1.0], [0.2, 0.95]], resized=[[False, False], [True, False]]))
    np.testing.assert_array_equal(found.recovery, [np.nan, 2.0])


def test_what_a_job_takes_that_no_allocation_fits_counts_for_nothing() -> None:
    found = outcomes(trace([[0, 0], [0, 1]], weight=[[0, 0], [0, 1]], memory=[[200, 200], [0.5, 0.7]]))
    for name in ("memory", "peak", "bytes", "slots"):
        np.testing.assert_array_equal(np.isnan(getattr(found, name)), [True, False])
    assert found.memory[1] == pytest.approx(0.6)


def test_jobs_that_no_allocation_fits_are_not_counted_as_killed() -> None:
    found = outcomes(trace([[0, 0], [0, 1]], killed=[[True, True], [True, False]], feasible=[False, True]))
    np.testing.assert_array_equal(found.kills, [np.nan, 1])
    np.testing.assert_array_equal(found.killed, [np.nan, 1])


def test_bytes_are_of_the_first_limit() -> None:
    found = outcomes(trace([1.0, 1.0], memory=[0.5, 1.0], limit=[1.0, 0.5]))
    assert found.bytes[0] == pytest.approx(0.5)
    assert found.memory[0] == pytest.approx(0.75)
    assert found.peak[0] == pytest.approx(1.0)


def test_while_there_is_no_best_nothing_is_asked() -> None:
    nan = np.nan
    later = {"weight": [0.0, 0.0, 1.5, 1.5], "resized": [False, False, True, False], "feasible": False}
    found = outcomes(trace([nan, nan, 0.5, 1.0], **later))
    assert found.whole[0] == pytest.approx(0.75)
    assert found.regret[0] == pytest.approx(0.75)
    assert found.last[0] == 1.0
    assert found.recovery[0] == 2.0
    assert np.isnan(found.found[0])  # before the first resize there was nothing to find
    never = outcomes(trace([nan] * 5, weight=0.0, resized=[False, True, False, False, False], feasible=False))
    for name in ("at_5", "last", "whole", "regret", "kills", "reached", "found", "recovery", "recovered"):
        assert np.isnan(getattr(never, name)[0]), name
