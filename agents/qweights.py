"""Parameters of the pre-trained Q-network, with recipe, seed and score. A safe format: arrays only."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from intune.agents.network import QNetwork, forward
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


def load(path: str | Path | None = None, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Weights:
    """Read weights; those shipped with the package by default.

    Args:
        path: of a ``.npz`` file.
        shapes: of the parameters, by name; those of `QNetwork` by default.

    Raises:
        ConfigError: no such file, or one that does not hold such weights.
    """
    path = SHIPPED if path is None else Path(path)
    try:
        # Read as a whole: NumPy leaves a file open that turns out to be no archive.
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        recipe = json.loads(arrays.pop("recipe").tobytes().decode())
        gamma = float(recipe.pop("gamma", 0.8))
    except FileNotFoundError:
        raise ConfigError(f"no weights at {path}; make them with `intune pretrain --out {path}`") from None
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
        EOFError,
        BadZipFile,
        zlib.error,
    ) as error:
        raise ConfigError(f"{path} holds no weights of a Q-network: {error}") from error
    _check(path, arrays, _shapes() if shapes is None else shapes)
    return Weights(arrays=arrays, gamma=gamma, recipe=recipe)


def _shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in QNetwork().state_dict().items()}


def _check(path: Path, arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in arrays:
            raise ConfigError(f"{path} has no parameter {name}; make such weights with `intune pretrain`")
        if arrays[name].shape != shape:
            raise ConfigError(
                f"{path}: parameter {name} has shape {arrays[name].shape}, but this version of the network needs "
                f"{shape}; make new weights with `intune pretrain`"
            )
        if not np.isfinite(arrays[name]).all():
            raise ConfigError(
                f"{path}: parameter {name} is not finite; make new weights with `intune pretrain`"
            )
