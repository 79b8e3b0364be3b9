"""Every exception this package raises on purpose.

IntuneError
├── ConfigError          an argument, an option or a file the user wrote makes no sense (also a ValueError)
├── DataError            the data cannot be used
│   ├── NotFoundError    no such file, or a pattern that matches nothing (also a FileNotFoundError)
│   ├── SchemaError      a column is missing, differs between files or has a type that cannot be used
│   ├── CorruptError     a file is not Parquet, is cut short or does not decode
│   └── StorageError     storage kept failing after the last retry (also an OSError)
├── MemoryShortError     there is not memory enough to read something (also a MemoryError)
├── StageError           the user's own code, run as a stage, failed; its exception is the cause
│   └── StageTimeout     it did not finish in the time it was given (also a TimeoutError)
├── SkipLimitError       `on_error="skip"` dropped more than `max_skipped` allows, or all there was
├── WorkerLostError      the same task took its worker down again and again
└── LoaderError          a loader was used in a way that cannot work (closed, forked, state of another plan)
"""

from __future__ import annotations


class IntuneError(Exception):
    """Root of the tree; catch it to catch everything raised here on purpose."""


class ConfigError(IntuneError, ValueError):
    """An argument or option makes no sense; the message names it, the value found and what to do."""


class DataError(IntuneError):
    """The data cannot be used; the message names the file, row group and column concerned."""


class NotFoundError(DataError, FileNotFoundError):
    """A path does not exist or a pattern matches nothing."""


class SchemaError(DataError):
    """A column is missing, differs between files or has a type that cannot be used."""


class CorruptError(DataError):
    """A file is not Parquet, is cut short or does not decode."""


class StorageError(DataError, OSError):
    """Storage kept failing after the last retry; the last failure is the cause."""


class MemoryShortError(IntuneError, MemoryError):
    """There is not memory enough to read something; nothing is wrong with it, so it is never skipped."""


class StageError(IntuneError):
    """The user's code in a stage failed; the original exception is the `__cause__`."""


class StageTimeout(StageError, TimeoutError):
    """The user's code in a stage did not finish within its `timeout`."""


class SkipLimitError(IntuneError):
    """More data was skipped than `max_skipped` allows, or every batch of an epoch."""


class WorkerLostError(IntuneError):
    """A task took its worker process down more often than is tolerated."""


class LoaderError(IntuneError):
    """A loader was used in a way that cannot work."""
