"""What a failure of Arrow or of the storage means, and asking storage that failed again."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from intune.pipelines.errors import (
    CorruptError,
    IntuneError,
    MemoryShortError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from intune.pipelines.reading.files import is_python

logger = logging.getLogger("intune")

T = TypeVar("T")

FIRST_DELAY = 0.1
"""Seconds before the first retry; doubled each time, since storage that is overloaded or restarting needs time
more than it needs requests."""

LONGEST_DELAY = 5.0

_FAILURES = (pa.ArrowException, OSError, ValueError)
"""What Arrow and its own filesystems raise."""


def explain(error: BaseException, where: str, *, decoding: bool = False) -> IntuneError:
    """What a failure of Arrow or of the storage means, naming the place and the remedy.

    Args:
        error: what was raised.
        where: file, and row groups where known.
        decoding: the bytes were there already, or the file is a local one: what fails is what they say, unless
            the error has a system's number. (Arrow raises `OSError` for both.)
    """
    text = " ".join(str(error).split())
    if not isinstance(error, _FAILURES):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")  # a client's own, which may have no words
    if isinstance(error, MemoryError):
        return MemoryShortError(
            f"{where}: there is not memory enough to read it ({text}); nothing is wrong with the file: give the "
            "pipeline fewer slots or less `memory`, read fewer columns, or write smaller row groups"
        )
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: no such file (removed since its footer was read?)")
    if decoding and isinstance(error, pa.ArrowNotImplementedError):
        return SchemaError(
            f"{where}: pyarrow {pa.__version__} cannot read it ({text}); the file may well be whole: leave the column "
            "out (when it is written, if even the schema cannot be read), or write it with another type or encoding"
        )
    if decoding and re.search("decrypt|encrypted", text):
        return SchemaError(
            f"{where}: is encrypted, and there is no way to give a key ({text}); leave out the columns that are, or "
            "write the file without encryption"
        )
    if decoding and not (isinstance(error, OSError) and error.errno is not None):
        return CorruptError(f"{where}: cannot be decoded ({text}); write it again, or leave it out")
    if isinstance(error, pa.ArrowInvalid) and "path" in text.lower():
        return NotFoundError(
            f"{where}: pyarrow's filesystem takes no such path ({text}); write it without a slash too many, or, "
            "where it is named so in the store, read it with an fsspec `filesystem=`"
        )
    remedy = "check that it can be reached"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "allow the process more open files (`ulimit -n`)"
    return StorageError(f"{where}: storage failed ({text}); {remedy}")


def out_of_resources(error: BaseException | None) -> bool:
    """Whether it says that the system had no memory, as Python, the system itself or torch do, or no descriptor."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    if isinstance(error, RuntimeError):  # torch: of a device, or of its own allocator
        return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError)


def is_failure(error: Exception, filesystem: Any) -> bool:
    """Whether it is Arrow or the storage that failed, and not this package.

    Args:
        error: what was raised.
        filesystem: what was asked; one written in Python lets through what its client library raises, which need
            not be an `OSError` (aiohttp's, gcsfs's and Azure's are not). None if the bytes were there already.
    """
    if isinstance(error, IntuneError):
        return False
    if isinstance(error, _FAILURES):
        return True
    return is_python(filesystem) and not isinstance(error, MemoryError)


def patiently(
    call: Callable[[], T], where: str, filesystem: Any, retries: int, sleep: Callable[[float], None]
) -> T:
    """What `call` returns; storage that fails is asked again, and what is wrong explained.

    Args:
        filesystem: what is asked.
    """
    attempt = 1
    while True:
        try:
            return call()
        except Exception as error:
            if not is_failure(error, filesystem):
                raise
            explained = explain(error, where)
            if not isinstance(explained, StorageError):
                raise explained from error
            if attempt > retries:
                raise StorageError(f"{explained} (gave up after {attempt} tries)") from error
            if attempt == 1:
                # A client may take seconds for every try, during which nothing else is to be seen.
                logger.warning("%s; trying again, up to %d times", explained, retries)
        sleep(retry_delay(attempt))
        attempt += 1


def retry_delay(attempt: int) -> float:
    """Seconds to wait after attempt number `attempt` (from 1) has failed."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (attempt - 1))
