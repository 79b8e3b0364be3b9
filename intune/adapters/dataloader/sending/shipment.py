"""What worker processes get of a DataLoader: its dataset when an epoch begins, and again where it has changed since."""

from __future__ import annotations

import logging
from dataclasses import replace

from intune.adapters.dataloader.inspection.mentions import unmade
from intune.adapters.dataloader.inspection.standing import Glimpse, glimpse
from intune.adapters.dataloader.sending.parcel import Parcel
from intune.adapters.dataloader.sending.pickled_size import structure_bytes
from intune.adapters.dataloader.sending.processes import STAGE, Processes
from intune.adapters.dataloader.sending.sendable import unopened
from intune.adapters.dataloader.sending.user_globals import gather
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.budget import Budget, format_bytes
from intune.pipelines.errors import ConfigError

logger = logging.getLogger("intune")

MOST_COPIED = 64 << 20
"""Bytes of a dataset up to which it is pickled before anything is known, lest it open files meanwhile."""


def is_small(size: int | None) -> bool:
    """Whether a dataset of so many bytes is pickled before anything is known; not if it cannot be (None)."""
    return size is not None and size <= MOST_COPIED


class Shipment:
    """Of one loader.

    Args:
        processes: who gets it.

    Attributes:
        stream: what they have; None while that is nothing.
        first: the dataset as it was before any of the code ran, if it is small.
        changes: whether the code changes a process's copy of the dataset, or what goes with it.
        told: whether what is missing there was warned of, or is known since batches were compared.
    """

    def __init__(self, settings: LoaderSettings, budget: Budget, processes: Processes) -> None:
        self.stream: bytes | None = None
        self.first: Parcel | None = None
        self.changes = settings.inits_workers
        self.told = False
        self._settings = settings
        self._budget = budget
        self._processes = processes
        self._last: Parcel | None = None
        self._seen: Glimpse | None = None

    def keep_first(self) -> None:
        """None of the code has run yet: keep the dataset as it is.

        Raises:
            ConfigError: it cannot be sent.
        """
        self.first = self._last = Parcel.of(self._settings)

    def send_first(self, *, unchanged: bool) -> None:
        """Have processes get it for the first time, as it was before any of the code ran, where that was kept.

        Args:
            unchanged: the trainer cannot have changed it since.

        Raises:
            ConfigError: it cannot be sent.
        """
        self.stream = (self.first or self._pack()).stream
        self._processes.pool.replace(STAGE.name, self.stream)
        self._seen = self._look() if unchanged else None

    def send(self) -> None:
        """An epoch begins: have processes get the dataset as it is now, as the DataLoader's workers would be new.

        Raises:
            ConfigError: it cannot be sent.
        """
        if self.stream is None or not self._settings.persistent:
            parcel = self._pack()
            self.stream = parcel.again if self.changes or self._settings.iterable else parcel.stream
            if not self.told:
                self.told = True
                self._warn(parcel)
        self._processes.pool.replace(STAGE.name, self.stream, anew=self.changes)
        self._seen = self._look()

    def send_changes(self) -> None:
        """Have processes get the dataset once more where the trainer has changed it: the DataLoader without workers
        makes its next batch of it as it is then."""
        if (now := self._look()) == self._seen:
            return
        self._seen = now
        try:
            self.stream = self._pack().stream
        except ConfigError as error:
            logger.warning(
                "worker processes go on with the dataset as it was until the next epoch: %s", error
            )
        else:
            self._processes.pool.replace(STAGE.name, self.stream)

    def send_again(self) -> None:
        """An epoch begins, but the dataset cannot be sent any more: have processes make it as it was."""
        assert self._last is not None
        self.stream = self._last.again

    def forget(self) -> None:
        """Let go of all that is kept: there are no processes any more."""
        self.first = self._last = self.stream = None
        self._processes.pool.replace(STAGE.name, b"")

    def _pack(self) -> Parcel:
        """The dataset as it is now. What was opened in this process meanwhile cannot be sent; processes have that as
        it was before.

        Raises:
            ConfigError: it cannot be sent.
        """
        settings = self._settings
        size = structure_bytes(settings.dataset)
        if size is None and self.first is not None:
            settings = replace(
                settings, dataset=unopened(settings.dataset, self.first.opened().settings.dataset)
            )
        self._last = Parcel.of(settings, self._last)
        if is_small(size) and self.first is None:
            self.first = self._last
        return self._last

    def _look(self) -> Glimpse | None:
        """What the trainer may change while an epoch is under way; None where the DataLoader's workers would not see
        that."""
        if self._settings.num_workers or self._settings.iterable:
            return None
        return glimpse(self._settings.dataset, self._settings.collate_fn)

    def _warn(self, parcel: Parcel) -> None:
        """Warn of what worker processes take or lack, where there is no choice but them."""
        processes = self._settings.sources if self._settings.iterable else self._budget.cpus
        if (size := parcel.bytes_for(processes)) > self._budget.memory:
            logger.warning(
                "copies of the dataset for %d worker processes take about %s, more than the budget's %s; raise "
                "`memory=`, have fewer of them, or keep its data in arrays, which they share",
                processes,
                format_bytes(size),
                format_bytes(self._budget.memory),
            )
        left = gather().left
        for name in unmade(self._settings, left):
            logger.warning(
                "`%s` cannot be sent to worker processes (%s), which have it as importing the module makes it; make it "
                "there, in `worker_init_fn` or where it is first used, or keep it in the dataset",
                name,
                left[name],
            )
