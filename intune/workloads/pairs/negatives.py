"""Draws items that a user has not met, as a stage of the pipeline.

A stage must give the same output when a task is done again, on any worker, so the draw is a function of the seed and
of the rows of the batch, not of a generator that remembers. The rows change with every epoch because the pipeline
shuffles; without a shuffle, or in one batch for all rows (see `batch_sizes.py`), every epoch has the same negatives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.schema import Ragged
from intune.pipelines.whole import at_least
from intune.workloads.pairs.data import RatingData
from intune.workloads.pairs.distinct import among

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Distribution: TypeAlias = Literal["uniform", "popularity"]
DISTRIBUTIONS = ("uniform", "popularity")

ROUNDS = 20
"""Times that items a user has met are drawn again, before the rows left are drawn, user by user, from what that user
has not met, which costs more: of a user who has met half of the catalogue, one draw in a million is left by then."""

MOST_BITS = 1 << 29
"""A bit for each user and item, 64 MiB, makes looking a pair up four times as fast as searching it among the keys."""


@dataclass(frozen=True, kw_only=True)
class NegativeOptions:
    """Which negatives are drawn.

    Attributes:
        distribution: ``"uniform"`` over the items that are trained on, or ``"popularity"``, with probability
            proportional to an item's interactions to the power `power`.
        count: negatives of each row; more than one where a model chooses or mixes among them.
        power: 1 for popularity itself; less evens it out (0.75 after arXiv 1310.4546).
        seed: decides the draw, with the rows of the batch.
    """

    distribution: Distribution = "uniform"
    count: int = 1
    power: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ConfigError(
                f"`distribution`={self.distribution!r} is unknown; use {', '.join(DISTRIBUTIONS)}"
            )
        at_least("count", self.count, 1)
        if not (np.isfinite(self.power) and self.power >= 0):
            raise ConfigError(f"`power` must be 0 or more, but {self.power} was found")
        at_least("seed", self.seed, 0)


class NegativeSampler:
    """A stage for `.map` after `.batch`: adds ``negative``, int64, shape ``(rows, count)``.

    Args:
        seen: items of each user, sorted; none of them is drawn for that user.
        counts: interactions of each item in training, shape ``(items,)``; items without any are not drawn.
        options: which are drawn.

    Raises:
        DataError: a user has met every item that could be drawn.
    """

    def __init__(self, seen: Ragged, counts: Ints, options: NegativeOptions) -> None:
        self.options = options
        self._items = len(counts)
        self._candidates = np.flatnonzero(counts)
        weights = counts[self._candidates].astype(np.float64)
        weights **= options.power if options.distribution == "popularity" else 0.0
        self._weights = weights
        self._shares = np.cumsum(weights) / weights.sum()
        self._seen = _Pairs(seen, self._items)
        met = np.zeros(len(seen), dtype=np.int64)
        owner = np.repeat(np.arange(len(seen)), np.asarray(seen.lengths))
        np.add.at(met, owner, (counts > 0)[np.asarray(seen.values)])
        if (met >= len(self._candidates)).any():
            user = int(np.argmax(met))
            raise DataError(
                f"user {user} has met all {len(self._candidates)} items that are trained on, so no negative can be "
                f"drawn; leave that user out, whose name is in row {user} of the table `users`, or raise `min_rating` "
                f"when making the data set"
            )

    @classmethod
    def of(cls, data: RatingData, options: NegativeOptions) -> NegativeSampler:
        """For what is trained on in `data`."""
        return cls(data.train_seen, data.train_counts, options)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """The batch with ``negative``; it needs ``user`` and ``item``."""
        rows = np.stack([block["user"], block["item"]])
        digest = hashlib.blake2b(rows.tobytes(), digest_size=16).digest()
        rng = np.random.default_rng([self.options.seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])
        return {**block, "negative": self.draw(np.asarray(block["user"], dtype=np.int64), rng)}

    def draw(self, user: Ints, rng: np.random.Generator) -> Ints:
        """Items that each of `user` has not met, independent of each other, shape ``(rows, count)``."""
        users = np.repeat(user, self.options.count)
        drawn = self._any(len(users), rng)
        wrong = np.flatnonzero(self._seen.contains(users, drawn))
        for _ in range(ROUNDS):
            if not len(wrong):
                break
            drawn[wrong] = self._any(len(wrong), rng)
            wrong = wrong[self._seen.contains(users[wrong], drawn[wrong])]
        # What a user has not met is looked up once for all draws of that user.
        wrong = wrong[np.argsort(users[wrong], kind="stable")]
        for places in np.split(wrong, 1 + np.flatnonzero(np.diff(users[wrong]))):
            if len(places):
                drawn[places] = self._unmet(int(users[places[0]]), len(places), rng)
        return drawn.reshape(len(user), self.options.count)

    def _any(self, number: int, rng: np.random.Generator) -> Ints:
        if self.options.distribution == "uniform":
            return self._candidates[rng.integers(0, len(self._candidates), number)]
        place = np.searchsorted(self._shares, rng.random(number), side="right")
        return self._candidates[np.minimum(place, len(self._candidates) - 1)]

    def _unmet(self, user: int, number: int, rng: np.random.Generator) -> Ints:
        met = self._seen.contains(np.full(len(self._candidates), user), self._candidates)
        weights = self._weights * ~met
        return rng.choice(self._candidates, number, p=weights / weights.sum())


class _Pairs:
    """A set of pairs of user and item that is quick to ask."""

    def __init__(self, seen: Ragged, items: int) -> None:
        self._items = items
        owner = np.repeat(np.arange(len(seen)), np.asarray(seen.lengths))
        keys = owner * np.int64(items) + np.asarray(seen.values)
        self._bits: npt.NDArray[np.uint8] | None = None
        if len(seen) * items <= MOST_BITS:
            self._bits = np.zeros(-(-len(seen) * items // 8), dtype=np.uint8)
            np.bitwise_or.at(self._bits, keys >> 3, np.left_shift(1, keys & 7).astype(np.uint8))
        self._keys = np.sort(keys)

    def contains(self, user: Ints, item: Ints) -> Mask:
        """Whether each pair is in the set."""
        keys = user * np.int64(self._items) + item
        if self._bits is not None:
            return np.asarray((self._bits[keys >> 3] >> (keys & 7).astype(np.uint8)) & 1, dtype=np.bool_)
        return among(keys, self._keys)
