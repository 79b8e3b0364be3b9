"""What goes wrong in a wrapped DataLoader: said where, in the batch's turn, and nothing is left behind."""

import contextlib
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from intune.adapters import TunableDataLoader
from intune.pipelines import Allocation, Budget
from intune.pipelines.errors import ConfigError, LoaderError, StageError, StageTimeout
from tests.intune.adapters.dataloader.common import wrap
from tests.intune.adapters.dataloader.datasets import Failing, Samples, Stream, mark_dataset


def workers_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("intune")]


# ---- the user's exceptions -----------------------------------------------------------------------------------


class Odd(Exception):
    """Cannot be made from its message alone."""

    def __init__(self, code, *, hint):
        super().__init__(code)
        self.code, self.hint = code, hint


def test_an_exception_of_the_dataset_names_the_batch_and_is_of_its_own_type():
    with wrap(
        DataLoader(Failing(30, bad=[17]), 12), workers="thread", allocation=Allocation.shared(4)
    ) as loader:
        loop = iter(loader)
        next(loop)  # made before the one that fails, though that is known early
        with pytest.raises(StageError) as caught:
            next(loop)
        assert isinstance(caught.value, KeyError)
        assert type(caught.value.__cause__) is KeyError
        assert str(caught.value) == (
            "stage 'fetch', batch 1 (indices 12, 13, 14, 15, 16, 17, 18, …, 23): KeyError: 'sample 17'"
        )
        assert len(next(loop)) == 6  # as with the DataLoader, the loop can go on
        assert list(loop) == []


class Unshown(int):
    def __repr__(self):
        raise RuntimeError("no text")


class Several(Failing):
    """Fails for whatever a sampler gave that is not as it should be."""

    def __getitems__(self, index):
        raise KeyError("some of them")


@pytest.mark.parametrize(
    ("index", "shown"),
    [
        (slice(0, 4), r"indices slice\(0, 4, None\)"),
        (torch.arange(2), r"indices tensor\(0\), tensor\(1\)"),
        ([Unshown(1)], r"indices of type list, which cannot be shown: RuntimeError"),
        (None, r"indices None"),
    ],
)
def test_an_exception_is_the_datasets_own_whatever_the_sampler_gives(index, shown):
    with (
        wrap(DataLoader(Several(8, bad=[]), batch_sampler=[index]), workers="thread") as loader,
        pytest.raises(KeyError, match=rf"batch 0 \({shown}\): KeyError: 'some of them'"),
    ):
        list(loader)


# ---- the sampler's exceptions --------------------------------------------------------------------------------


