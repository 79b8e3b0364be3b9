"""Memory shared by two processes, into which columns are laid on their way from one to the other.

A segment has no name anywhere: it lives as long as someone has it open or mapped, so nothing is left behind
whoever dies.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref

import numpy as np

from intune.pipelines.schema import Array

ALIGNMENT = 64
"""Of everything laid into a segment: what Arrow asks for and vector instructions like."""

SMALLEST = 1 << 16


def memory_file(name: str) -> int | None:
    """A descriptor of memory that has no name in the file system; None where this system has none.

    Raises:
        OSError: there is no room for it: of descriptors, say.
    """
    try:
        return os.memfd_create(name)
    except AttributeError:  # Python knows of no such call
        return None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # the system lacks it, or a sandbox refuses it
            return None
        raise


class Segment:
    """Anonymous shared memory that grows; both processes hold one over the same file.

    Its memory is lent out as an array. Who takes part of that array (a column) keeps it alive, so the segment
    knows when all are gone and its pages, which are warm, can be used again.

    Args:
        descriptor: of the file; belongs to the segment from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mapping: mmap.mmap | None = None
        self._capacity = 0
        self._lent: weakref.ref[Array] | None = None

    @classmethod
    def create(cls) -> Segment:
        """A new one, empty."""
        descriptor = memory_file("intune")
        if descriptor is not None:
            return cls(descriptor)
        import tempfile

        with tempfile.TemporaryFile(buffering=0) as file:
            return cls(os.dup(file.fileno()))

    @property
    def free(self) -> bool:
        """Whether nothing lent out is in use any more."""
        return self._lent is None or self._lent() is None

    def lend(self, size: int) -> Array:
        """The first `size` bytes, writable, uint8; not free again before the array and all views of it are gone.

        The segment grows to fit. What is not touched takes no memory, so the capacity is a power of two, which
        both sides work out alike.

        Raises:
            MemoryError: the process may map no more.
        """
        if self._mapping is None or size > self._capacity:
            self._capacity = max(SMALLEST, 1 << (size - 1).bit_length())
            if os.fstat(self.descriptor).st_size < self._capacity:
                os.ftruncate(self.descriptor, self._capacity)
            # Not `mmap.resize`: it would pull the memory from under arrays that are still in use.
            try:
                self._mapping = mmap.mmap(self.descriptor, self._capacity)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                raise MemoryError(f"no {self._capacity} bytes of address space for a segment") from error
        array: Array = np.frombuffer(self._mapping, np.uint8, size)
        self._lent = weakref.ref(array)
        return array

    def give_back_memory(self) -> None:
        """Give its pages back to the system, if nothing lent out is in use on either side: what they hold is gone."""
        if self._mapping is not None and self.free and hasattr(mmap, "MADV_REMOVE"):
            with contextlib.suppress(OSError):  # not every system can
                self._mapping.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Let go of it; arrays lent out stay good."""
        self._mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
