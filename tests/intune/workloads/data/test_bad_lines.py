from __future__ import annotations

from pathlib import Path

import pytest

from intune.errors import SkipLimitError
from intune.workloads.data.bad_lines import QUOTED_LINES, BadLine, BadLines, beginning


def lines(first: int, last: int) -> list[BadLine]:
    return [BadLine(number, "it is odd", str(number)) for number in range(first, last + 1)]


def test_all_are_counted_and_the_first_quoted() -> None:
    bad = BadLines(10, "logs")
    bad.add(Path("a"), 0, lambda wanted: lines(1, 1)[:wanted])
    bad.add(Path("a"), 2, lambda wanted: lines(1, 2)[:wanted])
    bad.add(Path("b"), 5, lambda wanted: lines(4, 8)[:wanted])
    assert bad.count == 7
    assert len(bad.quoted()) == QUOTED_LINES == 3
    assert bad.quoted()[2] == 'b, line 4: it is odd ("4")'
    assert bad.text().endswith("; …")


def test_one_more_than_allowed_is_refused_with_what_the_file_should_be() -> None:
    bad = BadLines(1, "logs")
    bad.add(Path("a"), 1, lambda wanted: lines(1, 1)[:wanted])
    expected = (
        "2 bad lines are more than `max_bad_lines`=1: a, line 1: .*; a, line 2: .*; check that these are logs"
    )
    with pytest.raises(SkipLimitError, match=expected):
        bad.add(Path("a"), 1, lambda wanted: lines(2, 2)[:wanted])


def test_of_a_long_line_the_beginning_is_quoted() -> None:
    assert beginning(b"a\tb") == "a\\tb"
    assert beginning(b"x" * 60) == "x" * 60
    assert beginning(b"x" * 61) == "x" * 60 + "…"
    assert beginning(b"\xff") == "\\xff"
