"""What the driver knows of Ray's workers: who they are, what lies in them, which tasks they have. Records only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from intune.pipelines.executors.ray_worker import Made, Recipe
from intune.pipelines.payloads import Piece
from intune.pipelines.tasks import Key, Task


@dataclass(slots=True, eq=False)
class Held:
    """An output that lies in a worker; `users` are the scheduler, and the postponed tasks and calls
    under way that take it."""

    worker: Worker
    key: Made
    roots: dict[Any, int]
    users: int = 1


@dataclass(slots=True, eq=False)
class Postponed:
    """A task left to the one that takes its output."""

    key: Key
    inputs: Sequence[Output]
    roots: dict[Any, int]


Output: TypeAlias = "Held | Postponed"


@dataclass(frozen=True, slots=True)
class Call:
    """A task that a worker was given. `output` is where what it makes will be: in the worker ("keep"), in a segment,
    or in the object store."""

    task: Task
    worker: Worker
    blocks: Sequence[Held]
    output: Any


def blocks_of(outputs: Sequence[Output]) -> Iterator[Held]:
    """The blocks that lie behind outputs."""
    for output in outputs:
        if isinstance(output, Held):
            yield output
        else:
            yield from blocks_of(output.inputs)


def recipe_of(task: Key, inputs: Sequence[Output]) -> tuple[Recipe, list[tuple[Held, Key]]]:
    """A task for a worker, and the blocks it works on, as the recipe numbers them, each with the task that takes it
    itself: this one, or one that was left to it."""
    takes: list[tuple[Held, Key]] = []

    def recipe(task: Key, inputs: Sequence[Output]) -> Recipe:
        parts: list[int | Recipe] = []
        for output in inputs:
            if isinstance(output, Held):
                parts.append(len(takes))
                takes.append((output, task))
            else:
                parts.append(recipe(output.key, output.inputs))
        return Recipe(*task, tuple(parts))

    return recipe(task, inputs), takes


@dataclass(slots=True, eq=False)
class Worker:
    """What the driver knows of one worker process."""

    number: int
    actor: Any
    pid: int = 0
    node: str = ""
    near: bool = False  # it can lay outputs into this process's segments
    dead: bool = False
    running: dict[Key, Task] = field(default_factory=dict)
    held: set[Key] = field(default_factory=set)  # outputs that are lost with it
    freed: list[Made] = field(default_factory=list)  # outputs it is still to let go of
    alone: bool = False  # runs, or is kept free for, one suspect task

    def welcome(self, said: tuple[int, str, bool]) -> None:
        """Note what it said of itself, see `RayWorker.hello`."""
        self.pid, self.node, self.near = said


@dataclass(slots=True)
class Arrived:
    """Batches that have come to the trainer's process, and what they hold."""

    pieces: list[Piece]
    roots: dict[Any, int]


def let_go(block: Held) -> None:
    """One user less."""
    block.users -= 1
    if block.users == 0:
        block.worker.freed.append(block.key)
