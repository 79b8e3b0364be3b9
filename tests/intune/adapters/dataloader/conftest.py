"""What holds for all tests of wrapped DataLoaders."""

import pytest

from intune.adapters.dataloader.inspection.cheap import Cheap
from intune.adapters.dataloader.sending.processes import LIBRARIES
from intune.pipelines.executors.process import Process


@pytest.fixture(autouse=True)
def nothing_is_cheap(monkeypatch, request):
    """How fast this machine is decides nothing: where threads may make batches, they do, but in tests with `limits`."""
    if "limits" not in request.fixturenames:
        for name in ("of", "until_known"):
            monkeypatch.setattr(Cheap, name, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def the_fork_server_stays():
    """It ends with the last process, and takes seconds to import torch again."""
    process = Process(libraries=LIBRARIES)
    yield
    process.hang_up()
    process.end(5.0)
