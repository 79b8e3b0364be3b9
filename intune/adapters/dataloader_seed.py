"""Where the random numbers of an epoch's batches come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class EpochSeed:
    """Of one epoch.

    Attributes:
        base: what torch's workers are given, and tell in `get_worker_info`.
        repeat: how many epochs had the same before. Workers that persist are given one only; torch's are seeded with
            it once and their generators run on.
    """

    base: int
    repeat: int = 0

    @property
    def of_batches(self) -> int:
        """What batches are seeded from: `base`, and another number in every epoch that repeats it."""
        if not self.repeat:
            return self.base
        (word,) = np.random.SeedSequence([self.base, self.repeat]).generate_state(1, np.uint64)
        return int(word >> np.uint64(1))  # as torch draws `base`: 63 bits


def seed_state(seed: EpochSeed | None) -> dict[str, int | None]:
    """What a loader's state keeps of it, or of there being none yet."""
    return (
        {"base_seed": None, "repeat": 0} if seed is None else {"base_seed": seed.base, "repeat": seed.repeat}
    )


def saved_seed(state: Mapping[str, Any]) -> EpochSeed | None:
    """What `seed_state` put into a loader's state; early ones lack how often it was used."""
    base = state.get("base_seed")
    return None if base is None else EpochSeed(int(base), int(state.get("repeat") or 0))
