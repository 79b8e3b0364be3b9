"""Finding files: what the paths, folders, globs and URIs mean that a user may write.

In a glob, ``*``, ``?`` and ``[…]`` stand for characters of one name and ``**`` for any number of folders, none too.
Names that begin with ``.`` or ``_`` are what other programs are still writing or keep for themselves (Spark's
``_temporary``, Delta's ``_delta_log``): they are left out below a folder, and a glob's part finds one only if it
begins so itself. A partition such as ``_day=3`` is none of these.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from intune.pipelines.errors import ConfigError, DataError, NotFoundError
from intune.pipelines.reading.ahead import made_ahead
from intune.pipelines.reading.failures import patiently
from intune.pipelines.reading.files import is_local
from intune.pipelines.reading.fsspec_handler import handled

logger = logging.getLogger("intune")

T = TypeVar("T")

LISTING_THREADS = 16
"""Listings wait for storage, as footers do."""

_SUFFIXES = (".parquet", ".pq")

_LOGS = {"_delta_log": "a Delta", ".hoodie": "a Hudi"}
"""Where tables keep which of the files beside it they have now."""

MAGIC = re.compile(r"[*?[]")

_LITERAL = re.compile(r"(?:[^*?[]|\[[*?[]\])*")
"""A glob's part that stands for one name, maybe with characters that `glob.escape` wrapped up."""

_KEYS = re.compile(r"//(?:[^/@]*:[^@]*|[^/]*)@")
"""What a URI has of keys and passwords, which do not belong in a log: those of S3 may hold a slash."""

GOOGLE_PATIENCE = 30
"""Seconds for which Google's client tries again by itself. Left alone it is a quarter of an hour, and that `retries`
times more: where it found no credentials, nobody would hear of it before."""

_URI_CHARACTERS = "%:/?[]@!$&'()*+,;=~"
"""What stands for itself in a URI, beside letters and digits. A ``#`` does not: what follows it would be no part of the
path, and the folder before it be read."""

_OPTIONS = re.compile(r"\?[A-Za-z_][\w.-]*=[^?*]*\Z")
"""At the end of a URI, what the filesystem is to be told; any other ``?`` stands for a character."""


def find(
    paths: Sequence[str],
    filesystem: Any = None,
    *,
    skip: bool = False,
    retries: int = 0,
    sleep: Callable[[float], None],
) -> tuple[Any, list[fs.FileInfo], list[tuple[str, DataError]]]:
    """The filesystem, the files that `paths` name (sorted within each glob or folder) and what it says of them, and the
    paths that name none, which are an error unless `skip`."""
    given = paths
    filesystem, paths = _locate(given, filesystem, partial(_connect, retries=retries, sleep=sleep))
    filesystem = handled(filesystem)
    files: list[fs.FileInfo] = []
    missing: list[tuple[str, DataError]] = []

    def expand(path: str) -> list[fs.FileInfo] | DataError:
        try:
            return patiently(partial(_expand, filesystem, path), path, filesystem, retries, sleep)
        except DataError as error:
            return error

    with _each(expand, paths, waits=not is_local(filesystem)) as expanded:
        for named, path, found in zip(given, paths, expanded, strict=True):
            if isinstance(found, DataError):
                if isinstance(found, NotFoundError) and "://" in named and "%" in named and path not in named:
                    # Spark and Delta write times in folders' names so: `hour=03%3A00`.
                    found = NotFoundError(f"{found}; write a % that is part of a name as %25 in a URI")
                if not skip:
                    raise found
                missing.append((path, found))
            else:
                files.extend(found)
    return filesystem, files, missing


def _each(
    work: Callable[[str], T], paths: Sequence[str], *, waits: bool = True
) -> AbstractContextManager[Iterator[T]]:
    """What `work` makes of every path, in order; of several at a time where it waits for storage."""
    if not waits or len(paths) < 2:
        return nullcontext(map(work, paths))
    return made_ahead(work, paths, threads=min(LISTING_THREADS, len(paths)), name="intune-listing")


def partition_keys(path: str) -> dict[str, str]:
    """Names and values that the folders of a file have instead of columns: ``year=2024/part.parquet``."""
    return {
        name: value for name, mark, value in (part.partition("=") for part in path.split("/")[:-1]) if mark
    }


