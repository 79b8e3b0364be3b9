"""A tuned DataLoader in Lightning's Trainer; its place in the epoch is part of Lightning's checkpoints."""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import intune


class Model(lightning.LightningModule):
    """Logistic regression."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        features, label = batch
        return torch.nn.functional.binary_cross_entropy_with_logits(self.linear(features).squeeze(1), label)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main() -> None:
    """Two epochs."""
    features = torch.rand(4000, 8)
    data = TensorDataset(features, (features[:, 0] > 0.5).float())
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with intune.tune(DataLoader(data, batch_size=100, shuffle=True)) as loader:
        trainer.fit(Model(), train_dataloaders=loader)
        print(f"{trainer.global_step} steps; {loader.summary()}")


if __name__ == "__main__":
    main()
