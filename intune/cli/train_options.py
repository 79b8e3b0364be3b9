"""Options that the commands of `intune train …` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from intune.cli.defaults import otherwise


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a command may use that trains nothing.

    Attributes:
        cpus: CPUs that the pipeline may keep busy.
        memory: Bytes that the pipeline's blocks may hold, such as 2GiB.
        torch_threads: Threads of the model's own arithmetic on the CPU. They wait for each other by spinning: on two
            cores that the pipeline shares, two are slower than one.
        seed: Decides the initial model, the order of the rows and whatever is drawn, if anything is.
        quiet: Show no progress, only the summary.
    """

    cpus: Annotated[int | None, otherwise("all that this job may use")] = None
    memory: Annotated[str | None, otherwise("a quarter of what is free")] = None
    torch_threads: Annotated[int | None, otherwise("half of the CPUs, at least 1")] = None
    seed: int = 0
    quiet: bool = False

    def feed(self) -> dict[str, Any]:
        """As `FeedOptions` take it."""
        return {"cpus": self.cpus, "memory": self.memory}


@dataclass(frozen=True, kw_only=True)
class Feeding(Reading):
    """What a command may use that trains.

    Attributes:
        executor: What runs the pipeline: threads of this process, or Ray; auto takes Ray where a cluster is named.
        slots: How many tasks of a stage run at once, such as load=2,batch=1.
        agent: Who tunes the pipeline while the model trains, such as dqn or planner.
    """

    executor: Literal["auto", "threads", "ray"] = "auto"
    slots: Annotated[str | None, otherwise("one pool for all stages, a slot per CPU")] = None
    agent: Annotated[str | None, otherwise("nobody")] = None

    def feed(self) -> dict[str, Any]:
        """As `FeedOptions` take it."""
        slots = {} if self.slots is None else parse_slots(self.slots)
        return {**super().feed(), "executor": self.executor, "slots": slots, "agent": self.agent}


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What is written while the model trains.

    Attributes:
        checkpoints: Folder for checkpoints; the latest three are kept.
        checkpoint_every: Steps between two checkpoints; 0 for one at the end only.
        resume: Go on from the latest checkpoint in CHECKPOINTS; begin anew if there is none.
        tensorboard: Folder for event files of TensorBoard.
    """

    checkpoints: Annotated[Path | None, otherwise("none are written")] = None
    checkpoint_every: int = 500
    resume: bool = False
    tensorboard: Annotated[Path | None, otherwise("none are written")] = None


@dataclass(frozen=True, kw_only=True)
class FeedingSmall(Feeding):
    """The same for models so small that one thread is enough.

    Attributes:
        torch_threads: Threads of the model's own arithmetic on the CPU.
    """

    torch_threads: int = 1


READING, FEEDING, FEEDING_SMALL = Reading(), Feeding(), FeedingSmall()
SAVING, SAVING_AT_THE_END = Saving(), Saving(checkpoint_every=0)
"""What a command takes where nothing is said."""


def parse_slots(text: str) -> dict[str, int]:
    """``"load=2,transform=1"`` as a mapping.

    Raises:
        ConfigError: it is written in another way.
    """
    from intune.pipelines.errors import ConfigError

    slots: dict[str, int] = {}
    for part in text.split(","):
        name, equals, count = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not count.isdecimal() or name in slots:
            raise ConfigError(f"`slots` has {part!r}; write each stage once, as in load=2,transform=1")
        slots[name] = int(count)
    return slots
