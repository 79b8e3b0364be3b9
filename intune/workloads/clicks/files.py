"""Where the files of a click log are: what to train on, what is held out, and what describes them."""

from __future__ import annotations

import os
import posixpath
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from intune.pipelines.errors import SchemaError
from intune.pipelines.reading.failures import patiently
from intune.pipelines.reading.paths import find
from intune.workloads.data.description import DATASET_FILE, parse_description

TRAIN, TEST = "train", "test"
"""Folders of a data set as `intune data` writes it."""


@dataclass(frozen=True, kw_only=True)
class ClickFiles:
    """What `find_click_files` found.

    Attributes:
        filesystem: the pyarrow filesystem that paths belong to; None where `train` is what the user wrote.
        train: path, glob or URI of the files to train on; of all files, if the last one is to be held out.
        test: path of the folder that is held out; None where there is none.
        description: path of the file that describes them, on their filesystem, whether it is there or not.
        described: what it says; nothing where it is not there.
    """

    filesystem: Any
    train: str
    test: str | None
    description: str
    described: Mapping[str, Any] = field(default_factory=dict)


def find_click_files(data: str) -> ClickFiles:
    """Look at what `data` names: a folder with ``train`` (and ``test``), or any path, glob or URI of Parquet files.

    Raises:
        NotFoundError, StorageError: nothing is there, or it cannot be looked at.
        CorruptError: a description is broken.
        SchemaError: it names several data sets.
    """
    # Workers on Ray have another current folder.
    folder = Path(os.path.abspath(os.path.expanduser(data)))
    if (folder / TRAIN).is_dir():
        return _split(fs.LocalFileSystem(), str(folder), held_out=(folder / TEST).is_dir())
    filesystem, infos, _ = find([data], sleep=time.sleep)
    paths = [info.path for info in infos]
    roots = _data_sets(paths)
    if len(roots) > 1:
        raise SchemaError(f"{data} names {len(roots)} data sets ({', '.join(roots)}); name one of them")
    if roots:
        return _split(filesystem, roots[0], held_out=True)
    if isinstance(filesystem, fs.LocalFileSystem) and "://" not in data:
        beside = str(folder if folder.is_dir() else folder.parent)
    else:
        beside = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    description = posixpath.join(beside, DATASET_FILE)
    return ClickFiles(
        filesystem=None,
        train=data,
        test=None,
        description=description,
        described=_read(filesystem, description),
    )


def _split(filesystem: Any, root: str, *, held_out: bool) -> ClickFiles:
    description = posixpath.join(root, DATASET_FILE)
    return ClickFiles(
        filesystem=filesystem,
        train=posixpath.join(root, TRAIN),
        test=posixpath.join(root, TEST) if held_out else None,
        description=description,
        described=_read(filesystem, description),
    )


def _data_sets(paths: Sequence[str]) -> list[str]:
    """Folders that have both a folder `TRAIN` and a folder `TEST` with some of the files in it."""
    parts: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        names = path.split("/")
        for place in range(len(names) - 2, -1, -1):
            if names[place] in (TRAIN, TEST):
                parts["/".join(names[:place])].add(names[place])
                break
    return sorted(root for root, found in parts.items() if len(found) == 2)


def _read(filesystem: Any, path: str) -> Mapping[str, Any]:
    def read() -> bytes | None:
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with filesystem.open_input_stream(path) as stream:
            text: bytes = stream.read()
        return text

    text = patiently(read, path, filesystem, 0, time.sleep)
    return {} if text is None else parse_description(text, path)
