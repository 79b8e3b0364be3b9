"""Batches are the DataLoader's also where code depends on more than its indices: options, threads, memory, draws."""

import colorsys
import csv
import decimal
import functools
import locale
import logging
import os
import socket
import sqlite3
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset

from intune.adapters.dataloader.generators import EpochSeed
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection import choice as dataloader_choice
from intune.adapters.dataloader.inspection.choice import Choice, choose_opened
from intune.adapters.dataloader.inspection.copies import copied, difference
from intune.adapters.dataloader.inspection.trial import Trial
from intune.adapters.dataloader.sending.sendable import unopened
from intune.adapters.dataloader.settings import read_settings
from intune.adapters.dataloader.tasks import MapFetcher, Tasks, Watch, chain_plan
from intune.pipelines import Allocation
from intune.pipelines.errors import LoaderError
from tests.intune.adapters.dataloader import datasets
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import (
    ASKED,
    Asked,
    Growing,
    HiddenDraws,
    KeepsBack,
    Noisy,
    OneBuffer,
    OneBufferByKey,
    OpensLate,
    Pair,
    RareDraws,
    Remembering,
    Reusing,
    Samples,
    Scaled,
    Stream,
    Surrounded,
    Where,
    mark_dataset,
)


@pytest.fixture
def _processes(monkeypatch):
    """Have a measurement say that processes are best."""
    choice = Choice(kind="process", reason="so it was measured")
    monkeypatch.setattr(dataloader_choice, "choose", lambda *_: choice)


@pytest.fixture
def _threads(monkeypatch):
    """The same of threads: on a busy machine anything takes long."""
    choice = Choice(kind="thread", reason="so it was measured")
    monkeypatch.setattr(dataloader_choice, "choose", lambda *_: choice)


# ---- worker processes know what the script has set ---------------------------------------------------------