class Breaking(Sampler):
    """Gives some batches and raises then."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        yield from ([2 * i, 2 * i + 1] for i in range(self.batches))
        raise RuntimeError("the sampler broke")

    def __len__(self):
        return 10


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batches", [0, 1, 6])
@pytest.mark.parametrize("workers", ["auto", "thread"])
def test_what_a_sampler_raises_comes_after_the_batches_that_it_gave_before(batches, workers, num_workers):
    plain = DataLoader(Samples(20), batch_sampler=Breaking(batches), num_workers=num_workers)
    with wrap(plain, workers=workers) as loader:
        for _ in range(2):
            loop = iter(loader)
            seen = list(itertools.islice(loop, batches))
            with pytest.raises(RuntimeError, match="the sampler broke"):
                next(loop)
            assert len(seen) == batches
            assert loader.state_dict()["batch"] == batches


def test_exceptions_of_any_class_come_through():
    def collate(samples):
        raise Odd(7, hint="mend it")

    for batch_size, place in ((2, "indices 0, 1"), (None, "index 0")):
        with wrap(DataLoader(Samples(4), batch_size, collate_fn=collate), workers="thread") as loader:
            with pytest.raises(Odd, match=rf"stage 'collate', batch 0 \({place}\): Odd: 7") as caught:
                next(iter(loader))
            assert (caught.value.code, caught.value.hint) == (7, "mend it")


def test_a_stop_iteration_out_of_the_dataset_does_not_end_the_loop_silently():
    with wrap(DataLoader(Failing(4, bad=[1], error=StopIteration), 2), workers="thread") as loader:
        with pytest.raises(StageError, match="StopIteration: sample 1") as caught:
            list(loader)
        assert not isinstance(caught.value, StopIteration)


def test_an_exception_while_the_first_batches_are_watched_comes_in_its_turn():
    with wrap(DataLoader(Failing(8, bad=[2]), 2)) as loader:
        loop = iter(loader)
        next(loop)
        with pytest.raises(KeyError, match="batch 1"):
            next(loop)
        assert len(list(loop)) == 2


def test_an_exception_of_the_sampler_comes_as_it_is():
    def keys():
        yield [0]
        raise OSError("no more keys")

    with wrap(DataLoader(Samples(4), batch_sampler=keys()), workers="thread") as loader:
        with pytest.raises(OSError, match="no more keys") as caught:
            list(loader)
        assert type(caught.value) is OSError


def test_an_exception_in_the_trainers_loop_leaves_nothing_running():
    def train():
        with wrap(DataLoader(Samples(400), 2), workers="thread") as loader:
            for _ in loader:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert workers_alive() == []


def test_a_batch_that_does_not_come_in_time_is_an_error():
    gate = threading.Event()

    class Stuck(Samples):
        def __getitem__(self, i):
            if i == 2:
                gate.wait(60)
            return super().__getitem__(i)

    dataloader = DataLoader(Stuck(6), 1, num_workers=1, timeout=60)
    with wrap(dataloader, workers="thread", allocation=Allocation.shared(1)) as loader:
        loop = iter(loader)
        next(loop)
        next(loop)
        loop._settings = replace(loop._settings, timeout=0.2)
        with pytest.raises(StageTimeout, match=r"`timeout`=0\.2 s"):
            next(loop)
        gate.set()


# ---- wrong use -----------------------------------------------------------------------------------------------


class Overridden(DataLoader):
    def __iter__(self):
        return iter([1, 2])


class KeepsItsState(Overridden):
    def state_dict(self):
        return {}


def test_what_cannot_be_wrapped_is_refused():
    for wrong, message in (
        ([1, 2], "`dataloader` must be a torch.utils.data.DataLoader, but list was given"),
        (
            Overridden(Samples(2)),
            "a Overridden, whose own __iter__ would be passed over; .* plain DataLoader$",
        ),
        (KeepsItsState(Samples(2)), "the plain DataLoader, which then has a state_dict"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrap(wrong)
    with pytest.raises(ConfigError, match="`workers`='threads' is unknown"):
        wrap(DataLoader(Samples(2)), workers="threads")
    with pytest.raises(ConfigError, match="`budget` must be a Budget, but int was given"):
        TunableDataLoader.wrap(DataLoader(Samples(2)), budget=3)
    with pytest.raises(ConfigError, match="`workers`='thread', but each of the 2 iterators"):
        wrap(DataLoader(Stream(), num_workers=2), workers="thread")
    with pytest.raises(ConfigError, match="`workers`='thread', but `worker_init_fn` is made for processes"):
        wrap(DataLoader(Samples(2), num_workers=1, worker_init_fn=mark_dataset), workers="thread")


def test_a_closed_loader_and_a_closed_loop_say_so():
    loader = wrap(DataLoader(Samples(8), 2), workers="thread")
    loop = iter(loader)
    next(loop)
    loader.close()
    loader.close()
    with pytest.raises(LoaderError, match="this loop over the loader is over"):
        next(loop)
    with pytest.raises(LoaderError, match="the loader is closed"):
        iter(loader)
    with pytest.raises(LoaderError, match="the loader is closed"):
        loader.resize({"fetch": 1})
    assert loader.stats().batches == 1


def test_a_fork_is_told_to_make_its_own():
    with wrap(DataLoader(Samples(40), 2), workers="thread") as loader:
        loop = iter(loader)
        next(loop)
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forking beside threads, from Python 3.12 on
            pid = os.fork()
        if pid == 0:
            try:
                said = []
                for action in (lambda: next(loop), lambda: iter(loader), loader.stats):
                    try:
                        action()
                    except LoaderError as error:
                        said.append("in its fork" in str(error))
                loader.close()
                del loop
                mine = wrap(DataLoader(Samples(4), 2), workers="thread")
                said.append(len(list(mine)) == 2)
                os.write(write, repr(said).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        assert os.read(read, 100) == b"[True, True, True, True]"
        os.close(read)
        assert len(list(loop)) == 19


def test_a_loader_cannot_be_sent_to_another_process():
    with (
        wrap(DataLoader(Samples(4))) as loader,
        pytest.raises(TypeError, match="send the DataLoader and wrap it there"),
    ):
        pickle.dumps(loader)


# ---- nothing is left -----------------------------------------------------------------------------------------


def test_a_loader_that_is_dropped_ends_its_threads():
    loader = wrap(DataLoader(Samples(40), 2), workers="thread")
    loop = iter(loader)
    next(loop)
    assert workers_alive()
    del loop, loader
    gc.collect()
    assert workers_alive() == []


def test_a_loop_that_an_exception_has_ended_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        with wrap(DataLoader(Failing(40, bad=[5]), 2), workers="thread") as loader:
            loop = iter(loader)
            watched = weakref.ref(loop)
            with contextlib.suppress(KeyError):
                for _ in loop:
                    pass
            del loop, _
            deadline = time.monotonic() + 60
            while watched() is not None:  # the worker that reported the error may not be done with it
                assert time.monotonic() < deadline
                time.sleep(0.001)
    finally:
        gc.enable()


def test_loops_left_early_do_not_pile_up_threads_or_memory():
    with wrap(DataLoader(Samples(400), 4), workers="thread", allocation=Allocation.shared(3)) as loader:
        for _ in range(30):
            next(iter(loader))
        assert len(workers_alive()) <= 3
        assert loader.stats().memory_held == 0
        assert len(list(loader)) == 100


def test_an_iterable_left_early_is_not_used_by_two_at_once():
    """Iterators over one dataset would meet there; the next loop waits for the batch under way."""
    inside = threading.Lock()

    class Alone(IterableDataset):
        def __iter__(self):
            for i in range(50):
                if not inside.acquire(blocking=False):
                    raise AssertionError("two at once")
                time.sleep(0.001)
                inside.release()
                yield torch.tensor(i)

    with wrap(DataLoader(Alone(), 2), allocation=Allocation.shared(3)) as loader:
        for _ in range(10):
            assert next(iter(loader)).tolist() == [0, 1]
        assert len(list(loader)) == 25


SCRIPT = """
    import gc, os, signal, sys, threading, time
    import torch
    from torch.utils.data import DataLoader, Dataset
    from intune.adapters import TunableDataLoader
    from intune.pipelines import Allocation, Budget

    class Slow(Dataset):
        def __len__(self):
            return 10_000
        def __getitem__(self, i):
            time.sleep(0.02)
            return torch.tensor(i)

    loader = TunableDataLoader.wrap(
        DataLoader(Slow(), 2), budget=Budget(cpus=2, memory=1 << 26), workers="process",
        allocation=Allocation.shared(2),
    )
    try:
        for number, batch in enumerate(loader):
            if number == 2:
                pids = loader.workshop.processes.pids()
                print(*pids, flush=True)
    except KeyboardInterrupt:
        said = "interrupted"
    # After it: the exception holds the frames that it came through, and they what was just handed over.
    loader.close()
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("intune")]
    del batch
    gc.collect()
    maps = open("/proc/self/maps").read()
    print(said, alive, [shared for shared in ("memfd:intune", "/dev/shm") if shared in maps], flush=True)
