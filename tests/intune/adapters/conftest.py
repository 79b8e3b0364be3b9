"""What holds for all tests of wrapped DataLoaders."""

import pytest

from intune.adapters.dataloader_cheap import Cheap


@pytest.fixture(autouse=True)
def nothing_is_cheap(monkeypatch, request):
    """How fast this machine is decides nothing: where threads may make batches, they do, but in tests with `limits`."""
    if "limits" not in request.fixturenames:
        for name in ("of", "until_known"):
            monkeypatch.setattr(Cheap, name, lambda *_: None)
