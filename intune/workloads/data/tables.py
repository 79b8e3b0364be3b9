"""The tables of a data set of interactions, made from them and their split: ratings, sessions, series, graph. Pure.

`ratings.py` writes them; `intune.workloads.pairs.data` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intune.pipelines.errors import ConfigError
from intune.workloads.data.interactions import Interactions, Ints, Mask
from intune.workloads.data.splits import CONTEXT, PARTS, TRAIN, Parts

DAY_S = 86_400

MOST_CELLS = 1 << 27
"""Numbers in the items' series, which are made in memory: 1 GiB while they are counted."""


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """How time is cut for the items' series.

    Attributes:
        step_days: length of a step, days.
    """

    step_days: float = 7.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.step_days) and self.step_days * DAY_S >= 1):
            raise ConfigError(f"`step_days` must be at least a second, but {self.step_days} days were given")

    @property
    def step_s(self) -> int:
        """Length of a step, whole seconds."""
        return round(self.step_days * DAY_S)


def cold(found: Interactions, parts: Parts) -> Mask:
    """Whether the user or the item of each interaction is never trained on, shape ``(rows,)``."""
    users = np.bincount(found.user[parts == TRAIN], minlength=found.users.num_rows)
    items = np.bincount(found.item[parts == TRAIN], minlength=found.items.num_rows)
    return np.asarray((users[found.user] == 0) | (items[found.item] == 0))


def ratings(found: Interactions, parts: Parts, part: int) -> pa.Table:
    """Interactions of one part, in order of time: user, item, rating, timestamp; those asked for with `cold`."""
    rows = np.flatnonzero(parts == part)
    rows = rows[np.argsort(found.timestamp[rows], kind="stable")]
    columns = {
        "user": pa.array(found.user[rows]),
        "item": pa.array(found.item[rows]),
        "rating": pa.array(found.rating[rows]),
        "timestamp": pa.array(found.timestamp[rows]),
    }
    if part not in (TRAIN, CONTEXT):
        columns["cold"] = pa.array(cold(found, parts)[rows])
    return _required(pa.table(columns))


def train_sessions(found: Interactions, parts: Parts) -> pa.Table:
    """A row per user: user, and the lists items, timestamps and ratings of what is trained on, by time."""
    rows = np.flatnonzero(parts == TRAIN)
    users, counts = np.unique(found.user[rows], return_counts=True)
    return _required(pa.table({"user": pa.array(users), **_lists(found, rows, counts)}))


def held_out_sessions(found: Interactions, parts: Parts, part: int) -> pa.Table:
    """A row per user of whom something is held out in `part`: what was before, and what came.

    Columns: those of `train_sessions` with everything that the user did before the first held-out interaction,
    validation's included in the test; and `targets`, the list of held-out items, by time. Users without anything
    before are left out: there would be an empty session.
    """
    position = np.arange(len(found))
    target = parts == part
    first = np.full(found.users.num_rows, len(found), dtype=np.int64)
    np.minimum.at(first, found.user[target], position[target])
    before = (position < first[found.user]) & ((parts < part) | (parts == CONTEXT))
    before &= first[found.user] < len(found)
    users, counts = np.unique(found.user[before], return_counts=True)
    kept = np.isin(found.user, users) & target
    columns = {"user": pa.array(users), **_lists(found, np.flatnonzero(before), counts)}
    targets = np.bincount(found.user[kept], minlength=found.users.num_rows)[users]
    columns["targets"] = _list(found.item[kept], targets)
    return _required(pa.table(columns))


def series(found: Interactions, options: SeriesOptions) -> tuple[pa.Table, int]:
    """Interactions of every item in every step of time: item, and the list velocity, int32, all of one length.

    All parts count: a forecast is judged by steps, so whoever uses it cuts the list in time.

    Returns:
        The table, a row per item, and the moment at which step 0 begins.
    """
    start = int(found.timestamp.min())
    steps = (int(found.timestamp.max()) - start) // options.step_s + 1
    cells = found.items.num_rows * steps
    if cells > MOST_CELLS:
        raise ConfigError(
            f"`step_days`={options.step_days:g} makes {steps:,} steps of {found.items.num_rows:,} items, {cells:,} "
            f"numbers; make steps longer"
        )
    place = found.item * steps + (found.timestamp - start) // options.step_s
    velocity = np.bincount(place, minlength=cells).astype(np.int32)
    items = np.arange(found.items.num_rows)
    table = pa.table({"item": pa.array(items), "velocity": _list(velocity, np.full(len(items), steps))})
    return _required(table), start


def graph(found: Interactions, parts: Parts) -> pa.Table:
    """An edge per interaction that is trained on: user, item, and weight 1/√(degree of the user · of the item)."""
    rows = np.flatnonzero(parts == TRAIN)
    user, item = found.user[rows], found.item[rows]
    degrees = np.bincount(user)[user] * np.bincount(item)[item]
    weight = (1 / np.sqrt(degrees)).astype(np.float32)
    return _required(pa.table({"user": pa.array(user), "item": pa.array(item), "weight": pa.array(weight)}))


def entities(found: Interactions, parts: Parts) -> dict[str, pa.Table]:
    """The tables `users` and `items`: id, train_count (interactions trained on), and what the source knew."""
    tables = {}
    for name, key, ids, table in (
        ("users", "user", found.user, found.users),
        ("items", "item", found.item, found.items),
    ):
        counts = np.bincount(ids[parts == TRAIN], minlength=table.num_rows)
        table = table.add_column(0, key, pa.array(np.arange(table.num_rows)))
        tables[name] = table.add_column(1, "train_count", pa.array(counts.astype(np.int64)))
    return tables


def split_counts(parts: Parts) -> dict[str, int]:
    """Interactions of each part, by name; of a context only where there is one."""
    counts = {name: int(np.count_nonzero(parts == part)) for part, name in enumerate(PARTS)}
    return {name: count for name, count in counts.items() if count or name != PARTS[CONTEXT]}


def _lists(found: Interactions, rows: Ints, counts: Ints) -> dict[str, pa.Array]:
    return {
        "items": _list(found.item[rows], counts),
        "timestamps": _list(found.timestamp[rows], counts),
        "ratings": _list(found.rating[rows], counts),
    }


def _list(values: npt.NDArray[np.generic], counts: Ints) -> pa.Array:
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _required(table: pa.Table) -> pa.Table:
    """The same, its columns marked as never null."""
    return table.cast(pa.schema([field.with_nullable(False) for field in table.schema]))
