from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from intune.pipelines.reading import ahead
from intune.pipelines.reading.ahead import made_ahead


def test_results_come_in_the_order_of_the_items_whichever_is_made_first() -> None:
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            second.wait()
        if item == 1:
            second.set()
        return item * 10

    with made_ahead(work, range(50), threads=2, name="test") as made:
        assert list(made) == [item * 10 for item in range(50)]
    with made_ahead(work, [], threads=2, name="test") as made:
        assert list(made) == []


def test_little_is_made_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AHEAD", 3)
    begun = 0

    def items() -> Iterator[int]:
        nonlocal begun
        for item in range(1000):
            begun += 1
            yield item

    with made_ahead(str, items(), threads=2, name="test") as made:
        for taken in range(100):
            assert next(made) == str(taken)
            assert begun == 8 + taken + 1


def test_the_first_that_fails_is_told_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AHEAD", 3)
    worked: list[int] = []

    def work(item: int) -> float:
        worked.append(item)
        return 1 / item

    with pytest.raises(ZeroDivisionError), made_ahead(work, range(1000), threads=2, name="test") as made:
        list(made)
    assert max(worked) < 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]
