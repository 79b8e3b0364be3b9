"""Parsing of Criteo's lines against a plain parser that goes line by line."""

import io
import random
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.workloads.data.columns import schema
from intune.workloads.data.tsv import LONGEST_LINE, LineTooLongError, parse_block, read_blocks

NUMBERS = schema()
STRINGS = schema(strings=True)


def _line(label: str = "1", dense: str = "7", ids: str = "0000002a", **fields: str) -> str:
    """A line of Criteo's; `fields` sets single columns (``I1="…"``)."""
    values = {"label": label}
    values |= {f"I{number}": dense for number in range(1, 14)}
    values |= {f"C{number}": ids for number in range(1, 27)}
    return "\t".join((values | fields).values())


def _plain(text: bytes) -> tuple[list[list[float | int | None]], list[int]]:
    """Rows and the numbers of bad lines, as anybody would write it."""
    rows: list[list[float | int | None]] = []
    bad = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        fields = line.removesuffix(b"\r").split(b"\t")
        good = len(fields) == 40 and b"\r" not in line.removesuffix(b"\r") and fields[0] in (b"0", b"1")
        good = good and all(re.fullmatch(rb"(-?[0-9]{1,18})?", field) for field in fields[1:14])
        good = good and all(re.fullmatch(rb"[0-9a-fA-F]{0,8}", field) for field in fields[14:])
        if not good:
            bad.append(number)
            continue
        dense = [float(np.float32(int(field))) if field else None for field in fields[:14]]
        rows.append([*dense, *(int(field, 16) if field else None for field in fields[14:])])
    return rows, bad


def _rows(batch: pa.RecordBatch) -> list[list[float | int | None]]:
    return [list(row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]


def test_a_line_becomes_a_row() -> None:
    line = _line(label="0", I1="-3", I2="", I13="12345", C1="68fd1e64", C2="", C26="FFFFFFFF") + "\n"
    row = parse_block(line.encode(), 1, NUMBERS).batch.to_pylist()[0]
    assert (row["label"], row["I1"], row["I2"], row["I3"], row["I13"]) == (0.0, -3.0, None, 7.0, 12345.0)
    assert (row["C1"], row["C2"], row["C3"], row["C26"]) == (0x68FD1E64, None, 42, 0xFFFFFFFF)
    texts = parse_block(line.encode(), 1, STRINGS).batch.to_pylist()[0]
    assert (texts["C1"], texts["C2"], texts["C26"]) == ("68fd1e64", None, "ffffffff")


def test_ids_without_leading_zeros_are_numbers_all_the_same() -> None:
    block = (_line(C5="2a") + "\n" + _line(C5="") + "\n" + _line(C5="12345678") + "\n").encode()
    assert parse_block(block, 1, NUMBERS).batch.column("C5").to_pylist() == [0x2A, None, 0x12345678]
    assert parse_block(block, 1, STRINGS).batch.column("C5").to_pylist() == ["0000002a", None, "12345678"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "the line is empty"),
        ("1\t2\t3", "3 fields instead of 40"),
        (_line() + "\t", "41 fields instead of 40"),
        (_line(label=""), "label is neither 0 nor 1"),
        (_line(label="2"), "label is neither 0 nor 1"),
        (_line(label="yes"), "label is neither 0 nor 1"),
        (_line(I3="1.5"), "I3 is not a whole number"),
        (_line(I3=" 1"), "I3 is not a whole number"),
        (_line(I3="0x1f"), "I3 is not a whole number"),
        (_line(I3="9" * 30), "I3 is not a whole number"),
        (_line(I3="nan"), "I3 is not a whole number"),
        (_line(C4="0000002g"), "C4 is not a hexadecimal number of up to 8 digits"),
        (_line(C4="123456789"), "C4 is not a hexadecimal number of up to 8 digits"),
        (_line(C4="é"), "C4 is not a hexadecimal number of up to 8 digits"),
        (_line(I3="a\rb"), "a carriage return inside the line"),
    ],
)
@pytest.mark.parametrize("columns", [NUMBERS, STRINGS], ids=["numbers", "strings"])
def test_a_bad_line_is_left_out_and_explained(line: str, reason: str, columns: pa.Schema) -> None:
    block = f"{_line(I1='1')}\n{line}\n{_line(I1='2')}\n".encode()
    parsed = parse_block(block, 10, columns)
    assert parsed.batch.column("I1").to_pylist() == [1.0, 2.0]
    assert parsed.bad == 1
    (found,) = parsed.describe(5)
    assert (found.number, found.reason) == (11, reason)
    assert found.text.replace("\\t", "\t").rstrip("…") in line


