"""The part of `elastic` that runs on Ray: nodes come and go under a tuned job. One JSON line at its end.

The best of each phase is what the untuned default would be given on such a cluster: it is measured by the same job,
with pools of several sizes, before the tuner starts.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
from typing import Any

from benchmarks import elastic
from benchmarks.tuned import decision
from benchmarks.user_code import drawn

POOLS = (2, 4, 8)
TRIAL_S = 3.0


def main(settings: dict[str, Any]) -> dict[str, Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    store = 256 << 20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": store, "include_dashboard": False},
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        best = {1: _best(settings["files"])}
        node = cluster.add_node(num_cpus=1, object_store_memory=store)
        cluster.wait_for_nodes()
        best[2] = _best(settings["files"])
        cluster.remove_node(node)
        return _phases(cluster, settings, best, store)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def _pipeline(files: list[str]) -> Any:
    from intune.pipelines import Pipeline

    function: Any = functools.partial(drawn, **elastic.CODE)
    return Pipeline.from_parquet(files).batch(8192).map(function).to("cpu")


def _best(files: list[str]) -> float:
    """Rows/s of the best pool on the cluster as it is."""
    from intune.pipelines import Allocation

    rates = []
    with _pipeline(files).loader(executor="ray") as loader:
        batches = iter(loader)
        next(batches)
        for pool in POOLS:
            loader.resize(Allocation.shared(pool))
            rows, began = 0, time.monotonic()
            while time.monotonic() - began < TRIAL_S:
                batch = next(batches, None)
                if batch is None:
                    batches = iter(loader)
                    continue
                rows += len(batch["label"])
            rates.append(rows / (time.monotonic() - began))
    return max(rates)


def _phases(cluster: Any, settings: dict[str, Any], best: dict[int, float], store: int) -> dict[str, Any]:
    from intune import tune

    phase = float(settings["phase_s"])
    node: Any = None
    epoch_rows: list[int] = []
    done = 0
    loader = tune(_pipeline(settings["files"]), executor="ray", agent="dqn", knowledge=False)
    with loader:
        batches = iter(loader)
        began = time.monotonic()
        rows = 0
        while (now := time.monotonic() - began) < 3 * phase:
            if done == 0 and now >= phase:
                node, done = cluster.add_node(num_cpus=1, object_store_memory=store), 1
            if done == 1 and now >= 2 * phase:
                cluster.remove_node(node)
                done = 2
            batch = next(batches, None)
            if batch is None:
                epoch_rows.append(rows)
                rows, batches = 0, iter(loader)
                continue
            rows += len(batch["label"])
        decisions = [decision(entry) for entry in loader.decisions]
        lost = loader.stats().workers_lost
    bounds = [0.0, phase, 2 * phase]
    return {
        "best": best,
        "phases": elastic.recoveries(decisions, bounds, [best[1], best[2], best[1]]),
        "epoch_rows": epoch_rows,
        "whole_epochs": elastic.whole({"epoch_rows": epoch_rows}),
        "workers_lost": lost,
        "decisions": decisions,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
