"""Whether a device can be used at all, asked before a model is made on it."""

from __future__ import annotations

from intune.pipelines.stages import Transfer
from intune.pipelines.transfer import Device


def check_device(name: str) -> None:
    """The pipeline's own check, which comes too late where the model is made first.

    Raises:
        ConfigError: there is no such device, or none of that number.
    """
    Device(Transfer(device=name).device)
