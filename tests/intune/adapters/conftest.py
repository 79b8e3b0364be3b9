"""What holds for all tests of wrapped DataLoaders."""

import pytest

from intune.adapters import dataloader_processes
from intune.adapters.dataloader_cheap import Cheap
from intune.pipelines.executors import processes
from intune.pipelines.executors.process import HANDED_OVER, Process


@pytest.fixture(autouse=True)
def nothing_is_cheap(monkeypatch, request):
    """How fast this machine is decides nothing: where threads may make batches, they do, but in tests with `limits`."""
    if "limits" not in request.fixturenames:
        for name in ("of", "until_known"):
            monkeypatch.setattr(Cheap, name, lambda *_: None)


@pytest.fixture
def fresh_processes():
    """For tests of what worker processes have, or have not, from their start."""


@pytest.fixture(autouse=True)
def processes_again(monkeypatch, request, used_processes):
    """Worker processes go from test to test, since each takes seconds to start; but in tests with `fresh_processes`."""
    if "fresh_processes" not in request.fixturenames:
        for module in (dataloader_processes, processes):
            monkeypatch.setattr(module, "Process", used_processes)


@pytest.fixture(scope="session")
def used_processes():
    """Makes processes, of those that tests are through with if there are any."""
    spare: list[UsedProcess] = []

    def make(number: int = 0) -> Process:
        for process in [one for one in spare if one.number == number]:
            spare.remove(process)
            if process.alive:
                process.handed_over = HANDED_OVER
                return process
            process.really_end()
        return UsedProcess(spare, number)

    yield make
    for process in spare:
        process.really_end()


class UsedProcess(Process):
    """Instead of ending it does nothing, if all that it was asked has been answered."""

    MOST = 4

    def __init__(self, spare, number):
        super().__init__(number)
        self._spare, self._asked = spare, True

    def prepare(self, stage, function):
        self._asked = True
        super().prepare(stage, function)
        self._asked = False

    def call(self, stage, block, timeout):
        self._asked = True
        answer = super().call(stage, block, timeout)
        self._asked = False
        return answer

    def hang_up(self):
        if self._asked:
            super().hang_up()

    def kill(self):
        self._asked = True
        super().kill()

    def end(self, patience):
        if self._asked or not self.alive:
            return super().end(patience)
        if len(self._spare) >= self.MOST:
            return self.really_end()
        self._prepared.clear()
        self._spare.append(self)
        return "ended with exit code 0"

    def really_end(self):
        super().hang_up()
        return super().end(1.0)
