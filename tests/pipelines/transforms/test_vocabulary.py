from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Entries, Vocabulary, vocabulary
from intune.pipelines.transforms.lookup import make_lookup


def entries(values: Any, kind: pa.DataType | None = None) -> Entries:
    array = pa.array(values, kind)
    return Entries(values=array, counts=pa.array(np.ones(len(array), np.int64)))


@given(
    listed=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30),
    others=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30),
    first=st.integers(2, 100),
    unknown=st.integers(0, 1),
)
def test_integers_as_arrows_index_in(listed: list[int], others: list[int], first: int, unknown: int) -> None:
    column = np.array([*others, *listed, *listed], np.int64)
    vocabulary = Vocabulary(entries={"x": entries(listed, pa.int64())}, first=first, unknown=unknown)
    made = vocabulary({"x": column})["x"]
    places = pc.index_in(pa.array(column), pa.array(listed, pa.int64())).to_pylist()
    assert made.dtype == np.int64
    assert made.tolist() == [unknown if place is None else first + place for place in places]


@given(
    listed=st.lists(st.text(max_size=12), unique=True, max_size=30),
    others=st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=30),
    kind=st.sampled_from([pa.string(), pa.large_string()]),
    null=st.sampled_from([None, 0, 1]),
)
def test_strings_as_arrows_index_in(
    listed: list[str], others: list[str | None], kind: pa.DataType, null: int | None
) -> None:
    column = pa.array([*others, *listed, *listed], kind)
    vocabulary = Vocabulary(entries={"x": entries(listed, pa.string())}, first=2, unknown=0, null=null)
    made = vocabulary({"x": column})["x"]
    places = pc.index_in(column, pa.array(listed, kind)).to_pylist()
    expected = [0 if place is None else 2 + place for place in places]
    missing = column.is_null().to_pylist()
    assert made.tolist() == [
        (null or 0) if gone else id_ for gone, id_ in zip(missing, expected, strict=True)
    ]


def test_a_string_with_a_listed_ones_fingerprint_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from intune.pipelines.transforms import vocabulary as module

    def colliding(strings: pa.Array, seed: int = 0) -> Any:
        lengths = pc.binary_length(strings).to_numpy(zero_copy_only=False)
        return (lengths + (seed > 2) * np.arange(len(strings))).astype(np.uint64)

    monkeypatch.setattr(module, "fingerprint", lambda strings, seed=0: colliding(strings))
    vocabulary = Vocabulary(entries={"x": entries(["a", "bb"])})
    assert vocabulary({"x": pa.array(["b", "a", "bb", "aa", "ccc"])})["x"].tolist() == [0, 1, 2, 0, 0]
    # Listed strings that share one get another seed.
    monkeypatch.setattr(module, "fingerprint", colliding)
    assert entries(["a", "b", "c"]).find(pa.array(["a", "b", "c"])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16", "uint64", "bool"])
def test_integers_of_any_width(dtype: str) -> None:
    far = Vocabulary(entries={"x": entries([1, 10**12, -1])})
    near = Vocabulary(entries={"x": entries([1, 2, 3])})
    column = {"x": np.array([0, 1, 1], dtype)}
    assert far(column)["x"].tolist() == near(column)["x"].tolist() == [0, 1, 1]


def test_lists_and_matrices() -> None:
    vocabulary = Vocabulary(entries={"n": entries([7, 5]), "s": entries(["b"]), "m": entries([1])}, unknown=0)
    made = vocabulary(
        {
            "n": Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3])),
            "s": Ragged(pa.array(["b", None, "a"]), np.array([0, 1, 2, 3])),
            "m": np.array([[1, 2], [2, 1], [0, 0]]),
        }
    )
    assert made["n"].values.tolist() == [2, 0, 1]
    assert made["n"].offsets.tolist() == [0, 2, 2, 3]
    assert made["s"].values.tolist() == [1, 0, 0]
    assert made["m"].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_bytes_have_entries_too() -> None:
    vocabulary = Vocabulary(entries={"x": entries([b"\xff", b"a"])})
    assert vocabulary({"x": pa.array([b"a", b"\xff", b"b"])})["x"].tolist() == [2, 1, 0]


def test_nothing_listed_means_everything_is_unknown() -> None:
    vocabulary = Vocabulary(entries={"n": entries([], pa.int64()), "s": entries([], pa.string())}, unknown=3)
    made = vocabulary({"n": np.arange(2), "s": pa.array(["a", None])})
    assert made["n"].tolist() == made["s"].tolist() == [3, 3]
    assert vocabulary.size("n") == 4


