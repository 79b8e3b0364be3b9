from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from intune.envs.toml import dumps

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False) | st.integers(-(2**62), 2**62)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
leaves = numbers | st.booleans() | text | st.lists(numbers, max_size=4)
tables = st.recursive(
    st.dictionaries(keys, leaves, max_size=4),
    lambda inner: st.dictionaries(keys, leaves | inner | st.lists(inner, min_size=1, max_size=3), max_size=4),
    max_leaves=12,
)


@given(tables)
def test_what_is_written_is_read_back_by_the_standard_library(table: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(table)) == table


def test_distributions_stand_in_line_and_tables_under_headings() -> None:
    written = dumps(
        {"name": "x", "job": {"noise": {"uniform": [0.0, 0.1]}}, "stage": [{"name": "load", "cpu": 1e-6}]}
    )
    assert written == (
        'name = "x"\n\n[job]\nnoise = {uniform = [0.0, 0.1]}\n\n[[stage]]\nname = "load"\ncpu = 1e-06\n'
    )
