"""Two ranks of a job on one node, in real processes: they share the machine, and every row goes to one of them once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.envs.measure import SLOTS_PER_CPU
from intune.pipelines.budget import DEFAULT_SHARE, Usable

ROWS = 6000

SCRIPT = """
import json, os, sys
import torch
import torch.distributed as dist
import intune
from intune.control import Pace
from intune.pipelines import Pipeline
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

if __name__ == "__main__":
    data, store, out = sys.argv[1:]
    other = os.fork()  # the second rank, which need not import torch anew
    rank, world = int(other == 0), 2
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    quick = Pace(first=0.01, shortest=0.01, longest=0.2, tasks=0)
    seen, shares = [], []
    pipe = Pipeline.from_parquet(data).shuffle(row_groups=4, seed=1).batch(50)
    with intune.tune(pipe, agent="planner", pace=quick, knowledge=False, rank=rank, world_size=world) as loader:
        for epoch in range(2):
            loader.set_epoch(epoch)
            rows = []
            for batch in loader:
                rows += batch["x"].tolist()
                gradient = batch["x"].double().sum()
                dist.all_reduce(gradient)  # every rank waits for the slowest, as in DDP
            seen.append(rows)
        budget, decisions = loader.budget, loader.decisions
        slots = [e.allocation.pool if e.allocation.is_shared else e.allocation.total for e in decisions]
        failure = repr(loader.failure)
    numbers = TensorDataset(torch.arange(600))
    sampler = DistributedSampler(numbers, world, rank, shuffle=True, seed=5)
    plain = DataLoader(numbers, batch_size=10, sampler=sampler)
    with intune.tune(plain, agent="planner", pace=quick, knowledge=False, workers="thread") as loader:
        sampled = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            rows = []
            for (batch,) in loader:
                rows += batch.tolist()
                dist.all_reduce(batch.double().sum())
            sampled.append(rows)
        given = loader.budget
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected.append([int(x) for (batch,) in plain for x in batch])
    with open(f"{out}/{rank}.json", "w") as file:
        json.dump({"seen": seen, "cpus": budget.cpus, "memory": budget.memory, "slots": slots, "failure": failure,
                   "sampled": sampled, "expected": expected, "others": [given.cpus, given.memory],
                   "threads": torch.get_num_threads()}, file)
    dist.destroy_process_group()
    if rank == 0:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank says of itself."""
    tmp_path = tmp_path_factory.mktemp("ranks")
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        values = np.arange(number * ROWS // 4, (number + 1) * ROWS // 4, dtype=np.int64)
        pq.write_table(pa.table({"x": values}), folder / f"{number}.parquet", row_group_size=100)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path / "store"), str(tmp_path)],
        capture_output=True, text=True, timeout=170,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "INTUNE_CACHE": str(tmp_path / "cache"), "INTUNE": "",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_share_one_machine_and_the_rows(ranks: list[dict[str, Any]]) -> None:
    usable = Usable.detect(modules={})
    one, two = ranks
    for epoch in range(2):
        assert sorted(one["seen"][epoch] + two["seen"][epoch]) == list(range(ROWS))
    assert one["seen"][0] != one["seen"][1]
    # Together no more than the machine has.
    assert one["cpus"] + two["cpus"] <= max(2, usable.cpus)
    assert one["memory"] + two["memory"] <= 1.1 * DEFAULT_SHARE * usable.memory
    assert one["others"][0] + two["others"][0] <= max(2, usable.cpus)
    for rank in (one, two):
        assert rank["failure"] == "None"
        assert rank["slots"], "nothing was decided"
        assert max(rank["slots"]) <= max(SLOTS_PER_CPU * rank["cpus"], 4)  # at least one for each stage


def test_a_distributed_sampler_gives_what_it_gives_without(ranks: list[dict[str, Any]]) -> None:
    one, two = ranks
    for rank in (one, two):
        assert rank["sampled"] == rank["expected"]
    for epoch in range(2):
        assert sorted(one["sampled"][epoch] + two["sampled"][epoch]) == list(range(600))
