"""From the row counts of a data set to every task of an epoch: which rows make which batch, and who needs what.

Pure: the same arguments give the same plan on every machine. Nothing that happens at run time (slots, worker
deaths, the executor) changes which rows are in batch k or their order. Reading the row counts lives in
`reading/dataset.py`; running the tasks in `operations.py`; deciding when each starts in `scheduler.py`.

An epoch is a chain of *levels*. A level is one kind of task (load, merge, batch, map, regroup, transfer); its
task ``i`` takes the outputs ``[first[i], last[i])`` of the level before it. Before `batch` a level's output is
measured in rows of this rank's sequence, from there on in batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from intune.pipelines.errors import ConfigError

Ints = np.ndarray[Any, np.dtype[np.int64]]
Operation = Literal["load", "merge", "batch", "map", "regroup", "transfer"]

BLOCK_ROWS = 65_536
"""Row groups smaller than this (and than `BLOCK_BYTES`) are read together with their neighbours: the usual
size of a row group in recommenders' data, some 20 ms of work, against which a task's overhead vanishes."""

BLOCK_BYTES = 32 << 20
"""Decoded bytes at which small row groups stop being read together and batches stop sharing a task: tens of
milliseconds of work, while a few of them in flight stay small beside a trainer's memory."""


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """Row groups of a data set in file order; all arrays have shape ``(row groups,)`` and type int64.

    Attributes:
        file: index of the file.
        group: index of the row group in its file.
        rows: number of rows.
        row_bytes: decoded bytes of one row of the selected columns, as far as the footers tell.
        guessed: whether they may be many times as many, as they may of strings.
    """

    file: Ints
    group: Ints
    rows: Ints
    row_bytes: float
    guessed: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadBlock:
    """What one load task reads: row groups `groups` of one file, of which rows ``[skip, skip + rows)`` count."""

    file: int
    groups: tuple[int, ...]
    skip: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Level:
    """One kind of task; arrays have shape ``(tasks,)``.

    Attributes:
        stage: name of the stage whose slots these tasks take.
        operation: what a task does.
        first, last: task ``i`` takes outputs ``[first[i], last[i])`` of the level before (empty for `load`).
        start, stop: what it makes, in rows of this rank's sequence, or in batches after `batch`.
        rows: rows in what it makes; after whole batches were mixed, what it would be had they not (short
            batches change places too, so a task may differ, the sum does not).
        map_index: for `map`, which of the pipeline's maps.
        view: whether what it makes mostly shows its inputs' memory.
    """

    stage: str
    operation: Operation
    first: Ints
    last: Ints
    start: Ints
    stop: Ints
    rows: Ints
    map_index: int = -1
    view: bool = False

    def __len__(self) -> int:
        return len(self.start)

    @property
    def edges(self) -> Ints:
        """Where what its tasks make begins and ends, shape ``(tasks + 1,)``."""
        return np.append(self.start, self.stop[-1:])


