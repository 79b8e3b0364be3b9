"""Ray Train: every worker tunes a pipeline of its own, over its share of the rows and of the machine."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from sample import sample

import intune
from intune.pipelines import Pipeline


def train(config: dict[str, Any]) -> None:
    """What each worker does."""
    context = ray.train.get_context()
    pipeline = Pipeline.from_parquet(config["data"]).shuffle(row_groups=4, seed=0).batch(512).to("cpu")
    model = torch.nn.Linear(8, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    share = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
    # Threads of this worker, not further workers of the cluster, make the batches.
    with intune.tune(pipeline, executor="threads", memory="128MiB", **share) as loader:
        rows = 0
        for batch in loader:
            features = torch.stack([batch[f"x{i}"] for i in range(8)], dim=1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(features).squeeze(1), batch["label"]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rows += len(batch["label"])
    print(f"worker {context.get_world_rank()}: {rows:,} rows, loss {loss.item():.3f}")


def main(workers: int = 1) -> None:
    """One epoch."""
    ray.init(num_cpus=max(2, workers), include_dashboard=False, ignore_reinit_error=True)
    trainer = TorchTrainer(
        train, train_loop_config={"data": sample()}, scaling_config=ScalingConfig(num_workers=workers)
    )
    trainer.fit()


if __name__ == "__main__":
    main()
