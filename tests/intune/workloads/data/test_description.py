"""`dataset.json` there and back, and what is said of one that cannot be read."""

from pathlib import Path

import pytest

from intune.errors import CorruptError, NotFoundError
from intune.workloads.data.description import DATASET_FILE, read_description
from intune.workloads.data.writer import write_description


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_description(tmp_path, {"kind": "synthetic", "rows": {"train": 3, "test": 1}})
    description = read_description(tmp_path)
    assert description["rows"] == {"train": 3, "test": 1}
    assert description["schema_version"] == 1


def test_a_missing_description_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no dataset.json in .*intune data"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "`schema_version` None"),
        (b'{"schema_version": 99}', "`schema_version` 99, but this version reads 1"),
    ],
)
def test_a_broken_description_is_corrupt(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / DATASET_FILE).write_bytes(content)
    with pytest.raises(CorruptError, match=message):
        read_description(tmp_path)