def test_bad_bytes_are_quoted_readably() -> None:
    found = parse_block(b"\xff\x00\tx\n", 1, NUMBERS).describe(1)[0]
    assert found.text == "\\xff\x00\\tx"
    assert found.reason == "2 fields instead of 40"


def test_bad_lines_are_described_in_order_up_to_the_number_asked_for() -> None:
    lines = [_line(), "x", _line(C1="?"), _line(), _line(label="7"), "y"]
    parsed = parse_block(("\n".join(lines) + "\n").encode(), 1, NUMBERS)
    assert parsed.bad == 4
    assert [line.number for line in parsed.describe(3)] == [2, 3, 5]
    assert parsed.describe(0) == []


def test_a_block_of_bad_lines_only_has_no_rows() -> None:
    parsed = parse_block(b"x\ny\n", 1, NUMBERS)
    assert parsed.batch.num_rows == 0
    assert parsed.batch.schema == NUMBERS
    assert parsed.bad == 2


_FIELDS = [
    "",
    "0",
    "1",
    "-1",
    "007",
    "12",
    "1.5",
    "x",
    "0x1",
    " 1",
    "\r",
    "\xe9",
    "deadBEEF",
    "123456789",
    '"',
]


def _good(seed: int) -> str:
    # From one number, since drawing each field with Hypothesis takes longer than all that is tested.
    pick = random.Random(seed)
    dense = pick.choices(["", "0", "-2", "31", "123456789"], k=13)
    return "\t".join([pick.choice("01"), *dense, *pick.choices(["", "0a", "deadbeef", "00000000"], k=26)])


def _spoil(line: str, at: int, field: str) -> str:
    fields = line.split("\t")
    fields[at] = field
    return "\t".join(fields)


_field = st.sampled_from(_FIELDS)
_good_line = st.builds(_good, st.integers(0, 1000))
_any_line = st.one_of(
    _good_line,
    st.builds(_spoil, _good_line, st.integers(0, 39), _field),
    st.lists(_field, max_size=5).map("\t".join),
)


@given(lines=st.lists(st.tuples(_any_line, st.sampled_from(["\n", "\r\n"])), min_size=1, max_size=12))
def test_rows_and_bad_lines_are_those_of_the_plain_parser(lines: list[tuple[str, str]]) -> None:
    block = "".join(line + end for line, end in lines).encode("latin-1")
    rows, bad = _plain(block)
    parsed = parse_block(block, 1, NUMBERS)
    assert _rows(parsed.batch) == rows
    assert parsed.bad == len(bad)
    assert [line.number for line in parsed.describe(100)] == bad
    assert parsed.batch.schema == NUMBERS


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20),
    size=st.integers(1, 40),
)
def test_blocks_join_to_the_file_and_know_their_line(lines: list[bytes], size: int) -> None:
    text = b"\n".join(lines)
    blocks = list(read_blocks(io.BytesIO(text), size))
    assert b"".join(block for _, block in blocks).removesuffix(b"\n") == text.removesuffix(b"\n")
    assert all(block.endswith(b"\n") for _, block in blocks)
    numbers = [number for number, _ in blocks]
    ends = np.cumsum([0] + [block.count(b"\n") for _, block in blocks])[:-1] + 1
    assert numbers == ends.tolist()


def test_a_line_without_end_is_refused_before_memory_fills() -> None:
    with pytest.raises(LineTooLongError, match="2"):
        list(read_blocks(io.BytesIO(b"x\n" + b"y" * (LONGEST_LINE * 3)), 1 << 16))