def test_one_vocabulary_for_some_columns_as_a_matrix() -> None:
    vocabulary = Vocabulary(entries={"a": entries([5]), "b": entries(["x"])}, columns=["b", "a"], into="m")
    made = vocabulary({"a": np.array([5, 6]), "b": pa.array(["x", "x"])})
    assert made["m"].tolist() == [[1, 1], [1, 0]]


def test_sizes_cover_every_id() -> None:
    listed = {"x": entries([1, 2, 3])}
    assert Vocabulary(entries=listed).size("x") == 4
    assert Vocabulary(entries=listed, first=2, null=1).size("x") == 5
    assert Vocabulary(entries=listed, first=0, unknown=9).size("x") == 10


def test_entries_take_their_own_memory_a_few_times() -> None:
    """Not three hundred bytes for each, to see whether one is there twice."""
    script = """
import numpy as np, pyarrow as pa
from intune.pipelines.transforms import Entries

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

numbers = pa.array(np.arange(400_000) * 7919 * 10**9)
counts = pa.array(np.ones(len(numbers), np.int64))
for values in (numbers, numbers.cast(pa.large_string())):
    Entries(values=values[:10], counts=counts[:10])
    before = peak()
    Entries(values=values, counts=counts)
    print((peak() - before) / values.nbytes)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    of_numbers, of_strings = map(float, ran.stdout.split())
    assert of_numbers < 3
    assert of_strings < 3


def test_it_pickles_before_and_after_use() -> None:
    vocabulary = Vocabulary(entries={"x": entries(["a", "b"])})
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(vocabulary))
        assert copy({"x": pa.array(["b", "c"])})["x"].tolist() == [2, 0]
        vocabulary({"x": pa.array(["b", "c"])})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary(entries={}), "`entries`={} names no column"),
        (
            lambda: Vocabulary(entries={"x": entries([1, 2])}, unknown=2),
            "`unknown`=2 is an entry's id, since ids run",
        ),
        (lambda: Vocabulary(entries={"x": entries([1, 2])}, null=1), "`null`=1 is an entry's id"),
        (lambda: Vocabulary(entries={"x": entries([1])}, first=-1), "`first`=-1"),
        (lambda: entries([1, 1]), "`values` holds a value twice"),
        (lambda: entries(["a", "b", "a"]), "`values` holds a value twice"),
        (lambda: entries([1, None]), "`values` holds a null"),
        (lambda: entries([1.5]), "`values` has type double"),
        (lambda: Entries(values=pa.array([1]), counts=pa.array([], pa.int64())), "`counts` has 0"),
    ],
)
def test_nonsense_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_columns_that_do_not_fit() -> None:
    vocabulary = Vocabulary(entries={"x": entries([1])})
    with pytest.raises(SchemaError, match="column `x` holds string, but its entries are int64; build"):
        vocabulary({"x": pa.array(["1"])})
    with pytest.raises(SchemaError, match="column `x` holds float64"):
        vocabulary({"x": np.zeros(1)})
    with pytest.raises(SchemaError, match="there is no column `x`"):
        vocabulary({"y": np.zeros(1)})
    with pytest.raises(SchemaError, match="column `y` has no entries; there are some for `x`"):
        Vocabulary(entries={"x": entries([1])}, columns="y")({"y": np.arange(1)})


def test_a_table_is_built_once_however_many_threads_ask_for_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    known = entries([7, 5])
    threads = [Thread(target=known.find, args=(np.array([5]),)) for _ in range(4)]
    built = []
    again = Event()

    def build(words: Any) -> Any:
        built.append(words)
        if len(built) == 1:
            for thread in threads:
                thread.start()
            again.wait(0.1)  # none of them gets here, unless nothing keeps it from it
        else:
            again.set()
        return make_lookup(words)

    monkeypatch.setattr(vocabulary, "make_lookup", build)
    assert known.find(np.array([5, 6, 7])).tolist() == [1, -1, 0]
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert pickle.loads(pickle.dumps(known)).find(np.array([7])).tolist() == [0]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_fork_while_another_thread_builds_a_table_can_build_its_own() -> None:
    with vocabulary._building:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(int(entries([7, 5]).find(np.array([5]))[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
