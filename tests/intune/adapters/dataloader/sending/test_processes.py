"""Datasets in worker processes: the DataLoader's batches, its iterators' turns, seeds that slots do not change."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from intune.adapters.dataloader.in_flight import InFlight
from intune.adapters.dataloader.sending.processes import Processes
from intune.pipelines import Allocation
from intune.pipelines.errors import ConfigError, StageError, StageTimeout, WorkerLostError
from intune.pipelines.executors import processes
from intune.pipelines.executors.processes import ProcessPool
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.operations import LOOKS
from tests.intune.adapters.dataloader.common import assert_same, same, wrap
from tests.intune.adapters.dataloader.datasets import (
    Failing,
    FailingStream,
    ManyAtOnce,
    Noisy,
    Samples,
    Slow,
    Stream,
    Where,
    mark_dataset,
)


def test_map_style_batches_are_the_dataloaders_in_every_epoch_whatever_is_resized():
    def make():
        generator = torch.Generator().manual_seed(5)
        return DataLoader(ManyAtOnce(40, "dict"), 6, shuffle=True, generator=generator)

    plain = make()
    with wrap(make(), workers="process", allocation=Allocation.shared(2)) as loader:
        for count in (3, None):
            expected = list(itertools.islice(plain, count))
            made = []
            for number, batch in enumerate(itertools.islice(loader, count)):
                made.append(batch)
                loader.resize({"fetch": 1 + number % 2})
            assert_same(made, expected)
        assert loader.stats().stage("collate").tasks == loader.stats().stage("fetch").tasks
        # The dataset as it is when an epoch begins is what processes have.
        loader.dataset.size = plain.dataset.size = 6
        loader.dataset.kind = plain.dataset.kind = "string"
        loader.sampler.data_source.size = 6
        assert_same(loader, plain)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_random_numbers_are_those_of_a_dataloader_with_a_worker_for_every_batch():
    """So they depend on the seed and the batch alone, whatever the slots and whichever process makes it."""
    generator = torch.Generator().manual_seed(7)
    with wrap(DataLoader(Noisy(12), 3, generator=generator), workers="process") as loader:
        epochs = [list(loader) for _ in range(2)]
    generator = torch.Generator().manual_seed(7)
    plain = DataLoader(Noisy(12), 3, generator=generator, num_workers=4, multiprocessing_context="fork")
    for batches in epochs:
        assert_same(batches, plain)
    assert not same(epochs[0], epochs[1])


def test_worker_init_fn_and_worker_info_are_those_of_a_worker():
    dataset = Where(30)
    dataloader = DataLoader(dataset, 5, num_workers=2, worker_init_fn=mark_dataset)
    with wrap(dataloader, allocation=Allocation.shared(2)) as loader:
        assert loader.workshop.choice.kind == "process"
        rows = torch.cat(list(loader)).tolist()
        assert [row[0] for row in rows] == list(range(30))
        assert {row[1] for row in rows} <= {0, 1}
        assert all(row[2] == 2 and row[3] == 100 + row[1] for row in rows)
        assert not hasattr(dataset, "mark")  # the copy in the worker has it


def count_begins(number):
    dataset = get_worker_info().dataset
    dataset.mark = getattr(dataset, "mark", 0) + 1


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_are_begun_with_a_copy_as_it_was_in_every_epoch_unless_they_persist(persistent):
    options = {"worker_init_fn": count_begins, "num_workers": 1, "persistent_workers": persistent}
    with wrap(DataLoader(Where(8), 2, **options), allocation=Allocation.shared(1)) as loader:
        for _ in range(3):
            assert torch.cat(list(loader))[:, 3].tolist() == [1] * 8


def test_processes_end_when_there_are_no_slots_for_them_any_more(monkeypatch):
    monkeypatch.setattr(processes, "SPARE_S", 0.0)
    dataset = Slow(10**6, 0.01)
    with wrap(DataLoader(dataset), workers="process", allocation=Allocation.shared(2)) as loader:
        loop = iter(loader)
        while len(loader.workshop.processes.pids()) < 2:
            next(loop)
        loader.resize({"fetch": 1})
        while len(loader.workshop.processes.pids()) > 1:
            next(loop)
        assert next(loop)[0, 2] > 0
        assert loader.stats().workers_lost == 0


def test_persistent_workers_keep_their_copy():
    dataset = Where(4)
    with wrap(DataLoader(dataset, 4, num_workers=1, persistent_workers=True), workers="process") as loader:
        first = next(iter(loader))
        dataset.mark = 5
        assert torch.equal(next(iter(loader)), first)


def test_iterators_take_turns_as_the_dataloaders_workers_do():
    def make():
        return DataLoader(Stream((7, 2), noisy=True), 3, num_workers=2, multiprocessing_context="fork")

    torch.manual_seed(3)
    plain = make()
    expected = [list(itertools.islice(plain, 2)), list(plain)]
    torch.manual_seed(3)
    with wrap(make(), allocation={"fetch": 2, "collate": 1}) as loader:
        assert_same(itertools.islice(loader, 2), expected[0])
        assert_same(loader, expected[1])
        around = iter(loader)
        first = next(around)
        assert len(list(loader)) == 4  # a loop of its own, in processes of its own
        assert len([first, *around]) == 4


def test_errors_in_processes_come_in_the_batchs_turn_and_the_loop_can_go_on():
    dataset = Failing(20, bad=[7])
    with wrap(DataLoader(dataset, 3), workers="process", allocation=Allocation.shared(1)) as loader:
        loop = iter(loader)
        good = [next(loop), next(loop)]
        with pytest.raises(
            KeyError, match=r"stage 'fetch', batch 2 \(indices 6, 7, 8\): KeyError: 'sample 7'"
        ):
            next(loop)
        assert torch.cat([*good, *loop])[:, 0].tolist() == [0, 1, 2, 3, 4, 5, *range(9, 20)]


SPAWNED = """
    import multiprocessing
    import sys

    class Squares:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            needless = {"intune.adapters.dataloader.tunable", "pyarrow.dataset", "psutil"} & sys.modules.keys()
            return i * i, *needless

    def train():
        from torch.utils.data import DataLoader
        from intune.adapters.dataloader.tunable import TunableDataLoader

        with TunableDataLoader(DataLoader(Squares(), 3, num_workers=1), workers="process") as loader:
            print(list(loader), flush=True)

    if __name__ == "__main__":
        process = multiprocessing.get_context("spawn").Process(target=train)
        process.start()
        process.join()
