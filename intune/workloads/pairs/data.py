"""Finding a data set of interactions: its pipelines for training, and what is held out for evaluation.

What is trained on is read through a pipeline. Held in memory is what no pipeline can bring batch by batch: ids of
held-out interactions, what each user has seen, the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as arrow_dataset

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError, CorruptError, NotFoundError, SchemaError
from intune.pipelines.schema import Ragged
from intune.workloads.data.description import read_description
from intune.workloads.data.splits import PARTS, SPLITS
from intune.workloads.pairs.distinct import among, distinct

Ints = npt.NDArray[np.int64]
SplitName: TypeAlias = Literal["train", "valid", "test"]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of a table that cannot be read what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; make the data set again with `intune data`") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(f"{path} cannot be read ({error}); make the data set again") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What a model is asked for, row by row; a row is a user, or a session.

    Attributes:
        users: ids, int64, shape ``(rows,)``.
        targets: items that are right answers: a list a row, none empty, each once and none of those in `seen`.
        seen: items that must not be recommended, since the user has had them: a list a row.
        candidates: whether an item may be recommended at all: it has been trained on; shape ``(items,)``.
        train_counts: interactions of each item that are trained on, int64, shape ``(items,)``.
        cold: held-out interactions that are not asked for, since their user or item was never trained on.
        repeated: held-out interactions that are not asked for, since the user had met the item before.
    """

    users: Ints
    targets: Ragged
    seen: Ragged
    candidates: npt.NDArray[np.bool_]
    train_counts: Ints
    cold: int
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, kw_only=True, eq=False)
class RatingData:
    """A folder made by ``intune data movielens`` or ``intune data amazon-reviews``.

    Attributes:
        folder: where it is.
        users, items: how many there are; ids count from 0.
        description: what `read_description` gives.
    """

    folder: Path
    users: int
    items: int
    description: dict[str, Any] = field(default_factory=dict)

    def pipeline(self, table: str = "ratings/train", columns: Sequence[str] | None = None) -> Pipeline:
        """Rows of one of the tables, such as ``"ratings/train"``, ``"sessions/test"``, ``"items"``."""
        return Pipeline.from_parquet(self.folder / table, columns=columns)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One of the tables, read whole; for what a pipeline cannot bring.

        Raises:
            NotFoundError, CorruptError, SchemaError: it is not there, or not as it was written.
        """
        path = self.folder / name
        with _explained(path):
            files = arrow_dataset.dataset(path, format="parquet")
            missing = [column for column in columns or () if column not in files.schema.names]
            if missing:
                raise SchemaError(f"{path} lacks the columns {', '.join(missing)}; make the data set again")
            return files.to_table(columns=None if columns is None else list(columns))

    def all_ratings(self, columns: Sequence[str]) -> pa.Table:
        """Interactions of every part, those that held-out sessions begin with included; errors as of `table`."""
        parts = [part for part in PARTS if part in SPLITS or (self.folder / "ratings" / part).is_dir()]
        return pa.concat_tables(self.table(f"ratings/{part}", columns) for part in parts)

    def rows(self, name: str) -> int:
        """How many rows one of the tables has, by its footers; errors as of `table`."""
        path = self.folder / name
        with _explained(path):
            return int(arrow_dataset.dataset(path, format="parquet").count_rows())

    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """One of the tables piece by piece, to look at its beginning; errors as of `table`."""
        path = self.folder / name
        with _explained(path):
            yield from arrow_dataset.dataset(path, format="parquet").to_batches(columns=list(columns))

    @cached_property
    def train_pairs(self) -> tuple[Ints, Ints]:
        """User and item of every interaction that is trained on, in the order of the file."""
        return self._pairs("train")

    @cached_property
    def train_counts(self) -> Ints:
        """Interactions of each item that are trained on, shape ``(items,)``."""
        return np.bincount(self.train_pairs[1], minlength=self.items)

    @cached_property
    def train_edges(self) -> tuple[Ints, Ints]:
        """The same with each pair once, sorted; a data set may hold repeated interactions."""
        return self._once(*self.train_pairs)

    @cached_property
    def train_seen(self) -> Ragged:
        """Items of each user that are trained on, each once, sorted, a list a user."""
        return grouped(*self.train_edges, rows=self.users)

    def held_out(self, split: Literal["valid", "test"]) -> HeldOut:
        """What is asked for of users: seen are their training items and, in the test, those of validation too.

        Interactions whose user or item was never trained on are not asked for: nothing is known of them here. Nor are
        those with an item that the user has met before, since such items are not recommended.

        Raises:
            SchemaError: nothing is left to ask for.
        """
        if split not in ("valid", "test"):
            raise ConfigError(f"`split`={split!r} holds nothing out; use 'valid' or 'test'")
        user, item = self._pairs(split)
        trained_users = np.bincount(self.train_pairs[0], minlength=self.users) > 0
        known = trained_users[user] & (self.train_counts[item] > 0)
        if not known.any():
            raise SchemaError(
                f"{self.folder} holds out no {split} interaction of a user and an item that are trained on; make the "
                f"data set with another `split`"
            )
        pairs = [self.train_pairs] if split == "valid" else [self.train_pairs, self._pairs("valid")]
        met = self._once(*(np.concatenate(column) for column in zip(*pairs, strict=True)))
        asked = self._once(user[known], item[known])
        new = ~among(self._keys(*asked), self._keys(*met))
        if not new.any():
            raise SchemaError(
                f"{self.folder} holds out no {split} interaction with an item that is new to its user, and others are "
                f"not recommended; make the data set without repeated interactions"
            )
        cold, repeated = int(np.count_nonzero(~known)), int(np.count_nonzero(known) - np.count_nonzero(new))
        user, item = asked[0][new], asked[1][new]
        users = distinct(user)
        seen = grouped(*met, rows=self.users)
        rows = np.searchsorted(users, user)
        return HeldOut(
            users=users,
            targets=grouped(rows, item, rows=len(users)),
            seen=take_lists(seen, users),
            candidates=self.train_counts > 0,
            train_counts=self.train_counts,
            cold=cold,
            repeated=repeated,
        )

    def _keys(self, user: Ints, item: Ints) -> Ints:
        return user * np.int64(self.items) + item

    def _once(self, user: Ints, item: Ints) -> tuple[Ints, Ints]:
        """Each pair once, sorted."""
        return np.divmod(distinct(self._keys(user, item)), np.int64(self.items))

    def _pairs(self, split: SplitName) -> tuple[Ints, Ints]:
        table = self.table(f"ratings/{split}", ["user", "item"])
        pairs = tuple(np.asarray(table.column(name), dtype=np.int64) for name in ("user", "item"))
        for name, ids, count in zip(("user", "item"), pairs, (self.users, self.items), strict=True):
            if len(ids) and not 0 <= ids.min() <= ids.max() < count:
                raise SchemaError(
                    f"{self.folder}/ratings/{split} has {name} ids from {ids.min()} to {ids.max()}, but dataset.json "
                    f"says there are {count}; make the data set again"
                )
        return pairs[0], pairs[1]


def find_rating_data(data: str | Path) -> RatingData:
    """Look at the folder `data`.

    Raises:
        NotFoundError, CorruptError: there is no `dataset.json`, or it cannot be read.
        SchemaError: it is another kind of data set.
    """
    folder = Path(data)
    description = read_description(folder)
    if "users" not in description or "items" not in description:
        raise SchemaError(
            f"{folder} is a data set of kind {description.get('kind')!r}, but interactions are needed; make one with "
            f"`intune data movielens` or `intune data amazon-reviews`"
        )
    return RatingData(
        folder=folder, users=description["users"], items=description["items"], description=description
    )


def grouped(row: Ints, value: Ints, *, rows: int) -> Ragged:
    """Lists of the `value` of each `row` from 0 to `rows` - 1, each list sorted."""
    order = np.lexsort((value, row))
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=offsets[1:])
    return Ragged(value[order], offsets)


def take_lists(lists: Ragged, rows: Ints) -> Ragged:
    """The lists at `rows`, in that order."""
    from intune.pipelines.schema import take_column

    taken = take_column(lists, rows)
    assert isinstance(taken, Ragged)
    return taken