def _locate(
    paths: Sequence[str], filesystem: Any, connect: Callable[[str], tuple[Any, str]]
) -> tuple[Any, list[str]]:
    """The filesystem that paths belong to, and what they are called there."""
    if filesystem is not None and not isinstance(filesystem, fs.FileSystem):
        # It would take URIs as well, but what it lists has the names of paths.
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), [
            filesystem._strip_protocol(path) if "://" in path else path for path in paths
        ]
    uri = next((path for path in paths if "://" in path), None)
    if filesystem is not None and not isinstance(filesystem, fs.PyFileSystem) and uri is not None:
        uri = _KEYS.sub("//", uri)
        raise ConfigError(
            f"`paths` holds the URI {uri!r}, but `filesystem` is given too; leave it out, or write the path that the "
            f"file has on it, such as {uri.partition('://')[2]!r}"
        )
    if isinstance(filesystem, fs.LocalFileSystem):
        return filesystem, [os.path.expanduser(path) for path in paths]
    if filesystem is not None:
        return filesystem, list(paths)
    if uri is not None:
        return _from_uris(paths, connect)
    return fs.LocalFileSystem(), [os.path.abspath(os.path.expanduser(path)) for path in paths]


def _connect(uri: str, *, retries: int, sleep: Callable[[float], None]) -> tuple[Any, str]:
    """The filesystem of a URI, and its path there. (S3 is asked where a bucket lies.)"""

    shown = _KEYS.sub("//", uri)

    def connect() -> tuple[Any, str]:
        try:
            made: tuple[Any, str] = fs.FileSystem.from_uri(_quoted(_less_patient(uri)))
            return made
        except (pa.ArrowInvalid, ValueError, TypeError, ImportError) as error:
            raise ConfigError(
                f"`paths` holds {shown!r}, which no filesystem takes: {_KEYS.sub('//', str(error))}; write it as "
                "pyarrow knows it (s3://…, gs://…, abfs://…, hdfs://…, file:///…; a slash in a secret as %2F), or give "
                "`filesystem=`, such as fsspec.filesystem('https')"
            ) from None  # it has the keys in it

    return patiently(connect, shown, None, retries, sleep)


def _once_a_host(connect: Callable[[str], tuple[Any, str]]) -> Callable[[str], tuple[Any, str]]:
    """The same, but of URIs that differ in their paths alone the first is connected to: a client for S3 takes 2 ms of a
    processor to make, and the files of a table may be named one by one."""
    known: dict[tuple[str, str], tuple[Any, str]] = {}

    def connected(uri: str) -> tuple[Any, str]:
        plain, _, options = uri.partition("?")
        path = plain.partition("://")[2].partition("/")[2]
        where, path = (plain.removesuffix(path), options), unquote(path)
        if where in known and path and "//" not in f"{path}/":
            filesystem, root = known[where]
            return filesystem, root + path
        filesystem, there = connect(uri)
        if path and there.endswith(path):
            known[where] = filesystem, there.removesuffix(path)
        return filesystem, there

    return connected


def _quoted(uri: str) -> str:
    # A local path, beside URIs, is taken as it is.
    return quote(uri, safe=_URI_CHARACTERS) if "://" in uri else uri


def _less_patient(uri: str) -> str:
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={GOOGLE_PATIENCE}"


def _from_uris(uris: Sequence[str], connect: Callable[[str], tuple[Any, str]]) -> tuple[Any, list[str]]:
    first: Any = None
    paths: list[str] = []
    connect = _once_a_host(connect)
    for uri in uris:
        given = _OPTIONS.search(uri)
        options = given.group() if given else ""
        plain = uri.removesuffix(options)
        host = plain.find("://") + 3 if "://" in plain else 0
        magic = MAGIC.search(plain, max(host, plain.find("/", host)))
        cut = plain.rfind("/", 0, magic.start()) + 1 if magic else len(plain)
        filesystem, path = connect(plain[:cut] + options)
        if first is not None and filesystem != first:
            raise ConfigError("`paths` name more than one filesystem; read them as pipelines of their own")
        first = filesystem
        if magic:
            # What is written as %5B is a character of the name.
            tail = re.sub(r"(?:%[0-9A-Fa-f]{2})+", lambda code: glob.escape(unquote(code[0])), plain[cut:])
            path = f"{glob.escape(path).rstrip('/')}/{tail}" if path else tail
        paths.append(path)
    return first, paths


