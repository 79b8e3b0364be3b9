"""What is trained on and what is held out, however a data set is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines.errors import CorruptError, SchemaError
from intune.workloads.clicks.files import find_click_files


@pytest.fixture
def crit(tmp_path: Path) -> Path:
    """A data set as `intune data` writes it."""
    folder = tmp_path / "home" / "crit"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        pq.write_table(pa.table({"x": [1]}), folder / part / "part-00000.parquet")
    (folder / "dataset.json").write_text(json.dumps({"schema_version": 1, "kind": "criteo"}))
    return folder


@pytest.mark.parametrize("called", ["path", "relative", "uri", "home", "glob"])
def test_a_data_set_is_split_as_it_was_written(
    called: str, crit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(crit.parent))
    monkeypatch.chdir(crit.parent)
    names = {
        "path": str(crit), "relative": "crit", "uri": crit.as_uri(), "home": "~/crit",
        "glob": f"{crit.parent}/cri*",
    }  # fmt: skip
    found = find_click_files(names[called])
    assert found.train == str(crit / "train")
    assert found.test == str(crit / "test")
    assert found.described["kind"] == "criteo"


def test_on_other_filesystems_too(crit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3://bucket/crit, whose paths begin with the bucket."""
    from pyarrow import fs

    from intune.workloads.clicks import files as click_files

    bucket = fs.SubTreeFileSystem(str(crit.parent.parent), fs.LocalFileSystem())
    find = click_files.find

    def in_bucket(paths: Any, **options: Any) -> Any:
        return find([path.removeprefix("s3://") for path in paths], bucket, **options)

    monkeypatch.setattr(click_files, "find", in_bucket)
    found = find_click_files("s3://home/crit")
    assert (found.train, found.test) == ("home/crit/train", "home/crit/test")
    assert found.filesystem is bucket
    assert found.described["kind"] == "criteo"
    assert find_click_files("s3://home/crit/train").described == {}


def test_folders_above_the_data_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "train" / "days"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        pq.write_table(pa.table({"x": [1]}), folder / f"{name}.parquet")
    found = find_click_files(str(folder))
    assert (found.train, found.test, found.filesystem) == (str(folder), None, None)


def test_two_data_sets_at_once_are_refused(crit: Path) -> None:
    os.rename(crit, crit.parent / "one")
    os.makedirs(crit.parent / "two")
    for part in ("train", "test"):
        os.makedirs(crit.parent / "two" / part)
        pq.write_table(pa.table({"x": [1]}), crit.parent / "two" / part / "a.parquet")
    with pytest.raises(SchemaError, match="names 2 data sets"):
        find_click_files(str(crit.parent / "*"))


def test_a_broken_description_is_told(crit: Path) -> None:
    (crit / "dataset.json").write_text("{")
    with pytest.raises(CorruptError, match=r"dataset\.json is not JSON"):
        find_click_files(crit.as_uri())
