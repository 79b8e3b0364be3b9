"""Which interactions are trained on, which choose among models, which judge: five ways to hold out. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from intune.pipelines.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]
Parts = npt.NDArray[np.int8]

TRAIN, VALID, TEST, CONTEXT = range(4)
"""Parts; context is what a held-out session begins with: neither trained on nor asked for."""

SPLITS = ("train", "valid", "test")
PARTS = (*SPLITS, "context")
"""Names of all parts, in the order of their numbers. Only ``"session-time"`` leaves a context."""

SplitName: TypeAlias = Literal["user-time", "leave-one-out", "session-time", "global-time", "random"]
NAMES = ("user-time", "leave-one-out", "session-time", "global-time", "random")

LEAST_ROWS = 3
"""Interactions that a user needs for something to be held out: one for each part."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How to hold out.

    Attributes:
        name: ``"user-time"``: of every user the last interactions in time are the test's, those before them
            validation's; ``"leave-one-out"``: the last is the test's, the one before it validation's;
            ``"session-time"``: users are sorted by the time of their last interaction and the last users are held
            out whole, of whom the last item is asked for; ``"global-time"``: one moment for all, after which
            everything is the test's; ``"random"``: of every user at random.
        valid_share, test_share: shares of interactions (of users, with ``"session-time"``), above 0; not used by
            ``"leave-one-out"``.
        seed: of ``"random"``.
    """

    name: SplitName = "user-time"
    valid_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"`split`={self.name!r} is unknown; use {', '.join(NAMES)}")
        for name in ("valid_share", "test_share"):
            share = getattr(self, name)
            if not 0 < share < 1:
                raise ConfigError(f"`{name}` must be above 0 and below 1, but {share} was given")
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"`valid_share`={self.valid_share} and `test_share`={self.test_share} leave nothing to train on; "
                f"lower them"
            )
        if self.seed < 0:
            raise ConfigError(f"`seed` must not be negative, but {self.seed} was given")


def assign(user: Ints, timestamp: Ints, options: SplitOptions) -> Parts:
    """The part of every interaction, shape ``(rows,)``.

    Args:
        user: ids, sorted, shape ``(rows,)``.
        timestamp: of the same shape; within a user never decreasing.
        options: see `SplitOptions`. Of users with fewer than three interactions all are trained on, except with
            ``"global-time"``.

    Raises:
        DataError: nothing is left for one of the parts.
    """
    if np.any(np.diff(user) < 0) or np.any((np.diff(timestamp) < 0) & (np.diff(user) == 0)):
        raise DataError(
            "`user` and `timestamp` go backwards, but a split needs them sorted by user and time; `clean` sorts them"
        )
    if options.name == "global-time":
        parts = _global(timestamp, options)
    elif options.name == "session-time":
        parts = _sessions(user, timestamp, options)
    else:
        parts = _by_user(user, options)
    for part, name in enumerate(SPLITS):
        if not np.any(parts == part):
            raise DataError(
                f"the split {options.name!r} leaves no interaction for {name}, of {len(user)} in all; raise its "
                f"share, choose another split or give more data"
            )
    return parts


def _by_user(user: Ints, options: SplitOptions) -> Parts:
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    counts = np.diff(starts, append=len(user))
    owner = np.repeat(np.arange(len(starts)), counts)
    if options.name == "random":
        keys = np.random.default_rng(options.seed).random(len(user))
        place = np.empty(len(user), dtype=np.int64)
        place[np.lexsort((keys, owner))] = np.arange(len(user))
    else:
        place = np.arange(len(user))
    from_end = counts[owner] - 1 - (place - starts[owner])
    if options.name == "leave-one-out":
        test = valid = np.ones(len(counts), dtype=np.int64)
    else:
        # Of ten interactions a share of 0.1 must hold out one, whatever 10 * 0.1 rounds to.
        test = np.maximum(1, np.floor(counts * options.test_share + 1e-9).astype(np.int64))
        valid = np.maximum(1, np.floor(counts * options.valid_share + 1e-9).astype(np.int64))
        # Large shares of few interactions must leave one of `LEAST_ROWS` to each part.
        test = np.minimum(test, np.maximum(counts - 2, 1))
        valid = np.minimum(valid, np.maximum(counts - test - 1, 1))
    parts = np.full(len(user), TRAIN, dtype=np.int8)
    parts[from_end < (test + valid)[owner]] = VALID
    parts[from_end < test[owner]] = TEST
    parts[counts[owner] < LEAST_ROWS] = TRAIN
    return parts


def _global(timestamp: Ints, options: SplitOptions) -> Parts:
    ordered = np.sort(timestamp)
    train_rows = int(len(ordered) * (1 - options.valid_share - options.test_share))
    valid_rows = int(len(ordered) * (1 - options.test_share))
    parts = np.full(len(timestamp), TRAIN, dtype=np.int8)
    # By the moment, not by rows: what happened in the same second stays together.
    parts[timestamp >= ordered[train_rows]] = VALID
    parts[timestamp >= ordered[valid_rows]] = TEST
    return parts


def _sessions(user: Ints, timestamp: Ints, options: SplitOptions) -> Parts:
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    counts = np.diff(starts, append=len(user))
    last = starts + counts - 1
    long_enough = counts >= 2  # an item to begin with and one to ask for
    order = np.argsort(timestamp[last], kind="stable")
    rank = np.empty(len(starts), dtype=np.int64)
    rank[order] = np.arange(len(starts))
    of_session = np.full(len(starts), TRAIN, dtype=np.int8)
    of_session[rank >= int(len(starts) * (1 - options.valid_share - options.test_share))] = VALID
    of_session[rank >= int(len(starts) * (1 - options.test_share))] = TEST
    of_session[~long_enough] = TRAIN
    held_out = np.repeat(of_session, counts) != TRAIN
    parts = np.where(held_out, CONTEXT, TRAIN).astype(np.int8)
    parts[last] = of_session
    return parts
