from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.transforms import text
from intune.pipelines.transforms.text import fingerprint, fingerprints

TYPES = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]


@given(
    values=st.lists(st.one_of(st.text(max_size=40), st.text("ab\0", max_size=20)), max_size=12),
    kind=st.sampled_from(TYPES),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 2**64 - 1),
)
def test_fingerprints_are_those_of_plain_python(
    reference: Any, values: list[str], kind: pa.DataType, cut: tuple[int, int], seed: int
) -> None:
    encoded = [value.encode() for value in values]
    array = pa.array(encoded, pa.large_binary()).cast(kind)
    array, encoded = array[cut[0] : len(array) - cut[1]], encoded[cut[0] : len(encoded) - cut[1]]
    if cut[0] + cut[1] > len(values):
        return
    assert fingerprint(array, seed).tolist() == [reference.fingerprint(value, seed) for value in encoded]


def test_pieces_do_not_show(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["", "a" * 100, "b" * 7, "", "c" * 33, "d" * 8] * 5
    monkeypatch.setattr(text, "_PIECE_BYTES", 50)
    monkeypatch.setattr(text, "_PIECE", 4)
    assert fingerprint(pa.array(values)).tolist() == [reference.fingerprint(v.encode()) for v in values]
    columns = [
        pa.array(values[:3]),
        pa.array(values[3:5]),
        pa.array(values, pa.large_string()),
        pa.array([], pa.string()),
    ]
    made = fingerprints(columns)
    assert [part.tolist() for part in made] == [fingerprint(column).tolist() for column in columns]


def test_buffers_that_end_with_the_text_are_not_read_beyond() -> None:
    offsets, data = np.array([0, 3, 12], np.int32), b"abcdefghijkl"
    array = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(data))
    assert fingerprint(array).tolist() == fingerprint(pa.array(["abc", "defghijkl"])).tolist()


def test_what_lies_behind_a_null_does_not_matter_to_the_others() -> None:
    strings = pa.array(["one", None, "three"])
    assert fingerprint(strings)[[0, 2]].tolist() == fingerprint(pa.array(["one", "three"])).tolist()


def test_only_nulls_and_nothing_at_all() -> None:
    assert len(fingerprint(pa.array([None, None], pa.string()))) == 2
    assert len(fingerprint(pa.array([], pa.string()))) == 0
    assert fingerprints([]) == []


def test_short_strings_never_share_a_fingerprint_and_long_ones_practically_never() -> None:
    short = pa.array([f"{number:x}" for number in range(70_000)])
    long = pa.array([f"prefix-{number}-{number}-suffix" for number in range(70_000)])
    zeros = pa.array([b"\0" * length for length in range(200)])
    everything = np.concatenate([fingerprint(short), fingerprint(long), fingerprint(zeros)])
    assert len(np.unique(everything)) == len(everything)


def test_the_order_of_words_matters() -> None:
    swapped = pa.array(["aaaaaaaabbbbbbbbcccccccc", "aaaaaaaaccccccccbbbbbbbb"])
    first, second = fingerprint(swapped).tolist()
    assert first != second
