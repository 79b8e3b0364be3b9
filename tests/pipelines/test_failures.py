from __future__ import annotations

import errno

import pytest
import torch

from intune.pipelines.errors import StorageError
from intune.pipelines.failures import explain, out_of_resources


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("shapes do not match"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("memory"), False),
        (None, False),
    ],
)
def test_what_says_that_the_system_had_no_memory_or_descriptor(
    error: BaseException | None, short: bool
) -> None:
    assert out_of_resources(error) is short


def test_too_many_open_files_are_not_storage_that_cannot_be_reached() -> None:
    error = explain(OSError(errno.EMFILE, "Too many open files"), "x.parquet", decoding=True)
    assert isinstance(error, StorageError)
    assert "allow the process more open files (`ulimit -n`)" in str(error)
    assert "check that it can be reached" in str(explain(OSError(errno.EIO, "I/O error"), "x.parquet"))
