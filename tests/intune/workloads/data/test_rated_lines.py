from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.errors import IntuneError
from intune.workloads.data import movielens
from intune.workloads.data.movielens import LAYOUTS, Layout, read_movielens
from intune.workloads.data.rated_lines import read_at_once

IDS = st.sampled_from(["1", "2", "07", "-1", "é", "x y", " 1", "", " ", '"q"', '"', "18446744073709551617"])
NUMBERS = st.sampled_from(
    [
        "3",
        "4.5",
        "-2",
        "1e3",
        " 5",
        "5 ",
        "+1",
        "1_0",
        "0x1f",
        "nan",
        "inf",
        "1e39",
        "1e300",
        "",
        "no",
        ".5",
        "5.",
    ]
)
TIMES = st.one_of(st.integers(-5, 1 << 40).map(str), NUMBERS)
FAULTS = st.sampled_from([""] * 20 + ["\r", "\t", "::", ",", ":", "\x00", "\ufeff", "\x1a"])
ENDS = st.sampled_from(["\n"] * 9 + ["\r\n", "\r\r\n", "\n\n"])
PLAIN = st.tuples(
    st.sampled_from("123"), st.sampled_from("89"), st.sampled_from("45"), st.integers(0, 99).map(str)
)


@st.composite
def files(draw: st.DrawFn) -> tuple[Layout, bytes]:
    """A file of ratings whose lines are as they should be, but for one or two."""
    layout = draw(st.sampled_from(LAYOUTS))
    lines = draw(st.lists(PLAIN, max_size=5))
    lines += draw(st.lists(st.tuples(IDS, IDS, NUMBERS, TIMES), max_size=2))
    start = draw(st.sampled_from(["", "", "\ufeff"])) + (
        f"{layout.header}{draw(ENDS)}" if layout.header else ""
    )
    text = start + "".join(layout.delimiter.join(line) + draw(FAULTS) + draw(ENDS) for line in lines)
    if draw(st.booleans()):
        text = text.rstrip("\n")
    return layout, text.encode(draw(st.sampled_from(["utf-8", "utf-8", "latin-1"])), errors="replace")


def outcome(path: Path) -> Any:
    try:
        found = read_movielens(path)
    except IntuneError as error:
        return type(error), str(error)
    columns = [found.user, found.item, found.rating, found.timestamp]
    return [column.tobytes() for column in columns], found.users.to_pylist(), found.items.to_pylist()


@settings(max_examples=100)
@given(file=files())
def test_lines_read_at_once_are_what_they_are_one_by_one(file: tuple[Layout, bytes]) -> None:
    layout, data = file
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / layout.ratings).write_bytes(data)
        found = outcome(Path(folder))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(movielens, "read_at_once", lambda *_: None)
            assert found == outcome(Path(folder))


@pytest.mark.parametrize("delimiter", [",", "\t", "::"])
def test_lines_as_they_should_be_are_read_at_once(delimiter: str) -> None:
    rows = [("u7", "2", "4.5", "99"), ("é", "1", "3", "5.9"), ("u7", "1", "1", "-7")]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    found = read_at_once(memoryview(text.encode()), delimiter)
    assert found is not None
    assert (found.users, found.items) == (["u7", "é"], ["2", "1"])
    assert (found.user.tolist(), found.item.tolist()) == ([0, 1, 0], [0, 1, 1])
    assert (found.rating.tolist(), found.timestamp.tolist()) == ([4.5, 3, 1], [99, 5, -7])
