from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines import joining as module
from intune.pipelines.joining import LONG, TRIALS, Joining
from intune.pipelines.payloads import Piece
from intune.pipelines.schema import Block

ROWS, BATCHES = 8, 4


class Function:
    """A function of the user's that takes as long as it is told, by a clock of its own."""

    def __init__(self, per_row: Callable[[int], float], make: Callable[[Block], Block] | None = None) -> None:
        self.per_row = per_row
        self.make = make or (lambda block: {"x": block["x"] * 2})
        self.calls: list[int] = []
        self.now = 0.0

    def __call__(self, block: Block) -> Block:
        rows = len(block["x"])
        self.calls.append(rows)
        self.now += self.per_row(rows) * rows
        return self.make(block)


def pieces(count: int, rows: int = ROWS, batches: int = BATCHES) -> list[Piece]:
    edges = list(range(0, rows * batches + 1, rows))
    whole = np.arange(count * edges[-1], dtype=np.float32).reshape(count, edges[-1])
    return [Piece({"x": part.copy()}, list(edges)) for part in whole]


def run(function: Function, given: list[Piece], joining: Joining | None = None) -> np.ndarray:
    known = Joining(lambda: function.now) if joining is None else joining
    made = [part for piece in given for part in known.results(piece, function)]
    return np.concatenate([batch["x"] for piece in made for batch in piece.batches() if batch is not None])


WHOLE = ROWS * BATCHES
SLOW = 2 * LONG / WHOLE
LEARNING = [WHOLE] * (1 + TRIALS)


def test_a_quick_function_gets_all_batches_at_once_for_ever() -> None:
    function = Function(lambda rows: 0.4 * SLOW if rows == WHOLE else 0.0)
    run(function, pieces(50))
    assert function.calls == [WHOLE] * 50


def test_a_slow_function_that_is_quicker_with_one_batch_gets_one() -> None:
    function = Function(lambda rows: SLOW if rows == WHOLE else SLOW / 2)
    made = run(function, pieces(20))
    compared = [WHOLE, ROWS]
    assert function.calls == LEARNING + compared + [ROWS] * BATCHES * (20 - len(LEARNING) - 1)
    np.testing.assert_array_equal(made, np.arange(20 * WHOLE, dtype=np.float32) * 2)


@pytest.mark.parametrize("share", [0.92, 1.0, 3.0])
def test_a_slow_function_that_gains_little_is_tried_and_gets_all_again(share: float) -> None:
    function = Function(lambda rows: SLOW if rows == WHOLE else share * SLOW)
    run(function, pieces(20))
    singles = [ROWS] * TRIALS
    assert function.calls[: len(LEARNING) + 2 + TRIALS] == [*LEARNING, WHOLE, ROWS, *singles]
    assert function.calls[len(LEARNING) + 2 + TRIALS :] == [WHOLE] * (20 - len(LEARNING) - 2)


def test_the_small_first_tasks_of_an_epoch_decide_nothing() -> None:
    """Two batches at once are done in no time, eight of them are slow."""
    function = Function(lambda rows: SLOW if rows == WHOLE else SLOW / 2 if rows == ROWS else 0.01 * SLOW)
    joining = Joining(lambda: function.now)
    run(function, pieces(2, batches=1) + pieces(3, batches=2), joining)
    assert function.calls == [ROWS] * 2 + [2 * ROWS] * 3
    function.calls.clear()
    run(function, pieces(20), joining)
    assert function.calls == [WHOLE] * TRIALS + [WHOLE, ROWS] + [ROWS] * BATCHES * (20 - TRIALS - 1)


def test_batches_that_come_alone_decide_nothing_for_those_that_lie_together() -> None:
    function = Function(lambda rows: 0.0)
    joining = Joining(lambda: function.now)
    run(function, pieces(20, batches=1), joining)
    function.per_row = lambda rows: SLOW if rows == WHOLE else SLOW / 2
    run(function, pieces(20), joining)
    assert function.calls[-1] == ROWS


def test_first_calls_which_compile_or_import_decide_nothing() -> None:
    function = Function(lambda rows: 0.0)
    function.per_row = lambda rows: 1.0 if len(function.calls) == 1 else 0.1 * SLOW
    run(function, pieces(20))
    assert function.calls == [WHOLE] * 20


def test_a_function_whose_last_bits_depend_on_how_many_rows_it_gets_has_them_all_always() -> None:
    def sloppy(block: Block) -> Block:
        return {"x": np.nextafter(block["x"], np.float32(np.inf)) if len(block["x"]) == ROWS else block["x"]}

    function = Function(lambda rows: SLOW if rows == WHOLE else SLOW / 10, sloppy)
    made = run(function, pieces(20))
    assert function.calls == [*LEARNING, WHOLE, ROWS] + [WHOLE] * (20 - len(LEARNING) - 1)
    np.testing.assert_array_equal(made, np.arange(20 * WHOLE, dtype=np.float32))


def test_a_function_that_changes_what_it_is_given_is_compared_on_the_same_rows() -> None:
    def in_place(block: Block) -> Block:
        block["x"] += 1
        return block

    function = Function(lambda rows: SLOW if rows == WHOLE else SLOW / 2, in_place)
    made = run(function, pieces(20))
    assert function.calls[-1] == ROWS
    np.testing.assert_array_equal(made, np.arange(20 * WHOLE, dtype=np.float32) + 1)


def test_batches_of_unlike_sizes_stay_together() -> None:
    function = Function(lambda rows: SLOW if rows == WHOLE else SLOW / 2)
    joining = Joining(lambda: function.now)
    run(function, pieces(20), joining)
    function.calls.clear()
    last = Piece({"x": np.arange(19, dtype=np.float32)}, [0, ROWS, 2 * ROWS, 19])
    run(function, [last], joining)
    assert function.calls == [19]


def test_batches_that_were_left_out_are_handed_on() -> None:
    function = Function(lambda rows: SLOW)
    [made] = Joining(lambda: function.now).results(Piece(None, [0, 3, 6]), function)
    assert made.block is None
    assert made.edges == [0, 3, 6]
    assert not function.calls


@given(
    st.lists(st.floats(0, 4 * LONG), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_whatever_calls_take_every_row_comes_once_and_in_order(
    seconds: list[float], rows: int, batches: int
) -> None:
    function = Function(lambda rows: 0.0)
    function.per_row = lambda rows: seconds[len(function.calls) % len(seconds)] / rows
    made = run(function, pieces(25, rows, batches))
    np.testing.assert_array_equal(made, np.arange(25 * rows * batches, dtype=np.float32) * 2)


def test_an_error_of_the_function_is_the_callers() -> None:
    def spoilt(block: Block) -> Block:
        raise KeyError("x")

    function = Function(lambda rows: SLOW, spoilt)
    with pytest.raises(KeyError):
        run(function, pieces(1))


def test_copies_that_a_process_gets_are_one_and_know_nothing_of_the_other_process() -> None:
    code = (
        "import pickle, sys; from intune.pipelines.joining import Joining; j = Joining(); j._way = False; "
        "sys.stdout.buffer.write(pickle.dumps(j))"
    )
    sent = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    first, second = pickle.loads(sent), pickle.loads(sent)
    assert first is second
    function = Function(lambda rows: SLOW if rows == WHOLE else SLOW / 2)
    first._clock = lambda: function.now
    run(function, pieces(20), first)
    assert function.calls[0] == WHOLE
    assert function.calls[-1] == ROWS
    del first, second
    gc.collect()
    assert not module._known