@dataclass(frozen=True, kw_only=True)
class ShuffleSpec:
    """Mix rows (or whole batches, after `batch`) within windows of `row_groups` load blocks; `seed` as given."""

    row_groups: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The stages of a pipeline as the plan sees them, in the user's order.

    Attributes:
        steps: pairs ``(stage name, kind)`` after `load`; kind is ``shuffle``, ``batch``, ``map`` or ``transfer``.
        batch_size: rows of a batch.
        drop_last: leave out what does not fill a batch on every rank.
        shuffle: the window and seed, where there is a shuffle.
        copies: whether `transfer` copies batches, to a device with memory of its own.
    """

    steps: tuple[tuple[str, Literal["shuffle", "batch", "map", "transfer"]], ...]
    batch_size: int
    drop_last: bool
    shuffle: ShuffleSpec | None = None
    copies: bool = False

    @property
    def mixes_rows(self) -> bool:
        """Whether the shuffle comes before the batch."""
        kinds = [kind for _, kind in self.steps]
        return "shuffle" in kinds and kinds.index("shuffle") < kinds.index("batch")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every task of one epoch of one rank.

    Attributes:
        levels: the kinds of task, first to last; the last one's outputs are delivered.
        blocks: what each load task reads.
        edges: batch ``k`` is rows ``[edges[k], edges[k + 1])`` of this rank's sequence, before whole batches
            are mixed.
        windows: row edges of the shuffle's windows, shape ``(windows + 1,)``; empty without row shuffle.
        seed_words: what seeds the shuffle of this epoch.
        row_bytes: decoded bytes of a row, from the footers.
        batch_size: rows of a full batch.
        guessed: whether `row_bytes` is a guess, of which what is read may be many times as much.
    """

    levels: tuple[Level, ...]
    blocks: tuple[LoadBlock, ...]
    edges: Ints
    windows: Ints
    seed_words: tuple[int, ...]
    row_bytes: float
    batch_size: int
    consumers: tuple[tuple[Ints, Ints], ...] = field(repr=False)
    need: tuple[Ints, ...] = field(repr=False)
    guessed: bool = False

    @property
    def batches(self) -> int:
        """Number of batches of the epoch on this rank."""
        return len(self.edges) - 1

    @property
    def rows(self) -> int:
        """Number of rows delivered on this rank."""
        return int(self.edges[-1])

    def window_of(self, row: int) -> int:
        """Index of the shuffle window that holds `row` of this rank's sequence."""
        return int(np.searchsorted(self.windows, row, side="right")) - 1

    def cells(self, window: int) -> np.ndarray[Any, Any]:
        """Which batch of a window each of its rows goes to, counted from the window's first; shape ``(rows,)``.

        Every way of dealing the rows out is as likely; within a batch they keep their order.
        """
        origin, end = int(self.windows[window]), int(self.windows[window + 1])
        first, count = self.cell_of(origin), self.cell_count(window)
        inner = np.arange(first + 1, first + count, dtype=np.int64) * self.batch_size
        places = np.diff(inner, prepend=origin, append=end)
        # Nobody counts this memory, and a window may have tens of millions of rows: two bytes for each, also meanwhile.
        cells = np.repeat(np.arange(count, dtype=np.uint16 if count <= 65_536 else np.int64), places)
        np.random.default_rng([*self.seed_words, window]).shuffle(cells)
        return cells

    def cell_of(self, row: int) -> int:
        """Which batch-sized cell of this rank's sequence a row lies in."""
        return row // self.batch_size

    def cell_count(self, window: int) -> int:
        """How many batches a window has a part in."""
        return self.cell_of(int(self.windows[window + 1]) - 1) - self.cell_of(int(self.windows[window])) + 1

    def batch_order(self, start: int, stop: int) -> Ints:
        """Order in which batches ``[start, stop)`` of one window of batches are delivered."""
        return start + np.random.default_rng([*self.seed_words, start]).permutation(stop - start)


