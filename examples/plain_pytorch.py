"""A pipeline over Parquet files, tuned while an ordinary PyTorch loop trains on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sample import sample

import intune
from intune.pipelines import Pipeline


def to_features(batch: dict[str, Any]) -> dict[str, Any]:
    """Eight columns as one matrix, after a logarithm."""
    features = np.stack([np.log1p(batch[f"x{i}"]) for i in range(8)], axis=1)
    return {"label": batch["label"], "features": features}


def main() -> None:
    """Two epochs of logistic regression."""
    pipeline = (
        Pipeline.from_parquet(sample()).shuffle(row_groups=4, seed=0).batch(512).map(to_features).to("cpu")
    )
    model = torch.nn.Linear(8, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    with intune.tune(pipeline, memory="256MiB", display="auto") as loader:
        for epoch in range(2):
            for batch in loader:
                logits = model(batch["features"]).squeeze(1)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            print(f"epoch {epoch}: loss {loss.item():.3f}")
        print(loader.summary())


if __name__ == "__main__":
    main()
