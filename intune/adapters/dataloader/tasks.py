"""A DataLoader's work as the scheduler's tasks: fetch the samples, collate the batch, pin its memory.

One task a batch and stage. In a worker process fetching and collating are one call, since a batch travels better
than its samples; the stage `collate` then hands the batch on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Protocol

import numpy as np
import torch

from intune.adapters.dataloader.batch_bytes import visible_bytes
from intune.adapters.dataloader.generators import random_states
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.sending.worker import fetch_samples
from intune.adapters.dataloader.settings import LoaderSettings, use_device
from intune.pipelines.errors import IntuneError, LoaderError, StageError
from intune.pipelines.operations import Result
from intune.pipelines.plan import Level, Operation, Plan

SEGMENT = 16_384
"""Batches planned at once, since an epoch may be endless. Between two such plans the pipeline runs empty once."""

SHOWN = 8
"""Indices named in an error's message."""


@dataclass(slots=True)
class Made:
    """A batch on its way.

    Attributes:
        item: what it is made of.
        rows: samples in it.
        data: the samples, or the batch.
        collated: whether it is a batch already.
        ended: there was none, since its iterator has come to its end.
        error: what the user's code raised instead; the trainer gets it when the batch's turn comes.
    """

    item: Item
    rows: int
    data: Any
    collated: bool = False
    ended: bool = False
    error: BaseException | None = None


class Fetcher(Protocol):
    """Gets samples or whole batches, on the calling thread."""

    def fetch(self, item: Item) -> Made:
        """What the item stands for."""


def chain_plan(stages: Sequence[str], count: int, rows: int, row_bytes: float) -> Plan:
    """A plan of `count` batches, each by itself through all stages.

    Args:
        rows: samples a batch, until its own number is written into the levels' one array of them.
        row_bytes: bytes that a sample adds at every stage, as far as is known.
    """
    index = np.arange(count, dtype=np.int64)
    nothing = np.zeros(count, dtype=np.int64)
    each = np.full(count, rows, dtype=np.int64)
    later: list[Operation] = ["map"] * (len(stages) - 1)
    operations: tuple[Operation, ...] = ("load", *later)
    levels = tuple(
        Level(
            stage=stage,
            operation=operation,
            first=index if number else nothing,
            last=index + 1 if number else nothing,
            start=index,
            stop=index + 1,
            rows=each,
        )
        for number, (stage, operation) in enumerate(zip(stages, operations, strict=True))
    )
    return Plan(
        levels=levels,
        blocks=(),
        edges=np.arange(count + 1, dtype=np.int64) * rows,
        windows=nothing[:0],
        seed_words=(),
        row_bytes=row_bytes,
        batch_size=rows,
        consumers=((index, index + 1),) * (len(levels) - 1),
        need=(index,) * len(levels),
    )


@dataclass(kw_only=True)
class Sizes:
    """Bytes of a sample in a batch, as seen so far: quick to rise, slow to fall."""

    row_bytes: float = 0.0

    def measure(self, payload: Any) -> Mapping[Hashable, int]:
        """Bytes a payload holds, by what holds them."""
        found = visible_bytes(payload.data)
        if payload.rows:
            seen = sum(found.values()) / payload.rows
            self.row_bytes = max(seen, 0.9 * self.row_bytes + 0.1 * seen)
        return found


class Watch:
    """What one loader's threads do: how many are at a task, and whose code drew random numbers.

    Attributes:
        looks: whether tasks are watched for random numbers.
    """

    def __init__(self) -> None:
        self.looks = False
        self._changed = threading.Condition()
        self._running = 0
        self._drew: set[int] = set()
        self._alarms = 0

    @contextlib.contextmanager
    def task(self, tasks: Tasks, item: Item) -> Iterator[None]:
        """A thread is at one of an item.

        Raises:
            LoaderError: it comes too late.
        """
        with self._changed:
            if tasks.over:
                raise LoaderError("the batches are made anew elsewhere")
            self._running += 1
        try:
            before = random_states() if self.looks and item.made is None else None
            yield
            if before is not None and random_states() != before:  # by its code, or by the trainer's
                self._drew.add(item.ordinal)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def settle(self, tasks: Tasks) -> None:
        """Let no thread begin with `tasks` any more, not even one that has taken its task, and wait until none is at
        it, for half a minute at most: the user's code is about to run in the trainer's."""
        with self._changed:
            tasks.over = True
            self._changed.wait_for(lambda: not self._running, 30.0)

    def suspects(self, ordinal: int) -> bool:
        """Whether random numbers were drawn while a batch was made, by its code or by the trainer's, and it should be
        found out by which. Every false alarm makes that twice as rare, since it costs a batch."""
        with self._changed:
            if ordinal not in self._drew:
                return False
            self._drew.discard(ordinal)
            self._alarms += 1
            return self._alarms & (self._alarms - 1) == 0


