"""What TrendRec is compared with: forecasts of acceleration without a trained forecaster.

Plain DeepAR is `trendrec.Forecaster` without an item embedding. Nothing here looks at the step that it forecasts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intune.pipelines.errors import ConfigError
from intune.workloads.evaluation import SCORES_AT_ONCE
from intune.workloads.trends.trendrec import TwoTower

Floats = npt.NDArray[np.float64]

SESSIONS_AT_ONCE = 1024
"""Of a batch of the next-item model, at most; fewer where their scores of all items would be more than a block."""


def markov(velocity: npt.NDArray[Any], steps: Iterable[int]) -> Floats:
    """A(s) as A(s−1), for every step s of `steps`.

    Args:
        velocity: W, shape ``(items, T)``.
        steps: from 2 to T.

    Returns:
        Shape ``(steps, items)``, as of all functions here.
    """
    return np.stack([velocity[:, s - 1] - velocity[:, s - 2] for s in steps]).astype(np.float64)


def exponential_average(velocity: npt.NDArray[Any], steps: Iterable[int], *, weight: float) -> Floats:
    """A(s) as the exponential moving average of A(1) … A(s−1), begun with A(1).

    Args:
        velocity, steps: as of `markov`.
        weight: of the latest acceleration, above 0, at most 1; with 1 this is `markov`.
    """
    if not 0 < weight <= 1:
        raise ConfigError(f"`weight` must be above 0 and at most 1, but {weight} was found")
    wanted = list(steps)
    acceleration = np.diff(velocity.astype(np.float64), axis=1)
    average = acceleration[:, 0]
    made = {2: average}
    for t in range(2, max(wanted)):
        average = weight * acceleration[:, t - 1] + (1 - weight) * average
        made[t + 1] = average
    return np.stack([made[s] for s in wanted])


def last_velocity(velocity: npt.NDArray[Any], steps: Iterable[int]) -> Floats:
    """W(s−1) as the score of step s: what is popular will trend. Arguments as of `markov`."""
    return np.stack([velocity[:, s - 1] for s in steps]).astype(np.float64)


@torch.no_grad()
def predicted_popularity(
    model: TwoTower, sequences: npt.NDArray[np.int64], *, items: int, device: str = "cpu"
) -> Floats:
    """How often the next-item model expects each item next, summed over sessions, shape ``(items,)``.

    Args:
        model: in evaluation mode.
        sequences: what each session held until then, padded with `items` on the right, none empty; shape
            ``(sessions, length)``.
        items: number of items.
        device: where the model is.
    """
    total = torch.zeros(items, dtype=torch.float64)
    at_once = max(1, min(SESSIONS_AT_ONCE, SCORES_AT_ONCE // items))
    for start in range(0, len(sequences), at_once):
        batch = torch.from_numpy(sequences[start : start + at_once]).to(device)
        last = (batch != items).sum(dim=1) - 1
        states = model.user_tower(model.items(batch))[0][torch.arange(len(batch), device=batch.device), last]
        total += model.score(states).softmax(dim=-1).sum(dim=0, dtype=torch.float64).cpu()
    made: Floats = total.numpy()
    return made
