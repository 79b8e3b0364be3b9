from __future__ import annotations

import pytest

from intune.pipelines.errors import (
    ConfigError,
)
from intune.pipelines.reading.source import make_source


def test_columns_of_a_set_come_in_the_same_order_in_every_process() -> None:
    """Else a state would not be taken by another process, and ranks would see other batches."""
    names = {f"C{number}" for number in range(26)}
    assert make_source("x", columns=names).columns == tuple(sorted(names))
    assert make_source("x", columns=frozenset(names)).columns == tuple(sorted(names))
    assert make_source("x", columns=dict.fromkeys("cab").keys()).columns == ("c", "a", "b")
    with pytest.raises(ConfigError, match="must be names or patterns"):
        make_source("x", columns={"a", 1})  # type: ignore[arg-type]
