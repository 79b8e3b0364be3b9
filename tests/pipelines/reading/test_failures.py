from __future__ import annotations

import errno

import pyarrow as pa
import pytest
import torch
from pyarrow.fs import S3FileSystem

from intune.pipelines.errors import CorruptError, DataError, NotFoundError, SchemaError, StorageError
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.failures import explain, out_of_resources
from intune.pipelines.reading.source import make_source


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


@pytest.mark.parametrize("path", ["/bucket/data", "bucket//data", "bucket/data//x.parquet"])
def test_a_path_that_a_store_cannot_have_is_not_asked_for_again(path: str) -> None:
    """One slash too many was called storage that fails, after four retries."""
    with pytest.raises(
        NotFoundError, match=rf"^{path}: pyarrow's filesystem takes no such path .*a slash too many"
    ):
        open_dataset(
            make_source(path, filesystem=S3FileSystem(region="us-east-1", anonymous=True)), retries=4
        )


def test_too_many_open_files_are_not_storage_that_cannot_be_reached() -> None:
    error = explain(OSError(errno.EMFILE, "Too many open files"), "x.parquet", decoding=True)
    assert isinstance(error, StorageError)
    assert "allow the process more open files (`ulimit -n`)" in str(error)
    assert "check that it can be reached" in str(explain(OSError(errno.EIO, "I/O error"), "x.parquet"))


@pytest.mark.parametrize("decoding", [False, True])
def test_a_want_of_memory_is_no_fault_of_the_file(decoding: bool) -> None:
    for error in (pa.ArrowMemoryError("malloc of size 1 failed"), MemoryError()):
        explained = explain(error, "f.parquet, row group 0", decoding=decoding)
        assert isinstance(explained, MemoryError)
        assert not isinstance(explained, DataError), "or on_error='skip' would leave good rows out"
        assert "fewer slots" in str(explained)


@pytest.mark.parametrize(
    ("error", "reading", "decoding"),
    [
        (OSError(errno.EIO, "Input/output error: corrupt thrift"), StorageError, StorageError),
        (OSError(errno.ENOENT, "No such file"), NotFoundError, NotFoundError),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject: EOF"), StorageError, CorruptError),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), StorageError, StorageError),
        (TimeoutError("timed out"), StorageError, CorruptError),
        (OSError("GZipCodec failed: incorrect data check"), StorageError, CorruptError),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), StorageError, CorruptError),
        (pa.ArrowNotImplementedError("Support for codec 'lzo' not built"), StorageError, SchemaError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), StorageError, CorruptError),
    ],
)
def test_failures_of_storage_are_told_from_damage_by_when_they_come(
    error: BaseException, reading: type[Exception], decoding: type[Exception]
) -> None:
    for phase, type_ in ((False, reading), (True, decoding)):
        explained = explain(error, "some/file, row group 3", decoding=phase)
        assert type(explained) is type_
        assert str(explained).startswith("some/file, row group 3: ")
