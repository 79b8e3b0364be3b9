"""Which files paths, folders, globs and URIs name."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from intune.pipelines.errors import ConfigError, DataError, NotFoundError, StorageError
from intune.pipelines.reading import paths as paths_module
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.paths import partition_keys
from intune.pipelines.reading.source import Source, make_source


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [1, 2, 3]}), path)
    return path


def names(source: Source) -> list[str]:
    return [os.path.basename(file.path) for file in open_dataset(source).files]


def below(root: Path, *paths: str, filesystem: Any = None) -> list[str]:
    """Paths below `root` of the files that paths below it name."""
    data = open_dataset(make_source([f"{root}/{path}" for path in paths], filesystem=filesystem))
    return [os.path.relpath(file.path, root) for file in data.files]


def test_a_folder_a_glob_a_list_and_a_uri_name_files_in_order(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "sub/c.pq", "note.txt", "sub/.hidden/d.parquet"):
        write(tmp_path / name)
    root = str(tmp_path)
    assert names(make_source(tmp_path)) == ["a.parquet", "b.parquet", "c.pq"]
    assert names(make_source(f"{root}/*.parquet")) == ["a.parquet", "b.parquet"]
    assert names(make_source(f"{root}/[b]*.parquet")) == ["b.parquet"]
    assert names(make_source(f"{root}/?.parquet")) == ["a.parquet", "b.parquet"]
    assert names(make_source(f"{root}/*/c.pq")) == ["c.pq"]
    assert names(make_source(f"{root}/**/*.pq")) == ["c.pq"]
    assert names(make_source([tmp_path / "b.parquet", f"{root}/a.parquet"])) == ["b.parquet", "a.parquet"]
    assert names(make_source(f"file://{root}/*.parquet")) == ["a.parquet", "b.parquet"]
    assert names(make_source(f"file://{root}")) == ["a.parquet", "b.parquet", "c.pq"]
    assert names(make_source("a.parquet", filesystem=fs.SubTreeFileSystem(root, fs.LocalFileSystem())))


def test_names_with_the_characters_of_globs_are_names_first(tmp_path: Path) -> None:
    write(tmp_path / "run[3]" / "p.parquet")
    folder = f"{tmp_path}/run[3]"
    assert names(make_source(folder)) == ["p.parquet"]
    assert names(make_source(f"{folder}/p.parquet")) == ["p.parquet"]
    assert names(make_source(f"{glob.escape(folder)}/*.parquet")) == ["p.parquet"]
    assert names(make_source(glob.escape(f"{folder}/p.parquet"))) == ["p.parquet"]
    assert names(make_source(glob.escape(folder))) == ["p.parquet"]
    with pytest.raises(NotFoundError, match=r"glob\.escape"):
        names(make_source(f"{folder}/*.parquet"))


def test_only_what_is_hidden_below_the_folder_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "x" / "a.parquet")
    write(tmp_path / ".cache" / "x" / ".hidden" / "b.parquet")
    assert names(make_source(tmp_path / ".cache" / "x")) == ["a.parquet"]
    assert names(make_source(f"{tmp_path}/.cache/x/")) == ["a.parquet"]
    assert names(make_source(f"file://{tmp_path}/.cache/x")) == ["a.parquet"]


def test_globs_take_a_uris_options_and_a_filesystem_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet")
    assert names(make_source(f"file://{tmp_path}/*.parquet?use_mmap=false")) == ["a.parquet"]
    assert names(make_source(f"file://{tmp_path}/?.parquet")) == ["a.parquet"]
    monkeypatch.chdir(tmp_path)
    assert names(make_source("*.parquet", filesystem=fs.LocalFileSystem())) == ["a.parquet"]
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    assert names(make_source("*.parquet", filesystem=below)) == ["a.parquet"]


@pytest.mark.parametrize("name", ["a b", "é", "#1", "x#y", "{1}", "50%25"])
def test_a_uri_may_have_characters_that_have_to_be_quoted(tmp_path: Path, name: str) -> None:
    """As keys of object stores often have them. Of `data/#1.parquet`, the whole folder was read."""
    write(tmp_path / "other.parquet")
    written = name.replace("%25", "%")
    write(tmp_path / written / f"{written}.parquet")
    for uri in (f"{name}/{name}.parquet", f"{name}/*.parquet", quote(f"{written}/{written}.parquet"), name):
        assert names(make_source(f"file://{tmp_path}/{uri}")) == [f"{written}.parquet"]
    both = [f"file://{tmp_path}/other.parquet", f"{tmp_path}/{written}"]
    assert names(make_source(both)) == ["other.parquet", f"{written}.parquet"]


@pytest.mark.parametrize("name", ["hour=03%3A00/x.parquet", "hour=03%3A*/*.parquet"])
def test_a_uri_with_a_percent_sign_of_the_name_says_how_to_write_it(tmp_path: Path, name: str) -> None:
    """As `DeltaTable.file_uris` has the files of a table that is partitioned by a time."""
    write(tmp_path / "hour=03%3A00" / "x.parquet")
    with pytest.raises(NotFoundError, match=r"hour=03:.*; write a % that is part of a name as %25 in a URI"):
        names(make_source(f"file://{tmp_path}/{name}"))
    assert names(make_source(f"file://{tmp_path}/{name.replace('%', '%25')}")) == ["x.parquet"]
    for other in (f"file://{tmp_path}/no.parquet", f"{tmp_path}/no%20.parquet"):
        with pytest.raises(NotFoundError, match=r"no such file or folder\Z"):
            names(make_source(other))


def test_a_host_is_connected_to_once_however_many_of_its_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the files of a Delta table are: of ten thousand in S3, making clients alone took 17 s of a processor."""
    wanted = [f"{number} #é.parquet" for number in range(9)]
    for name in wanted:
        write(tmp_path / "a b" / name)
    connected: list[str] = []
    original = paths_module._connect

    def connect(uri: str, **options: Any) -> tuple[Any, str]:
        connected.append(uri)
        return original(uri, **options)

    monkeypatch.setattr(paths_module, "_connect", connect)
    uris = [quote(f"{tmp_path}/a b/{name}") for name in wanted]
    assert names(make_source([f"file://{uri}" for uri in uris])) == wanted
    assert len(connected) == 1
    assert names(make_source([f"file://{uri}?use_mmap=false" for uri in uris])) == wanted
    for other in (f"file://{tmp_path}/a b/", f"{tmp_path}/a b", f"file://{tmp_path}/a b/*"):
        assert names(make_source([f"file://{uris[0]}", other])) == [wanted[0], *wanted]


