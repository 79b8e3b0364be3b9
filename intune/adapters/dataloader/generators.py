"""The random generators that batches draw from: what seeds them, and the states of those that the trainer shares."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import worker as torch_worker

from intune.adapters.dataloader.settings import LoaderSettings


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


def draw_seed(settings: LoaderSettings) -> int:
    """The seed of an epoch's workers, drawn as the DataLoader draws it."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=settings.generator).item())


def seed_batch(base_seed: int, number: int) -> None:
    """Seed the process's random generators as those of torch's worker `number` are at its start."""
    random.seed(base_seed + number)
    torch.default_generator.manual_seed(base_seed + number)
    words = torch_worker._generate_state(base_seed, number)  # type: ignore[no-untyped-call]
    np.random.seed(words)  # noqa: NPY002


def generators_of(settings: LoaderSettings) -> list[torch.Generator]:
    """The generators that the DataLoader and its samplers own."""
    found: list[torch.Generator] = []
    sampler = settings.index_sampler
    for owner in (settings, sampler, getattr(sampler, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found


def global_states() -> dict[str, Any]:
    """The states of the process's own random generators: torch's, Python's, NumPy's; of plain types."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
    }


@contextmanager
def as_of(states: dict[str, Any] | None) -> Iterator[None]:
    """The process's random generators as they were in `states`, and back to what they are now afterwards."""
    if states is None:
        yield
        return
    now = global_states()
    restore(states)
    try:
        yield
    finally:
        restore(now)


def restore(states: dict[str, Any]) -> None:
    """Set the process's random generators to `states`."""
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002


def random_states() -> tuple[Any, ...]:
    """Of the process's own generators, to be compared: some 15 us."""
    return bytes(torch.default_generator.get_state().numpy()), random.getstate(), _numpy_state()


def _numpy_state() -> Any:
    generator = np.random.mtrand._rand._bit_generator  # whose states NumPy's own way takes 40 us to copy
    if type(generator) is np.random.MT19937:
        # 624 words and a position.
        return ctypes.string_at(generator.ctypes.state_address, 4 * 625)
    numbers: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return repr(numbers)
