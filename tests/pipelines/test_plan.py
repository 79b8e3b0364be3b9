from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.pipelines import plan as plan_module
from intune.pipelines.errors import ConfigError
from intune.pipelines.plan import Order, Plan, RowGroups, ShuffleSpec, batch_edges, coalesce, make_plan

Sizes = list[list[int]]

SIZES = st.lists(
    st.lists(st.one_of(st.integers(0, 12), st.sampled_from([0, 1, 50, 130])), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
).filter(lambda files: sum(map(sum, files)) > 0)

KINDS = st.sampled_from(
    [
        ("batch",),
        ("map", "batch"),
        ("batch", "map", "transfer"),
        ("shuffle", "batch"),
        ("shuffle", "batch", "map", "transfer"),
        ("map", "shuffle", "map", "batch", "map"),
        ("batch", "shuffle"),
        ("batch", "map", "shuffle", "map", "transfer"),
    ]
)


def groups_of(sizes: Sizes, row_bytes: float = 8.0) -> RowGroups:
    return RowGroups(
        file=np.array([i for i, file in enumerate(sizes) for _ in file], dtype=np.int64),
        group=np.array([g for file in sizes for g in range(len(file))], dtype=np.int64),
        rows=np.array([rows for file in sizes for rows in file], dtype=np.int64),
        row_bytes=row_bytes,
    )


def order_of(
    kinds: tuple[str, ...], size: int, drop_last: bool = False, window: int = 2, seed: int = 0
) -> Order:
    names = [f"{kind}-{number}" for number, kind in enumerate(kinds)]
    steps: Any = tuple(zip(names, kinds, strict=True))
    shuffle = ShuffleSpec(row_groups=window, seed=seed) if "shuffle" in kinds else None
    return Order(steps=steps, batch_size=size, drop_last=drop_last, shuffle=shuffle)


def rows_delivered(plan: Plan, files: list[list[list[int]]]) -> list[list[int]]:
    """Follow every row through the plan's tasks, one level after the other."""
    made: list[list[Any]] = []
    for number, level in enumerate(plan.levels):
        before = made[-1] if made else []
        outputs: list[Any] = []
        for i in range(len(level)):
            start, stop = int(level.start[i]), int(level.stop[i])
            taken = before[int(level.first[i]) : int(level.last[i])]
            if level.operation == "load":
                block = plan.blocks[i]
                rows = [row for group in block.groups for row in files[block.file][group]]
                outputs.append(rows[block.skip : block.skip + block.rows])
            elif level.operation == "merge":
                window = plan.window_of(start)
                low, high = plan.windows[window], plan.windows[window + 1]
                rows = [row for part in taken for row in part]
                assert len(rows) == high - low, "a merge takes its window's rows, no others"
                cells = (plan.cell_of(low) + plan.cells(window)).tolist()
                assert len(set(cells)) <= plan.cell_count(window)
                batch_of = dict(zip(rows, cells, strict=True))
                ordered = sorted(rows, key=lambda row: batch_of[row])
                outputs.append(ordered[start - low : stop - low])
            elif level.operation == "batch" or not _in_batches(plan, number):
                offset = int(plan.levels[number - 1].start[int(level.first[i])])
                rows = [row for part in taken for row in part]
                if level.operation == "batch":
                    edges = plan.edges[start : stop + 1] - offset
                    outputs.append([rows[a:b] for a, b in itertools.pairwise(edges.tolist())])
                else:
                    outputs.append(rows[start - offset : stop - offset])
            else:
                offset = int(plan.levels[number - 1].start[int(level.first[i])])
                batches = [batch for part in taken for batch in part][start - offset : stop - offset]
                if level.operation == "regroup":
                    batches = [batches[k - start] for k in plan.batch_order(start, stop).tolist()]
                outputs.append(batches)
        _check_rows(plan, number, outputs)
        made.append(outputs)
    return [batch for output in made[-1] for batch in output]


def _check_rows(plan: Plan, number: int, outputs: list[Any]) -> None:
    level = plan.levels[number]
    sizes = [sum(map(len, made)) if _in_batches(plan, number) else len(made) for made in outputs]
    if any(before.operation == "regroup" for before in plan.levels[:number]):
        assert sum(sizes) == level.rows.sum()  # short batches have changed places
    else:
        assert sizes == level.rows.tolist(), f"{level.operation} says {level.rows}, makes {sizes}"


def _in_batches(plan: Plan, number: int) -> bool:
    return any(level.operation == "batch" for level in plan.levels[: number + 1])


@settings(max_examples=100)
@given(
    sizes=SIZES,
    kinds=KINDS,
    batch_size=st.integers(1, 40),
    drop_last=st.booleans(),
    window=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    world=st.integers(1, 4),
    block_rows=st.sampled_from([1, 10, 40, 65_536]),
    chunk_rows=st.sampled_from([1, 30, 65_536]),
)
def test_every_rank_gets_the_documented_rows_in_the_documented_order(
    reference: Callable[..., list[list[int]]],
    numbered: Callable[..., list[list[list[int]]]],
    sizes: Sizes,
    kinds: tuple[str, ...],
    batch_size: int,
    drop_last: bool,
    window: int,
    seed: int,
    epoch: int,
    world: int,
    block_rows: int,
    chunk_rows: int,
) -> None:
    total = sum(map(sum, sizes))
    if total < world or (drop_last and total // world < batch_size):
        return
    files = numbered(sizes)
    order = order_of(kinds, batch_size, drop_last, window, seed)
    shuffle = None
    if "shuffle" in kinds:
        shuffle = "rows" if kinds.index("shuffle") < kinds.index("batch") else "batches"
    seen: list[int] = []
    counts = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", block_rows)
        for rank in range(world):
            plan = make_plan(
                groups_of(sizes), order, epoch=epoch, rank=rank, world_size=world, chunk_rows=chunk_rows
            )
            delivered = rows_delivered(plan, files)
            assert delivered == reference(
                files,
                batch_size=batch_size,
                drop_last=drop_last,
                shuffle=shuffle,
                row_groups=window,
                seed=seed,
                epoch=epoch,
                rank=rank,
                world=world,
                block_rows=block_rows,
            )
            assert plan.batches == len(delivered)
            assert plan.rows == sum(map(len, delivered))
            seen += [row for batch in delivered for row in batch]
            counts.add(len(delivered))
            _check_relations(plan)
    assert len(seen) == len(set(seen)), "a row came twice"
    assert len(counts) == 1 or batch_size == 1, "ranks differ in their number of batches"
    if drop_last:
        assert total - len(seen) < world * batch_size + world, "more is left out than does not fill a batch"
    else:
        assert sorted(seen) == list(range(total)), "a row is missing"


def _check_relations(plan: Plan) -> None:
    """first/last and consumers are inverse relations; need never decreases and says who waits for whom."""
    for below, (before, after) in enumerate(itertools.pairwise(plan.levels)):
        first, last = plan.consumers[below]
        takes = {(i, k) for k in range(len(after)) for i in range(after.first[k], after.last[k])}
        feeds = {(i, k) for i in range(len(before)) for k in range(first[i], last[i])}
        assert takes == feeds
        assert {i for i, _ in takes} == set(range(len(before))), "an output that nobody takes"
    for number, need in enumerate(plan.need):
        assert (np.diff(need) >= 0).all()
        for i in range(len(plan.levels[number])):
            reached, at = {i}, number
            while at < len(plan.levels) - 1:
                first, last = plan.consumers[at]
                reached = {k for j in reached for k in range(first[j], last[j])}
                at += 1
            assert need[i] == min(reached)


@given(total=st.integers(1, 500), world=st.integers(1, 9), size=st.integers(1, 60), drop_last=st.booleans())
def test_ranks_share_rows_in_contiguous_runs_of_as_many_batches(
    total: int, world: int, size: int, drop_last: bool
) -> None:
    if total < world or (drop_last and total // world < size):
        for rank in range(world):
            with pytest.raises(ConfigError):
                batch_edges(total, rank, world, size, drop_last)
        return
    shares = [batch_edges(total, rank, world, size, drop_last) for rank in range(world)]
    counts = {len(edges) - 1 for _, edges in shares}
    assert len(counts) == 1 or (size == 1 and max(counts) - min(counts) == 1)
    for (begin, edges), following in itertools.zip_longest(shares, [begin for begin, _ in shares[1:]]):
        assert edges[0] == 0
        lengths = np.diff(edges)
        assert (lengths > 0).all()
        assert (lengths <= size).all()
        if drop_last:
            assert (lengths == size).all()
        end = begin + int(edges[-1])
        limit = total if following is None else following
        assert end <= limit
        if not drop_last:
            assert end == limit


def test_ranks_without_rows_are_refused_on_every_rank_alike() -> None:
    for rank in range(5):
        with pytest.raises(ConfigError, match="`world_size`=5 is more than the 3 rows"):
            batch_edges(3, rank, 5, 2, False)


def test_a_batch_that_no_rank_can_fill_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"leaves no batch: 10 rows over 2 rank.*use a smaller batch"):
        make_plan(groups_of([[10]]), order_of(("batch",), 6, drop_last=True), world_size=2)


def test_a_plan_worked_by_hand() -> None:
    """Two files of 3+0+2 and 4 rows, blocks of at most 4 rows, batches of 4, whole order by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", 4)
        plan = make_plan(groups_of([[3, 0, 2], [4]]), order_of(("batch", "map"), 4), chunk_rows=4)
    assert [(b.file, b.groups, b.skip, b.rows) for b in plan.blocks] == [
        (0, (0,), 0, 3),
        (0, (2,), 0, 2),
        (1, (0,), 0, 4),
    ]
    load, batch, mapped = plan.levels
    assert (load.start.tolist(), load.stop.tolist()) == ([0, 3, 5], [3, 5, 9])
    assert plan.edges.tolist() == [0, 4, 8, 9]
    assert (batch.first.tolist(), batch.last.tolist()) == ([0, 1, 2], [2, 3, 3])
    assert batch.rows.tolist() == [4, 4, 1]
    assert (mapped.first.tolist(), mapped.last.tolist()) == ([0, 1, 2], [1, 2, 3])
    first, last = plan.consumers[0]
    assert (first.tolist(), last.tolist()) == ([0, 0, 1], [1, 2, 3])
    assert plan.need[0].tolist() == [0, 0, 1]


def test_a_shuffled_plan_worked_by_hand() -> None:
    """Five blocks of 4 rows, windows of 2 blocks, batches of 3, one a task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", 4)
        plan = make_plan(
            groups_of([[4] * 5]), order_of(("shuffle", "batch"), 3, seed=7), epoch=2, chunk_rows=3
        )
    order = np.random.default_rng([7, 2]).permutation(5)
    assert [block.groups[0] for block in plan.blocks] == order.tolist()
    assert plan.windows.tolist() == [0, 8, 16, 20]
    _, merge, batch = plan.levels
    assert merge.start.tolist() == [0, 3, 6, 8, 9, 12, 15, 16, 18]
    assert merge.stop.tolist() == [3, 6, 8, 9, 12, 15, 16, 18, 20]
    assert merge.first.tolist() == [0, 0, 0, 2, 2, 2, 2, 4, 4]
    assert merge.last.tolist() == [2, 2, 2, 4, 4, 4, 4, 5, 5]
    assert plan.edges.tolist() == [0, 3, 6, 9, 12, 15, 18, 20]
    assert (batch.first.tolist(), batch.last.tolist()) == ([0, 1, 2, 4, 5, 6, 8], [1, 2, 4, 5, 6, 8, 9])


def test_the_order_of_whole_batches_does_not_depend_on_how_tasks_are_cut(
    numbered: Callable[..., list[list[list[int]]]],
) -> None:
    sizes = [[40] * 30]
    order = order_of(("batch", "shuffle"), 4, window=3)
    orders = [
        rows_delivered(make_plan(groups_of(sizes), order, chunk_rows=chunk), numbered(sizes))
        for chunk in (1, 12, 37)
    ]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(
    ("chunk_rows", "batches_of_tasks"),
    [(32, [1, 1, 2, *[4] * 31]), (24, [1, 1, 1, *[3] * 41, 2]), (8, [1] * 128)],
)
def test_the_first_batch_waits_for_no_others(chunk_rows: int, batches_of_tasks: list[int]) -> None:
    plan = make_plan(groups_of([[1024]]), order_of(("batch", "map"), 8), chunk_rows=chunk_rows)
    assert plan.batches == 128
    for level in plan.levels[1:]:
        assert (level.stop - level.start).tolist() == batches_of_tasks


def test_the_first_row_group_waits_for_no_others() -> None:
    def read(sizes: Sizes, kinds: tuple[str, ...] = ("batch",), **share: int) -> list[tuple[Any, ...]]:
        plan = make_plan(groups_of(sizes), order_of(kinds, 8), **share)
        return [(block.groups, block.skip, block.rows) for block in plan.blocks]

    small = [[1000] * 11, [1000] * 2]
    assert read(small) == [
        ((0,), 0, 1000),
        ((1,), 0, 1000),
        ((2, 3), 0, 2000),
        ((4, 5, 6, 7), 0, 4000),
        ((8, 9, 10), 0, 3000),
        ((0, 1), 0, 2000),
    ]
    # The second rank's share begins in the middle of a row group; what lies before it is not read.
    assert read(small, rank=1, world_size=2) == [
        ((6,), 500, 500),
        ((7,), 0, 1000),
        ((8, 9), 0, 2000),
        ((10,), 0, 1000),
        ((0, 1), 0, 2000),
    ]
    # What a function, or a shuffle, sees at once stays as it was.
    for kinds in (("map", "batch"), ("batch", "shuffle"), ("shuffle", "batch")):
        assert {groups for groups, *_ in read(small, kinds)} == {tuple(range(11)), (0, 1)}


@pytest.mark.parametrize("kinds", [("shuffle", "batch"), ("batch", "shuffle")])
def test_epochs_and_seeds_have_orders_of_their_own(
    numbered: Callable[..., list[list[list[int]]]], kinds: tuple[str, ...]
) -> None:
    sizes = [[64] * 8]
    seen = {
        str(
            rows_delivered(
                make_plan(groups_of(sizes), order_of(kinds, 8, seed=seed), epoch=epoch), numbered(sizes)
            )
        )
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(seen) == 9


def test_small_row_groups_are_joined_and_large_ones_are_not() -> None:
    groups = groups_of([[1000] * 100, [70_000, 10, 0, 10]])
    assert coalesce(groups) == [
        (0, 0, 65, 65_000),
        (0, 65, 100, 35_000),
        (1, 0, 1, 70_000),
        (1, 1, 4, 20),
    ]
    wide = groups_of([[1000] * 4], row_bytes=plan_module.BLOCK_BYTES / 2000)
    assert [rows for *_, rows in coalesce(wide)] == [2000, 2000]


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [
        (("batch",), 1_000),
        (("shuffle", "batch", "map", "transfer"), 65_536),
        (("batch", "shuffle"), 65_536),
    ],
)
def test_ten_times_as_many_row_groups_take_some_ten_times_as_long_to_plan(
    kinds: tuple[str, ...], rows: int
) -> None:
    def spent(files: int) -> float:
        groups = groups_of([[rows] * 1000] * files)
        began = time.process_time()
        plan = make_plan(groups, order_of(kinds, 8192, window=8))
        assert plan.rows == files * 1000 * rows
        return time.process_time() - began

    few = min(spent(4) for _ in range(3))
    assert spent(40) < 40 * few, "if every row group looked at every other, it would be a hundred times"


def test_dealing_out_the_rows_of_a_large_window_takes_little_memory_and_is_what_it_was() -> None:
    rows, size = 1_000_000, 1000
    plan = make_plan(groups_of([[rows]]), order_of(("shuffle", "batch"), size, seed=3), epoch=5)
    tracemalloc.start()
    try:
        cells = plan.cells(0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * rows
    assert np.array_equal(cells, np.random.default_rng([3, 5, 0]).permutation(rows) // size)


@pytest.mark.parametrize(
    ("begin", "rows", "size"), [(0, 7, 1), (3, 11, 4), (4, 8, 4), (5, 2, 100), (2, 70_000, 1)]
)
def test_every_cell_of_a_window_gets_as_many_rows_as_it_has_places(begin: int, rows: int, size: int) -> None:
    plan = make_plan(groups_of([[begin + rows]]), order_of(("shuffle", "batch"), size))
    part = replace(plan, windows=np.array([begin, begin + rows], dtype=np.int64))
    places = np.arange(begin, begin + rows) // size - begin // size
    assert sorted(part.cells(0).tolist()) == places.tolist()
