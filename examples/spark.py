"""A Spark job, tuned through the `Tunable` protocol: how many of its partitions are worked on at once.

Here Spark runs in this process (``local[8]``) and slots are jobs that are submitted at the same time. On a cluster the
same adapter would ask for executors: `sparkContext._jsc.sc().requestTotalExecutors`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from counting import Counting
from pyspark import SparkContext

import intune
from intune.pipelines import Budget

MOST = 8
"""Threads that Spark has; slots beyond have no effect."""


class SparkAdapter(Counting):
    """Iterates over the results of a job's partitions, in order."""

    def __init__(self, context: SparkContext, partitions: int, budget: Budget) -> None:
        super().__init__(("job",), budget)
        self._data = context.parallelize(range(partitions * 100), partitions).mapPartitions(work)
        self._context = context
        self._partitions = partitions

    def __iter__(self) -> Iterator[list[int]]:
        self.running(True)
        try:
            ended = time.monotonic()
            step = 0.0
            todo = iter(range(self._partitions))
            with ThreadPoolExecutor(MOST) as pool:
                ahead: deque[Future[list[int]]] = deque()
                while True:
                    while len(ahead) < min(MOST, self.allocation.of("job")):
                        number = next(todo, None)
                        if number is None:
                            break
                        ahead.append(pool.submit(self._run, number))
                    if not ahead:
                        break
                    rows = ahead.popleft().result()
                    began = time.monotonic()
                    self.delivered(len(rows), waited=began - ended, step=step)
                    yield rows
                    ended = time.monotonic()
                    step = ended - began
        finally:  # also where the loop is left early
            self.running(False)

    def _run(self, number: int) -> list[int]:
        began = time.monotonic()
        rows: list[int] = list(self._context.runJob(self._data, lambda part: part, [number]))
        self.did("job", rows=len(rows), busy=time.monotonic() - began, cpu=0.0)
        return rows


def work(part: Iterator[int]) -> Iterator[int]:
    """Waits, as for a far source, and computes a little."""
    time.sleep(0.2)
    return iter([value * 2 for value in part])


def main(partitions: int = 80) -> None:
    """One job."""
    context = SparkContext.getOrCreate(_settings())
    context.setLogLevel("ERROR")
    try:
        adapter = SparkAdapter(context, partitions, Budget.detect(cpus=2))
        with intune.tune(adapter, agent="planner", display="lines") as tuned:
            rows = sum(len(part) for part in tuned)
            print(f"{rows:,} rows; {tuned.summary()}; at the end {tuned.stats().allocation.as_dict()}")
    finally:
        context.stop()


def _settings() -> object:
    from pyspark import SparkConf

    conf = SparkConf().setMaster(f"local[{MOST}]").setAppName("intune example")
    conf.set("spark.ui.enabled", "false").set("spark.ui.showConsoleProgress", "false")
    return conf.set("spark.driver.bindAddress", "127.0.0.1")


if __name__ == "__main__":
    main()
