"""Training in TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intune.event_files import event_writer
from intune.workloads.training.trainer import Trainer


@contextmanager
def logged(trainer: Trainer, folder: Path, *, split: str) -> Iterator[None]:
    """Within, `trainer` writes its loss and its evaluations, on the data called `split`, to an event file in `folder`.

    Raises:
        ConfigError: the package for such files is not installed.
    """
    with event_writer(folder) as write:
        show, evaluate = trainer.on_step, trainer.evaluate

        def on_step(step: int, loss: float, stats: Any) -> None:
            write(step, {"loss/train": loss})
            if show is not None:
                show(step, loss, stats)

        def logging(measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
            metrics = measure()
            # TensorBoard takes no @ in a name.
            write(
                trainer.step, {f"{split}/{name.replace('@', '_at_')}": each for name, each in metrics.items()}
            )
            return metrics

        trainer.on_step = on_step
        if evaluate is not None:
            trainer.evaluate = lambda: logging(evaluate)
        yield