def batch_edges(total: int, rank: int, world: int, size: int, drop_last: bool) -> tuple[int, Ints]:
    """First row of a rank's share and the edges of its batches, relative to it.

    Ranks share the epoch's rows as evenly as they go, in contiguous runs. Every rank gets the same number of
    batches, so that no rank waits for another at the end: with `drop_last` as many full ones as the smallest
    share fills; without it, as many as the largest share needs, where a share that is one row short gives the
    last batch one row of the batch before. (With batches of one row this cannot be had: the counts may then
    differ by one.)
    """
    begin, end = rank * total // world, (rank + 1) * total // world
    rows = end - begin
    if drop_last:
        count = (total // world) // size
        if count == 0:
            raise ConfigError(
                f"`batch({size}, drop_last=True)` leaves no batch: {total} rows over {world} rank(s) give "
                f"{total // world} each; use a smaller batch or drop_last=False"
            )
        return begin, np.arange(count + 1, dtype=np.int64) * size
    if total < world:
        raise ConfigError(f"`world_size`={world} is more than the {total} rows there are; use fewer ranks")
    largest = (total + world - 1) // world
    count = rows if size == 1 else (largest + size - 1) // size
    edges = np.arange(count + 1, dtype=np.int64) * size
    edges[-1] = rows
    edges[-2] = min(int(edges[-2]), rows - 1)
    return begin, edges


def coalesce(groups: RowGroups) -> list[tuple[int, int, int, int]]:
    """Neighbouring small row groups of a file, joined: tuples (file, first group, last group + 1, rows).

    Independent of rank and epoch. Empty row groups are left out unless they lie between others.
    """
    most = int(min(BLOCK_ROWS, max(1.0, BLOCK_BYTES / max(groups.row_bytes, 1.0))))
    blocks: list[tuple[int, int, int, int]] = []
    for file, group, rows in zip(
        groups.file.tolist(), groups.group.tolist(), groups.rows.tolist(), strict=True
    ):
        if rows == 0:
            continue
        if blocks and blocks[-1][0] == file and blocks[-1][3] + rows <= most:
            blocks[-1] = (file, blocks[-1][1], group + 1, blocks[-1][3] + rows)
        else:
            blocks.append((file, group, group + 1, rows))
    return blocks


def make_plan(
    groups: RowGroups,
    order: Order,
    *,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    chunk_rows: int = BLOCK_ROWS,
) -> Plan:
    """The plan of one epoch of one rank.

    Args:
        groups: the data set's row groups.
        order: the pipeline's stages.
        epoch: with the shuffle's seed, decides the order.
        rank, world_size: which share of the rows; see `batch_edges`.
        chunk_rows: about how many rows one batch/map/transfer task handles (whole batches, at least one; the first
            tasks of an epoch handle fewer).
            Changes how work is cut into tasks, never the batches.
    """
    whole = coalesce(groups)
    total = sum(rows for *_, rows in whole)
    begin, edges = batch_edges(total, rank, world_size, order.batch_size, order.drop_last)
    seed_words = (order.shuffle.seed, epoch) if order.shuffle else (0, epoch)
    if order.mixes_rows:
        permuted = np.random.default_rng(list(seed_words)).permutation(len(whole))
        whole = [whole[i] for i in permuted]
    blocks = _cut(whole, begin, begin + int(edges[-1]))
    if order.shuffle is None and order.steps[0][1] == "batch":
        blocks = [*_finer(blocks[0], groups), *blocks[1:]]
    bounds = np.zeros(len(blocks) + 1, dtype=np.int64)
    np.cumsum([block.rows for block in blocks], out=bounds[1:])
    levels = _levels(order, bounds, edges, _batches_per_chunk(groups, order, edges, chunk_rows))
    consumers = tuple(_consumers(before, after) for before, after in itertools.pairwise(levels))
    windows = _windows(bounds, order.shuffle.row_groups) if order.mixes_rows and order.shuffle else _EMPTY
    return Plan(
        levels=levels,
        blocks=tuple(blocks),
        edges=edges,
        windows=windows,
        seed_words=seed_words,
        row_bytes=groups.row_bytes,
        batch_size=order.batch_size,
        consumers=consumers,
        need=_needs(levels, consumers),
        guessed=groups.guessed,
    )


_EMPTY: Ints = np.zeros(0, dtype=np.int64)


def _batches_per_chunk(groups: RowGroups, order: Order, edges: Ints, chunk_rows: int) -> int:
    """Whole batches of one task: near `chunk_rows` and `BLOCK_BYTES`, and enough tasks to share out."""
    rows = min(chunk_rows, BLOCK_BYTES / max(groups.row_bytes, 1.0), int(edges[-1]) / 32)
    return max(1, int(rows) // order.batch_size)


def _cut(whole: Sequence[tuple[int, int, int, int]], begin: int, end: int) -> list[LoadBlock]:
    """The blocks that hold rows ``[begin, end)`` of the epoch, cut to them."""
    blocks: list[LoadBlock] = []
    position = 0
    for file, first, last, rows in whole:
        low, high = max(begin - position, 0), min(end - position, rows)
        if low < high:
            blocks.append(LoadBlock(file=file, groups=tuple(range(first, last)), skip=low, rows=high - low))
        position += rows
    return blocks


def _finer(block: LoadBlock, groups: RowGroups) -> list[LoadBlock]:
    """A block of small row groups in blocks of 1, 1, 2, 4, ... of them, so that the first batch of an epoch waits for
    no others. Only where nothing sees how rows were read: no shuffle, no function before `batch`."""
    members = np.flatnonzero((groups.file == block.file) & np.isin(groups.group, block.groups))
    edges = np.concatenate([[0], np.cumsum(groups.rows[members])])
    inside = (edges[1:] > block.skip) & (edges[:-1] < block.skip + block.rows) & (np.diff(edges) > 0)
    wanted = np.flatnonzero(inside).tolist()
    parts = []
    at, size = 0, 1
    while at < len(wanted):
        first, last = wanted[at], wanted[min(at + size, len(wanted)) - 1]
        low, high = max(int(edges[first]), block.skip), min(int(edges[last + 1]), block.skip + block.rows)
        numbers = tuple(groups.group[members[first : last + 1]].tolist())
        parts.append(
            LoadBlock(file=block.file, groups=numbers, skip=low - int(edges[first]), rows=high - low)
        )
        at += size
        size = at  # 1, 1, 2, 4, ...
    return parts


def _windows(bounds: Ints, size: int) -> Ints:
    """Row edges of windows of `size` blocks; a last window of less than half joins the one before."""
    edges = bounds[::size]
    left_over = (len(bounds) - 1) % size
    if left_over and len(edges) > 1 and left_over * 2 < size:
        edges = edges[:-1]
    return edges if edges[-1] == bounds[-1] else np.append(edges, bounds[-1])


def _over(start: Ints, stop: Ints, bounds: Ints) -> tuple[Ints, Ints]:
    """Ranges of the pieces between `bounds` that overlap ``[start, stop)``."""
    return (
        np.searchsorted(bounds, start, side="right") - 1,
        np.searchsorted(bounds, stop, side="left"),
    )


def _levels(order: Order, bounds: Ints, edges: Ints, per_chunk: int) -> tuple[Level, ...]:
    chunks = _chunks(len(edges) - 1, per_chunk)
    levels = [_loads(bounds)]
    maps = 0
    batched = False
    for stage, kind in order.steps:
        before = levels[-1]
        if kind == "batch":
            rows = edges[chunks]
            level = _level(stage, "batch", before, take=rows, make=chunks, rows=rows, view=True)
            batched = True
        elif kind == "shuffle":
            assert order.shuffle is not None
            if batched:
                block_rows = float(np.mean(np.diff(bounds)))
                per_window = max(1, round(order.shuffle.row_groups * block_rows / order.batch_size))
                level = _mix_batches(stage, before, edges, per_window)
            else:
                windows = _windows(bounds, order.shuffle.row_groups)
                level = _mix_rows(stage, before, windows, order.batch_size * per_chunk)
        else:
            # Batches go on in tasks of `per_chunk`, also out of a window in which whole batches were mixed.
            cuts = chunks if batched else before.edges
            level = _level(
                stage,
                kind,
                before,
                take=cuts,
                make=cuts,
                rows=edges[cuts] if batched else cuts,
                map_index=maps if kind == "map" else -1,
                view=kind == "transfer" and not order.copies,
            )
            maps += kind == "map"
        levels.append(level)
    return tuple(levels)


def _loads(bounds: Ints) -> Level:
    none = np.zeros(len(bounds) - 1, dtype=np.int64)
    return Level(
        stage="load",
        operation="load",
        first=none,
        last=none,
        start=bounds[:-1],
        stop=bounds[1:],
        rows=np.diff(bounds),
    )


def _level(
    stage: str,
    operation: Operation,
    before: Level,
    *,
    take: Ints,
    make: Ints,
    rows: Ints,
    map_index: int = -1,
    view: bool = False,
) -> Level:
    """Tasks cut at the edges `take` of what the level before makes, at `make` of what they make, at `rows` in rows."""
    first, last = _over(take[:-1], take[1:], before.edges)
    return Level(
        stage=stage,
        operation=operation,
        first=first,
        last=last,
        start=make[:-1],
        stop=make[1:],
        rows=np.diff(rows),
        map_index=map_index,
        view=view,
    )


def _chunks(batches: int, per_chunk: int) -> Ints:
    """Edges, in batches, of tasks of `per_chunk` batches. The first `per_chunk` are cut finer, in tasks of 1, 1, 2,
    4, ...: the first batch of an epoch waits for no others, however long the user's function takes for one."""
    doubling = 2 ** np.arange(max(per_chunk - 1, 0).bit_length(), dtype=np.int64)
    edges = np.concatenate([[0], doubling, np.arange(per_chunk, batches, per_chunk)])
    return np.append(edges[edges < batches], batches)


def _mix_rows(stage: str, before: Level, windows: Ints, group_rows: int) -> Level:
    """Rows change places within windows: tasks of `group_rows` rows, each from all blocks of its window."""
    cuts = np.union1d(windows, np.arange(0, windows[-1], group_rows, dtype=np.int64))
    start, stop = cuts[:-1], cuts[1:]
    window = np.searchsorted(windows, start, side="right") - 1
    first, last = _over(windows[window], windows[window + 1], before.edges)
    return Level(
        stage=stage,
        operation="merge",
        first=first,
        last=last,
        start=start,
        stop=stop,
        rows=stop - start,
    )


def _mix_batches(stage: str, before: Level, edges: Ints, per_window: int) -> Level:
    """Whole batches change places within windows of `per_window` batches, wherever the tasks before are cut:
    the order of the batches must not depend on how large an executor's tasks are."""
    count = len(edges) - 1
    windows = np.append(np.arange(0, count, per_window, dtype=np.int64), count)
    return _level(stage, "regroup", before, take=windows, make=windows, rows=edges[windows], view=True)


def _consumers(before: Level, after: Level) -> tuple[Ints, Ints]:
    """For each output of `before`, the range of tasks of `after` that take it (both edges never decrease)."""
    index = np.arange(len(before), dtype=np.int64)
    return (
        np.searchsorted(after.last, index, side="right"),
        np.searchsorted(after.first, index, side="right"),
    )


def _needs(levels: Sequence[Level], consumers: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, ...]:
    """For each task, the first task of the last level that cannot be delivered without it."""
    needs = [np.arange(len(levels[-1]), dtype=np.int64)]
    for first, _ in reversed(consumers):
        needs.append(needs[-1][np.minimum(first, len(needs[-1]) - 1)])
    return tuple(reversed(needs))
