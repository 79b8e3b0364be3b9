from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines.errors import CorruptError, NotFoundError, SchemaError
from intune.pipelines.transforms import (
    Vocabulary,
    VocabularyBuilder,
    load_vocabulary,
    save_vocabulary,
    vocabulary_file,
)


@pytest.fixture
def vocabulary() -> Vocabulary:
    builder = VocabularyBuilder("*")
    builder.update(
        {
            "n": np.array([5, 5, -(2**63), 7]),
            "s": pa.array(["é", "b", None, "b"]),
            "b": pa.array([b"\xff", b"", b"", b""]),
            "none": pa.array([None] * 4, pa.string()),
        }
    )
    return builder.build(first=3, unknown=1, null=2)


def test_what_was_saved_is_loaded(vocabulary: Vocabulary, tmp_path: Path) -> None:
    save_vocabulary(vocabulary, tmp_path / "v.parquet")
    loaded = load_vocabulary(str(tmp_path / "v.parquet"))
    assert (loaded.first, loaded.unknown, loaded.null) == (3, 1, 2)
    assert list(loaded.entries) == list(vocabulary.entries)
    for name, entries in vocabulary.entries.items():
        assert loaded.entries[name].values.equals(entries.values)
        assert loaded.entries[name].counts.equals(entries.counts)
    block = {
        "n": np.array([5, 8]),
        "s": pa.array([None, "é"]),
        "b": pa.array([b"", b"x"]),
        "none": pa.array(["a", None]),
    }
    for name, column in loaded(block).items():
        assert column.tolist() == vocabulary(block)[name].tolist()


def test_the_file_is_a_table_anyone_can_read(vocabulary: Vocabulary, tmp_path: Path) -> None:
    save_vocabulary(vocabulary, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet").to_pylist()
    assert rows[0] == {"column": "n", "id": 3, "count": 2, "integer": 5, "text": None, "bytes": None}
    assert [row["text"] for row in rows if row["column"] == "s"] == ["b", "é"]


def test_rows_in_any_order_and_names_as_plain_strings_are_the_same_vocabulary(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """As a program writes them that sorted or filtered the table on its way."""
    path = tmp_path / "v.parquet"
    save_vocabulary(vocabulary, path)
    table = pq.read_table(path)
    plain = table.schema.set(0, pa.field("column", pa.large_string()))
    rows = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.cast(plain).take(rows), path, row_group_size=2)
    loaded = load_vocabulary(path)
    assert list(loaded.entries) == list(vocabulary.entries)
    for name, entries in vocabulary.entries.items():
        assert loaded.entries[name].values.equals(entries.values)
        assert loaded.entries[name].counts.equals(entries.counts)


def test_a_file_is_replaced_whole_or_not_at_all(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.parquet"
    save_vocabulary(vocabulary, path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(vocabulary_file, "_rows", fail)
    with pytest.raises(OSError, match="disk full"):
        save_vocabulary(vocabulary, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.parquet"]


def test_files_that_are_no_vocabulary(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no vocabulary '.*missing'"):
        load_vocabulary(tmp_path / "missing")
    path = tmp_path / "v.parquet"
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match=r"v.parquet' cannot be read as Parquet"):
        load_vocabulary(path)
    save_vocabulary(vocabulary, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptError, match="cannot be read as Parquet"):
        load_vocabulary(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(SchemaError, match="holds no vocabulary of version 1; give a file of save_vocabulary"):
        load_vocabulary(path)


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        '{"version": 1, "columns": []}',
        '{"version": 2}',
        '{"version": 1}',
        '{"version": 1, "columns": {}}',
    ],
)
def test_headers_that_say_nothing_or_something_else(
    vocabulary: Vocabulary, tmp_path: Path, header: str
) -> None:
    path = tmp_path / "v.parquet"
    save_vocabulary(vocabulary, path)
    table = pq.read_table(path).replace_schema_metadata({"intune.vocabulary": header})
    pq.write_table(table, path)
    with pytest.raises(SchemaError, match=r"v\.parquet"):
        load_vocabulary(path)


def test_entries_that_contradict_the_header(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    save_vocabulary(vocabulary, path)
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"intune.vocabulary"])
    header["unknown"] = 4
    pq.write_table(table.replace_schema_metadata({"intune.vocabulary": json.dumps(header)}), path)
    with pytest.raises(
        SchemaError, match=r"does not hold the vocabulary that it says.*`unknown`=4 is an entry's id"
    ):
        load_vocabulary(path)


def test_ranks_of_one_process_number_may_save_to_one_path_at_once(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """In containers every rank may be process 7; here the second begins and ends while the first one writes."""
    path = tmp_path / "v.parquet"
    with pytest.MonkeyPatch.context() as patch:
        rows = vocabulary_file._rows

        def interrupted(*arguments: Any) -> pa.Table:
            patch.setattr(vocabulary_file, "_rows", rows)
            save_vocabulary(vocabulary, path)
            return rows(*arguments)

        patch.setattr(vocabulary_file, "_rows", interrupted)
        save_vocabulary(vocabulary, path)
    assert list(load_vocabulary(path).entries) == list(vocabulary.entries)
    assert list(tmp_path.iterdir()) == [path]
