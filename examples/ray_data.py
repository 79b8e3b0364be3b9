"""Ray Data, tuned through the `Tunable` protocol: how many tasks of each `map_batches` run at once.

Ray Data fixes an operator's concurrency when an execution begins, so the adapter runs the files in short executions
one after another; new slots take effect with the next. What a task took travels in two columns of its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
import ray.data
from counting import Counting

import intune
from intune.pipelines import Budget

Batch = dict[str, Any]


class RayDataAdapter(Counting):
    """Iterates over blocks of work; each goes through all functions, in order.

    Args:
        blocks: makes the dataset of a piece of work; called as often as there is work.
        functions: by the stage's name.
        budget: CPUs and bytes.
    """

    def __init__(
        self, blocks: list[Callable[[], Any]], functions: dict[str, Callable[[Batch], Batch]], budget: Budget
    ) -> None:
        super().__init__(tuple(functions), budget)
        self._blocks = blocks
        self._functions = functions

    def __iter__(self) -> Iterator[Batch]:
        self.running(True)
        try:
            ended = time.monotonic()
            step = 0.0
            for block in self._blocks:
                dataset = block()
                for name, function in self._functions.items():
                    slots = ray.data.TaskPoolStrategy(size=self.allocation.of(name))
                    dataset = dataset.map_batches(
                        timed(name, function), batch_size=None, compute=slots, num_cpus=0.1
                    )
                for batch in dataset.iter_batches(batch_size=None):
                    rows = len(next(iter(batch.values())))
                    for name in self.stages:
                        busy, cpu = batch.pop(f"busy {name}"), batch.pop(f"cpu {name}")
                        self.did(name, rows=rows, busy=float(busy.sum()), cpu=float(cpu.sum()))
                    began = time.monotonic()
                    self.delivered(rows, waited=began - ended, step=step)
                    yield batch
                    ended = time.monotonic()
                    step = ended - began
        finally:  # also where the loop is left early
            self.running(False)


def timed(name: str, function: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
    """The function, which adds how long it took: on the first row, so that the sum is right."""

    def call(batch: Batch) -> Batch:
        wall, cpu = time.monotonic(), time.thread_time()
        carried = {key: batch.pop(key) for key in list(batch) if key.startswith(("busy ", "cpu "))}
        made = function(batch)
        rows = len(next(iter(made.values())))
        took = {"busy": time.monotonic() - wall, "cpu": time.thread_time() - cpu}
        return {**made, **carried, **{f"{key} {name}": np.eye(1, rows)[0] * took[key] for key in took}}

    return call


def fetch(batch: Batch) -> Batch:
    """Waits, as for storage."""
    time.sleep(0.2)
    return batch


def transform(batch: Batch) -> Batch:
    """Computes a little."""
    return {"x": np.sort(np.sin(batch["id"].astype(np.float64)))}


def main(rounds: int = 6) -> None:
    """Some rounds of 24 blocks."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = [lambda: ray.data.range(24_000, override_num_blocks=24)] * rounds
    adapter = RayDataAdapter(blocks, {"fetch": fetch, "transform": transform}, Budget.detect(cpus=2))
    with intune.tune(adapter, agent="planner", display="lines") as tuned:
        rows = sum(len(batch["x"]) for batch in tuned)
        print(f"{rows:,} rows; {tuned.summary()}; at the end {tuned.stats().allocation.as_dict()}")


if __name__ == "__main__":
    main()
