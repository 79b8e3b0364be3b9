"""TensorBoard event files, where the optional package `tensorboard` is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from intune.pipelines.errors import ConfigError, StorageError

Write = Callable[[int, Mapping[str, float]], None]
"""Called with the step and values by tag."""


@contextmanager
def event_writer(folder: Path) -> Iterator[Write]:
    """A function that writes values to a new event file in `folder`, which is complete when the block ends.

    Raises:
        ConfigError: the package is not installed.
        StorageError: there is no such folder and none can be made.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"`tensorboard`={folder} needs the package tensorboard ({error}); install intune[tensorboard], or leave "
            f"the option out"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"`tensorboard`={folder} cannot be a folder of event files ({error}); choose another one"
        ) from error
    with SummaryWriter(str(folder)) as writer:

        def write(step: int, values: Mapping[str, float]) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        yield write
