"""Parses blocks of Criteo's log lines: label, 13 whole numbers, 26 hex ids, separated by tabs, any but the label empty.

A block without a fault is checked and converted by a few vectorised passes. A block with one is gone through
again, column by column, to tell the good lines from the bad and to say what is wrong with those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from intune.workloads.data.bad_lines import BadLine, beginning
from intune.workloads.data.columns import CATEGORICAL, COLUMNS, DENSE, LABEL
from intune.workloads.data.ids import format_hex, parse_hex

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 1 << 20
"""Real lines have some 230 bytes; a megabyte without a line end is no log but a binary file."""

_TAB, _NEWLINE, _RETURN = 9, 10, 13
_WHOLE_NUMBER = "^-?[0-9]{1,18}$"

Mask = npt.NDArray[np.bool_]


class LineTooLongError(Exception):
    """A line exceeds `LONGEST_LINE`; the argument is its number."""


class Readable(Protocol):
    """What blocks are read from."""

    def read(self, nbytes: int, /) -> bytes:
        """At most `nbytes`; none at the end."""


@dataclass(frozen=True, slots=True)
class ParsedBlock:
    """Good lines as columns, and the bad ones in order (a description of each is made only when asked for)."""

    batch: pa.RecordBatch
    bad: int
    describe: Callable[[int], list[BadLine]]
    """The first so many bad lines."""


def read_blocks(stream: Readable, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about `block_bytes` at a time, with the number of the first; all end with a line end."""
    number, rest = 1, b""
    while data := stream.read(block_bytes):
        end = data.rfind(b"\n") + 1
        if end:
            block = rest + data[:end]
            yield number, block
            number += block.count(b"\n")
            rest = data[end:]
        else:
            rest += data
        if len(rest) > LONGEST_LINE:
            raise LineTooLongError(number)
    if rest:
        yield number, rest + b"\n"


def parse_block(block: bytes, first_line: int, schema: pa.Schema) -> ParsedBlock:
    """Columns of the lines of `block`, of which each ends with a line end.

    Args:
        block: the bytes, not empty.
        first_line: number of its first line.
        schema: label and counts float32, ids int64 or strings.
    """
    buffer = np.frombuffer(block, dtype=np.uint8)
    starts, shape_bad = _split_lines(buffer)
    lines = np.arange(len(starts))
    text = block
    if shape_bad.any():
        lines = lines[~shape_bad]
        lengths = np.diff(np.append(starts, len(block)))
        text = buffer[np.repeat(~shape_bad, lengths)].tobytes()
    arrays, reasons = _convert(text, len(lines), schema)
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    value_bad = np.zeros(len(lines), dtype=bool)
    for mask in reasons.values():
        value_bad |= mask
    if value_bad.any():
        batch = batch.filter(pa.array(~value_bad))
    every_bad = np.sort(np.concatenate([np.flatnonzero(shape_bad), lines[value_bad]]))

    def describe(count: int) -> list[BadLine]:
        found = []
        for line in every_bad[:count].tolist():
            start = int(starts[line])
            content = block[start : block.index(b"\n", start)]
            row = int(np.searchsorted(lines, line))
            reason = (
                _shape_fault(content)
                if shape_bad[line]
                else next(reason for reason, mask in reasons.items() if mask[row])
            )
            found.append(BadLine(first_line + line, reason, beginning(content)))
        return found

    return ParsedBlock(batch, len(every_bad), describe)


def _split_lines(buffer: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], Mask]:
    """Where the lines start, and which have another number of fields than they should or a stray return."""
    separators = np.flatnonzero((buffer == _TAB) | (buffer == _NEWLINE))
    ends_line = buffer[separators] == _NEWLINE
    ends = separators[ends_line]
    starts = np.concatenate([[0], ends[:-1] + 1])
    # The index of a line's end among all separators tells how many tabs came before it.
    fields = np.diff(np.flatnonzero(ends_line), prepend=-1)
    bad = fields != len(COLUMNS)
    returns = np.flatnonzero(buffer == _RETURN)
    if len(returns):
        stray = returns[buffer[returns + 1] != _NEWLINE]
        bad[np.searchsorted(ends, stray)] = True
    return starts, bad


