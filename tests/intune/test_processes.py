"""Forks and spawned children of a process that tunes: none inherits a tuner, none hangs at its end, all may tune."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # every child imports torch

SCRIPT = """
import multiprocessing, os, sys, threading, warnings
import torch
import intune
from intune.control import Pace
from intune.errors import LoaderError
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
PACE = Pace(first=0.01, shortest=0.01, longest=0.5, tasks=0)  # a planner at every turn would take a processor
QUICK = dict(agent="planner", cpus=1, memory="64MiB", knowledge=False, pace=PACE)

def tuners():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("intune-")]

def data(**options):
    return DataLoader(TensorDataset(torch.arange(60)), batch_size=4, **options)

def total(loader):
    return sum(int(batch.sum()) for (batch,) in loader)

def tunes_itself():
    assert not tuners(), tuners()
    with intune.tune(data(), workers="thread", **QUICK) as tuned:
        assert total(tuned) == 1770
        assert tuned.tuning
    assert not tuners(), tuners()

def inherits(tuned):
    assert not tuned.tuning
    try:
        next(iter(tuned))
    except LoaderError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("the parent's loader was used in a fork")
    tuned.close()
    tunes_itself()

def child(how, target, *args):
    if how == "os.fork":
        pid = os.fork()
        if pid == 0:
            target(*args)
            sys.exit(0)  # all that runs at an interpreter's end, which multiprocessing leaves out
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    process = multiprocessing.get_context(how).Process(target=target, args=args)
    process.start()
    process.join(240)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode

LEFT = []  # open when the interpreter ends

def main(how, workers, end):
    tuned = intune.tune(data(), workers=workers, **QUICK)
    batches = iter(tuned)
    first = int(next(batches)[0].sum())
    code = child(how, tunes_itself) if how == "spawn" else child(how, inherits, tuned)
    assert code == 0, (how, workers, code)
    assert tuned.tuning
    assert first + sum(int(batch.sum()) for (batch,) in batches) == 1770
    assert total(tuned) == 1770
    if end == "open":
        LEFT.append(tuned)
    else:
        tuned.close()
        assert not tuners(), tuners()

class Numbers(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return index * 10

def begin(worker):
    assert get_worker_info().id == worker
    assert not tuners(), tuners()

def spawned_workers():
    def made(how):
        return DataLoader(Numbers(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1),
                          num_workers=1, multiprocessing_context=how, persistent_workers=True, worker_init_fn=begin)

    expected = [[batch.tolist() for batch in forked] for forked in 2 * [made("fork")]]
    with intune.tune(made("spawn"), agent="even", cpus=1, memory="64MiB", knowledge=False, workers="process") as tuned:
        assert [[batch.tolist() for batch in tuned] for _ in range(2)] == expected

if __name__ == "__main__":
    spawned_workers()
    main("fork", "process", "closed")
    main("fork", "thread", "closed")
    main("os.fork", "thread", "open")
    main("spawn", "thread", "open")
    print("fine")
"""


def test_children_and_workers_of_a_process_that_tunes(tmp_path: Path) -> None:
    """The workers of a DataLoader begin as it says; children are well also where nobody closes the loader, and where
    the child ends as an interpreter does. The script says that all is well, and nothing else."""
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=540,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "INTUNE": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
