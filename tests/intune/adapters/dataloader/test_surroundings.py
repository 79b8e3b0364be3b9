"""What is around the training loop is around the dataset's code, in whatever thread that runs."""

import contextlib
import contextvars
import decimal
import threading
import time

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset, IterableDataset

from intune.adapters.dataloader.surroundings import Surroundings
from intune.pipelines import Allocation
from tests.intune.adapters.dataloader.common import assert_same, wrap

LAYER = torch.nn.Linear(2, 2)
VARIABLE = contextvars.ContextVar("variable", default="unset")


class Asked(Dataset):
    """Every sample is what a function says."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return self.function()


class AskedOneByOne(IterableDataset):
    def __init__(self, function):
        self.function = function

    def __iter__(self):
        for _ in range(24):
            # Set and set back in batches that different threads may make.
            with np.errstate(under="raise"):
                yield self.function()


class Tripled(TorchFunctionMode):
    """As a default device: a mode of torch's that is in force for the thread that entered it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 3 if func is torch.ones else result


@contextlib.contextmanager
def variable():
    token = VARIABLE.set("set")
    yield
    VARIABLE.reset(token)


@contextlib.contextmanager
def precision():
    with decimal.localcontext() as context:
        context.prec = 5
        yield


def divide():
    try:
        return float(np.float64(1) / np.float64(0))
    except FloatingPointError:
        return "refused"


CASES = {
    "no_grad": (lambda: LAYER(torch.ones(2)).requires_grad, torch.no_grad),
    "inference": (lambda: torch.zeros(1).is_inference(), torch.inference_mode),
    "autocast": (
        lambda: str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ),
    "mode": (lambda: float(torch.ones(())), Tripled),
    "errstate": (divide, lambda: np.errstate(divide="raise")),
    "decimal": (lambda: str(decimal.Decimal(1) / 3), precision),
    "variable": (VARIABLE.get, variable),
}


@pytest.mark.parametrize("cls", [Asked, AskedOneByOne])
@pytest.mark.parametrize("case", CASES)
def test_code_in_threads_finds_what_is_around_the_loop(case, cls):
    function, around = CASES[case]
    make = lambda: DataLoader(cls(function), 4, collate_fn=lambda samples: [*samples, function()])  # noqa: E731
    with around():
        expected = list(make())
        with wrap(make(), workers="thread", allocation=Allocation.shared(3)) as loader:
            assert_same(loader, expected)


def test_what_is_changed_between_two_batches_is_seen():
    function, around = CASES["no_grad"]
    with wrap(DataLoader(Asked(function), 2), workers="thread", allocation=Allocation.shared(1)) as loader:
        loop = iter(loader)
        first = [bool(next(loop).any())]
        with around():
            rest = [bool(batch.any()) for batch in loop]
    assert first == [True]
    assert rest[-1] is False


def test_threads_are_as_before_afterwards_and_can_be_at_it_at_once():
    with torch.no_grad(), Tripled():
        around = [Surroundings()]
        around += [around[0].copy() for _ in range(3)]
    found = []

    def work(one):
        inside = one.run(lambda: (time.sleep(0.02), torch.is_grad_enabled(), float(torch.ones(())))[1:])
        found.append((inside, torch.is_grad_enabled(), float(torch.ones(()))))

    threads = [threading.Thread(target=work, args=(one,)) for one in around]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [((False, 3.0), True, 1.0)] * 4
