"""What a wrapped DataLoader's saved state says, and whether it is that of this DataLoader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from intune.adapters.dataloader.generators import EpochSeed, generators_of, saved_seed
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.errors import LoaderError
from intune.pipelines.position import check_version, not_a_state

STATE_VERSION = 1

_OF_A_LOOP = ("epoch", "batch", "ahead", "generators", "base_seed", "repeat", "random", "counts", "turn")
"""What is kept of a loop that was under way."""


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state that was read.

    Attributes:
        epoch, batch: of the next batch.
        counted: the epoch of which all batches had been handed over; None if it was another's turn.
        generators: states of the generators that the DataLoader and its samplers own.
        told: the epoch that the sampler was told last.
        seed: of the next epoch's workers, where they persist.
        resume: of the loop that was under way; None if there was none.
    """

    epoch: int
    batch: int
    counted: int | None
    generators: list[torch.Tensor]
    told: int | None
    seed: EpochSeed | None
    resume: dict[str, Any] | None

    @classmethod
    def read(cls, state: Mapping[str, Any], settings: LoaderSettings) -> SavedState:
        """What `TunableDataLoader.state_dict` returned.

        Raises:
            LoaderError: it is no state, or that of a DataLoader with other settings.
        """
        try:
            version, belonged_to = int(state["version"]), dict(state["belongs_to"])
            saved = cls(
                epoch=int(state["epoch"]),
                batch=int(state["batch"]),
                counted=None if state.get("counted") is None else int(state["counted"]),
                generators=list(state["generators"]),
                told=state.get("told"),
                seed=saved_seed(state),
                resume={name: state[name] for name in _OF_A_LOOP if name in state}
                if "random" in state
                else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise not_a_state(error) from error
        check_version(version, STATE_VERSION)
        belonged_to.setdefault("generators", len(saved.generators))  # early states do not say
        for name, value in belongs_to(settings).items():
            if belonged_to.get(name) != value:
                raise LoaderError(
                    f"`state` was saved with {name} {belonged_to.get(name)!r}, but this loader has {value!r}; "
                    "its position means nothing here"
                )
        return saved


def belongs_to(settings: LoaderSettings) -> dict[str, Any]:
    """What a DataLoader must have in common with the one that a state was saved of."""
    try:
        samples = None if settings.iterable else len(settings.dataset)
    except (TypeError, NotImplementedError):  # a custom sampler may do without
        samples = None
    return {
        "dataset": type(settings.dataset).__qualname__,
        "samples": samples,
        "batch_size": settings.batch_size,
        "drop_last": settings.drop_last,
        "iterators": settings.sources if settings.iterable else 0,
        "generators": len(generators_of(settings)),
    }
