"""Whether something is as it was, told from its pickled form."""

from __future__ import annotations

import io
import re
import sqlite3
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from intune.adapters.dataloader.sending import pickled_size
from intune.adapters.dataloader.sending.pickled_size import fingerprint, structure_bytes


def write_in(array):
    array[...] = 1


@pytest.mark.parametrize(
    ("kept", "change"),
    [
        (1, None),
        ({"a": [1, "b", None]}, lambda value: value["a"].append(2)),
        (np.zeros(10), write_in),
        (np.zeros(1 << 18), write_in),
        (np.zeros((700, 300)).T, write_in),
        (torch.zeros(10), write_in),
        (torch.zeros(1 << 18), write_in),
        (torch.zeros(700, 300).T, write_in),
        (torch.zeros(3, dtype=torch.bfloat16), write_in),
        (torch.zeros(3, dtype=torch.bool), write_in),
        (torch.zeros(()), write_in),
        (torch.zeros(0, 3), None),
        (torch.eye(3).to_sparse(), lambda value: value.mul_(2)),
        (np.array([1, "a", None], dtype=object), write_in),
        (io.BytesIO(b"abc"), lambda value: value.seek(1)),
        (iter([1, 2, 3]), next),
    ],
)
def test_what_has_changed_has_another_fingerprint(kept, change):
    value = SimpleNamespace(kept=kept)
    before = fingerprint(value)
    assert before is not None
    assert fingerprint(value) == before
    if change is not None:
        change(kept)
        assert fingerprint(value) != before


def test_beside_what_cannot_be_pickled_a_change_shows_if_that_is_tolerated():
    with open(__file__) as file:
        kept = [
            file,
            threading.Lock(),
            (i for i in "ab"),
            sqlite3.connect(":memory:"),
            lambda: kept,
            re,
            {1: "a"},
        ]
        value = SimpleNamespace(kept=kept, count=0)
        before = fingerprint(value, tolerant=True)
        assert fingerprint(value) is None
        assert before is not None
        file.read(1)
        assert fingerprint(value, tolerant=True) == before
        value.count = 1
        assert fingerprint(value, tolerant=True) != before
        kept[3].close()


def test_what_cannot_be_pickled_has_none_and_what_is_too_large_is_not_compared(monkeypatch):
    assert fingerprint([threading.Lock()]) is None
    monkeypatch.setattr(pickled_size, "MOST_STREAM", 1000)
    assert fingerprint("a" * 2000) == fingerprint("b" * 2000) == b""


def test_a_sparse_tensor_can_be_sent():
    assert structure_bytes([torch.eye(3).to_sparse()]) is not None


def test_of_long_lists_a_sample_tells_unless_all_of_it_is_asked_for(monkeypatch):
    rows = [(i, str(i)) for i in range(20_000)]
    assert structure_bytes([rows]) == pytest.approx(structure_bytes([rows], whole=True), rel=0.2)
    rows[1] = threading.Lock()  # which is not among the sample
    assert structure_bytes([rows]) is not None
    assert structure_bytes([rows], whole=True) is None
    value = [rows, []]
    assert fingerprint(value) is None  # it is not long enough to be passed over
    monkeypatch.setattr(pickled_size, "MOST_LIST", 1000)
    before = fingerprint(value)
    assert before is not None
    assert fingerprint(value) == before
    value[1].append(1)
    assert fingerprint(value) != before


def test_no_more_is_looked_through_than_is_asked_for():
    class Counts:
        asked = 0

        def __reduce__(self):
            Counts.asked += 1
            return str, (str(Counts.asked) * 10_000,)

    many = [Counts() for _ in range(1000)]
    assert structure_bytes(many, most=1 << 20) > 1 << 20
    assert Counts.asked < 1000
    assert structure_bytes([np.zeros(1 << 20), threading.Lock()], most=1 << 20) > 1 << 20
    assert structure_bytes([threading.Lock()], most=1 << 20) is None
    assert structure_bytes([torch.zeros(1)], refuse=lambda part: isinstance(part, torch.Tensor)) is None


@pytest.mark.parametrize(("mode", "seen"), [("r+", False), ("c", True)])
def test_what_is_written_into_an_array_in_a_file_is_seen_where_it_is_its_own(tmp_path, mode, seen):
    np.save(tmp_path / "array.npy", np.zeros(9))
    array = np.load(tmp_path / "array.npy", mmap_mode=mode)
    before = fingerprint(array)
    array[3] = 1
    assert (fingerprint(array) != before) is seen
