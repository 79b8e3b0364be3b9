"""Datasets and samplers for the tests; a module of its own, since worker processes import it too."""

import os
import random
import threading
import time
from collections import Counter, namedtuple

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

Pair = namedtuple("Pair", "left right")

SCALE = 1
"""An option that a script sets."""

_scale = 1
"""One that is not sent to worker processes, being private."""


def sample(kind: str, i: int):
    """A sample of every kind that collate functions know."""
    if kind == "tensor":
        return torch.arange(i, i + 3, dtype=torch.float32)
    if kind == "tuple":
        return torch.tensor([i, -i]), i, float(i) / 3
    if kind == "dict":
        return {"x": np.full((2, 2), i), "name": f"n{i}", "deep": {"y": torch.tensor(i)}, "flag": i % 2 == 0}
    if kind == "namedtuple":
        return Pair(left=np.float32(i), right=[i, i + 1])
    if kind == "string":
        return f"text {i}"
    if kind == "varied":
        return torch.arange(i % 5)
    raise ValueError(kind)


def collate_varied(samples):
    """Values and offsets of tensors of different lengths."""
    return torch.cat(samples), torch.tensor([0, *[len(one) for one in samples]]).cumsum(0)


class Samples(Dataset):
    """Map-style."""

    def __init__(self, size, kind="tensor"):
        self.size, self.kind = size, kind

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if not 0 <= i < self.size:
            raise IndexError(i)
        return sample(self.kind, int(i))


class ManyAtOnce(Samples):
    """Gives all samples of a batch at once."""

    def __getitems__(self, keys):
        return [sample(self.kind, int(key)) for key in keys]


class Counted(Samples):
    """Counts how often each sample was asked for."""

    def __init__(self, size, kind="tensor"):
        super().__init__(size, kind)
        self.asked = Counter()
        self.lock = threading.Lock()

    def __getitem__(self, i):
        with self.lock:
            self.asked[int(i)] += 1
        return super().__getitem__(i)


class Failing(Samples):
    """Raises for some samples."""

    def __init__(self, size, bad, error=KeyError):
        super().__init__(size)
        self.bad, self.error = set(bad), error

    def __getitem__(self, i):
        if i in self.bad:
            raise self.error(f"sample {i}")
        return super().__getitem__(i)


class Slow(Samples):
    """Waits, as storage does."""

    def __init__(self, size, seconds):
        super().__init__(size)
        self.seconds = seconds

    def __getitem__(self, i):
        time.sleep(self.seconds)
        return super().__getitem__(i)


class Busy(Samples):
    """Computes in Python."""

    def __init__(self, size, steps):
        super().__init__(size)
        self.steps = steps

    def __getitem__(self, i):
        total = 0
        for step in range(self.steps):
            total += step * step
        return super().__getitem__(i)


