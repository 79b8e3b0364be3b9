"""Parquet files as a data set: files that were found, whose footers have been read and agree.

What a user says of them lives in `source.py`, finding them in `paths.py`, reading footers in `footers.py`, whether they
agree in `agreement.py`, what they tell of sizes in `sizes.py`, and reading rows in `reader.py`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from intune.pipelines.allocators import give_back
from intune.pipelines.errors import DataError
from intune.pipelines.plan import RowGroups
from intune.pipelines.reading import agreement, footers, sizes
from intune.pipelines.reading.ahead import made_ahead
from intune.pipelines.reading.files import UNKNOWN, OpenFiles, Version
from intune.pipelines.reading.footers import Footer, read_footer
from intune.pipelines.reading.paths import find
from intune.pipelines.reading.source import Source

FOOTER_THREADS = 16
"""Footers are small and mostly wait for storage, so more threads than cores read them."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One Parquet file: path on its filesystem, rows of each row group, what tells it from one with other content
    (a digest of the footer, which says where each column lies and how long it is), the version that was planned (by
    size, time or tag), and the footer where kept."""

    path: str
    rows: tuple[int, ...]
    digest: bytes = b""
    version: Version = UNKNOWN
    footer: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Files whose footers have been read and found to agree.

    Attributes:
        filesystem: a pyarrow filesystem.
        files: the files, in the order given (globs and folders sorted by name).
        columns: names of the columns to read, in the order in which they were named.
        fills: for each column, what stands for a null (None: see `arrow.to_column`).
        schema: types as which `columns` are read, which is not how every file stores them: see `arrow.plain`.
        row_bytes: decoded bytes of a row, from types and footers.
        guessed: whether that is a guess, as it is of strings; see `sizes.py`.
        skipped: files left out under ``on_error="skip"``, with the reason.
        remote: whether reads should be joined into few, large requests.
    """

    filesystem: Any
    files: tuple[FileEntry, ...]
    columns: tuple[str, ...]
    fills: tuple[Any, ...]
    schema: pa.Schema
    row_bytes: float
    guessed: bool = False
    skipped: tuple[tuple[str, DataError], ...] = ()
    remote: bool = False

    def row_groups(self) -> RowGroups:
        """Row counts of every row group, for the plan."""
        counts = [len(file.rows) for file in self.files]
        return RowGroups(
            file=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            group=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
            rows=np.array([rows for file in self.files for rows in file.rows], dtype=np.int64),
            row_bytes=self.row_bytes,
            guessed=self.guessed,
        )

    def fingerprint(self) -> str:
        """Identifies the rows and their order: changes if files are added, removed, renamed or rewritten."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(os.path.basename(file.path).encode())
            digest.update(np.array(file.rows, dtype=np.int64).tobytes() + file.digest)
        digest.update("\0".join(self.columns).encode())
        return digest.hexdigest()[:32]


def open_dataset(
    source: Source,
    *,
    on_error: str = "raise",
    retries: int = 0,
    sleep: Callable[[float], None] = time.sleep,
    files: OpenFiles | None = None,
) -> Dataset:
    """Find the files, read every footer (in parallel, cached in this process) and check that they agree.

    Args:
        source: what the user named.
        on_error: ``raise``, or ``skip`` to leave out files that cannot be read or do not agree.
        retries: how often storage that fails is asked again, waiting longer each time.
        sleep: waits for so many seconds.
        files: keeps what was opened for a `Reader`, where opening costs a request.

    Raises:
        NotFoundError, CorruptError, StorageError, SchemaError: the first file that cannot be used.
    """
    skip = on_error == "skip"
    filesystem, infos, skipped = find(
        source.paths, source.filesystem, skip=skip, retries=retries, sleep=sleep
    )
    agreeing = _Agreeing(source.columns)
    with made_ahead(
        lambda info: read_footer(filesystem, info, retries, sleep, files),
        infos,
        threads=max(1, min(FOOTER_THREADS, len(infos))),
        name="intune-footer",
    ) as read:
        for path, footer in zip([info.path for info in infos], read, strict=True):
            try:
                agreeing.add(path, footer)
            except DataError as error:
                if not skip:
                    raise
                skipped.append((path, error))
                if files is not None:
                    files.forget(path)
    if agreeing.footer_bytes > footers.KEPT_FOOTER_BYTES:
        give_back()  # what the others took lies scattered over the heaps of the threads that read them
    return agreeing.dataset(source, filesystem, skipped)


class _Agreeing:
    """Files of a data set, gathered one after another in their order."""

    def __init__(self, columns: Sequence[str] | None) -> None:
        self.footer_bytes = 0
        self._columns = columns
        self._files: list[FileEntry] = []
        self._types: dict[str, pa.DataType] = {}
        self._footers: list[Footer] = []  # the first, and the others that are kept

    def add(self, path: str, footer: Footer | DataError) -> None:
        """One more file; a `DataError` if it cannot be read, or does not agree with those before."""
        if isinstance(footer, DataError):
            raise footer
        if not self._files:
            self._types = agreement.select(path, footer.schema, self._columns)
        elif not footer.schema.equals(self._footers[0].schema):
            self._types = agreement.widened(path, footer.schema, self._types, self._files[0].path)
        # Which are kept follows from the order of the files, not from which was read first: from what they tell of
        # sizes follows the plan, which must be the same on every rank.
        self.footer_bytes += footer.bytes
        keep = self.footer_bytes <= footers.KEPT_FOOTER_BYTES
        if keep or not self._files:
            self._footers.append(footer)
        self._files.append(
            FileEntry(
                path=path,
                rows=footer.rows,
                digest=footer.digest,
                version=footer.version,
                footer=footer.metadata if keep else None,
            )
        )

    def dataset(self, source: Source, filesystem: Any, skipped: Sequence[tuple[str, DataError]]) -> Dataset:
        """All of them; a `DataError` where there is nothing to read."""
        if not self._files:
            raise DataError(f"none of the {len(skipped)} file(s) can be used; the first: {skipped[0][1]}")
        first = self._files[0].path
        for name, type_ in self._types.items():
            agreement.require_usable(first, name, type_)
        if not any(sum(file.rows) for file in self._files):
            raise DataError(f"{first}: the data set has no rows ({len(self._files)} file(s) looked at)")
        schema = agreement.read_as(self._types, source.fill)
        row_bytes, guessed = sizes.row_bytes(schema, self._footers)
        return Dataset(
            filesystem=filesystem,
            files=tuple(self._files),
            columns=tuple(self._types),
            fills=agreement.fills(first, self._footers[0].schema.names, self._types, source.fill),
            schema=schema,
            row_bytes=row_bytes,
            guessed=guessed,
            skipped=tuple(skipped),
            remote=not isinstance(filesystem, fs.LocalFileSystem),
        )