def _expand(filesystem: Any, path: str) -> list[fs.FileInfo]:
    """A file, the files of a folder, or those that match a glob."""
    try:
        # What is there by that very name is meant, whatever characters it has.
        found = _named(filesystem, path)
        if found is None and MAGIC.search(path):
            return _glob(filesystem, path)
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        if not is_local(filesystem):
            raise
        raise DataError(
            f"{path!r}: {error.object!r} is no name in UTF-8, as Arrow wants it; rename it"
        ) from error
    if found is None:
        raise NotFoundError(f"{path}: no such file or folder")
    return found


def _named(filesystem: Any, path: str) -> list[fs.FileInfo] | None:
    """What is there by that name: a file, or a folder's files; None if nothing is."""
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        return None
    if info.type == fs.FileType.Unknown and is_local(filesystem):
        raise DataError(
            f"{path}: is neither a file nor a folder, but a pipe or a device; Parquet is read from its end on, so "
            "write it to a file first"
        )
    if info.type != fs.FileType.Directory:
        return [_called(info, path)]
    listed = _list(filesystem, path, deep=True)
    _warn_of_tables(path, listed)
    found = [item for item in listed if _belongs(item, path)]
    if not found:
        raise NotFoundError(
            f"{path}: the folder holds no .parquet file; for files of other names give a glob, such as "
            f"{path.rstrip('/')}/*"
        )
    return sorted(found, key=lambda item: str(item.path))


def _warn_of_tables(folder: str, listed: Sequence[Any]) -> None:
    """Say so where a folder is a table that may have replaced or removed what still lies there."""
    for item in listed:
        first = _below(item.path, folder)[0]
        manifest = first == "metadata" and item.path.endswith(".metadata.json")
        kind = "an Iceberg" if manifest else _LOGS.get(first)
        if kind is not None:
            logger.warning(
                "%s is %s table, and which files it has now is not looked at: those that it replaced or removed are "
                "read as well, some rows twice maybe; give the list of its files%s, or copy it to plain Parquet",
                folder,
                kind,
                ", as `DeltaTable(…).file_uris()` of the package deltalake has it"
                if kind == "a Delta"
                else "",
            )
            return


def _called(info: fs.FileInfo, path: str) -> fs.FileInfo:
    """The same by another name, if it is another."""
    if info.path == path:
        return info
    return fs.FileInfo(path, info.type, mtime_ns=info.mtime_ns, size=info.size)


def _list(filesystem: Any, folder: str, *, deep: bool) -> list[Any]:
    found: list[Any] = filesystem.get_file_info(fs.FileSelector(folder, recursive=deep))
    if not isinstance(filesystem, fs.LocalFileSystem):
        return [_resolved(filesystem, item) for item in found] if is_local(filesystem) else found
    if not deep:
        return found + _dangling([folder])
    # Below a link to a folder that it lies in, everything is there again, some forty times.
    loops = tuple(
        f"{item.path}/" for item in found if item.type == fs.FileType.Directory and _loops(item.path)
    )
    if loops:
        found = [item for item in found if not f"{item.path}/".startswith(loops)]
    return found + _dangling([folder, *(item.path for item in found if item.type == fs.FileType.Directory)])


def _dangling(folders: Sequence[str]) -> list[fs.FileInfo]:
    """Links in local folders to what is not there; Arrow's listing leaves them out, and nobody would miss the data."""
    found = []
    for folder in folders:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            found += [
                fs.FileInfo(f"{folder.rstrip('/')}/{entry.name}", fs.FileType.NotFound)
                for entry in entries
                if entry.is_symlink() and not os.path.exists(entry.path)
            ]
    return found


