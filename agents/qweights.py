"""Parameters of the pre-trained Q-network, with recipe, seed and score. A safe format: arrays only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.agents.network import forward
from intune.agents.rehearsal import Rehearsal
from intune.pipelines.errors import ConfigError

SHIPPED = Path(__file__).resolve().parent / "weights" / "dqn.npz"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A trained Q-network.

    Attributes:
        arrays: parameters by name.
        gamma: discount it was trained with.
        recipe: how it was made: settings, seed, families, score.
    """

    arrays: Mapping[str, NDArray[np.float32]]
    gamma: float = 0.8
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def values(self, seen: Rehearsal) -> NDArray[np.float32]:
        """``[N, K]`` worth of each candidate, in NumPy."""
        return forward(self.arrays, seen)

    def save(self, path: str | Path) -> None:
        """Write to a ``.npz`` file."""
        recipe = np.frombuffer(json.dumps({"gamma": self.gamma, **self.recipe}).encode(), dtype=np.uint8)
        arrays: dict[str, Any] = {"recipe": recipe, **self.arrays}
        np.savez_compressed(path, **arrays)


def load(path: str | Path | None = None) -> Weights:
    """Read weights; those shipped with the package by default.

    Raises:
        ConfigError: no such file, or one that does not hold such weights.
    """
    path = SHIPPED if path is None else Path(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        recipe = json.loads(arrays.pop("recipe").tobytes().decode())
    except FileNotFoundError:
        raise ConfigError(f"no weights at {path}; make them with `intune pretrain --out {path}`") from None
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(f"{path} holds no weights of a Q-network: {error}") from error
    return Weights(arrays=arrays, gamma=float(recipe.pop("gamma", 0.8)), recipe=recipe)
