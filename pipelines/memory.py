"""What memory blocks keep alive, counted exactly, and what processes really occupy.

Blocks share memory: eight batches are views of the row group they were cut from. So not blocks are counted but
the buffers under them, their *roots*: each once, for as long as any block uses it. Finding the roots of a
payload is pure and done outside any lock; `MemoryLedger` then only adds integers.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Hashable, Iterable, Mapping, ValuesView
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from intune.pipelines.budget import Budget, Usable, format_bytes, parse_bytes
from intune.pipelines.schema import Array, Ragged

__all__ = [
    "Budget",
    "MemoryLedger",
    "Usable",
    "format_bytes",
    "parse_bytes",
    "peak_resident_bytes",
    "resident_bytes",
    "roots",
]


class MemoryLedger:
    """Bytes of the distinct buffers that registered blocks keep alive.

    Not thread-safe: the scheduler calls it under its lock. Release a block before letting go of its payload:
    an address may be given to another buffer once its owner is gone.

    Attributes:
        held: bytes held now.
        peak: most bytes ever held at once.
    """

    __slots__ = ("_blocks", "_buffers", "held", "peak")

    def __init__(self) -> None:
        self._blocks: dict[Hashable, tuple[Hashable, ...]] = {}
        self._buffers: dict[Hashable, list[int]] = {}  # [blocks that use it, bytes]
        self.held = 0
        self.peak = 0

    def __len__(self) -> int:
        """Blocks registered."""
        return len(self._blocks)

    def add(self, key: Hashable, roots: Mapping[Any, int]) -> int:
        """Register a block; one of the same key is replaced.

        Args:
            key: names the block for `release`.
            roots: bytes of each buffer, by what identifies it: an address within this process (see the function
                `roots`), something that says which process otherwise.

        Returns:
            bytes held now that were not before; those of a replaced block's buffers that go are not subtracted.
        """
        replaced = self._blocks.pop(key, ())
        buffers = self._buffers
        new = 0
        for root, size in roots.items():
            entry = buffers.get(root)
            if entry is None:
                buffers[root] = [1, size]
                new += size
                continue
            entry[0] += 1
            if size > entry[1]:
                # Only part of it was seen before (a tensor shows no more of a buffer than its own storage).
                new += size - entry[1]
                entry[1] = size
        self._blocks[key] = tuple(roots)
        self.held += new
        self._drop(replaced)
        self.peak = max(self.peak, self.held)
        return new

    def release(self, key: Hashable) -> int:
        """Forget a block; bytes that are held no longer. A key that is not registered holds nothing."""
        return self._drop(self._blocks.pop(key, ()))

    def clear(self) -> None:
        """Forget every block; `peak` stays."""
        self._blocks.clear()
        self._buffers.clear()
        self.held = 0

    def _drop(self, roots: Iterable[Hashable]) -> int:
        freed = 0
        for root in roots:
            entry = self._buffers[root]
            entry[0] -= 1
            if not entry[0]:
                freed += entry[1]
                del self._buffers[root]
        self.held -= freed
        return freed


def roots(payload: Any) -> dict[Any, int]:
    """Address -> bytes of every distinct buffer that `payload` keeps alive; of a device's memory, device and address.

    Takes columns (NumPy arrays, Arrow arrays, tensors, `Ragged`), blocks, and lists of these at any depth. A
    view counts with the whole buffer under it: NumPy views by their base, Arrow arrays by their buffers'
    parents, NumPy arrays over an Arrow array or a tensor by what they lie over. Anything else (None, numbers, a
    block that could not be read) holds nothing. An object with a method `values` is taken for a block. A batch on its
    way to a device counts with what it comes from; what was made on the device by a user's function counts as well,
    since nothing else would keep a pipeline from filling it.

    Some things cannot be seen from outside: a tensor made over part of a NumPy array counts with that part
    only, an array of Python objects with its pointers only, and sparse tensors, which are no columns, not at all.
    """
    found: dict[Any, int] = {}
    _walk(payload, found, set())
    return found


def _walk(payload: Any, found: dict[Any, int], seen: set[int]) -> None:
    """Collect into `found`; `seen` has the ids of root arrays that were collected already.

    The payload keeps those arrays alive meanwhile, so that an id means one array. Looking up an id is what
    makes many views of few arrays cheap: finding an array's address costs ten times as much.
    """
    if isinstance(payload, np.ndarray):
        base = payload.base
        while isinstance(base, np.ndarray):
            payload, base = base, base.base
        if id(payload) not in seen:
            seen.add(id(payload))
            _add_array(payload, base, found, seen)
    elif isinstance(payload, dict) and (held := getattr(payload, "held", None)) is not None:
        # A batch on its way to a device: its source stays in memory until the copy is done, and is as large.
        _walk(held, found, seen)
    elif isinstance(payload, dict):
        for column in payload.values():
            # The common case without a call: a view, one step from a root that is known.
            if not (type(column) is np.ndarray and id(column.base) in seen):
                _walk(column, found, seen)
    elif isinstance(payload, list | tuple):
        for part in payload:
            _walk(part, found, seen)
    elif isinstance(payload, Ragged):
        _walk(payload.values, found, seen)
        _walk(payload.offsets, found, seen)
    elif hasattr(payload, "untyped_storage"):
        _add_tensor(payload, found)
    elif isinstance(payload, pa.Array):
        _add_arrow(payload, found)
    elif isinstance(payload, pa.ChunkedArray):
        for chunk in payload.chunks:
            _add_arrow(chunk, found)
    elif isinstance(payload, pa.Buffer):
        _add_buffer(payload, found)
    elif isinstance(payload, ValuesView):
        _walk(list(payload), found, seen)
    elif callable(getattr(payload, "values", None)):
        _walk(list(payload.values()), found, seen)


def _add_array(array: Array, base: Any, found: dict[Any, int], seen: set[int]) -> None:
    """An array whose base is no array: it owns its memory, or lies over that of something else."""
    if base is not None:
        owner = base.obj if isinstance(base, memoryview) else getattr(base, "owner", base)
        if isinstance(owner, np.ndarray | pa.Array | pa.Buffer) or hasattr(owner, "untyped_storage"):
            _walk(owner, found, seen)
            return
    if array.nbytes:
        _keep(found, array.__array_interface__["data"][0], array.nbytes)


def _add_arrow(array: pa.Array, found: dict[Any, int]) -> None:
    for buffer in array.buffers():
        if buffer is not None:
            _add_buffer(buffer, found)
    if isinstance(array, pa.DictionaryArray):
        _add_arrow(array.dictionary, found)


def _add_buffer(buffer: pa.Buffer, found: dict[Any, int]) -> None:
    parent = buffer.parent
    while parent is not None:
        buffer, parent = parent, parent.parent
    if buffer.size and buffer.is_cpu:
        _keep(found, buffer.address, buffer.size)


def _add_tensor(tensor: Any, found: dict[Any, int]) -> None:
    if tensor.is_meta or tensor.is_sparse or tensor.is_sparse_csr:
        return
    storage = tensor.untyped_storage()
    if size := storage.nbytes():
        address = storage.data_ptr()
        _keep(found, address if tensor.is_cpu else (str(tensor.device), address), size)


def _keep(found: dict[Any, int], address: Any, size: int) -> None:
    if size > found.get(address, 0):
        found[address] = size


def resident_bytes(pids: Iterable[int] | None = None, *, proc: Path = Path("/proc")) -> int:
    """Physical memory that processes occupy.

    Of one process its resident set. Of several the sum of their proportional sets, in which a page shared by n
    of the machine's processes counts as 1/n: the object store and libraries mapped by all are not counted
    again for each. Where the system does not tell that (not Linux, another user's process) the resident set
    stands in for it. Costs about 1 ms per GiB and process.

    Args:
        pids: this process by default; those that have ended occupy nothing.
        proc: where the proc filesystem is found.
    """
    processes = [os.getpid()] if pids is None else sorted(set(pids))
    if len(processes) == 1:
        return _resident(processes[0], proc)
    total = 0
    for pid in processes:
        shares = _status_bytes(proc / str(pid) / "smaps_rollup", "Pss")
        total += _resident(pid, proc) if shares is None else shares
    return total


def peak_resident_bytes(*, proc: Path = Path("/proc")) -> int:
    """Most physical memory that this process ever occupied."""
    peak = _status_bytes(proc / "self" / "status", "VmHWM")
    if peak is not None:
        return peak
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(usage) if sys.platform == "darwin" else int(usage) * 1024


def _resident(pid: int, proc: Path) -> int:
    resident = _status_bytes(proc / str(pid) / "status", "VmRSS")
    if resident is not None:
        return resident
    if proc.joinpath("self").exists():
        return 0  # it has ended
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has ended, or may not be looked at: nothing is known of it
        return 0


def _status_bytes(path: Path, name: str) -> int | None:
    """The number of a ``Name:  123 kB`` line, in bytes; None where there is none."""
    try:
        with path.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                label, _, value = line.partition(":")
                if label == name and (number := value.split()[:1]) and number[0].isdecimal():
                    return int(number[0]) * 1024
    except OSError:
        return None
    return None