@pytest.mark.usefixtures("_processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_options_that_a_script_set_in_its_modules_hold_in_worker_processes(monkeypatch, workers):
    monkeypatch.setattr(datasets, "SCALE", 5)
    plain = DataLoader(
        Scaled(24), 3, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    with wrap(plain) as loader:
        assert_same(loader, plain)
        assert loader.workshop.choice.kind == "process"
        monkeypatch.setattr(datasets, "SCALE", 7)
        assert_same(loader, plain)


@pytest.mark.usefixtures("_processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_that_make_another_batch_are_not_used(monkeypatch, caplog, workers):
    class Locked(int):
        lock = None

    scale = Locked(5)
    scale.lock = threading.Lock()  # with which it cannot be sent
    monkeypatch.setattr(datasets, "_scale", scale)
    plain = DataLoader(
        Scaled(24), 3, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    with caplog.at_level(logging.WARNING, "intune"), wrap(plain) as loader:
        assert_same(loader, plain)
        assert loader.workshop.choice.kind == "thread"
        assert loader.workshop.processes.pids() == []
    (record,) = caplog.records
    assert "a worker process makes batch 0 otherwise (values): the code depends on" in record.getMessage()


@pytest.mark.usefixtures("_processes")
def test_processes_in_which_the_code_fails_are_not_used(monkeypatch):
    class Fails(Samples):
        def __init__(self, size):
            super().__init__(size)
            self.pid = os.getpid()

        def __getitem__(self, i):
            assert os.getpid() == self.pid, "elsewhere"
            return super().__getitem__(i)

    plain = DataLoader(Fails(12), 3)
    with wrap(plain) as loader:
        assert_same(loader, plain)
        assert "cannot make a batch (AssertionError: elsewhere" in loader.workshop.choice.reason


class Patched(Samples):
    """One sample, far from the first, needs what the script has set in a module that is not its own."""

    needy = 20

    def __getitem__(self, i):
        if i == self.needy and not hasattr(colorsys, "lenient"):
            raise OSError("image file is truncated")
        if i == 23:
            raise KeyError(i)
        return super().__getitem__(i), torch.rand(())


@pytest.mark.usefixtures("_processes")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_fails_in_a_worker_process_alone_is_made_in_the_trainers(monkeypatch, caplog, workers):
    monkeypatch.setattr(dataloader_choice, "WORTH_SENDING_S", 0.0)
    monkeypatch.setattr(colorsys, "lenient", True, raising=False)

    def batches(needy):
        dataset = Patched(26)
        dataset.needy = needy
        with wrap(DataLoader(dataset, 2, num_workers=workers)) as loader:
            torch.manual_seed(0)
            loop = iter(loader)
            found = [next(loop) for _ in range(11)]
            assert loader.workshop.choice.kind == "process"
            with pytest.raises(KeyError):
                next(loop)
            return [*found, *loop, torch.rand(())]

    found = batches(20)
    (record,) = caplog.records
    assert "could not make batch 10 (OSError: image file is truncated), but the trainer's" in record.message
    assert_same(batches(None), found)


def test_random_code_is_compared_from_the_same_random_numbers_and_else_by_its_looks(monkeypatch):
    monkeypatch.setattr(dataloader_choice, "WORTH_SENDING_S", 0.0)

    class Unseeded(Noisy):
        def __getitem__(self, i):
            return super().__getitem__(i), os.urandom(2)[0] / 7

    for dataset, workers in ((Noisy(12), 2), (Unseeded(12), 0)):
        with wrap(DataLoader(dataset, 3, num_workers=workers)) as loader:
            assert len(list(loader)) == 4
            assert loader.workshop.choice.kind == "process"


def test_what_the_process_has_set_holds_in_its_workers_in_every_epoch(tmp_path, monkeypatch):
    plain = DataLoader(Surrounded(6), 3)
    torch.set_default_dtype(torch.float64)
    try:
        with wrap(plain, workers="process") as loader:
            for value in ("one", "two"):
                (tmp_path / value).mkdir()
                monkeypatch.chdir(tmp_path / value)
                monkeypatch.setenv("INTUNE_TEST", value)
                assert_same(loader, plain)
            monkeypatch.delenv("INTUNE_TEST")
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert_same(loader, plain)
    finally:
        torch.set_default_dtype(torch.float32)


class Limited(Samples):
    """What limits and modes of Python's and NumPy's say."""

    def __getitem__(self, i):
        (row,) = csv.reader(["x" * 200_000])
        with np.errstate(under="ignore"):
            handling = np.geterr()
        deep = functools.reduce(lambda inner, _: [inner], range(3_000), [])
        return (
            len(row[0]),
            str(decimal.Decimal(1) / 7),
            repr(deep).count("["),
            handling,
            socket.getdefaulttimeout(),
            locale.setlocale(locale.LC_ALL),
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_limits_and_modes_that_the_process_has_set_hold_in_its_workers(workers):
    plain = DataLoader(Limited(6), 3, collate_fn=list, num_workers=workers)
    before = sys.getrecursionlimit(), csv.field_size_limit(10**9), np.seterr(all="raise")
    usual = locale.setlocale(locale.LC_ALL)
    sys.setrecursionlimit(20_000)
    socket.setdefaulttimeout(77.0)
    try:
        locale.setlocale(locale.LC_ALL, "C")
        with decimal.localcontext(decimal.Context(prec=50)), wrap(plain, workers="process") as loader:
            assert_same(loader, plain)
    finally:
        socket.setdefaulttimeout(None)
        sys.setrecursionlimit(before[0])
        csv.field_size_limit(before[1])
        np.seterr(**before[2])
        locale.setlocale(locale.LC_ALL, usual)


# ---- what a dataset opened ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_other_attributes_of_a_dataset_that_opened_a_file_hold_in_the_next_epoch(tmp_path, workers):
    class Epochs(OpensLate):
        epoch = 0

        def __getitem__(self, i):
            return super().__getitem__(i) + 1000 * self.epoch

    path = tmp_path / "numbers"
    path.write_bytes(np.arange(50, dtype="<i8").tobytes())
    dataset = Epochs(50, str(path))
    try:
        with wrap(DataLoader(dataset, 5, num_workers=workers)) as loader:
            for dataset.epoch in range(3):
                expected = (torch.arange(50) + 1000 * dataset.epoch).tolist()
                assert torch.cat(list(loader)).tolist() == expected
            assert loader.workshop.choice.kind == "process"
            loader.dataset.other = open(path)  # noqa: SIM115
            with loader.dataset.other:
                assert torch.cat(list(loader)).tolist() == expected
    finally:
        dataset.close()


def test_a_dataset_that_cannot_be_sent_any_more_is_used_here_and_an_iterable_one_as_it_was(caplog):
    class Unsendable:
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            raise TypeError("not to be sent")

        def __add__(self, other):
            return self.value + other

    class Adds(Samples):
        add = 0

        def __getitem__(self, i):
            return self.add + i

    with caplog.at_level(logging.WARNING, "intune"):
        with wrap(DataLoader(Adds(6), 3), workers="process") as loader:
            assert torch.cat(list(loader)).tolist() == list(range(6))
            loader.workshop.shipment.first = None  # as of a large one
            loader.dataset.add = Unsendable(10)
            assert torch.cat(list(loader)).tolist() == list(range(10, 16))
            assert loader.workshop.choice.kind == "serial"
        assert "the dataset has changed and cannot be sent to processes any more" in caplog.text
        with wrap(DataLoader(Stream((4,)), 2, num_workers=1)) as loader:
            assert len(list(loader)) == 2
            loader.workshop.shipment.first = None
            loader.dataset.other = Unsendable(1)
            assert len(list(loader)) == 2
        assert "worker processes go on with the dataset as it was" in caplog.text


def test_a_worker_init_fn_that_cannot_be_called_any_more_is_warned_of(caplog):
    dataset = Where(6)
    plain = DataLoader(dataset, 3, num_workers=1, worker_init_fn=mark_dataset)
    with caplog.at_level(logging.WARNING, "intune"), wrap(plain) as loader:
        assert torch.cat(list(loader))[:, 3].tolist() == [100] * 6
        loader.workshop.shipment.first = None  # as of a large one
        dataset.lock = threading.Lock()
        assert torch.cat(list(loader))[:, 0].tolist() == list(range(6))
        assert loader.workshop.choice.kind == "serial"
    assert "`worker_init_fn` is not called any more" in caplog.text


def test_what_was_opened_is_found_at_any_depth_and_left_as_it_was():
    class Holder:
        file = None

    class Files(dict):
        pass

    before = {"list": [Holder(), Holder()], "number": 1, "own": threading.local(), "files": Files()}
    now = {"list": [Holder(), Holder()], "number": 2, "own": threading.local(), "files": Files()}
    with open(__file__) as file:
        now["list"][1].file = now["own"].file = now["files"]["one"] = file
        now["list"][1].epoch = 3
        now["list"].append(now["list"][1])
        before["list"].append(before["list"][1])
        made = unopened(now, before)
        assert now["list"][1].file is file
    assert made["number"] == 2
    assert made["list"][1] is made["list"][2]
    assert made["list"][1].file is None
    assert made["list"][1].epoch == 3
    assert made["list"][0] is now["list"][0]
    assert made["own"] is before["own"]
    assert made["files"] is before["files"]


# ---- random numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "start"), [(0, 8), (2, 0)])
def test_rare_draws_are_the_same_in_every_run_and_leave_the_trainers_alone(workers, start, monkeypatch):
    monkeypatch.setattr(dataloader_choice, "WORTH_SENDING_S", 0.0)

    def run(tuned):
        torch.manual_seed(0)
        loader = DataLoader(RareDraws(40, start), 2, num_workers=workers)
        if not tuned:
            return [torch.rand(()).item() for _ in DataLoader(list(range(40)), 2, num_workers=workers)]
        with wrap(loader) as wrapped:
            return [(torch.rand(()).item(), batch.tolist()) for batch in wrapped]

    first, second = run(True), run(True)
    assert first == second
    assert [drawn for drawn, _ in first] == run(False)


def test_without_workers_the_first_batch_draws_what_the_dataloader_would():
    torch.manual_seed(0)
    expected = next(iter(DataLoader(RareDraws(8, 0), 2))).tolist(), torch.rand(()).item()
    torch.manual_seed(0)
    with wrap(DataLoader(RareDraws(8, 0), 2)) as loader:
        assert (next(iter(loader)).tolist(), torch.rand(()).item()) == expected


@pytest.mark.usefixtures("_threads")
def test_draws_that_nobody_could_foresee_end_the_use_of_threads(caplog):
    """With workers, the batches are what a worker makes of them; without, the trainer's thread draws from there on."""

    def batches(**options):
        torch.manual_seed(3)
        with wrap(DataLoader(HiddenDraws(60, 40), 2, num_workers=2), **options) as loader:
            return [batch.tolist() for batch in loader], loader.workshop.choice.kind

    with caplog.at_level(logging.WARNING, "intune"):
        here, kind = batches()
    assert kind == "here"
    assert "draws from the process's random generators" in caplog.text
    assert "though not for the first batches" in caplog.text
    assert batches(workers="process") == (here, "process")
    with wrap(DataLoader(HiddenDraws(60, 40), 2)) as loader:
        assert [int(batch[0]) for batch in loader] == list(range(0, 60, 2))
        assert loader.workshop.choice.kind == "here"


@pytest.mark.usefixtures("_threads")
def test_a_trainer_that_draws_is_not_mistaken_for_the_dataset():
    ASKED.clear()
    with wrap(DataLoader(Asked(200), 2)) as loader:
        for _ in loader:
            torch.rand(())
        assert loader.workshop.choice.kind == "thread"
    assert len(ASKED) <= 200 + 2 * 8  # every false alarm makes the next look rarer


# ---- what the code keeps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Reusing(60), 4),
        lambda: DataLoader(Remembering(60), 4),
        lambda: DataLoader(Samples(60), 4, collate_fn=Growing()),
    ],
    ids=["buffer", "counter", "collate_fn"],
)
def test_code_that_changes_what_it_keeps_is_not_shared_by_threads(make):
    with wrap(make()) as loader:
        assert_same(loader, make())
        assert loader.workshop.choice.kind == "here"
        assert "the code changes what the dataset or `collate_fn` keeps" in loader.workshop.choice.reason


def test_what_is_only_set_at_its_first_use_may_be_shared():
    class Lazy(Samples):
        names = None

        def __getitem__(self, i):
            if self.names is None:
                self.names = [str(n) for n in range(self.size)]
            return self.names[i]

    trial = Trial(read_settings(DataLoader(Lazy(60), 4)), EpochSeed(0))
    assert not trial.measure(Item(n, 4, index=list(range(4 * n, 4 * n + 4))) for n in range(4)).changes


def test_a_file_that_is_opened_at_its_first_use_is_not_used_by_two_while_they_are_watched():
    class Opening(Samples):
        file = None

        def __getitem__(self, i):
            self.file = self.file or threading.Lock()
            return sum(range(300_000)) + i  # long enough that two at once would tell more

    trial = Trial(read_settings(DataLoader(Opening(60), 4)), EpochSeed(0))
    assert trial.measure(Item(n, 4, index=list(range(4 * n, 4 * n + 4))) for n in range(9)).speed_up is None


def test_what_a_dataset_keeps_back_when_it_is_sent_is_not_used_by_two():
    dataset = KeepsBack(60)
    dataset.cache = [1]
    loader = DataLoader(ConcatDataset([dataset, dataset]), 4)
    settings = read_settings(loader)
    assert choose_opened(settings, kept=True) is None
    trial = Trial(settings, EpochSeed(0))
    assert trial.measure(Item(n, 4, index=list(range(4 * n, 4 * n + 4))) for n in range(9)).speed_up is None
    assert choose_opened(settings, kept=True).kind == "process"
    assert choose_opened(settings, kept=False).kind == "serial"
    dataset.file.close()


# ---- memory that is used again -----------------------------------------------------------------------------


def test_a_buffer_that_is_used_again_overwrites_no_batch():
    for dataset in (OneBuffer(30), OneBufferByKey(30)):
        with wrap(DataLoader(dataset, batch_size=None)) as loader:
            seen = []
            for batch in loader:
                time.sleep(0.001)
                seen.append(float(batch[0]))
            assert seen == list(range(30))
    assert loader.workshop.choice.kind == "here"
    assert "the same memory again" in loader.workshop.choice.reason


def test_copies_keep_kinds_and_have_memory_of_their_own():
    array = np.asfortranarray(np.ones((2, 3)))
    batch = {"x": [torch.ones(2), array, array], "y": Pair(bytearray(b"a"), "text"), "z": (iter([]), {1})}
    made = copied(batch)
    assert difference(made, batch) == ""
    assert type(made["y"]) is Pair
    assert made["x"][1] is made["x"][2]
    assert made["x"][1].flags.f_contiguous
    array[0, 0] = batch["x"][0][0] = 5
    assert difference(made, batch) == "values at ['x'][0]"


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "torch.float32 (2,) and torch.float64 (2,)"),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), ""),
        (np.ones(2), np.zeros(2), "values"),
        ([1, "a"], [1, "b"], "values at [1]"),
        ([1], [1, 2], "1 and 2 elements"),
        ((1,), [1], "tuple and list"),
        ({"a": 1}, {"b": 1}, "keys"),
        (float("nan"), float("nan"), ""),
    ],
)
def test_differences_are_found_and_told(one, other, found):
    assert difference(one, other) == found


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_compared_part_by_part(layout):
    one, other, third = (
        torch.nested.nested_tensor([torch.ones(size) for size in sizes], layout=layout)
        for sizes in ((2, 3), (2, 3), (2, 4))
    )
    assert difference(one, other) == ""
    assert difference(one, third) == "torch.float32 (3,) and torch.float32 (4,) at [1]"


