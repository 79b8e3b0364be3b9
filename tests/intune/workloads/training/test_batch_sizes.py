"""Batches that stages draw by are no larger than leaves something to shuffle."""

from __future__ import annotations

import logging

import pytest

from intune.workloads.training.batch_sizes import filled, redrawn


@pytest.mark.parametrize(
    ("batch_size", "rows", "shuffle", "expected"),
    [
        (8, 100, 8, 8),
        (8, 9, 8, 8),
        (8, 8, 8, 4),
        (8, 7, 1, 4),
        (100, 3, 8, 2),
        (100, 2, 8, 100),
        (100, 7, 0, 100),
    ],
)
def test_rows_that_would_be_one_batch_become_two(
    batch_size: int, rows: int, shuffle: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="intune"):
        assert redrawn(batch_size, rows, shuffle=shuffle, drawn="masks") == expected
    assert len(caplog.messages) == (expected != batch_size)
    for message in caplog.messages:
        assert f"batches have {expected} rows" in message
        assert "the same masks in every epoch" in message


@pytest.mark.parametrize(("rows", "expected"), [(7, False), (8, True), (9, True)])
def test_rows_that_do_not_fill_a_batch_are_said_to_be_one(
    rows: int, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="intune"):
        assert filled(8, rows) is expected
    assert bool(caplog.messages) is not expected
    assert all("all 7 rows are one batch" in message for message in caplog.messages)