class Noisy(Samples):
    """Draws from all generators of the process."""

    def __getitem__(self, i):
        return torch.tensor([i, random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002


class Where(Samples):
    """Tells which worker made a sample, and what `worker_init_fn` left there."""

    def __getitem__(self, i):
        info = get_worker_info()
        if info is None:
            return torch.tensor([i, -1, -1, -1])
        return torch.tensor([i, info.id, info.num_workers, getattr(info.dataset, "mark", -1)])


def mark_dataset(number):
    """A `worker_init_fn`."""
    get_worker_info().dataset.mark = 100 + number


class OpensLate(Samples):
    """Opens a file when it is first used, as datasets over HDF5 do."""

    def __init__(self, size, path):
        super().__init__(size)
        self.path, self.file = path, None

    def __getitem__(self, i):
        if self.file is None:
            self.file = open(self.path, "rb")  # noqa: SIM115
        self.file.seek(8 * int(i))
        return torch.tensor(int.from_bytes(self.file.read(8), "little"))

    def close(self):
        if self.file is not None:
            self.file.close()

    __del__ = close


class Stream(IterableDataset):
    """Iterable-style; shards itself by worker, unevenly, if `lengths` are given."""

    def __init__(self, lengths=(10,), kind="tensor", noisy=False, sized=None):
        self.lengths, self.kind, self.noisy, self.sized = lengths, kind, noisy, sized
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        if self.sized is None:
            raise TypeError("no length")
        return self.sized

    def __iter__(self):
        info = get_worker_info()
        number = 0 if info is None else info.id
        for i in range(self.lengths[number % len(self.lengths)]):
            value = 1000 * number + 100_000 * self.epoch + i
            if self.noisy:
                yield torch.tensor([value, random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002
            else:
                yield sample(self.kind, value)


class FailingStream(IterableDataset):
    """Raises after some samples."""

    def __init__(self, good):
        self.good = good

    def __iter__(self):
        for i in range(self.good):
            yield torch.tensor(i)
        raise ValueError("the stream broke")


class NoLength(Sampler):
    """A sampler that does not know how much it gives."""

    def __init__(self, keys):
        self.keys = keys

    def __iter__(self):
        return iter(self.keys)


class Epochs(Sampler):
    """Gives another order every epoch, as `DistributedSampler`."""

    def __init__(self, size):
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Scaled(Samples):
    """Goes by what a script has set in this module."""

    def __getitem__(self, i):
        return torch.tensor([float(i * SCALE), float(i * _scale)])


class RareDraws(Samples):
    """Draws random numbers from some sample on."""

    def __init__(self, size, start):
        super().__init__(size)
        self.start = start

    def __getitem__(self, i):
        return torch.tensor(float(i)) + (torch.rand(()) if i >= self.start else 0)


class HiddenDraws(Samples):
    """The same, unseen by who reads the code."""

    def __init__(self, size, start):
        super().__init__(size)
        self.start = start

    def __getitem__(self, i):
        return torch.tensor(float(i)) + (getattr(torch, "ra" + "nd")(()) if i >= self.start else 0)


class Surrounded(Samples):
    """Tells what the process has set for all code in it."""

    def __getitem__(self, i):
        return i, os.getcwd(), os.environ.get("INTUNE_TEST", ""), str(torch.zeros(1).dtype)


class OneBuffer(IterableDataset):
    """Gives the same memory again and again."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        buffer = np.zeros(3)
        for i in range(self.size):
            buffer[:] = i
            yield buffer


class OneBufferByKey(Samples):
    buffer = np.zeros(3)  # of the class, where nobody looks for what changes

    def __getitem__(self, i):
        self.buffer[:] = i
        return self.buffer


class Remembering(Samples):
    """Says how many samples it has given."""

    def __init__(self, size):
        super().__init__(size)
        self.given = 0

    def __getitem__(self, i):
        self.given += 1
        return i, self.given


class Reusing(Samples):
    """Works in one buffer, and gives copies of it."""

    def __init__(self, size):
        super().__init__(size)
        self.buffer = np.zeros(20_000, dtype=np.int64)

    def __getitem__(self, i):
        np.add(0, i, out=self.buffer)  # lets go of Python's lock
        return torch.from_numpy(self.buffer).clone()


class KeepsBack(Samples):
    """Opens a file when it is first used, and is sent without it."""

    file = None

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("file", "cache")}

    def __getitem__(self, i):
        if self.file is None:
            self.file = open(__file__, "rb", buffering=0)  # noqa: SIM115
        self.file.seek(i)
        return sum(self.file.read(1)) + sum(range(300_000))  # long enough that two at once would tell more


class Growing:
    """A collate function whose batches get longer."""

    def __init__(self):
        self.batches = 0

    def __call__(self, samples):
        self.batches += 1
        return samples * self.batches


ASKED = []


class Asked(Samples):
    """Notes what was asked for where nobody looks for what changes."""

    def __getitem__(self, i):
        ASKED.append(i)
        time.sleep(0.0005)
        return super().__getitem__(i)


class SetsBack(Samples):
    """Keeps the sample in an attribute while it makes it."""

    row = None

    def __init__(self, size, seconds=0.0):
        super().__init__(size)
        self.seconds = seconds

    def __getitem__(self, i):
        self.row = i
        time.sleep(self.seconds)
        made = torch.tensor(self.row)
        self.row = None
        return made
