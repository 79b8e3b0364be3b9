"""Runs pipelines in tf.data with AUTOTUNE and prints what parallelism it settled on. Knows nothing of this package.

Reads cases as JSON from standard input, prints a JSON list: run with the rivals' Python, see `autotune_check.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> None:
    import tensorflow as tf

    results = []
    for case in json.load(sys.stdin):
        results.append(run(tf, case))
        print(f"{len(results)}: {case['name']}", file=sys.stderr, flush=True)
    json.dump({"tensorflow": tf.__version__, "results": results}, sys.stdout)


def run(tf: Any, case: dict[str, Any]) -> dict[str, Any]:
    """One pipeline for as long as the case says."""
    from tensorflow.python.data.experimental.ops import iterator_model_ops

    dataset = tf.data.Dataset.range(10**9)
    for seconds in case["seconds"]:
        dataset = dataset.map(stage(tf, case["kind"], seconds), num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.with_options(options(tf, case))
    iterator = iter(dataset)
    started = time.monotonic()
    elements = 0
    for _ in iterator:
        elements += 1
        if case["consumer"]:
            time.sleep(case["consumer"])
        if time.monotonic() - started >= case["duration"]:
            break
    elapsed = time.monotonic() - started
    model = iterator_model_ops.get_model_proto(iterator)
    # Numbers grow from the root to the source: the pipeline's order is the reverse.
    nodes = [model.nodes[key] for key in sorted(model.nodes, reverse=True)]
    maps = [node for node in nodes if node.name.startswith("ParallelMap")]
    parameters = [next(p for p in node.parameters if p.name == "parallelism") for node in maps]
    return {
        "rate": elements / elapsed,
        "parallelism": [int(parameter.state_value) for parameter in parameters],
        "most": [int(parameter.max) for parameter in parameters],
        "self_time": [node.processing_time / max(node.num_elements, 1) / 1e9 for node in maps],
        "gaps": [gap / 1e6 for gap in model.gap_times],
        "element_bytes": [8.0] * len(maps),
    }


def options(tf: Any, case: dict[str, Any]) -> Any:
    """As many threads as the machine of the case has CPUs; no stage but the case's own."""
    made = tf.data.Options()
    made.autotune.autotune_algorithm = getattr(tf.data.experimental.AutotuneAlgorithm, case["algorithm"])
    made.autotune.cpu_budget = case["cpus"]
    made.autotune.ram_budget = int(case["ram"])
    made.threading.private_threadpool_size = case["cpus"]
    made.experimental_optimization.inject_prefetch = False
    return made


def stage(tf: Any, kind: str, seconds: float) -> Callable[[Any], Any]:
    """User code that takes about `seconds`: asleep, or at work on numbers."""

    def sleep(value: Any) -> Any:
        time.sleep(seconds)
        return value

    def asleep(value: Any) -> Any:
        return tf.py_function(sleep, [value], tf.int64)

    def at_work(value: Any) -> Any:
        # Some 100 microseconds a round on one core; it depends on the element, lest TensorFlow compute it only once.
        matrix = tf.fill([96, 96], 0.01 + tf.cast(value % 7, tf.float32) * 1e-6)
        for _ in range(max(round(seconds / 1e-4), 1)):
            matrix = tf.tanh(tf.matmul(matrix, matrix))
        return value + tf.cast(tf.reduce_sum(matrix) * 0.0, tf.int64)

    return asleep if kind == "sleep" else at_work


if __name__ == "__main__":
    main()
