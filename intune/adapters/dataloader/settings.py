"""What a `torch.utils.data.DataLoader` was asked for, read once and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from intune.pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """A DataLoader's arguments, as far as they decide what its batches are and how they are made.

    Attributes:
        dataset: map-style or iterable-style.
        iterable: which of the two.
        index_sampler: gives what one batch is made of: lists of indices, or single keys without batching; None
            for an iterable-style dataset.
        batched: whether samples are put together to batches (False for ``batch_size=None``).
        batch_size: samples of a batch; None without batching, and where a batch sampler was given.
        drop_last: leave out an iterable-style dataset's last batch if it is short.
        collate_fn: makes the batch of the samples.
        num_workers: as given; 0 means that the dataset is used in the trainer's process.
        prefetch: index batches that the DataLoader takes from its sampler ahead of what it has handed over.
        worker_init_fn: called in every worker process.
        persistent: whether worker processes and their copies of the dataset are kept from epoch to epoch.
        timeout: seconds to wait for a batch, None without limit.
        in_order: whether batches come in the sampler's order.
        pin: whether batches are copied to pinned memory.
        generator: gives the seeds; None for torch's global one.
    """

    dataset: Any
    iterable: bool
    index_sampler: Any
    batched: bool
    batch_size: int | None
    drop_last: bool
    collate_fn: Callable[[Any], Any]
    num_workers: int
    prefetch: int
    worker_init_fn: Callable[[int], None] | None
    persistent: bool
    timeout: float | None
    in_order: bool
    pin: bool
    generator: torch.Generator | None

    @property
    def sources(self) -> int:
        """Iterators over an iterable-style dataset: one for each worker of the DataLoader."""
        return max(1, self.num_workers)

    @property
    def inits_workers(self) -> bool:
        """Whether `worker_init_fn` is called: there are processes that it is made for."""
        return self.worker_init_fn is not None and self.num_workers > 0


def read_settings(dataloader: Any) -> LoaderSettings:
    """The settings of a DataLoader.

    Raises:
        ConfigError: it is none, or one of a kind that cannot be taken apart.
    """
    if not isinstance(dataloader, DataLoader):
        raise ConfigError(
            f"`dataloader` must be a torch.utils.data.DataLoader, but {type(dataloader).__name__} was given"
        )
    for method in ("__iter__", "_get_iterator"):
        if getattr(type(dataloader), method, None) is not getattr(DataLoader, method, None):
            saved = hasattr(dataloader, "state_dict")  # as torchdata's StatefulDataLoader has it
            raise ConfigError(
                f"`dataloader` is a {type(dataloader).__name__}, whose own {method} would be passed over; "
                f"wrap the plain DataLoader{', which then has a state_dict() too' if saved else ''}"
            )
    dataset = dataloader.dataset
    if any(base.__name__ in ("IterDataPipe", "MapDataPipe") for base in type(dataset).__mro__):
        raise ConfigError(
            f"`dataset` is a {type(dataset).__name__}; data pipes cannot be taken apart: use a Dataset or an "
            "IterableDataset"
        )
    iterable = isinstance(dataset, IterableDataset)
    batched = dataloader.batch_sampler is not None
    workers = int(dataloader.num_workers)
    return LoaderSettings(
        dataset=dataset,
        iterable=iterable,
        index_sampler=None if iterable else (dataloader.batch_sampler if batched else dataloader.sampler),
        batched=batched,
        batch_size=dataloader.batch_size,
        drop_last=bool(dataloader.drop_last),
        collate_fn=dataloader.collate_fn,
        num_workers=workers,
        prefetch=workers * int(dataloader.prefetch_factor or 0),
        worker_init_fn=dataloader.worker_init_fn,
        persistent=bool(dataloader.persistent_workers),
        timeout=float(dataloader.timeout) or None,
        in_order=bool(getattr(dataloader, "in_order", True)) or iterable or workers == 0,
        pin=bool(dataloader.pin_memory) and pinning_device() is not None,
        generator=dataloader.generator,
    )


def same_settings(settings: LoaderSettings, others: LoaderSettings) -> bool:
    """Whether they are of the very same objects: those of the user may not know whether they are equal."""
    pairs = [(getattr(settings, each.name), getattr(others, each.name)) for each in fields(LoaderSettings)]
    return all(
        one is other or (isinstance(one, int | float) and type(one) is type(other) and one == other)
        for one, other in pairs
    )


def pinning_device() -> str | None:
    """The kind of accelerator that pinned memory is for; None where there is none."""
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6 and later
    if accelerator is None:
        return "cuda" if torch.cuda.is_available() else None
    if not accelerator.is_available():
        return None
    device = accelerator.current_accelerator()
    return None if device is None or device.type == "mps" else str(device.type)


def current_device() -> int:
    """Which device the calling thread uses."""
    accelerator = getattr(torch, "accelerator", None)
    return int(torch.cuda.current_device() if accelerator is None else accelerator.current_device_index())


def use_device(index: int) -> None:
    """Have the calling thread use a device: a new thread uses the first, where it then takes memory."""
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None:
        torch.cuda.set_device(index)
    else:
        accelerator.set_device_index(index)
