"""Several transforms, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Block, Column
from intune.pipelines.transforms.base import Transform, freeze

Step = Callable[[Block], Block]


@dataclass(frozen=True, init=False)
class Compose(Transform):
    """Apply `steps` in order: ``Compose(FillMissing(...), Log1p(...))``.

    A step is a transform or any other function from block to block. The whole is `rowwise` if every step says that
    it is; a plain function, which does not say, counts as one that is not.
    """

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step) -> None:
        for position, step in enumerate(steps):
            if not callable(step):
                raise ConfigError(
                    f"`steps`[{position}] is {type(step).__name__}, not callable; give transforms or functions"
                )
        freeze(self, "steps", steps)

    @property
    def rowwise(self) -> bool:  # type: ignore[override]
        """Whether every step is."""
        return all(getattr(step, "rowwise", False) for step in self.steps)

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block after the last step."""
        made: Block = dict(block)
        for step in self.steps:
            made = step(made)
        return made
