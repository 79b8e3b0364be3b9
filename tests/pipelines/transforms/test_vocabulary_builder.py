from __future__ import annotations

import pickle
import threading
from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged, concat_blocks
from intune.pipelines.transforms import Vocabulary, VocabularyBuilder, vocabulary_builder

NUMBERS = st.lists(st.lists(st.integers(-5, 5), max_size=20), min_size=1, max_size=5)
STRINGS = st.lists(
    st.lists(st.one_of(st.none(), st.sampled_from("abcdé")), max_size=20), min_size=1, max_size=5
)


def listing(vocabulary: Vocabulary) -> dict[str, list[tuple[Any, int]]]:
    return {
        name: list(zip(entries.values.to_pylist(), entries.counts.to_pylist(), strict=True))
        for name, entries in vocabulary.entries.items()
    }


def expected(values: list[Any], min_count: int, max_size: int | None) -> list[tuple[Any, int]]:
    counts = Counter(value for value in values if value is not None)
    kept = [(value, count) for value, count in counts.items() if count >= min_count]
    return sorted(kept, key=lambda pair: (-pair[1], pair[0]))[:max_size]


@given(
    numbers=NUMBERS,
    strings=STRINGS,
    min_count=st.integers(1, 4),
    max_size=st.one_of(st.none(), st.integers(1, 4)),
)
def test_the_frequent_values_are_listed_most_frequent_first(
    numbers: list[list[int]], strings: list[list[str | None]], min_count: int, max_size: int | None
) -> None:
    builder = VocabularyBuilder("*")
    for part in numbers:
        builder.update({"n": np.array(part, np.int32)})
    for texts in strings:
        builder.update({"s": pa.array(texts, pa.string())})
    built = builder.build(min_count=min_count, max_size=max_size)
    assert listing(built) == {
        "n": expected(list(chain.from_iterable(numbers)), min_count, max_size),
        "s": expected(list(chain.from_iterable(strings)), min_count, max_size),
    }


@given(parts=NUMBERS, cut=st.integers(0, 5))
def test_merged_builders_are_one_that_saw_everything(parts: list[list[int]], cut: int) -> None:
    blocks = [
        {"n": np.array(part, np.int64), "s": pa.array([f"{v}" for v in part], pa.string())} for part in parts
    ]
    whole = VocabularyBuilder("*")
    whole.update(concat_blocks(blocks))
    left, right = VocabularyBuilder("*"), VocabularyBuilder("*")
    for position, block in enumerate(blocks):
        (left if position < cut else right).update(block)
    left.merge(pickle.loads(pickle.dumps(right)))
    assert listing(left.build()) == listing(whole.build())
    assert (
        left.distinct()
        == whole.distinct()
        == {"n": len(set(chain.from_iterable(parts))), "s": len(set(chain.from_iterable(parts)))}
    )


def test_counts_are_joined_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_builder, "_PENDING", 10)
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 30, 25) for _ in range(40)]
    builder = VocabularyBuilder("x")
    for part in parts:
        builder.update({"x": part})
        assert sum(len(table) for table in builder._counters["x"]._pending) < 30
    assert listing(builder.build())["x"] == expected(np.concatenate(parts).tolist(), 1, None)


def test_elements_of_lists_and_matrices_are_counted() -> None:
    builder = VocabularyBuilder(["l", "t", "m"])
    builder.update(
        {
            "l": Ragged(np.array([1, 1, 2]), np.array([0, 3])),
            "t": Ragged(pa.array(["a", None]), np.array([0, 2])),
            "m": np.array([[3, 3]]),
        }
    )
    assert listing(builder.build()) == {"l": [(1, 2), (2, 1)], "t": [("a", 1)], "m": [(3, 2)]}


