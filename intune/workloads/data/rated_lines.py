"""Lines of a user, an item, a rating and a time, as columns: all at once where each is as it should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

_COLUMNS = ("user", "item", "rating", "timestamp")
_ID = pa.dictionary(pa.int32(), pa.string())
_TYPES = dict(zip(_COLUMNS, (_ID, _ID, pa.float64(), pa.float64()), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class RatedLines:
    """What stands in the lines; row ``k`` of every array belongs together.

    Attributes:
        users, items: ids, each once, in the order in which they come.
        user, item: where the id of each line stands there, shape ``(lines,)``.
        rating: float32, shape ``(lines,)``.
        timestamp: whole seconds, int64, shape ``(lines,)``.
    """

    users: list[str]
    items: list[str]
    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    rating: npt.NDArray[np.float32]
    timestamp: npt.NDArray[np.int64]


def read_at_once(data: memoryview, delimiter: str) -> RatedLines | None:
    """The lines of a file without its header, in a sixth of the time that a loop over them takes.

    None where they must be looked at one by one, be it to read them or to say what is wrong: fields are missing, too
    many or between quotation marks, text is no UTF-8, a number is none.
    """
    text, sign = pa.py_buffer(data), delimiter.encode()
    whole = data.obj
    assert isinstance(whole, bytes)
    if b'"' in whole or whole.count(b"\r") != whole.count(b"\r\n"):
        return None
    if len(sign) > 1:
        if b"\t" in whole:
            return None
        text, sign = pa.py_buffer(bytes(data).replace(sign, b"\t")), b"\t"
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            read_options=pyarrow.csv.ReadOptions(column_names=list(_COLUMNS)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=sign.decode(), quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=_TYPES, null_values=[]),
        )
    except pa.ArrowInvalid:
        return None
    ids = [table.column(name).unify_dictionaries().combine_chunks() for name in _COLUMNS[:2]]
    rating, timestamp = (table.column(name).to_numpy() for name in _COLUMNS[2:])
    if not (np.abs(timestamp) < 2**63).all():
        return None
    with np.errstate(over="ignore"):  # too large a rating is infinite, which whoever checks them refuses
        ratings = rating.astype(np.float32)
    return RatedLines(
        users=ids[0].dictionary.to_pylist(),
        items=ids[1].dictionary.to_pylist(),
        user=ids[0].indices.to_numpy().astype(np.int64),
        item=ids[1].indices.to_numpy().astype(np.int64),
        rating=ratings,
        timestamp=timestamp.astype(np.int64),
    )