@dataclass(kw_only=True)
class Tasks:
    """What one plan's tasks work on, and how: both the work and the runner of a `Run`.

    Attributes:
        items: what task number ``i`` is about; filled by the trainer's thread before the task is offered.
        watch: of the threads that do them.
        device: of the trainer's thread, which pinning must not leave for another; None without pinning.
        over: whether nobody wants them any more.
    """

    plan: Plan
    settings: LoaderSettings
    fetcher: Fetcher
    watch: Watch
    skip: bool = False
    device: int | None = None
    items: dict[int, Item] = field(default_factory=dict)
    over: bool = False

    def where(self, level: int, index: int) -> str:
        """Stage, batch and indices."""
        return where(self.plan.levels[level].stage, self.items[index], self.settings)

    def run(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        """Do a task. What the user's code raises travels on in the batch's place, since batches that come
        before it are to be delivered first.

        Raises:
            LoaderError: nobody wants it any more.
        """
        item = self.items[index]
        stage = self.plan.levels[level].stage
        with self.watch.task(self, item):
            try:
                return Result(self._do(stage, item, inputs))
            except BaseException as error:  # of the user's code: nothing interrupts a worker's thread
                return Result(failed(item, error, where(stage, item, self.settings)))

    def _do(self, stage: str, item: Item, inputs: Sequence[Made]) -> Made:
        if stage == "fetch":
            return self.fetcher.fetch(item) if item.made is None else item.made
        made = inputs[0]
        if made.ended or made.error is not None:
            return made
        if stage == "collate":
            made = made if made.collated else around(item, collated, made, self.settings)
            if stage != self.plan.levels[-1].stage:
                return made
        if not self.settings.pin:  # it may be changed from epoch to epoch, and the stages stay
            return made
        data = (
            pinned(made.data, self.device)
            if self.settings.num_workers  # as torch's thread for it
            else around(item, pinned, made.data, self.device)
        )
        return Made(item, made.rows, data, collated=True)


def around(item: Item, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with what is around it in the trainer's thread."""
    if item.surroundings is None:
        return function(*arguments)
    return item.surroundings.run(function, *arguments)


def collated(made: Made, settings: LoaderSettings) -> Made:
    """Its samples put together to a batch."""
    return Made(made.item, made.rows, settings.collate_fn(made.data), collated=True)


def pinned(batch: Any, device: int | None) -> Any:
    """A copy of a batch in pinned memory, as the DataLoader makes it."""
    from torch.utils.data._utils.pin_memory import pin_memory

    if device is not None:
        use_device(device)
    return pin_memory(batch)  # type: ignore[no-untyped-call]


def pinned_here(made: Made, settings: LoaderSettings) -> Made:
    """A batch in pinned memory, copied in the calling thread; what that raises in its place."""
    try:
        return Made(made.item, made.rows, pinned(made.data, None), collated=True)
    except Exception as error:
        return failed(made.item, error, where("transfer", made.item, settings))


def make_here(item: Item, settings: LoaderSettings) -> None:
    """Make an item's batch in the calling thread, ahead of its tasks; what the user's code raises too."""
    try:
        stage = "fetch"
        data = around(item, fetch_samples, settings.dataset, item.index, settings.batched)
        stage = "collate"
        item.made = around(item, collated, Made(item, item.rows, data), settings)
    except Exception as error:
        item.made = failed(item, error, where(stage, item, settings))


def where(stage: str, item: Item, settings: LoaderSettings) -> str:
    """What is worked on, for a person."""
    if settings.iterable:
        return f"stage {stage!r}, batch {item.turn} of iterator {item.source}"
    what = "indices" if settings.batched else "index"
    return f"stage {stage!r}, batch {item.ordinal} ({what} {_shown(item.index, several=settings.batched)})"


def _shown(index: Any, *, several: bool) -> str:
    """What a sampler gave, which may be anything of the user's."""
    try:
        if not several or not isinstance(index, list | tuple | range | np.ndarray | torch.Tensor):
            return repr(index)
        keys = [repr(key) for key in index[: SHOWN + 1]]
        if len(keys) > SHOWN:
            keys = [*keys[: SHOWN - 1], "…", repr(index[-1])]
        return ", ".join(keys)
    except Exception as error:
        return f"of type {type(index).__name__}, which cannot be shown: {type(error).__name__}"


def in_a_line(error: BaseException) -> str:
    """What kind of an error, and the beginning of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def failed(item: Item, error: BaseException, place: str) -> Made:
    """What stands for a batch that the user's code did not make.

    Apart, since the error's traceback holds the frame that caught it, which must not hold what is made here: the
    two would keep each other until the garbage collector comes by.
    """
    failure = raised(error, place)
    if failure is not error:
        failure.__cause__ = error
    return Made(item, 0, None, error=failure)


def raised(error: BaseException, place: str) -> BaseException:
    """A `StageError` that tells the place, and is also of the user's own type with all that it holds, for who catches
    that; the error itself where that cannot be."""
    message = f"{place}: {type(error).__name__}: {error}"
    kind = type(error)
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return error
    # A StopIteration would end the trainer's loop without a word.
    if issubclass(kind, StopIteration | StopAsyncIteration):
        return StageError(message)
    bases: tuple[type[BaseException], ...] = (kind, StageError)
    if issubclass(kind, IntuneError):
        bases = (kind,)
    elif issubclass(StageError, kind):
        bases = (StageError,)
    # These functions must not know the error: only the garbage collector frees a class, and it frames and batches.
    methods = {
        "__str__": lambda self: message,
        "__reduce_ex__": lambda self, protocol: self.__cause__.__reduce_ex__(protocol),
        "__module__": kind.__module__,
    }
    try:
        mixed: Any = type(kind.__name__, bases, methods)
        # Of its own type first: that of StageError makes no MemoryError and no ExceptionGroup.
        made: BaseException = mixed.__new__(mixed, *error.args)
        made.args = error.args
        _copy_members(error, made)
        made.__dict__.update(error.__dict__)
    except Exception:  # a class that cannot be made this way, or mixed
        with contextlib.suppress(Exception):
            error.add_note(place)
        return error
    return made


def _copy_members(error: BaseException, made: BaseException) -> None:
    """What an exception holds beside its attributes, as an OSError its path."""
    for base in type(error).__mro__:
        if base in (BaseException, object):
            continue
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType | GetSetDescriptorType) and not name.startswith("__"):
                with contextlib.suppress(AttributeError, TypeError):  # not set, or not to be set
                    setattr(made, name, getattr(error, name))


class MapFetcher:
    """Samples of a map-style dataset in this process.

    Args:
        lock: held while a batch is made, where the code must not be used by two threads at once. It is collated
            then, too: samples may lie in memory that is used again for the next, or be read on by `collate_fn`.
    """

    def __init__(self, settings: LoaderSettings, lock: threading.Lock | None = None) -> None:
        self._settings = settings
        self._lock = lock

    def fetch(self, item: Item) -> Made:
        """As `Fetcher.fetch`."""
        if self._lock is None:
            return self._fetch(item)
        with self._lock:
            made: Made = around(item, collated, self._fetch(item), self._settings)
            return made

    def _fetch(self, item: Item) -> Made:
        settings = self._settings
        data = around(item, fetch_samples, settings.dataset, item.index, settings.batched)
        return Made(item, item.rows, data)