"""


def test_a_script_that_was_spawned_has_its_dataset_in_processes_that_import_little(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SPAWNED))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=150
    )
    assert (done.stdout, done.stderr) == ("[[tensor([0, 1, 4])], [tensor([ 9, 16, 25])]]\n", "")


def test_an_iterator_that_raises_and_one_whose_process_dies_end_with_an_error():
    with wrap(DataLoader(FailingStream(5), 2, num_workers=1)) as loader:
        loop = iter(loader)
        assert torch.cat([next(loop), next(loop)]).tolist() == [0, 1, 2, 3]
        with pytest.raises(
            ValueError, match="stage 'fetch', batch 2 of iterator 0: ValueError: the stream broke"
        ):
            next(loop)
        assert list(loop) == []
    with wrap(DataLoader(Stream((10**9,)), 2, num_workers=1), allocation=Allocation.shared(1)) as loader:
        loop = iter(loader)
        next(loop)
        (pid,) = loader.workshop.processes.pids()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            WorkerLostError, match=r"batch .* of iterator 0.*killed by SIGKILL.*begin the epoch"
        ):
            for _ in loop:
                pass
        assert loader.stats().workers_lost == 1
        assert len(list(itertools.islice(loader, 3))) == 3


def test_a_map_style_batch_whose_process_dies_is_made_again(tmp_path):
    class Deadly(Samples):
        def __init__(self, size, marker):
            super().__init__(size)
            self.marker = marker

        def __getitem__(self, i):
            if i == 4 and not os.path.exists(self.marker):
                open(self.marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(i)

    dataset = Deadly(8, str(tmp_path / "died"))
    with wrap(DataLoader(dataset, 2), workers="process", allocation=Allocation.shared(1)) as loader:
        assert torch.cat(list(loader))[:, 0].tolist() == list(range(8))
        assert loader.stats().workers_lost == 1


def test_what_cannot_be_sent_is_refused_when_processes_are_asked_for():
    import threading

    dataset = Samples(4)
    dataset.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be sent to a process .*lock.*use workers='thread'"):
        wrap(DataLoader(dataset), workers="process")


def test_threads_are_no_remedy_where_they_are_refused():
    import threading

    dataset = Samples(4)
    dataset.lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to a process") as caught:
        wrap(DataLoader(dataset, num_workers=1, worker_init_fn=print), workers="process")
    assert "workers='thread'" not in str(caught.value)


def test_what_multiprocessing_shares_is_refused_and_the_remedy_is_told():
    dataset = Stream()
    dataset.shared = multiprocessing.Value("i", 0)
    with pytest.raises(
        ConfigError, match=r"through inheritance\); in place of .* `torch.tensor\(0\).share_"
    ) as caught:
        list(wrap(DataLoader(dataset, num_workers=1)))
    assert "workers='thread'" not in str(caught.value)


class SharedEpoch(IterableDataset):
    """Its epoch lies in shared memory, so that workers that persist see it."""

    def __init__(self):
        self.epoch = torch.tensor(0).share_memory_()

    def __iter__(self):
        yield from range(10 * int(self.epoch), 10 * int(self.epoch) + 3)


def test_workers_that_persist_see_what_is_written_into_shared_memory():
    dataset = SharedEpoch()
    with wrap(DataLoader(dataset, None, num_workers=1, persistent_workers=True)) as loader:
        for epoch in (0, 1, 5):
            dataset.epoch.fill_(epoch)
            assert list(loader) == [10 * epoch, 10 * epoch + 1, 10 * epoch + 2]


def test_samples_of_a_class_with_slots_come_back_as_the_scripts_own():
    @dataclasses.dataclass(slots=True)
    class Slotted:
        value: int

    class OfSlotted(IterableDataset):
        def __iter__(self):
            yield from map(Slotted, range(3))

    with wrap(DataLoader(OfSlotted(), None, num_workers=1)) as loader:
        assert list(loader) == [Slotted(0), Slotted(1), Slotted(2)]


def test_samples_that_cannot_be_made_again_here_say_what_to_do():
    class Stays:
        def __init__(self):
            self.pid = os.getpid()

        def __setstate__(self, state):
            raise ValueError("made for one process only")

    class OfStaying(IterableDataset):
        def __iter__(self):
            yield Stays()

    with (
        wrap(DataLoader(OfStaying(), None, num_workers=1)) as loader,
        pytest.raises(
            StageError, match=r"ValueError: made for .*; return arrays, tensors or plain containers"
        ),
    ):
        next(iter(loader))


@pytest.mark.parametrize("starting", [True, False])
def test_the_start_of_a_process_takes_none_of_the_time_for_a_batch(monkeypatch, starting):
    take, waited = InFlight.take, []

    def late(in_flight, timeout):
        waited.append(timeout)
        if len(waited) <= 2 * LOOKS:
            raise TimeoutError
        return take(in_flight, None)

    monkeypatch.setattr(InFlight, "take", late)
    monkeypatch.setattr(Processes, "starting", starting)
    with wrap(DataLoader(Samples(6), 2, num_workers=1, timeout=60), workers="thread") as loader:
        if starting:
            assert len(list(loader)) == 3
        else:
            with pytest.raises(StageTimeout, match="`timeout`=60 s"):
                next(iter(loader))
            assert sum(waited) == pytest.approx(60)


def test_a_process_that_does_not_answer_in_time_is_an_error(tmp_path):
    class Stuck(IterableDataset):
        def __iter__(self):
            yield 0
            os.mkfifo(tmp_path / "pipe")
            open(tmp_path / "pipe").close()  # which nobody writes to
            yield 1

    with wrap(DataLoader(Stuck(), 1, num_workers=1, timeout=60)) as loader:
        loop = iter(loader)
        assert next(loop).tolist() == [0]
        loop._settings = dataclasses.replace(loop._settings, timeout=0.2)
        with pytest.raises(StageTimeout, match=r"`timeout`=0\.2 s"):
            next(loop)
        (pid,) = loader.workshop.processes.pids()
        os.kill(pid, signal.SIGKILL)  # lest closing waits for it


def test_what_is_shared_with_processes_is_given_back_where_threads_rest(monkeypatch):
    asked = []
    monkeypatch.setattr(ProcessPool, "give_back_memory", lambda pool: asked.append(pool))
    ours = Processes()
    fleet = ThreadFleet(processes=ours)
    fleet.give_back_memory()
    assert asked == [ours.pool]
    fleet.close()
