"""What worker processes get: it comes as it was, is made again only where something has changed, and takes no more."""

import errno
import gc
import logging
import os
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from intune.adapters.dataloader.inspection.copies import difference
from intune.adapters.dataloader.sending.parcel import File, Parcel
from intune.adapters.dataloader.settings import read_settings
from intune.pipelines import Budget
from intune.pipelines.errors import ConfigError
from tests.intune.adapters.dataloader.common import same, wrap
from tests.intune.adapters.dataloader.datasets import Samples

ROWS = [(i, str(i)) for i in range(20_000)]


class Keeps(Samples):
    """Keeps anything."""

    def __init__(self, **kept):
        super().__init__(4)
        self.__dict__.update(kept)


def settings_of(**kept):
    return read_settings(DataLoader(Keeps(**kept)))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(1 << 16),
        np.asfortranarray(np.arange(1 << 16).reshape(256, 256)),
        np.arange(1 << 17)[::2],
        np.array(["a", 1] * 20_000, dtype=object),
        torch.arange(1 << 16),
        torch.arange(1 << 16).to(torch.bfloat16).view(4, -1),
        torch.arange(1 << 17).view(256, -1).T,
        torch.ones(1 << 16) > 0,
        torch.nn.Parameter(torch.ones(1 << 16)),
        ROWS,
        tuple(ROWS),
        dict(ROWS),
        [[i] for i in range(20_000)],
        b"a" * (1 << 17),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_dataset_arrives_as_it_was(value):
    made = Parcel.of(settings_of(value=value, again=[value])).opened().settings.dataset
    assert type(made) is Keeps
    assert type(made.value) is type(value)
    assert same(made.value, value)
    assert made.again[0] is made.value
    assert made.value is not value or isinstance(value, tuple | bytes)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_arrive():
    nested = torch.nested.nested_tensor([torch.ones(1 << 16), torch.ones(1)])
    assert not difference(Parcel.of(settings_of(value=nested)).opened().settings.dataset.value, nested)


def test_what_arrives_may_be_written_to_and_is_as_it_was_the_next_time():
    settings = settings_of(
        array=np.zeros(1 << 16), tensor=torch.zeros(1 << 16), rows=list(ROWS), names=dict(ROWS)
    )
    parcel = Parcel.of(settings)
    for _ in range(2):
        made = parcel.opened().settings.dataset
        assert (made.array[5], made.tensor[5], made.rows[5], made.names[5]) == (0, 0, ROWS[5], ROWS[5][1])
        made.array[5] = made.tensor[5] = made.rows[5] = made.names[5] = 1
    assert Parcel.of(settings, parcel) is parcel
    frozen = np.zeros(1 << 16)
    frozen.flags.writeable = False
    assert not Parcel.of(settings_of(array=frozen)).opened().settings.dataset.array.flags.writeable


def change_attribute(dataset):
    dataset.size = 5


def change_environment(dataset):
    os.environ["INTUNE_TEST"] = "changed"


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda dataset: dataset.array.__setitem__(77_777, 1), {"lists"}),
        (lambda dataset: dataset.tensor.__setitem__(77_777, 1), {"lists"}),
        (lambda dataset: dataset.rows.__setitem__(7_777, (1, "other")), {"arrays"}),
        (lambda dataset: dataset.rows.__setitem__(7_777, (7_777.0, "7777")), {"arrays"}),
        (lambda dataset: dataset.rows.append((1, "other")), {"arrays"}),
        (lambda dataset: dataset.pairs[7_777].append(1), {"arrays", "lists"}),
        (change_attribute, {"arrays", "lists"}),
        (change_environment, {"arrays", "lists"}),
    ],
    ids=["array", "tensor", "item", "number", "longer", "nested", "attribute", "environment"],
)
def test_only_what_has_changed_is_made_again(change, kept, monkeypatch):
    monkeypatch.setenv("INTUNE_TEST", "before")
    settings = settings_of(
        array=np.zeros(100_000),
        tensor=torch.zeros(100_000),
        rows=list(ROWS),
        pairs=[[i] for i in range(20_000)],
    )
    before = Parcel.of(settings)
    assert len(before.lists) == 1
    assert Parcel.of(settings, before) is before
    change(settings.dataset)
    after = Parcel.of(settings, before)
    assert after.stream != before.stream
    assert {name for name in ("arrays", "lists") if getattr(after, name) == getattr(before, name)} == kept
    now, made = settings.dataset, after.opened().settings.dataset
    assert all(same(getattr(made, name), getattr(now, name)) for name in vars(now))


