"""What holds for all tests of wrapped DataLoaders."""

import pytest

from intune.adapters import dataloader_cheap


@pytest.fixture(autouse=True)
def nothing_is_cheap(monkeypatch):
    """How fast this machine is decides nothing: where threads may make batches, they do."""
    monkeypatch.setattr(dataloader_cheap, "CHEAP_S", -1.0)
