"""A dataset and what goes with it as worker processes get it: a short stream, and files in memory that they map.

Large arrays are in memory twice, in the trainer's process and in a file, however many processes there are: each maps
the file for itself, and only pages that its code writes to become its own. So it costs a process no copy either to
begin anew with the dataset as it was. Files are made again only where something has changed, which is found out
exactly: arrays are compared with the file, and long lists with the items that they had.
"""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intune.adapters.dataloader.sending.long_lists import KeptItems, copied_items, kept_items, long_lists
from intune.adapters.dataloader.sending.mapped_arrays import mapped_again
from intune.adapters.dataloader.sending.runtime import Runtime
from intune.adapters.dataloader.sending.sendable import refusal
from intune.adapters.dataloader.sending.worker import Worker
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.errors import ConfigError
from intune.pipelines.executors.packing import Holder, Sharer, by_value
from intune.pipelines.executors.segments import ALIGNMENT, memory_file

APART = 64 << 10
"""Bytes of an array from which on it is laid into a file: less is copied faster than it is mapped."""

_CHUNK = 1 << 20
_numbers = itertools.count()


class File:
    """Memory that processes of the same user can open as long as this object lives.

    Args:
        write: fills it.

    Attributes:
        number: of no other file of this process.
        path: by which it is opened.
        size: bytes.

    Raises:
        ConfigError: there is no room for it.
    """

    def __init__(self, write: Callable[[io.BufferedWriter], object]) -> None:
        self.number = next(_numbers)
        try:
            self._fill(write)
        except OSError as error:
            raise ConfigError(
                f"there is no room for what worker processes are sent ({error}); allow larger files (ulimit -f) and "
                "more open files (ulimit -n), or make room in the folder for temporary files (TMPDIR)"
            ) from error

    def _fill(self, write: Callable[[io.BufferedWriter], object]) -> None:
        descriptor = memory_file("intune-dataset")
        if descriptor is not None:
            self.path = f"/proc/{os.getpid()}/fd/{descriptor}"
            weakref.finalize(self, os.close, descriptor)
        else:
            descriptor, self.path = tempfile.mkstemp("intune-dataset")
            weakref.finalize(self, os.unlink, self.path)
            weakref.finalize(self, os.close, descriptor)
        with open(descriptor, "wb", closefd=False) as file:
            write(file)
            self.size = file.tell()


