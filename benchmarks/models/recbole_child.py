"""Trains a model of RecBole in its own environment and prints how many rows a second it took, as JSON.

    .recbole/bin/python -m benchmarks.models.recbole_child BPR --data folder --settings '{"epochs": 1}' --seconds 10

Nothing of this project is imported here. `folder` holds ``ml.inter``, or ``ml.train.inter`` and the other two parts, as
`speed.py` writes them. The loop is RecBole's own `Trainer._train_epoch`, its data loader and sampler included; only the
loss is wrapped, to count and to stop.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any


class _Enough(Exception):
    """The time is over."""


def run(model_name: str, folder: str, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Train for `seconds` after a warm-up of a fifth of that."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(1)
    config = Config(
        model=model_name,
        dataset="ml",
        config_dict={
            "data_path": folder,
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "checkpoint_dir": f"{folder}/saved",
            **settings,
        },
    )
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    began: float | None = None
    rows = steps = 0
    opened, spent = time.perf_counter(), 0.0

    def loss(interaction: Any) -> Any:
        nonlocal began, rows, steps, spent
        now = time.perf_counter()
        if began is None and now - opened > seconds / 5:
            began, rows, steps, spent = now, 0, 0, time.process_time()
        if began is not None and now - began > seconds:
            raise _Enough
        rows, steps = rows + len(interaction), steps + 1
        return model.calculate_loss(interaction)

    try:
        for epoch in range(1_000_000):
            trainer._train_epoch(train, epoch, loss_func=loss)
    except _Enough:
        pass
    assert began is not None
    return {
        "rows_per_s": rows / (time.perf_counter() - began),
        "rows_per_cpu_s": rows / (time.process_time() - spent),
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    print(json.dumps(run(given.model, given.data, json.loads(given.settings), given.seconds)))