def test_batches_are_counted_as_a_loader_delivers_them() -> None:
    builder = VocabularyBuilder(["l", "m", "u"])
    builder.update(
        {
            "l": Ragged(torch.tensor([1, 1, 2]), torch.tensor([0, 3])),
            "m": torch.tensor([[3, 3]], dtype=torch.int32),
            "u": torch.from_numpy(np.array([2**64 - 1], np.uint64)),
        }
    )
    assert listing(builder.build()) == {"l": [(1, 2), (2, 1)], "m": [(3, 2)], "u": [(-1, 1)]}


def test_tensors_of_another_device_are_fetched() -> None:
    class OnDevice:
        """A tensor that NumPy cannot read where it is."""

        untyped_storage = None

        def cpu(self) -> torch.Tensor:
            return torch.tensor([7, 7])

        def __array__(self, *args: Any, **options: Any) -> Any:
            raise TypeError("copy it to host memory first")

    builder = VocabularyBuilder("a")
    column: Any = OnDevice()
    builder.update({"a": column})
    assert listing(builder.build()) == {"a": [(7, 2)]}


def test_threads_that_share_a_builder_lose_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    went_on = threading.Event()

    class Lock:
        """Tells when a thread has to wait for it."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __enter__(self) -> None:
            if not self.lock.acquire(blocking=False):
                went_on.set()
                self.lock.acquire()

        def __exit__(self, *error: object) -> None:
            self.lock.release()

    def count_another() -> None:
        builder.update({"x": np.array([2])})
        went_on.set()

    def interrupted(tables: list[pa.Table]) -> pa.Table:
        if other.ident is None:  # another thread comes by while counts are joined
            joined = concat_tables(tables)
            other.start()
            went_on.wait()
            return joined
        return concat_tables(tables)

    concat_tables, other = pa.concat_tables, threading.Thread(target=count_another)
    builder = VocabularyBuilder("x")
    builder._lock = Lock()  # type: ignore[assignment]
    monkeypatch.setattr(pa, "concat_tables", interrupted)
    monkeypatch.setattr(vocabulary_builder, "_PENDING", 3)
    for value in (1, 3, 1):
        builder.update({"x": np.array([value])})
    other.join()
    assert listing(builder.build())["x"] == [(1, 2), (2, 1), (3, 1)]


def test_what_is_built_can_be_used() -> None:
    builder = VocabularyBuilder("C*")
    block = {"C1": np.array([9, 9, 4, 4, 4, 1]), "C2": pa.array(["x", "y", "y", None, None, None])}
    builder.update(block)
    made = builder.build(min_count=2, first=10, unknown=3, null=4)(block)
    assert made["C1"].tolist() == [11, 11, 10, 10, 10, 3]
    assert made["C2"].tolist() == [3, 10, 10, 4, 4, 4]


def test_strings_of_both_widths_are_one_type() -> None:
    builder = VocabularyBuilder("s")
    builder.update({"s": pa.array(["a"], pa.string())})
    builder.update({"s": pa.array(["a"], pa.large_string())})
    assert listing(builder.build()) == {"s": [("a", 2)]}


def test_mistakes() -> None:
    builder = VocabularyBuilder("x")
    with pytest.raises(ConfigError, match=r"nothing was counted.*call `update`"):
        builder.build()
    builder.update({"x": np.arange(2)})
    with pytest.raises(ConfigError, match="`min_count`=0"):
        builder.build(min_count=0)
    with pytest.raises(ConfigError, match="`max_size`=0"):
        builder.build(max_size=0)
    with pytest.raises(SchemaError, match="column `x` holds large_string, but int64 was counted before"):
        builder.update({"x": pa.array(["a"])})
    with pytest.raises(SchemaError, match="column `x` holds float64; count integers or strings"):
        builder.update({"x": np.zeros(1)})
    with pytest.raises(SchemaError, match="VocabularyBuilder: there is no column `x`"):
        builder.update({"y": np.zeros(1)})
    with pytest.raises(ConfigError, match="`columns`"):
        VocabularyBuilder([])