def test_the_same_stream_is_another_object_where_the_dataset_is_to_be_made_again():
    parcel = Parcel.of(settings_of())
    assert parcel.again == parcel.stream
    assert parcel.again is not parcel.stream
    assert type(pickle.loads(pickle.dumps(parcel.again))) is bytes


def test_a_worker_makes_way_for_the_next_one(monkeypatch):
    parcel = Parcel.of(settings_of(rows=list(ROWS)))
    first = pickle.loads(parcel.stream)
    assert vars(first)
    second = pickle.loads(parcel.again)
    assert vars(second)
    assert not vars(first)


def _open_files():
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return sum("intune-dataset" in name for name in names)


def test_files_live_as_long_as_a_stream_that_names_them():
    gc.collect()
    before = _open_files()
    parcel = Parcel.of(settings_of(array=np.zeros(1 << 16), rows=list(ROWS)))
    again = parcel.again
    del parcel
    assert _open_files() == before + 3
    del again
    gc.collect()
    assert _open_files() == before


def test_where_memory_has_no_files_they_lie_in_a_folder(monkeypatch):
    def lacking(name):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", lacking)
    file = File(lambda file: file.write(b"abc"))
    path = file.path
    with open(path, "rb") as reading:
        assert (reading.read(), file.size) == (b"abc", 3)
    del file
    assert not os.path.exists(path)


@pytest.mark.parametrize("kept", [{"array": np.zeros(1 << 16)}, {"rows": ROWS}, {}], ids=list)
def test_where_there_is_no_room_for_what_is_sent_it_is_said_what_to_allow(kept, monkeypatch):
    def full(name):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(ConfigError, match=r"Too many open files.*\(ulimit -n\)"):
        Parcel.of(settings_of(**kept))


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(
        ConfigError, match="`dataset`, `collate_fn` or `worker_init_fn` cannot be sent to a process"
    ):
        Parcel.of(settings_of(lock=threading.Lock()))


def test_arrays_are_there_once_and_objects_in_every_process():
    least = Parcel.of(settings_of()).bytes_for(4)
    arrays = Parcel.of(settings_of(array=np.zeros(1 << 20)))
    assert arrays.bytes_for(4) - least == pytest.approx(8 << 20, rel=0.01)
    rows = Parcel.of(settings_of(rows=list(ROWS)))
    assert rows.bytes_for(4) - least == pytest.approx(5 * len(pickle.dumps(ROWS, protocol=5)), rel=0.01)


# ---- in processes ------------------------------------------------------------------------------------------


class Large(Samples):
    def __init__(self, size):
        super().__init__(size)
        self.array, self.rows = np.zeros(1 << 16), [(i, 0) for i in range(20_000)]

    def __getitem__(self, i):
        return torch.tensor([i, self.array[i], *self.rows[i]])


class LargeStream(IterableDataset):
    def __init__(self, size):
        self.data = Large(size)

    def __iter__(self):
        return (self.data[i] for i in range(self.data.size))


def write_to_it(number):
    dataset = get_worker_info().dataset
    data = getattr(dataset, "data", dataset)
    data.array += 1
    data.rows[0] = (data.rows[0][0] + 10, 0)


@pytest.mark.parametrize("kind", [Large, LargeStream])
def test_every_epoch_begins_with_the_dataset_as_the_trainer_has_it(kind):
    dataset = kind(4)
    data = getattr(dataset, "data", dataset)
    with wrap(DataLoader(dataset, 4, num_workers=1, worker_init_fn=write_to_it)) as loader:
        for value in (0, 0, 5):
            data.array[2], data.rows[3] = value, (value, value)
            expected = [[0, 1, 10, 0], [1, 1, 1, 0], [2, value + 1, 2, 0], [3, 1, value, value]]
            data.rows[1], data.rows[2] = (1, 0), (2, 0)
            assert torch.cat(list(loader)).tolist() == expected
    assert loader.workshop.shipment.stream is None


def test_copies_that_are_more_than_the_budget_are_told(caplog):
    plain = DataLoader(Large(4), 4, num_workers=1, worker_init_fn=write_to_it)
    settings = replace(read_settings(plain), num_workers=1)
    small = Budget(cpus=3, memory=Parcel.of(settings).bytes_for(3) - 1)
    with caplog.at_level(logging.WARNING, "intune"), wrap(plain, budget=small) as loader:
        for _ in range(2):
            loader.workshop.shipment.send()
    (record,) = caplog.records
    assert "copies of the dataset for 3 worker processes take about" in record.getMessage()