def test_a_name_that_is_not_utf_8_is_said_to_be_none(tmp_path: Path) -> None:
    """Arrow cannot list the folder; it was said to be out of reach, after five tries."""
    write(tmp_path / "a.parquet").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet"))
    write(tmp_path / "b.parquet")
    for path in ("", "*.parquet", os.fsdecode(b"caf\xe9.parquet")):
        with pytest.raises(DataError, match=r"caf\\(xe9|udce9)\.parquet' is no name in UTF-8, .* rename it"):
            open_dataset(make_source(f"{tmp_path}/{path}"))


def test_relative_paths_are_relative_to_where_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "day.parquet")
    monkeypatch.chdir(tmp_path)
    assert names(make_source("day.parquet")) == names(make_source("d*.parquet")) == ["day.parquet"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.parquet", r"nothing.parquet: no such file or folder"),
        ("*.orc", r"\*.orc: matches no file"),
        ("no/where/*.parquet", r"matches nothing, since .*no/where does not exist"),
        ("empty", r"empty: the folder holds no .parquet file; for files of other names give .*/empty/\*$"),
    ],
)
def test_what_names_no_file_is_an_error_that_names_it(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=message):
        open_dataset(make_source(tmp_path / path))
    with pytest.raises(FileNotFoundError):
        open_dataset(make_source(tmp_path / path))


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("_delta_log/00000000000000000000.json", "table is a Delta table, .*give the list .*file_uris"),
        (".hoodie/hoodie.properties", "table is a Hudi table"),
        ("metadata/v1.metadata.json", "table is an Iceberg table"),
        ("metadata/readme.json", ""),
        ("day=1/_delta_log/0.json", ""),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/**/*.parquet"])