class Frozen:
    """A long list or dictionary of what cannot change: it is as it was if it has the same items.

    Attributes:
        kept: itself, and the items.
        file: the items, pickled.
    """

    def __init__(self, kept: KeptItems) -> None:
        self.kept = kept
        self.file = File(lambda file: pickle.Pickler(file, protocol=5).dump(kept.items))


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What is sent.

    Attributes:
        stream: to be unpickled in a worker process, where it makes a `Worker`; holds the files.
        digest: of `content`.
        content: pickled one after the other, what this process has set for all code in it, and the dataset and the
            worker but for what is apart.
        begin: where in it the latter begin.
        lists: long lists that are apart.
        buffers: where the bytes of each array lie that is apart, and how many.
        arrays: those bytes.
    """

    stream: bytes
    digest: bytes
    content: File
    begin: int
    lists: tuple[Frozen, ...]
    buffers: tuple[tuple[int, int], ...]
    arrays: File | None

    @classmethod
    def of(cls, settings: LoaderSettings, before: Parcel | None = None) -> Parcel:
        """The dataset as it is now.

        Args:
            before: given back where nothing has changed since.

        Raises:
            ConfigError: something of it cannot be pickled, or there is no room for it.
        """
        try:
            runtime = by_value(Runtime.now())
            lists = _lists(settings.dataset, () if before is None else before.lists)
            content, found, held = _dumped((settings.dataset, Worker(settings)), lists)
        except ConfigError:  # no room for a list
            raise
        except Exception as error:  # pickling runs the code of whatever the dataset refers to
            raise refusal(error, settings) from error
        hashed = hashlib.blake2b(runtime)
        hashed.update(content)
        digest, begin = hashed.digest(), len(runtime)
        buffers = _laid_out(found)
        if before is not None and buffers == before.buffers and _equal(found, before):
            if (digest, lists) == (before.digest, before.lists):
                return before
            arrays = before.arrays
        else:
            arrays = File(lambda file: _write(file, found, buffers)) if found else None
        file = File(lambda file: file.writelines((runtime, content)))
        arriving = _Call(_arrived, file.path, begin, None if arrays is None else arrays.path, buffers)
        return cls(
            stream=Holder(pickle.dumps(arriving, protocol=5), [held, file, arrays, lists]),
            digest=digest,
            content=file,
            begin=begin,
            lists=lists,
            buffers=buffers,
            arrays=arrays,
        )

    @property
    def again(self) -> bytes:
        """The stream, as another object: who gets it makes the dataset again."""
        return Holder(self.stream, [self.stream])

    def opened(self) -> Worker:
        """What a process makes of it, made in this one: the dataset as it was."""
        arrays = None if self.arrays is None else self.arrays.path
        try:
            return _made(self.content.path, self.begin, arrays, self.buffers)[1]
        finally:
            _items.clear()  # which processes keep for the next one

    def bytes_for(self, processes: int) -> int:
        """About how much memory it takes besides the dataset itself, in files and in so many processes."""
        own = self.content.size + sum(one.file.size for one in self.lists)
        return (1 + processes) * own + sum(size for _, size in self.buffers)


# ---- in the trainer's process ------------------------------------------------------------------------------


def _lists(dataset: Any, before: Sequence[Frozen]) -> tuple[Frozen, ...]:
    found = (one.items for one in long_lists(dataset))
    known = {id(one.kept.value): one for one in before}
    lists: list[Frozen] = []
    for items in found:
        one = known.get(id(items))
        if one is not None and one.kept.still(items):
            lists.append(one)
        elif (kept := kept_items(items)) is not None:
            lists.append(Frozen(kept))
    return tuple(lists)


def _dumped(value: Any, lists: Sequence[Frozen]) -> tuple[memoryview, list[memoryview], list[Any]]:
    """Pickled; what is apart of it; and what has to live as long."""
    file, found = io.BytesIO(), list[memoryview]()

    def take(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= APART:
            found.append(raw)
        return raw.nbytes < APART

    pickler = _Pickler(file, protocol=5, buffer_callback=take)
    places = [_Call(_listed, one.file.number, one.file.path) for one in lists]
    pickler.dump(places)
    # From now on, a list counts as pickled where the other process has made it of the place.
    apart = {id(place): one.kept.value for place, one in zip(places, lists, strict=True)}
    pickler.memo = {
        id(apart.get(key, known)): (number, apart.get(key, known))
        for key, (number, known) in pickler.memo.copy().items()
    }
    pickler.dump(value)
    return file.getbuffer(), found, pickler.held


class _Pickler(Sharer):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and _is_apart(value):
            return _tensor, (value.reshape(-1).view(torch.uint8).numpy(), value.dtype, tuple(value.shape))
        if (again := mapped_again(value)) is not None:
            return again
        return super().reducer_override(value)


def _is_apart(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but its bytes, and so many that they are laid into a file."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.nbytes >= APART
        and tensor.is_contiguous()
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_nested)
        and not (tensor.is_neg() or tensor.is_conj())
        and not tensor.is_shared()  # type: ignore[no-untyped-call]
        and not vars(tensor)
    )


def _laid_out(found: Sequence[memoryview]) -> tuple[tuple[int, int], ...]:
    ends = itertools.accumulate((-(-raw.nbytes // ALIGNMENT) * ALIGNMENT for raw in found), initial=0)
    return tuple((begin, raw.nbytes) for begin, raw in zip(ends, found, strict=False))


def _write(file: io.BufferedWriter, found: Sequence[memoryview], buffers: Sequence[tuple[int, int]]) -> None:
    for raw, (begin, _) in zip(found, buffers, strict=True):
        file.seek(begin)
        file.write(raw)


def _equal(found: Sequence[memoryview], parcel: Parcel) -> bool:
    """Whether these are the bytes in a parcel's file."""
    path = None if parcel.arrays is None else parcel.arrays.path
    kept = _mapped(path, parcel.buffers)
    return all(
        np.array_equal(
            np.frombuffer(one[at : at + _CHUNK], np.uint8), np.frombuffer(raw[at : at + _CHUNK], np.uint8)
        )
        for one, raw in zip(kept, found, strict=True)
        for at in range(0, raw.nbytes, _CHUNK)
    )


# ---- in a worker process -----------------------------------------------------------------------------------


class _Call:
    """What calling a function makes in the other process.

    Args:
        function: by name.
        arguments: of it.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


_last: Callable[[], Worker | None] = lambda: None  # noqa: E731
_items: dict[int, Any] = {}
_used: set[int] = set()


def _arrived(content: str, begin: int, arrays: str | None, buffers: Sequence[tuple[int, int]]) -> Worker:
    global _last
    if (last := _last()) is not None:
        vars(last).clear()  # nobody asks it any more, and two datasets may be more than there is memory for
        del last
    with open(content, "rb") as file:
        runtime: Runtime = pickle.load(file)
    runtime.apply()
    _used.clear()
    worker: Worker = _made(content, begin, arrays, buffers)[1]
    for number in _items.keys() - _used:
        del _items[number]
    runtime.apply_to_modules()
    _last = weakref.ref(worker)
    return worker


def _made(
    content: str, begin: int, arrays: str | None, buffers: Sequence[tuple[int, int]]
) -> tuple[Any, Worker]:
    with _without_collecting(), open(content, "rb") as file:
        file.seek(begin)
        unpickler = pickle.Unpickler(file, buffers=_mapped(arrays, buffers))
        unpickler.load()  # the places
        made: tuple[Any, Worker] = unpickler.load()
    return made


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Python looks for garbage every so many objects that are made, among all there are: of millions, for seconds."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _mapped(path: str | None, buffers: Sequence[tuple[int, int]]) -> list[memoryview]:
    """Parts of a file; what is written to them is seen by nobody else."""
    if path is None:
        return []
    with open(path, "rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return [whole[begin : begin + size] for begin, size in buffers]


def _listed(number: int, path: str) -> Any:
    """A list with the items in a file. The items are kept, since they cannot change."""
    if number not in _items:
        with open(path, "rb") as file:
            _items[number] = pickle.load(file)
    _used.add(number)
    return copied_items(_items[number])


def _tensor(data: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)