class Node:
    def __init__(self, value):
        self.value, self.others = torch.tensor(value), [self]


def _circle(values):
    nodes = [Node(value) for value in values]
    for node in nodes:
        node.others = nodes
    return nodes


def _chain(values):
    first = None
    for value in values:
        first = {"value": value, "next": first}
    return first


def test_what_refers_to_itself_is_compared_and_copied():
    one, other, third = _circle([1, 2, 3]), _circle([1, 2, 3]), _circle([1, 2, 4])
    assert difference(one, other) == ""
    assert difference(one, third) == "values at [2]['value']"
    made = copied(one)
    assert difference(made, one) == ""
    assert made[0].others[1] is made[1]
    assert made[0].value is not one[0].value
    loop = [1]
    loop.append({"loop": loop})
    again = copied(loop)
    assert again[1]["loop"] is again
    assert difference(again, loop) == ""


def test_what_is_very_deep_is_compared():
    deep = _chain(range(5000))
    assert copied(deep) is deep
    assert difference(_chain(range(5000)), _chain(range(5000))) == ""
    assert difference(_chain([1, *range(5000)]), _chain([2, *range(5000)])).startswith(
        "values at ['next']['next']"
    )


def test_what_cannot_be_copied_leaves_nothing_half_made():
    node = Node(1)
    node.others = [node, threading.Lock()]
    kept = [node, [node]]
    made = copied(kept)
    assert made[0] is node
    assert made[1][0] is node


