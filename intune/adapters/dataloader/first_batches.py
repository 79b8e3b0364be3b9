"""What the first batches of a wrapped DataLoader decide: where the next ones are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from intune.adapters.dataloader.generators import EpochSeed
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection.cheap import Cheap
from intune.adapters.dataloader.inspection.choice import Choice, Kind, choose_measured, choose_unsendable
from intune.adapters.dataloader.inspection.mentions import mentions
from intune.adapters.dataloader.inspection.trial import Trial
from intune.adapters.dataloader.sending.processes import STAGE, Processes
from intune.adapters.dataloader.sending.sendable import Survey
from intune.adapters.dataloader.sending.shipment import Shipment, is_small
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError
from intune.pipelines.executors.packing import pack


class FirstBatches:
    """Of one loader. They are made in the trainer's thread and watched.

    Args:
        survey: what of the DataLoader can be sent, as it was when the loader was made.
        shipment: sends it.
        processes: who gets it.
    """

    def __init__(
        self,
        settings: LoaderSettings,
        budget: Budget,
        survey: Survey,
        shipment: Shipment,
        processes: Processes,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._survey = survey
        self._shipment = shipment
        self._processes = processes
        self._unsendable: Choice | None = None
        self._begun = False

    def decide(
        self, items: Iterator[Item], seed: EpochSeed, *, held: Callable[[], bool]
    ) -> tuple[Choice, Cheap | None] | None:
        """Make some and choose between threads and processes; None if it is to be done at a later batch.

        Returns:
            The choice, and what says how long the trainer makes batches itself, if it does since they are cheap.

        Args:
            items: to be made.
            seed: of the epoch's workers.
            held: says after that whether they were too few to choose.
        """
        settings = self._settings
        unchanged, self._begun = not self._begun, True
        if unchanged:
            self._unsendable = self._prepare()
        mentioned = mentions(settings)
        settings = self._as_in_a_worker()
        # Code may put the generators back when it has drawn, so that what it drew cannot be seen.
        trial = Trial(settings, seed, alone=mentioned.mixes_up or mentioned.random)
        measured = trial.measure(items)
        if held():
            return None
        measured = replace(measured, random=measured.random or mentioned.random)
        self._shipment.changes |= measured.changes
        choice = choose_measured(
            settings,
            measured,
            mentioned,
            unsendable=self._unsendable,
            kept=self._shipment.first is not None,
            size=self._survey.size,
            budget=self._budget,
        )
        if choice.kind == "process":
            choice = self._tried(choice, trial, random=measured.random, unchanged=unchanged)
        if choice.kind != "process":
            self._shipment.forget()
        if choice.kind in ("thread", "serial") and trial.reuses:
            choice = Choice(kind="here", reason="the dataset or `collate_fn` gives out the same memory again")
        return choice, None if settings.num_workers else Cheap.of(choice, measured)

    def _prepare(self) -> Choice | None:
        """Before any of the code runs: where it has to if it cannot be sent; else a small dataset is kept as it is."""
        settings = self._settings
        if self._survey.size is None or is_small(self._survey.size):
            self._survey = Survey(settings)  # it may have been changed since the loader was made
        unsendable = choose_unsendable(self._survey)
        if unsendable is None and is_small(self._survey.size):
            try:
                self._shipment.keep_first()
            except ConfigError:  # a sample of a long list did not tell
                self._survey = Survey(settings, whole=True)
                unsendable = choose_unsendable(self._survey)
        return unsendable

    def _as_in_a_worker(self) -> LoaderSettings:
        """With the copies of a small dataset and of `collate_fn` that a worker of the DataLoader would have: what the
        code changes in place must be as it was when the next epoch begins."""
        settings, first = self._settings, self._shipment.first
        if not settings.num_workers or first is None:
            return settings
        try:
            copy = first.opened().settings
        except Exception:  # it is made again by whatever code it refers to; the processes will tell
            return settings
        return replace(settings, dataset=copy.dataset, collate_fn=copy.collate_fn)

    def _tried(self, choice: Choice, trial: Trial, *, random: bool, unchanged: bool) -> Choice:
        """Processes, if they make the same of the first batches; else what is chosen instead.

        Args:
            random: whether the code draws random numbers.
            unchanged: whether the trainer cannot have changed the dataset since the first of them.
        """
        if trial.made and (problem := _unsendable(trial.made[0])):
            reason = f"a batch cannot be sent from a process to another: {problem}"
            return Choice(kind=choice.otherwise, reason=reason)
        try:
            self._shipment.send_first(unchanged=unchanged)
        except ConfigError as error:
            kind: Kind = "here" if choice.otherwise == "here" else "serial"
            return Choice(kind=kind, reason=str(error))
        self._shipment.told = True  # by a comparison
        objection = trial.objection(lambda request: self._processes(STAGE, request), random=random)
        if not objection:
            return choice
        self._processes.pool.end_idle()
        return Choice(kind=choice.otherwise, reason=objection, warn=True)


def _unsendable(value: Any) -> str:
    """Why a batch cannot go from a process to another; nothing if it can."""
    try:
        pack(value)
    except Exception as error:  # the classes of what is in it may do anything
        return f"{type(error).__name__}: {error}"
    return ""
