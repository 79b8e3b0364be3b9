"""Popularity: every session is recommended the items that occur most often in training. The floor for other models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import DataError
from intune.pipelines.schema import Array
from intune.pipelines.whole import at_least
from intune.workloads.sequences.stages import Window


class Popularity:
    """Counts of items; learned in one pass.

    Args:
        items: number n of items of the catalogue.
    """

    def __init__(self, *, items: int) -> None:
        at_least("items", items, 1)
        self.items = items
        self.counts: Array = np.zeros(items, dtype=np.int64)

    def fit(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Count the items of batches of sessions, ``items`` a `Ragged`.

        Raises:
            DataError: an id that is not one of the catalogue's.
        """
        counts = np.zeros(self.items, dtype=np.int64)
        for batch in batches:
            ids = np.asarray(batch["items"].values)
            require_items(ids, self.items)
            counts += np.bincount(ids, minlength=self.items)
        self.counts = counts

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Counts, shape ``(rows, items)``, the same for every session of ``items``."""
        return torch.from_numpy(self.counts).float().expand(len(batch["items"]), -1)

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes; the window checks the sessions."""
        return pipeline.map(Window(length=1, items=self.items), name="window")


def require_items(ids: Array, items: int) -> None:
    """A `DataError` unless every id is one of 0 … `items` − 1."""
    if len(ids) and (ids.min() < 0 or ids.max() >= items):
        wrong = ids[(ids < 0) | (ids >= items)][0]
        raise DataError(
            f"the sessions have the item {int(wrong)}, but the catalogue has {items} items, 0 to {items - 1}; "
            f"number items anew or give the whole catalogue"
        )
