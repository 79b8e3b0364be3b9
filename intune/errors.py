"""The exceptions, at the address where a user looks for them; they live in `intune.pipelines.errors`."""

from intune.pipelines.errors import (
    ConfigError,
    CorruptError,
    DataError,
    IntuneError,
    LoaderError,
    MemoryShortError,
    NotFoundError,
    SchemaError,
    SkipLimitError,
    StageError,
    StageTimeout,
    StorageError,
    WorkerLostError,
)

__all__ = [
    "ConfigError",
    "CorruptError",
    "DataError",
    "IntuneError",
    "LoaderError",
    "MemoryShortError",
    "NotFoundError",
    "SchemaError",
    "SkipLimitError",
    "StageError",
    "StageTimeout",
    "StorageError",
    "WorkerLostError",
]
