"""Multilayer perceptrons as DLRM's authors initialise them, from a NumPy generator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn


def mlp(widths: Sequence[int], *, last_relu: bool, device: str) -> nn.Sequential:
    """Linear layers with ReLU between them, and after the last where `last_relu`; not initialised."""
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(pairwise(widths)):
        # skip_init, because a layer's own initialisation would draw from the global generator.
        linear: nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, inputs, outputs, device=device
        )
        layers.append(linear)
        if last_relu or position < len(widths) - 2:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise_mlp(layers: nn.Sequential, rng: np.random.Generator) -> None:
    """W ~ N(0, √(2/(m + n))), b ~ N(0, √(1/m)) for m outputs and n inputs (standard deviations)."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer, child in zip(linear, rng.spawn(len(linear)), strict=True):
        outputs, inputs = layer.weight.shape
        weight = child.normal(0.0, (2 / (outputs + inputs)) ** 0.5, size=(outputs, inputs))
        bias = child.normal(0.0, (1 / outputs) ** 0.5, size=outputs)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
