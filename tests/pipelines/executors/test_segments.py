from __future__ import annotations

import errno
import mmap
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
