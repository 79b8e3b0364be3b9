"""Arrays that lie in files: which can be had in another process by opening the file."""

import os

import numpy as np
import pytest
from torch.utils.data import DataLoader

from intune.adapters.dataloader.sending.mapped_arrays import mapped_again
from intune.adapters.dataloader.sending.parcel import Parcel
from intune.adapters.dataloader.sending.pickled_size import structure_bytes
from intune.adapters.dataloader.settings import read_settings
from tests.intune.adapters.dataloader.datasets import Samples


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "array.npy", np.asfortranarray(np.arange(60_000.0).reshape(200, 300)))
    return tmp_path / "array.npy"


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_an_array_in_a_file_is_the_file_in_another_process_too(path, mode):
    dataset = Samples(4)
    dataset.array = np.load(path, mmap_mode=mode)
    assert structure_bytes(dataset) < 10_000
    parcel = Parcel.of(read_settings(DataLoader(dataset)))
    made = parcel.opened().settings.dataset.array
    assert type(made) is np.memmap
    assert np.array_equal(made, dataset.array)
    assert made.flags.writeable == (mode == "r+")
    assert parcel.arrays is None
    if mode == "r+":
        made[7, 7] = -1
        assert dataset.array[7, 7] == -1


def test_others_are_copied(path):
    array = np.load(path, mmap_mode="r")
    others = [array[1:], np.load(path, mmap_mode="c"), np.asarray(array), np.ones(3), "text"]
    assert [mapped_again(other) for other in others] == [None] * len(others)
    os.remove(path)
    assert mapped_again(array) is None
    made = np.memmap(path, np.uint8, "w+", 0, (100,))
    assert mapped_again(made)[1][2] == "r+"