def _convert(text: bytes, rows: int, schema: pa.Schema) -> tuple[list[pa.Array], dict[str, Mask]]:
    """One array per column, and for each kind of fault the rows that have it."""
    if rows == 0:
        return [pa.array([], type=field.type) for field in schema], {}
    # Arrow's parser of numbers takes blanks and hexadecimal; the careful way does not, so it must decide.
    careful = any(odd in text for odd in (b" ", b"x", b"X"))
    reasons: dict[str, Mask] = {}
    if not careful:
        try:
            table = _read(text, pa.int64())
        except pa.ArrowInvalid:
            careful = True
    if careful:
        table = _read(text, pa.binary())
    arrays = []
    for name, field in zip(COLUMNS, schema, strict=True):
        column = table.column(name).combine_chunks()
        if name in CATEGORICAL:
            array, bad = _ids(column, strings=field.type == pa.string())
            reason = f"{name} is not a hexadecimal number of up to 8 digits"
        else:
            column, bad = _whole_numbers(column) if careful else (column, None)
            reason = f"{name} is not a whole number"
            if name == LABEL:
                bad = ~np.asarray(pc.fill_null(pc.is_in(column, pa.array([0, 1])), False))
                column = pc.if_else(pa.array(~bad), column, 0)
                reason = f"{name} is neither 0 nor 1"
            array = pc.cast(column, pa.float32(), safe=False)
        arrays.append(array)
        if bad is not None and bad.any():
            reasons[reason] = bad
    return arrays, reasons


def _read(text: bytes, number_type: pa.DataType) -> pa.Table:
    types = dict.fromkeys((LABEL, *DENSE), number_type) | {name: pa.binary() for name in CATEGORICAL}
    return pyarrow.csv.read_csv(
        pa.BufferReader(text),
        # One block: every column is one chunk.
        read_options=pyarrow.csv.ReadOptions(column_names=list(COLUMNS), block_size=len(text) + 1),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True
        ),
    )


def _whole_numbers(column: pa.Array) -> tuple[pa.Array, Mask]:
    """Binary text as int64; what is not a whole number is marked, and null."""
    good = pc.match_substring_regex(column, _WHOLE_NUMBER)
    bad = ~np.asarray(pc.fill_null(good, True))
    return pc.cast(pc.if_else(good, column, None), pa.int64()), bad


def _ids(column: pa.Array, *, strings: bool) -> tuple[pa.Array, Mask | None]:
    """Binary hex text as numbers, or as text of eight digits; also which rows are not hex, None if all are."""
    rows = len(column)
    offsets, data = _buffers(column)
    lengths = np.diff(offsets)
    bad: Mask | None = None
    if ((lengths != 8) & (lengths != 0)).any():
        bad = lengths > 8
        column = pc.if_else(pa.array(bad), None, column)
        # Eight digits after all, for ids written without leading zeros.
        column = pc.ascii_lpad(column.view(pa.string()), 8, "0").view(pa.binary())
        offsets, data = _buffers(column)
        lengths = np.diff(offsets)
    filled = lengths == 8
    parsed, is_hex = parse_hex(data.reshape(-1, 8))
    if not is_hex.all():
        bad = np.zeros(rows, dtype=bool) if bad is None else bad
        bad[np.flatnonzero(filled)[~is_hex]] = True
    ids = np.zeros(rows, dtype=np.int64)
    ids[filled] = parsed
    if strings:
        return format_hex(ids.astype(np.uint32), filled), bad
    return pa.array(ids, mask=~filled), bad


def _buffers(column: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets of a binary column, shape ``(rows + 1,)``, and the bytes from the first to the last of them."""
    _, offset_buffer, data_buffer = column.buffers()
    offsets: Any = np.frombuffer(offset_buffer, dtype=np.int32)[
        column.offset : column.offset + len(column) + 1
    ]
    if data_buffer is None:
        return offsets, np.empty(0, dtype=np.uint8)
    return offsets, np.frombuffer(data_buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]


def _shape_fault(content: bytes) -> str:
    fields = content.count(b"\t") + 1
    if not content.strip():
        return "the line is empty"
    if fields != len(COLUMNS):
        return f"{fields} fields instead of {len(COLUMNS)}"
    return "a carriage return inside the line"
