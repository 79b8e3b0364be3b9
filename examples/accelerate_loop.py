"""A tuned DataLoader beside Accelerate: prepare model and optimiser, tune the loader, move the batches yourself."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import intune


def main() -> None:
    """Two epochs of logistic regression, on every process its share of the rows."""
    accelerator = Accelerator(cpu=True)
    features = torch.rand(4000, 8)
    data = TensorDataset(features, (features[:, 0] > 0.5).float())
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(
        data, num_replicas=accelerator.num_processes, rank=accelerator.process_index, seed=0
    )
    model = torch.nn.Linear(8, 1)
    model, optimiser = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.05))
    with intune.tune(DataLoader(data, batch_size=100, sampler=sampler)) as loader:
        for epoch in range(2):
            loader.set_epoch(epoch)  # goes to the sampler
            for batch in loader:
                inputs, label = (tensor.to(accelerator.device) for tensor in batch)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs).squeeze(1), label)
                optimiser.zero_grad()
                accelerator.backward(loss)
                optimiser.step()
            accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
        accelerator.print(loader.summary())


if __name__ == "__main__":
    main()
