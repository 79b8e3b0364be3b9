"""Interactions of users with items, as readers find them and as models need them: cleaned, in order, ids from 0.

Where they come from is `movielens.py`'s and `amazon.py`'s business; what is written is `ratings.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.whole import at_least

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LATEST = 1 << 36
"""Seconds since 1970 beyond which a time must be in another unit: in the year 4147, or milliseconds of 1972."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Who met what, when, and how they rated it; row ``k`` of every array belongs together.

    Attributes:
        user: row of `users`, int64, shape ``(rows,)``.
        item: row of `items`, int64, shape ``(rows,)``.
        rating: float32, shape ``(rows,)``.
        timestamp: seconds since 1970, int64, shape ``(rows,)``.
        users: a row each; has the column `user_id`, the name that the source gave.
        items: a row each; has the columns `item_id`, `title`, `year`, `genres` (list) and `text`.
        source: where they were read from, for messages.
    """

    user: Ints
    item: Ints
    rating: npt.NDArray[np.float32]
    timestamp: Ints
    users: pa.Table
    items: pa.Table
    source: str

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Ints | Mask) -> Interactions:
        """The interactions at `rows`, in that order; all users and items stay."""
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            rating=self.rating[rows],
            timestamp=self.timestamp[rows],
        )


@dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """Which interactions count.

    Attributes:
        min_rating: leave out those rated lower; None: all count, whatever the rating.
        core: leave out users and items with fewer interactions than this, again and again until none is left.
        keep_repeated: count a user's later interactions with the same item, too: where it is consumed again and
            again, they are what makes it trend.
    """

    min_rating: float | None = None
    core: int = 1
    keep_repeated: bool = False

    def __post_init__(self) -> None:
        if self.min_rating is not None and not np.isfinite(self.min_rating):
            raise ConfigError(f"`min_rating` must be a number, but {self.min_rating} was given")
        at_least("core", self.core, 1, "1 leaves nobody out")


@dataclass(frozen=True, kw_only=True)
class Left:
    """How many interactions were left out, by reason.

    Attributes:
        low_rating: rated below `min_rating`.
        repeated: a user's later interactions with the same item; the first counts, since a model that has seen it
            in training would be asked for it again in the test.
        outside_core: of users or items with too few.
    """

    low_rating: int
    repeated: int
    outside_core: int


def clean(found: Interactions, options: CleaningOptions) -> tuple[Interactions, Left]:
    """Interactions that count, by user and within a user by time, of users and items that have any.

    Files need not be in order of time: rows are sorted, those of one second stay as they stood in the file.
    Ids are given anew, from 0, in the order of the tables.

    Raises:
        DataError: an id outside its table, a rating that is no number, a time that cannot be; or fewer than two
            users or items are left, among which nothing could be ranked or compared.
    """
    check(found)
    total = len(found)
    if options.min_rating is not None:
        found = found.take(found.rating >= options.min_rating)
    liked = len(found)
    found = found.take(np.lexsort((found.timestamp, found.user)))
    if not options.keep_repeated:
        found = found.take(first_of_each(found.user * np.int64(found.items.num_rows) + found.item))
    unique = len(found)
    found = _core(found, options.core)
    left = Left(low_rating=total - liked, repeated=liked - unique, outside_core=unique - len(found))
    found = _compact(found)
    for name, table in (("user", found.users), ("item", found.items)):
        if table.num_rows < 2:
            raise DataError(
                f"{found.source} has {table.num_rows} {name}{'s' if table.num_rows != 1 else ''} left, but at "
                f"least 2 are needed; lower `core` or `min_rating`, or give more data"
            )
    return found, left


def check(found: Interactions) -> None:
    """Raise a `DataError` that names the first interaction that cannot be, counting from 1."""
    for name, ids, table in (("user", found.user, found.users), ("item", found.item, found.items)):
        outside = (ids < 0) | (ids >= table.num_rows)
        _refuse(outside, found, ids, f"the {name}", f"ids from 0 to {table.num_rows - 1}")
    _refuse(~np.isfinite(found.rating), found, found.rating, "the rating", "a finite number")
    impossible = (found.timestamp < 0) | (found.timestamp > LATEST)
    _refuse(impossible, found, found.timestamp, "the time", "seconds (not milliseconds) since 1970")


def _refuse(wrong: Mask, found: Interactions, values: npt.NDArray[Any], what: str, expected: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{found.source}, interaction {row + 1}: {what} is {values[row]}, but must be {expected}; "
            f"correct or remove that line"
        )


def first_of_each(keys: Ints) -> Mask:
    """Whether each of `keys` occurs there for the first time, shape as `keys`."""
    first = np.zeros(len(keys), dtype=np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _core(found: Interactions, least: int) -> Interactions:
    if least == 1:
        return found
    while True:
        users = np.bincount(found.user, minlength=found.users.num_rows)
        items = np.bincount(found.item, minlength=found.items.num_rows)
        kept = (users[found.user] >= least) & (items[found.item] >= least)
        if kept.all():
            return found
        found = found.take(kept)


def _compact(found: Interactions) -> Interactions:
    """Only users and items that occur, numbered anew."""
    users, user = np.unique(found.user, return_inverse=True)
    items, item = np.unique(found.item, return_inverse=True)
    return replace(
        found,
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        users=found.users.take(pa.array(users)),
        items=found.items.take(pa.array(items)),
    )