def test_batches_of_objects_that_refer_to_each_other_come_as_they_are():
    with wrap(DataLoader(Samples(40), 4, collate_fn=_circle_of)) as loader:
        assert [[int(node.value) for node in batch[0].others] for batch in loader] == [
            list(range(k, k + 4)) for k in range(0, 40, 4)
        ]


def _circle_of(samples):
    return _circle([int(sample[0]) for sample in samples])


# ---- what belongs to one thread ----------------------------------------------------------------------------


def _connection():
    connection = sqlite3.connect(":memory:")
    connection.execute("create table numbers (i integer)")
    connection.executemany("insert into numbers values (?)", [(i,) for i in range(20)])
    return connection


class _Rows(Dataset):
    def __init__(self, connection):
        self.connection = connection

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return self.connection.execute("select i from numbers where i = ?", (i,)).fetchone()[0]


class _RowStream(IterableDataset):
    def __init__(self, connection):
        self.connection = connection

    def __iter__(self):
        for (i,) in self.connection.execute("select i from numbers"):
            yield i


@pytest.mark.parametrize("kind", [_Rows, _RowStream])
def test_what_may_only_be_used_in_one_thread_is_used_in_the_trainers(kind, caplog):
    connection = _connection()
    try:
        with caplog.at_level(logging.WARNING, "intune"), wrap(DataLoader(kind(connection), 3)) as loader:
            for _ in range(2):
                assert torch.cat(list(loader)).tolist() == list(range(20))
            assert loader.workshop.choice.kind == "here"
            assert loader.allocation.of("fetch") == 1
        (record,) = caplog.records
        assert "ProgrammingError: SQLite objects created in a thread" in record.getMessage()
    finally:
        connection.close()