"""


def test_ctrl_c_ends_processes_threads_and_shared_memory():
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert pids
        script.send_signal(signal.SIGINT)
        said = script.stdout.read()
    assert said == "interrupted [] []\n"
    assert script.returncode == 0
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")


# ---- memory --------------------------------------------------------------------------------------------------


def test_what_is_held_stays_within_the_budget():
    class Large(Samples):
        def __getitem__(self, i):
            return torch.zeros(1 << 16)  # 256 KiB

    budget = Budget(cpus=2, memory=16 << 20)
    dataloader = DataLoader(Large(300), 8)
    with TunableDataLoader.wrap(
        dataloader, budget=budget, workers="thread", allocation=Allocation.shared(32)
    ) as loader:
        for batch in loader:
            del batch
        stats = loader.stats()
    assert 4 << 20 <= stats.memory_peak <= budget.memory + (2 << 20)
    assert stats.memory_held == 0
    assert stats.rows == 300
    assert stats.stage("collate").bytes_out == 300 << 18


def test_a_slow_trainer_does_not_make_what_is_held_grow():
    with wrap(DataLoader(Samples(2000), 1), workers="thread", allocation=Allocation.shared(2)) as loader:
        loop = iter(loader)
        for _ in range(10):
            next(loop)
        deadline = time.monotonic() + 60
        while loader.stats().stage("collate").running or loader.stats().stage("fetch").running:
            assert time.monotonic() < deadline
        assert loader.stats().stage("fetch").tasks < 10 + 2 * 2 * 3 + 2
