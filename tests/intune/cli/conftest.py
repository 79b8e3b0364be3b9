from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_torch_threads() -> Iterator[None]:
    """Commands choose how many threads torch has, for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