def _resolved(filesystem: Any, item: Any) -> Any:
    """What is listed as neither file nor folder, asked for by name: a link to what is not there is told apart then."""
    return filesystem.get_file_info(item.path) if item.type == fs.FileType.Unknown else item


def _may_be_data(item: Any) -> bool:
    """Whether it is a file, or is to be missed where it is read: a link to one that is not there."""
    return bool(item.is_file or item.type == fs.FileType.NotFound)


def _loops(folder: str) -> bool:
    if not os.path.islink(folder):
        return False
    return f"{os.path.realpath(os.path.dirname(folder))}/".startswith(f"{os.path.realpath(folder)}/")


def _below(path: str, folder: str) -> list[str]:
    """The names that lead from a folder to what lies in it."""
    return path.lstrip("/").removeprefix(folder.strip("/")).lstrip("/").split("/")


def _belongs(item: Any, folder: str) -> bool:
    """Whether something in a folder is of its data; what the folder itself lies in is the user's business."""
    data = _may_be_data(item) and item.path.endswith(_SUFFIXES)
    return data and not any(map(_hidden, _below(item.path, folder)))


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _glob(filesystem: Any, pattern: str) -> list[fs.FileInfo]:
    parts = pattern.split("/")
    for part in parts:
        if "**" in part and part != "**":
            raise ConfigError(f"{pattern}: `**` stands for folders, so write it as in `**/*.parquet`")
    fixed = next((at for at, part in enumerate(parts) if not _LITERAL.fullmatch(part)), len(parts))
    root = "/".join(re.sub(r"\[([*?[])\]", r"\1", part) for part in parts[:fixed])
    here = not root and isinstance(filesystem, fs.LocalFileSystem) and not pattern.startswith("/")
    root = "." if here else root or pattern[: pattern.startswith("/")]
    steps = [part for part in parts[fixed:] if part]
    folder = filesystem.get_file_info(root).type in (fs.FileType.Directory, fs.FileType.Unknown)
    if steps and not folder:
        raise NotFoundError(f"{pattern}: matches nothing, since {root} does not exist or is no folder")
    folders = bool(steps) and steps[-1] == "**"
    while steps and steps[-1] == "**":
        steps.pop()
    if steps:
        matches = partial(_found, folder=root, steps=steps, folders=folders)
        reached = _reach(filesystem, root, steps)
        _warn_of_tables(root, reached)
        matched = {item.path: item for item in reached if matches(item)}
        found = [item for _, item in sorted(matched.items())]
    else:
        found = _named(filesystem, root) or []
    if not found:
        raise NotFoundError(
            f"{pattern}: matches no file (glob.escape says how to write a [ that is part of a name)"
        )
    return [_called(item, item.path.removeprefix("./")) for item in found] if here else found


def _reach(filesystem: Any, root: str, steps: Sequence[str]) -> list[Any]:
    """What a glob may match: all that lies below, or in what the only part of it matches."""
    if len(steps) > 1:
        return _list(filesystem, root, deep=True)
    items = _list(filesystem, root, deep=False)
    folders = [
        item.path
        for item in items
        if item.type == fs.FileType.Directory and _matches(_below(item.path, root), steps)
    ]
    with _each(partial(_list, filesystem, deep=True), folders) as listed:
        return items + list(chain.from_iterable(listed))


def _found(item: Any, *, folder: str, steps: Sequence[str], folders: bool) -> bool:
    """Whether a glob means a file, by itself or for a folder that it lies in."""
    if not _may_be_data(item):
        return False
    names = _below(item.path, folder)
    if not folders and _matches(names, steps):
        return True
    return item.path.endswith(_SUFFIXES) and any(
        _matches(names[:depth], steps) and not any(map(_hidden, names[depth:]))
        for depth in range(1, len(names))
    )


def _matches(names: Sequence[str], steps: Sequence[str]) -> bool:
    if not steps:
        return not names
    if steps[0] == "**":
        deeper = bool(names) and not _hidden(names[0]) and _matches(names[1:], steps)
        return deeper or _matches(names, steps[1:])
    if not names or not fnmatchcase(names[0], steps[0]) or (_hidden(names[0]) and names[0][0] != steps[0][0]):
        return False
    return _matches(names[1:], steps[1:])
