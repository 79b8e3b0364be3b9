"""TensorBoard event files, where the optional package `tensorboard` is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from intune.pipelines.errors import ConfigError, StorageError

logger = logging.getLogger("intune")

Write = Callable[[int, Mapping[str, float]], None]
"""Called with the step and values by tag."""


@contextmanager
def event_writer(folder: Path) -> Iterator[Write]:
    """A function that writes values to a new event file in `folder`, which is complete when the block ends. Where the
    disk fails meanwhile, a warning says so once, and what comes after it is not written.

    Raises:
        ConfigError: the package is not installed.
        StorageError: there is no such folder and none can be made, or nothing can be written there.
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
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise StorageError(
            f"`tensorboard`={folder} cannot be a folder of event files ({error}); choose another one"
        ) from error
    failed = False

    @contextmanager
    def heeding_the_disk() -> Iterator[None]:
        nonlocal failed
        try:
            yield
        except OSError as error:
            if not failed:
                failed = True
                logger.warning("event files are not written any more (%s): %s", folder, error)

    def write(step: int, values: Mapping[str, float]) -> None:
        if not failed:
            with heeding_the_disk():
                for tag, value in values.items():
                    writer.add_scalar(tag, value, step)

    try:
        yield write
    finally:
        with heeding_the_disk():
            writer.close()