def test_no_thread_begins_what_is_made_elsewhere_now():
    settings, watch = read_settings(DataLoader(Samples(1))), Watch()

    def make():
        plan = chain_plan(("fetch", "collate"), 1, 1, 0.0)
        items = {0: Item(0, 1, index=[0])}
        return Tasks(plan=plan, settings=settings, fetcher=MapFetcher(settings), watch=watch, items=items)

    tasks, later = make(), make()
    assert tasks.run(0, 0, []).payload.error is None
    watch.settle(tasks)
    with pytest.raises(LoaderError):
        tasks.run(0, 0, [])
    assert later.run(0, 0, []).payload.error is None


def test_an_error_that_speaks_of_threads_but_comes_in_any_is_the_users():
    def collate(samples):
        if samples[0][0] == 6:
            raise ValueError("no thread can help")
        return torch.stack(samples)

    with wrap(DataLoader(Samples(12), 3, collate_fn=collate)) as loader:
        loop = iter(loader)
        assert [next(loop)[0, 0].item() for _ in range(2)] == [0, 3]
        with pytest.raises(ValueError, match="no thread can help"):
            next(loop)
        assert next(loop)[0, 0].item() == 9
        assert loader.workshop.choice.kind == "thread"


# ---- who a worker is ---------------------------------------------------------------------------------------


def test_numbers_of_workers_stay_below_how_many_there_are():
    class Named(Where):
        def __getitem__(self, i):
            time.sleep(0.002)
            return super().__getitem__(i)

    def begin(number):
        ["only"][number]

    dataloader = DataLoader(Named(30), 2, num_workers=1, worker_init_fn=begin)
    with wrap(dataloader, allocation=Allocation.shared(3)) as loader:
        rows = torch.cat(list(loader)).tolist()
    assert [row[1:3] for row in rows] == [[0, 1]] * 30


def test_the_number_of_a_batchs_worker_is_that_of_its_turn():
    with wrap(DataLoader(Where(24), 3, num_workers=2)) as loader:
        for _ in range(2):
            rows = torch.cat(list(loader)).tolist()
            assert [row[1] for row in rows] == [number % 2 for number in range(8) for _ in range(3)]
            assert {row[2] for row in rows} == {2}


def test_without_workers_there_is_no_worker_to_be_told_of():
    with wrap(DataLoader(Where(6), 3), workers="process") as loader:
        assert torch.cat(list(loader))[:, 1].tolist() == [-1] * 6
