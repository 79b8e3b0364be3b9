"""A DataLoader of your own, tuned by one line: same batches, same order."""

from __future__ import annotations

import time

import torch
from torch.utils.data import DataLoader, Dataset

import intune


class Slow(Dataset[torch.Tensor]):
    """Samples that take a millisecond each, as from storage."""

    def __len__(self) -> int:
        return 3000

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.001)
        return torch.full((16,), float(index))


def main() -> None:
    """An epoch as ever, and two tuned ones."""
    loader = DataLoader(Slow(), batch_size=50)
    began = time.perf_counter()
    expected = sum(float(batch.sum()) for batch in loader)
    print(f"untuned: {time.perf_counter() - began:.1f} s")
    with intune.tune(loader) as tuned:
        for _ in range(2):
            began = time.perf_counter()
            assert sum(float(batch.sum()) for batch in tuned) == expected
            print(f"tuned: {time.perf_counter() - began:.1f} s")
        print(tuned.summary())


if __name__ == "__main__":
    main()
