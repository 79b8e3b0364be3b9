"""What runs of a DataLoader inside worker processes: its dataset and collate function, as torch's workers do.

Imported by the worker processes themselves; how they are started and spoken to lives in
`intune.pipelines.executors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data._utils import worker as torch_worker

from intune.adapters.dataloader.generators import EpochSeed, as_of, global_states, seed_batch
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.executors.worker_number import worker_number


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """To a process: make one batch of a map-style dataset.

    Attributes:
        random: states of the random generators to make it from; None for seeds of its own.
    """

    ordinal: int
    index: Any
    seed: EpochSeed
    random: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BeginRequest:
    """To a process: begin an iterator over an iterable-style dataset, and leave out the first `skip` batches."""

    worker: int
    seed: EpochSeed
    skip: int


@dataclass(frozen=True, slots=True)
class NextRequest:
    """To a process: make the next batch of its iterator."""


class Worker:
    """A dataset's copy in a worker process. One request at a time.

    Attributes:
        settings: of the DataLoader, with the copy; nothing of its sampler.
    """

    def __init__(self, settings: LoaderSettings) -> None:
        self.settings = replace(settings, index_sampler=None, generator=None)  # which stay with the trainer
        self._begun: tuple[int, int] | None = None
        self._samples: SampleReader | None = None

    def __call__(self, request: Any) -> Any:
        """Answer a request: the batch, or (samples, batch) of an iterator, None at its end."""
        settings = self.settings
        if isinstance(request, FetchRequest):
            self._become(self._number_for(request.ordinal), request.seed)
            seed_batch(request.seed.of_batches, request.ordinal)
            with as_of(request.random):
                return settings.collate_fn(fetch_samples(settings.dataset, request.index, settings.batched))
        if isinstance(request, BeginRequest):
            self._become(request.worker, request.seed)
            self._samples = SampleReader(iter(settings.dataset), settings.batch_size, settings.drop_last)
            for _ in range(request.skip):
                self._samples.next()
            return True
        assert self._samples is not None
        taken = self._samples.next()
        return None if taken is None else (taken[0], settings.collate_fn(taken[1]))

    def _number_for(self, ordinal: int) -> int:
        """Which of torch's workers makes a batch: that of its turn, or one for good where it is told at its start."""
        number = worker_number() or 0 if self.settings.inits_workers else ordinal
        return number % max(1, self.settings.num_workers)

    def _become(self, number: int, seed: EpochSeed) -> None:
        """Be the worker `number` of torch's: seeds, `get_worker_info` and `worker_init_fn`, once for a seed."""
        if self._begun == (seed.base, number):
            return
        torch.set_num_threads(1)
        seed_batch(seed.of_batches, number)
        torch_worker._worker_info = worker_info(self.settings, number, seed)
        if self.settings.inits_workers and (begin := self.settings.worker_init_fn) is not None:
            begin(number)
        self._begun = (seed.base, number)


def worker_info(settings: LoaderSettings, number: int, seed: EpochSeed) -> Any:
    """What torch's worker knows of itself; None where the DataLoader has none, and code asks for that."""
    if not settings.num_workers:
        return None
    return torch_worker.WorkerInfo(
        id=number, num_workers=settings.num_workers, seed=seed.base + number, dataset=settings.dataset
    )


@contextmanager
def like_a_worker(settings: LoaderSettings, seed: EpochSeed, ordinal: int) -> Iterator[None]:
    """Batch `ordinal` is made in this process meanwhile as a worker would; the generators stay as they were.

    Nothing of that where the DataLoader has no workers.
    """
    if not settings.num_workers:
        yield
        return
    number = ordinal % settings.num_workers
    before = torch_worker._worker_info
    with as_of(global_states()):
        seed_batch(seed.of_batches, ordinal)
        torch_worker._worker_info = worker_info(settings, number, seed)
        try:
            yield
        finally:
            torch_worker._worker_info = before


def fetch_samples(dataset: Any, index: Any, batched: bool) -> Any:
    """The samples of one index batch, all at once where the dataset can; a single one without batching."""
    if not batched:
        return dataset[index]
    if getattr(dataset, "__getitems__", None):
        return dataset.__getitems__(index)
    return [dataset[key] for key in index]


class SampleReader:
    """Samples of an iterator, `size` at a time; one by one if `size` is None."""

    def __init__(self, iterator: Any, size: int | None, drop_last: bool) -> None:
        self._iterator = iterator
        self._size = size
        self._drop_last = drop_last
        self._ended = False

    def next(self) -> tuple[int, Any] | None:
        """How many, and the samples; None at the end."""
        samples: list[Any] = []
        while not self._ended and len(samples) < (self._size or 1):
            try:
                samples.append(next(self._iterator))
            except StopIteration:
                self._ended = True
        if self._size is None:
            return (1, samples[0]) if samples else None
        if not samples or (self._drop_last and len(samples) < self._size):
            return None
        return len(samples), samples
