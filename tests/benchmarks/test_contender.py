"""What a contender's process reports about an epoch, and that its sums catch whoever skips work."""

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import contender
from benchmarks.transform import Array, transform


def rows(count: int, seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        "label": draw.integers(0, 2, count).astype(np.float32),
        "I1": draw.random(count, dtype=np.float32),
        "C1": draw.integers(0, 2**40, count),
        "C2": draw.integers(0, 2**40, count),
    }


def batches(columns: dict[str, Array], size: int) -> Iterator[dict[str, Array]]:
    for begin in range(0, len(columns["label"]), size):
        yield {name: values[begin : begin + size] for name, values in columns.items()}


def test_an_epoch_is_counted_and_touched() -> None:
    columns = rows(25)
    found = contender.consume(lambda: batches(columns, 10), began=0.0)
    assert (found["rows"], found["batches"]) == (25, 3)
    assert found["touched"] == pytest.approx(sum(float(v[i]) for v in columns.values() for i in (0, 10, 20)))
    assert 0 < found["first_batch_s"] <= found["seconds"]


def test_an_epoch_without_a_batch_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no batch"):
        contender.consume(lambda: [], began=0.0)


def test_the_sums_do_not_depend_on_order_or_batches() -> None:
    columns = transform(rows(1_000))
    order = np.random.default_rng(1).permutation(1_000)
    shuffled = {name: values[order] for name, values in columns.items()}
    one, other = contender.checksum(batches(columns, 100)), contender.checksum(batches(shuffled, 64))
    assert one.keys() == other.keys() == {"label", "I1", "C1", "C2", "C1*C2"}
    assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("name", ["I1", "C1", "label"])
def test_the_sums_catch_an_untransformed_or_a_missing_column(name: str) -> None:
    raw = rows(1_000)
    done = transform(raw)
    right = contender.checksum([done])
    assert contender.checksum([{**done, name: raw[name] if name != "label" else 1 - raw[name]}]) != right
    assert contender.checksum([{**done, name: np.zeros_like(done[name])}])[name] != right[name]


def test_the_sums_catch_columns_that_came_apart() -> None:
    done = transform(rows(1_000))
    apart = {**done, "C2": np.roll(done["C2"], 1)}
    right, wrong = contender.checksum([done]), contender.checksum([apart])
    assert wrong["C2"] == right["C2"]
    assert wrong["C1*C2"] != right["C1*C2"]
