"""Where objects stand: equal as long as nothing moves, and unknown where that cannot be told."""

import functools
import io
import itertools
import logging
import socket
import sys
import threading
from collections import deque

import numpy as np
import pytest
import torch

from intune.adapters.dataloader.inspection import standing as dataloader_standing
from intune.adapters.dataloader.inspection.standing import open_files, standing


class Holder:
    def __init__(self, **kept):
        vars(self).update(kept)


class Slotted:
    __slots__ = ("one", "unset")

    def __init__(self, one):
        self.one = one


def counter():
    count = 0

    def count_on():
        nonlocal count
        count += 1
        return count

    return count_on


def held_by(value):
    """The same, in whatever may have it."""
    return [
        value,
        Holder(one=value),
        [1, (value,)],
        {"deep": Holder(deeper={"one": value})},
        deque([value]),
        Slotted(value),
        functools.partial(print, value),
        Holder(one=value).__init__,
        lambda: value,
    ]


@pytest.mark.parametrize("number", range(9))
def test_an_open_file_is_found_wherever_it_is_and_its_place_counts(number, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        value = held_by(file)[number]
        assert open_files(value) == [file]
        before = standing(value)
        assert standing(value) == before
        file.read(1)
        assert standing(value) != before
    assert open_files(value) == []


@pytest.mark.parametrize("number", range(9))
def test_where_an_iterator_stands_cannot_be_told(number):
    assert standing(held_by(iter([1, 2]))[number]) is None
    assert standing(held_by(i for i in range(3))[number]) is None


def test_a_file_of_text_that_is_read_line_by_line_has_no_place(tmp_path):
    path = tmp_path / "file"
    path.write_text("1\n2\n")
    with path.open() as file:
        assert standing(Holder(file=file)) is not None
        next(file)
        assert standing(Holder(file=file)) is None


def test_connections_have_no_place_either():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert standing(Holder(peer=ours)) is None


@pytest.mark.parametrize(
    "value",
    [
        Holder(
            lock=threading.Lock(), event=threading.Event(), log=logging.getLogger("x"), out=sys.__stdout__
        ),
        Holder(x=np.zeros(4), y=torch.zeros(4), module=np, kind=Holder, code=held_by),
        Slotted(1),
        None,
        lambda: missing,  # noqa: F821
    ],
)
def test_everything_else_stands_still(value):
    before = standing(value)
    assert before is not None
    assert standing(value) == before


def test_values_count_and_memory_files_too():
    count, buffer, values = counter(), io.BytesIO(b"12"), np.zeros(4)
    value = Holder(count=count, buffer=buffer, values=values)
    seen = [standing(value)]
    for change in (count, lambda: buffer.read(1), lambda: values.fill(1)):
        change()
        seen.append(standing(value))
    assert all(one != other for one, other in itertools.pairwise(seen))


def test_of_what_is_too_large_only_a_glimpse_is_compared(monkeypatch):
    monkeypatch.setattr(dataloader_standing, "fingerprint", lambda *_, **__: b"")
    value = Holder(rows=list(range(1000)), at=0)
    before = standing(value)
    assert standing(value) == before
    value.at = 1
    assert standing(value) != before


def test_what_refers_to_itself_is_looked_at_once():
    value = Holder()
    value.own = [value]
    assert open_files(value) == []


def test_what_cannot_be_compared_stands_nowhere(monkeypatch):
    monkeypatch.setattr(dataloader_standing, "fingerprint", lambda *_, **__: None)
    assert standing(Holder()) is None
    assert standing() is not None
