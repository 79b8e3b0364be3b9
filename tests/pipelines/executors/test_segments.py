from __future__ import annotations

import errno
import mmap
import os
from typing import Any

import pytest

from intune.pipelines.executors.segments import Segment


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOMEM, MemoryError), (errno.EACCES, OSError)])
def test_where_no_more_may_be_mapped_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception]
) -> None:
    """Else it would look like a fault of the user's function."""

    def refused(*_: Any) -> None:
        raise OSError(number, "no")

    segment = Segment.create()
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refused)
        with pytest.raises(raised):
            segment.lend(100)
    assert len(segment.lend(100)) == 100
    segment.close()


def test_without_memory_that_has_no_name_a_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel that is older than the one Python was built for."""

    def lacking(name: str) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", lacking)
    segment = Segment.create()
    segment.lend(3)[:] = 7
    assert os.pread(segment.descriptor, 3, 0) == b"\7\7\7"
    segment.close()
