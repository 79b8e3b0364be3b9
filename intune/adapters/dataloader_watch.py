"""What threads do with a loop's batches: how many are at it, and which batches' code drew random numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from intune.adapters.dataloader_probe import random_states
from intune.adapters.dataloader_tasks import Tasks
from intune.pipelines.errors import LoaderError
from intune.pipelines.operations import Result


class Watch:
    """Of one loader's threads.

    Attributes:
        looks: whether tasks are watched for random numbers.
    """

    def __init__(self) -> None:
        self.looks = False
        self._changed = threading.Condition()
        self._running = 0
        self._drew: set[int] = set()
        self._alarms = 0

    @contextmanager
    def task(self, tasks: Watched) -> Iterator[None]:
        """A thread is at it.

        Raises:
            LoaderError: it comes too late.
        """
        with self._changed:
            if tasks.over:
                raise LoaderError("the batches are made anew elsewhere")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def settle(self, tasks: Watched, patience: float = 30.0) -> None:
        """Let no thread begin with `tasks` any more, not even one that has taken its task, and wait until none is at
        it: the user's code is about to run in the trainer's."""
        with self._changed:
            tasks.over = True
            self._changed.wait_for(lambda: not self._running, patience)

    def drew(self, ordinal: int) -> None:
        """The process's random generators changed while a batch was made: by its code, or by the trainer's."""
        with self._changed:
            self._drew.add(ordinal)

    def suspects(self, ordinal: int) -> bool:
        """Whether it should be found out which of the two it was. Every false alarm makes that twice as rare, since
        it costs a batch."""
        with self._changed:
            if ordinal not in self._drew:
                return False
            self._drew.discard(ordinal)
            self._alarms += 1
            return self._alarms & (self._alarms - 1) == 0


class Watched:
    """Tasks, done under a `Watch`; a runner as they are.

    Attributes:
        over: whether nobody wants them any more.
    """

    def __init__(self, tasks: Tasks, watch: Watch) -> None:
        self.over = False
        self._tasks = tasks
        self._watch = watch

    def run(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        """Do a task."""
        tasks, watch = self._tasks, self._watch
        item = tasks.items[index]
        with watch.task(self):
            if not watch.looks or item.made is not None:
                return tasks.run(level, index, inputs)
            before = random_states()
            result = tasks.run(level, index, inputs)
            if random_states() != before:
                watch.drew(item.ordinal)
            return result
