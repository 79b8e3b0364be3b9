"""`JobSource`: job number k of a scenario, and its disturbances, whatever else is drawn.

Jobs are drawn in blocks, each from a generator seeded by (seed, split, block): vectorised and single environments
that ask for the same number get the same job, and no two splits share a seed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from threading import Lock
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args, overload

import numpy as np
from numpy.typing import NDArray

from intune.envs.conditions import channels
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.pipelines.errors import ConfigError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

BLOCK = 64
"""Jobs drawn at once: enough to share the cost of the draw, few enough not to wait when one is wanted."""

_GROUP = 8
"""Blocks whose jobs are computed together: few calls of NumPy for each, and their arrays fit a core's cache."""

_JOB, _NORMAL, _OTHER = range(3)

_KEPT_BYTES = 64 * 2**20
"""Of blocks that are kept, of jobs and of normals each. Of the latter a block has 1 MB at 5 stages and 200 steps, but
30 MB at 5,000."""

_LEAST_KEPT = 2
"""Blocks kept however large they are: neighbouring jobs are taken from one, or from two where one ends."""

Ids: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]
T = TypeVar("T")


class JobSource:
    """Jobs of `scenario` by number. Threads may ask at the same time. A copy, also by `pickle`, has the same jobs.

    Args:
        scenario: to draw from.
        split: ``train``, ``validation`` or ``test``; they are disjoint.
        seed: 0 to 2^64 - 1.

    Raises:
        ConfigError: an unknown split, or a seed out of range.
    """

    def __init__(self, scenario: Scenario, *, split: Split = "train", seed: int = 0) -> None:
        if split not in SPLITS:
            raise ConfigError(f"`split`={split!r} must be one of {', '.join(SPLITS)}")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"`seed`={seed} must be 0 to 2**64 - 1")
        self.scenario = scenario
        self.split = split
        self.seed = seed
        self._jobs: _Cache[Jobs] = _Cache(_bytes_of)
        self._normals: _Cache[_Normals] = _Cache(_Normals.nbytes)
        self._lock = Lock()  # of both: threads may begin episodes at the same time

    def __reduce__(self) -> tuple[Any, ...]:
        # Blocks are not copied, but drawn again where they are wanted; locks cannot be.
        return partial(type(self), split=self.split, seed=self.seed), (self.scenario,)

    def jobs(self, ids: Ids) -> Jobs:
        """The jobs of these numbers, in this order.

        Raises:
            ConfigError: numbers that are not whole or below 0.
        """
        numbers, blocks = self._numbers(ids)
        drawn = self._drawn(blocks.tolist())
        if len(drawn) == 1:
            return drawn[0].take(numbers % BLOCK)
        together = _joined(drawn)
        return together.take(np.searchsorted(blocks, numbers // BLOCK) * BLOCK + numbers % BLOCK)

    def normals(self, ids: Ids, steps: int) -> NDArray[np.float32]:
        """Standard normal numbers of these jobs, ``[n, steps, channels(S)]``; asking for more steps changes none.

        Raises:
            ConfigError: numbers that are not whole or below 0, or `steps` below 1.
        """
        if steps < 1:
            raise ConfigError(f"`steps`={steps} must be 1 or more")
        numbers, blocks = self._numbers(ids)
        made = np.empty((len(numbers), steps, channels(self.scenario.max_stages)), dtype=np.float32)
        for block in blocks.tolist():
            with self._lock:
                kept = self._normals.get(block) or self._normals.put(block, self._normal(block))
            drawn = kept.first(steps)
            with self._lock:
                self._normals.put(block, kept)  # again: it may have grown
            mine = np.flatnonzero(numbers // BLOCK == block)
            made[_run(mine)] = drawn[:, _run(numbers[mine] % BLOCK)].swapaxes(0, 1)
        return made

    @overload
    def take(self, ids: Ids) -> tuple[Jobs, list[np.random.Generator]]: ...

    @overload
    def take(self, ids: Ids, steps: int) -> tuple[Jobs, NDArray[np.float32]]: ...

    def take(
        self, ids: Ids, steps: int | None = None
    ) -> tuple[Jobs, list[np.random.Generator] | NDArray[np.float32]]:
        """`jobs` of these numbers, with their `normals` of so many steps, or else their `generators`."""
        return self.jobs(ids), self.generators(ids) if steps is None else self.normals(ids, steps)

    def generators(self, ids: Ids) -> list[np.random.Generator]:
        """A generator for each of these jobs, fresh at every call, for whatever else is random about it."""
        return [self._generator(_OTHER, int(number)) for number in self._numbers(ids)[0]]

    def _numbers(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        given = np.asarray(ids)
        if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
            raise ConfigError(f"`ids`={ids!r} must be a list of whole numbers")
        if (given < 0).any() or (given >= 2**62).any():
            raise ConfigError(f"`ids` has {int(given.min())} to {int(given.max())} in it; give 0 to 2**62")
        numbers = given.astype(np.int64)
        return numbers, np.unique(numbers // BLOCK)

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        # Every part has a fixed number of 32-bit words: no two of (seed, split, purpose, number) can coincide.
        words = [self.seed, number]
        halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
        return np.random.default_rng(np.random.SeedSequence([SPLITS.index(self.split), purpose, *halves]))

    def _drawn(self, blocks: list[int]) -> list[Jobs]:
        """The jobs of each block; those that are not kept are drawn several blocks at once."""
        with self._lock:
            found = {block: self._jobs.get(block) for block in blocks}
            missing = [block for block, jobs in found.items() if jobs is None]
            for at in range(0, len(missing), _GROUP):
                group = missing[at : at + _GROUP]
                drawn = self.scenario.draw_each([self._generator(_JOB, each) for each in group], BLOCK)
                for place, block in enumerate(group):
                    # A copy: a view would keep the whole group as long as one of its blocks.
                    rows = np.arange(place * BLOCK, (place + 1) * BLOCK)
                    found[block] = self._jobs.put(block, drawn if len(group) == 1 else drawn.take(rows))
        return [jobs for jobs in found.values() if jobs is not None]

    def _normal(self, block: int) -> _Normals:
        return _Normals(self._generator(_NORMAL, block), channels(self.scenario.max_stages))


class _Normals:
    """The disturbances of one block, drawn step by step, so that a longer draw begins with the shorter one."""

    def __init__(self, rng: np.random.Generator, width: int) -> None:
        self._rng = rng
        self._drawn = np.empty((0, BLOCK, width), dtype=np.float32)
        self._lock = Lock()

    def first(self, steps: int) -> NDArray[np.float32]:
        """``[steps, BLOCK, channels]``."""
        with self._lock:
            more = steps - len(self._drawn)
            if more > 0:
                extra = self._rng.standard_normal((more, *self._drawn.shape[1:]), dtype=np.float32)
                self._drawn = np.concatenate([self._drawn, extra]) if len(self._drawn) else extra
            return self._drawn[:steps]

    def nbytes(self) -> int:
        """Of what is drawn so far."""
        return self._drawn.nbytes


class _Cache(Generic[T]):
    """The values used last, `_KEPT_BYTES` of them; `size` says how many bytes one has."""

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        self._kept: OrderedDict[int, tuple[T, int]] = OrderedDict()
        self.nbytes = 0

    def put(self, number: int, value: T) -> T:
        """Keep `value`, or if it is kept, see how large it is now; it is returned."""
        size = self._size(value)
        self.nbytes += size - self._kept.pop(number, (value, 0))[1]
        self._kept[number] = value, size
        while self.nbytes > _KEPT_BYTES and len(self._kept) > _LEAST_KEPT:
            self.nbytes -= self._kept.popitem(last=False)[1][1]
        return value

    def get(self, number: int) -> T | None:
        """The value of `number` if it is kept."""
        if number not in self._kept:
            return None
        self._kept.move_to_end(number)
        return self._kept[number][0]


def _bytes_of(jobs: Jobs) -> int:
    return sum(getattr(jobs, f.name).nbytes for f in fields(Jobs))


def _joined(parts: list[Jobs]) -> Jobs:
    """Jobs of one scenario one after another; they are of the same width."""
    return Jobs(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Jobs)})


def _run(rows: NDArray[np.int64]) -> Any:
    """`rows` as a slice if they follow one another: copying is then several times faster."""
    first, last = int(rows[0]), int(rows[-1])
    whole = last - first + 1 == len(rows) and (len(rows) == 1 or (np.diff(rows) == 1).all())
    return slice(first, last + 1) if whole else rows