def test_of_a_table_whose_log_is_not_read_it_is_said(
    tmp_path: Path, log: str, words: str, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was compacted lies there twice, and a training saw every row of it as often."""
    write(tmp_path / "table/a.parquet")
    (tmp_path / "table" / log).parent.mkdir(parents=True)
    (tmp_path / "table" / log).write_text("{}")
    with caplog.at_level("WARNING", logger="intune"):
        assert names(make_source(f"{tmp_path}/table{pattern}")) == ["a.parquet"]
    said = "".join(record.getMessage() for record in caplog.records)
    seen = not (log.startswith("metadata/v1") and pattern == "/*.parquet")  # a listing of the folder alone
    assert re.search(words, said) if words and seen else not said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": []}, "`paths` is empty"),
        ({"paths": 3}, "`paths`=3 must be a path, a glob or a URI"),
        ({"paths": None}, "`paths`=None must be"),
        ({"paths": ["a", 4]}, r"`paths`=\['a', 4\] must be"),
        ({"paths": "a", "columns": []}, "`columns` is empty"),
        ({"paths": "a", "columns": [1]}, r"`columns`=\[1\] must be names"),
        ({"paths": "a", "columns": 1}, r"`columns`=1 must be names"),
        ({"paths": "a", "columns": np.array([])}, "`columns` is empty"),
        ({"paths": "a", "fill": "none"}, "`fill`='none' must be a number, for all .*or a mapping"),
        ({"paths": "a", "fill": {3: 0}}, r"`fill`=\{3: 0\} must have names or patterns"),
        ({"paths": "a", "filesystem": "s3"}, "`filesystem`='s3' must be a pyarrow or fsspec filesystem"),
    ],
)
def test_nonsensical_sources_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_source(**arguments)


def test_uris_no_filesystem_knows_or_of_several_filesystems_are_refused() -> None:
    for uri in ("gopher://x/y", "s3a://bucket/x"):
        with pytest.raises(
            ConfigError, match=f"'{uri}', which no filesystem takes: .* or give `filesystem=`"
        ):
            open_dataset(make_source(uri))


@pytest.mark.parametrize("keys", ["name:hush", "name:sh/hush", "name:hush%", "hush"])
def test_keys_in_uris_are_in_no_error(keys: str) -> None:
    """Its text may end in a log."""
    for scheme in ("gopher", "s3"):
        with pytest.raises(ConfigError, match=rf"'{scheme}://x/y\?no=1', which no") as told:
            open_dataset(make_source(f"{scheme}://{keys}@x/y?no=1"))
        assert "hush" not in str(told.value)
        assert told.value.__cause__ is None
    with pytest.raises(ConfigError, match=r"'s3://x/y', but `filesystem` is given too; .* such as 'x/y'"):
        open_dataset(make_source(f"s3://{keys}@x/y", filesystem=fs.LocalFileSystem()))


def test_storage_that_fails_to_say_where_a_bucket_lies_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet")
    failures = 2

    def from_uri(uri: str) -> tuple[Any, str]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("When resolving region for bucket 'b': could not connect")
        return fs.LocalFileSystem(), uri.removeprefix("s3://id:secret@b")

    filesystem = SimpleNamespace(from_uri=from_uri)
    monkeypatch.setattr(paths_module, "fs", SimpleNamespace(**{**vars(fs), "FileSystem": filesystem}))
    source, waits = make_source(f"s3://id:secret@b{tmp_path}/a.parquet"), list[float]()
    assert [file.rows for file in open_dataset(source, retries=2, sleep=waits.append).files] == [(3,)]
    assert len(waits) == 2
    failures = 9
    with pytest.raises(
        StorageError, match=r"s3://b/.*storage failed \(When resolving.*gave up after 1 tries"
    ):
        open_dataset(source)


@pytest.mark.parametrize(
    ("uri", "seconds"),
    [
        ("gs://anonymous@bucket/x.parquet", paths_module.GOOGLE_PATIENCE),
        ("gcs://bucket/x.parquet?scheme=http", paths_module.GOOGLE_PATIENCE),
        ("gs://bucket/x.parquet?retry_limit_seconds=7", 7),
    ],
)
def test_googles_client_does_not_try_for_a_quarter_of_an_hour(uri: str, seconds: float) -> None:
    made, path = paths_module._connect(uri, retries=0, sleep=lambda seconds: None)
    assert made.__reduce__()[1][0]["retry_time_limit"].total_seconds() == seconds
    assert path == "bucket/x.parquet"


def test_a_uri_on_a_filesystem_that_takes_paths_is_refused_with_the_path(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    for filesystem in (fs.SubTreeFileSystem("/", fs.LocalFileSystem()), fs.LocalFileSystem()):
        with pytest.raises(
            ConfigError, match=r"'file://.*`filesystem` is given too; leave it out.*a\.parquet'"
        ):
            open_dataset(make_source(f"file://{tmp_path}/a.parquet", filesystem=filesystem))


def test_a_uri_on_an_fsspec_filesystem_is_its_path(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "a.parquet")
    folder, filesystem = f"file://{tmp_path}/.cache", fsspec.filesystem("file")
    for uri in (folder, f"{folder}/*.parquet", f"{folder}/a.parquet"):
        assert names(make_source(uri, filesystem=filesystem)) == ["a.parquet"]


# ---- what is left out ------------------------------------------------------------------------------------------


HIDDEN = (
    "_temporary/0/_temporary/attempt_1/part-0.parquet",
    "_delta_log/00010.checkpoint.parquet",
    "_metadata.parquet",
    "day/_staging/x.parquet",
    "day/.x.parquet.crc.parquet",
    ".tmp-a.parquet",
)


def test_what_other_programs_are_writing_or_keep_for_themselves_is_no_data(tmp_path: Path) -> None:
    for name in (*HIDDEN, "part-0.parquet", "_day=3/x.parquet", "day/y.parquet"):
        write(tmp_path / "t" / name)
    whole = ["t/_day=3/x.parquet", "t/day/y.parquet", "t/part-0.parquet"]
    for path in ("t", "t/", "t*", "*", "t/**", "t/**/*", "t/**/*.parquet", "**/*.parquet"):
        assert below(tmp_path, path) == whole, path
    root = fs.SubTreeFileSystem(str(tmp_path / "t"), fs.LocalFileSystem())
    assert names(make_source("", filesystem=root)) == ["x.parquet", "y.parquet", "part-0.parquet"]
    assert below(tmp_path, "t/*.parquet") == ["t/part-0.parquet"]
    assert below(tmp_path, "t/*") == whole


def test_what_is_left_out_can_be_asked_for(tmp_path: Path) -> None:
    for name in HIDDEN:
        write(tmp_path / name)
    assert below(tmp_path, "_delta_log") == below(tmp_path, "_delta_log/*.parquet") == [HIDDEN[1]]
    assert below(tmp_path, "_del*") == below(tmp_path, "_[c-e]*/*") == [HIDDEN[1]]
    assert below(tmp_path, ".tmp*.parquet") == below(tmp_path, HIDDEN[-1]) == [HIDDEN[-1]]
    assert below(tmp_path, "**/_staging/*.parquet") == ["day/_staging/x.parquet"]
    with pytest.raises(NotFoundError, match="matches no file"):
        below(tmp_path, "[.]*")


def test_a_link_to_a_folder_that_it_lies_in_does_not_repeat_the_files(tmp_path: Path) -> None:
    write(tmp_path / "t" / "s" / "x.parquet")
    write(tmp_path / "else" / "y.parquet")
    (tmp_path / "t" / "s" / "loop").symlink_to(tmp_path / "t")
    (tmp_path / "t" / "other").symlink_to(tmp_path / "else")
    assert below(tmp_path, "t") == below(tmp_path, "t/**/*.parquet") == ["t/other/y.parquet", "t/s/x.parquet"]
    assert below(tmp_path, "t/s/loop") == ["t/s/loop/other/y.parquet", "t/s/loop/s/x.parquet"]


# ---- globs -----------------------------------------------------------------------------------------------------


TREE = ("x.parquet", "s/y.parquet", "s/t/z.parquet", "s/t/note.txt", "r/x.pq")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.parquet", ["s/t/z.parquet", "s/y.parquet", "x.parquet"]),
        ("**/x.*", ["r/x.pq", "x.parquet"]),
        ("s/**/*.parquet", ["s/t/z.parquet", "s/y.parquet"]),
        ("s/**/t/**/z.parquet", ["s/t/z.parquet"]),
        ("**/**/z*", ["s/t/z.parquet"]),
        ("*/*.parquet", ["s/y.parquet"]),
        ("?/?/?.parquet", ["s/t/z.parquet"]),
        ("[r-s]/[!y].*", ["r/x.pq"]),
        ("**/note.*", ["s/t/note.txt"]),
    ],
)
def test_globs_find_what_pythons_find(tmp_path: Path, pattern: str, found: list[str]) -> None:
    for name in TREE:
        write(tmp_path / name)
    assert sorted(set(glob.glob(pattern, root_dir=tmp_path, recursive=True))) == found
    assert below(tmp_path, pattern) == found
    assert below(tmp_path, pattern, filesystem=fs.LocalFileSystem()) == found
    assert below(tmp_path, pattern, filesystem=fs.PyFileSystem(Local())) == found


class Local(fs.FSSpecHandler):  # type: ignore[misc]
    """The local filesystem as one written in Python."""

    def __init__(self) -> None:
        import fsspec

        super().__init__(fsspec.filesystem("file"))


def test_folders_that_a_glob_matches_are_read_as_folders(tmp_path: Path) -> None:
    for name in (
        "day1.parquet/part-0.parquet",
        "day1.parquet/sub/part-1.parquet",
        "day2.parquet",
        "day3/n.txt",
    ):
        write(tmp_path / name)
    days = ["day1.parquet/part-0.parquet", "day1.parquet/sub/part-1.parquet", "day2.parquet"]
    assert below(tmp_path, "day*") == below(tmp_path, "**/day[12]*") == days
    assert below(tmp_path, "day*/**") == below(tmp_path, "*/**") == days[:2]
    for name in (
        "year=2024/month=01/a.parquet",
        "year=2024/month=02/b.parquet",
        "year=2025/month=01/c.parquet",
    ):
        write(tmp_path / "hive" / name)
    months = ["hive/year=2024/month=01/a.parquet", "hive/year=2024/month=02/b.parquet"]
    assert below(tmp_path, "hive/year=2024/month=*") == months
    assert below(tmp_path, "hive/*4") == below(tmp_path, "hive/*/month=*", "hive/year=2024")[:2] == months
    assert len(below(tmp_path, "hive/*/month=*")) == 3


def test_two_stars_are_folders_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "s" / "x.parquet")
    with pytest.raises(ConfigError, match=r"write it as in `\*\*/\*\.parquet`"):
        below(tmp_path, "**.parquet")
    with pytest.raises(NotFoundError, match="is no folder"):
        below(tmp_path, "s/x.parquet/*")


# ---- URIs ------------------------------------------------------------------------------------------------------


def test_the_globs_of_uris_are_those_of_paths(tmp_path: Path) -> None:
    for name in ("x.parquet", "y.parquet", "xy.parquet", "a b.parquet", "c%20d.parquet", "[e].parquet"):
        write(tmp_path / "u r" / name)
    uri = f"file://{tmp_path}/u%20r"

    def found(tail: str) -> list[str]:
        return names(make_source(f"{uri}/{tail}"))

    assert found("?.parquet") == found("?.parquet?use_mmap=false") == ["x.parquet", "y.parquet"]
    assert found("[x].parquet") == found("[wx].parq*") == ["x.parquet"]
    assert found("*%20b.parquet") == found("a%20b.parquet") == ["a b.parquet"]
    assert found("c%2520?.parquet") == ["c%20d.parquet"]
    assert found("%5Be%5D.*") == ["[e].parquet"]
    assert len(found("*.parquet")) == len(found("**/*.parquet")) == 6
    assert names(make_source(f"file://{tmp_path}/u*/x.parquet?use_mmap=false")) == ["x.parquet"]


# ---- paths that mean something else -------------------------------------------------------------------------------


def test_a_pipe_or_device_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.parquet")
    write(tmp_path / "x.parquet")
    for path in (str(tmp_path / "f.parquet"), "/dev/null"):
        with pytest.raises(
            DataError, match=f"{path}: is neither a file nor a folder, but a pipe or a device"
        ):
            open_dataset(make_source(path))
    root = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        open_dataset(make_source("f.parquet", filesystem=root))
    assert below(tmp_path, "") == below(tmp_path, "*.parquet") == ["x.parquet"]


@pytest.mark.parametrize("written_in_python", [False, True])
def test_a_link_to_a_file_that_is_gone_is_missed_not_left_out(
    tmp_path: Path, written_in_python: bool
) -> None:
    """Training would go on with less data, and nobody would know."""
    filesystem = fsspec.filesystem("file") if written_in_python else None
    write(tmp_path / "d" / "day=1" / "x.parquet")
    os.mkfifo(tmp_path / "d" / "pipe.parquet")
    (tmp_path / "d" / "day=2").mkdir()
    (tmp_path / "d" / "day=2" / "y.parquet").symlink_to(tmp_path / "gone.parquet")
    (tmp_path / "d" / ".hidden.parquet").symlink_to(tmp_path / "gone.parquet")
    (tmp_path / "d" / "notes.txt").symlink_to(tmp_path / "gone.txt")
    for path in ("d", "d/day=2/*.parquet", "d/**/*.parquet", "d/day=2/?.*"):
        source = make_source(f"{tmp_path}/{path}", filesystem=filesystem)
        with pytest.raises(
            NotFoundError, match=r"day=2/y\.parquet: no such file \(a link to one that is gone"
        ):
            open_dataset(source)
    data = open_dataset(make_source(tmp_path / "d", filesystem=filesystem), on_error="skip")
    assert [Path(file.path).name for file in data.files] == ["x.parquet"]
    ((left_out, error),) = data.skipped
    assert left_out.endswith("day=2/y.parquet")
    assert isinstance(error, NotFoundError)


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    for paths in ("", " ", ["x.parquet", ""]):
        with pytest.raises(ConfigError, match=r"holds an empty path .*'\.' is the current folder"):
            make_source(paths)
    assert names(make_source(".")) == ["x.parquet"]


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~", "~/x.parquet", Path("~/x.parquet"), "~/?.parquet"):
        assert names(make_source(path)) == ["x.parquet"]
    assert names(make_source("~/x.parquet", filesystem=fs.LocalFileSystem())) == ["x.parquet"]


def test_the_keys_of_partitions_are_those_of_folders() -> None:
    path = "/d/year=2024/month=01/x=1.parquet"
    assert partition_keys(path) == {"year": "2024", "month": "01"}
    assert partition_keys("x.parquet") == {}
