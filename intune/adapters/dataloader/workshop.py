"""Where a wrapped DataLoader's batches are made: threads and processes, and the choice between them."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from intune.adapters.dataloader.first_batches import FirstBatches
from intune.adapters.dataloader.generators import (
    EpochSeed,
    as_of,
    draw_seed,
    generators_of,
    global_states,
    random_states,
    saved_seed,
    seed_batch,
    seed_state,
)
from intune.adapters.dataloader.indices import Indices, Item
from intune.adapters.dataloader.inspection.caution import Verdict
from intune.adapters.dataloader.inspection.cheap import Cheap
from intune.adapters.dataloader.inspection.choice import Choice, Kind, choose_asked
from intune.adapters.dataloader.inspection.draws import counts_late, draws_late
from intune.adapters.dataloader.inspection.mentions import mentions
from intune.adapters.dataloader.sending.parcel import Parcel
from intune.adapters.dataloader.sending.processes import STAGE, Processes, ProcessFetcher, SourceLink
from intune.adapters.dataloader.sending.sendable import Survey
from intune.adapters.dataloader.sending.shipment import Shipment
from intune.adapters.dataloader.sending.worker import like_a_worker
from intune.adapters.dataloader.settings import LoaderSettings, current_device
from intune.adapters.dataloader.sources import Link, Sources, ThreadLink
from intune.adapters.dataloader.tasks import (
    Fetcher,
    Made,
    MapFetcher,
    Sizes,
    Watch,
    collated,
    failed,
    in_a_line,
    make_here,
    pinned,
    where,
)
from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError, LoaderError, WorkerLostError
from intune.pipelines.executors.threads import ThreadFleet

logger = logging.getLogger("intune")


class Workshop:
    """Workers of one loader. It knows nothing of the loader, which can so be freed while threads go on.

    Args:
        workers: ``"thread"``, ``"process"`` or ``"auto"``.

    Attributes:
        choice: where the user's code runs; None until the first batches have told.
        sized: whether a batch has been seen, and so how large one is.
        seed: of the next epoch, where workers persist and have been given one.
        auto: whether all that was left to it.
        verdict: whether batches may be read ahead, as the loops find out.
        shipment: the dataset as processes have it.
        deciding: held while the choice is made.
    """

    def __init__(self, settings: LoaderSettings, budget: Budget, workers: str) -> None:
        self.settings = settings
        self.budget = budget
        survey = Survey(settings)
        self.choice = choose_asked(workers, settings, survey)
        # An iterator makes one batch at a time, so that few can be under way before one is seen.
        self.sized = settings.iterable
        self.sizes = Sizes()
        self.processes = Processes()
        self.shipment = Shipment(settings, budget, self.processes)
        self.seed: EpochSeed | None = None
        self.watch = Watch()
        self.auto = workers == "auto"
        self.verdict = Verdict()
        self.deciding = threading.RLock()
        self._first_batches = FirstBatches(settings, budget, survey, self.shipment, self.processes)
        self._cheap: Cheap | None = None
        self._serial = threading.Lock()
        self._fleets: list[ThreadFleet] = []
        self._idle: list[ThreadFleet] = []
        self._mended = False
        self._open: weakref.WeakSet[Sources] = weakref.WeakSet()
        if self.choice is not None:
            if self.choice.kind == "process" and not survey.sendable:
                Parcel.of(settings)  # raises, and says what is wrong
            self._settle(self.choice, Cheap.until_known(self.choice) if self.auto else None)

    @property
    def most_fetches(self) -> int | None:
        """Batches that can be fetched at once; None where nothing limits it."""
        if self.settings.iterable:
            return self.settings.sources
        if self._cheap is not None:
            return None
        return 1 if self.choice is not None and self.choice.kind in ("serial", "here") else None

    @property
    def here(self) -> bool:
        """Whether batches are made in the trainer's own thread, when it asks for them."""
        return self.choice is not None and self.choice.kind == "here"

    @cached_property
    def _late(self) -> bool:
        """Whether the sampler must not be read before the DataLoader's workers would have it read."""
        settings = self.settings
        return settings.num_workers > 0 and (
            draws_late(settings.index_sampler) or counts_late(settings.index_sampler)
        )

    # ---- reading ---------------------------------------------------------------------------------------------

    def read(self, state: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Begin an epoch as the DataLoader would, or where a saved state says.

        Returns:
            What to read items from, and what a state must keep to begin it again.
        """
        if state is None:
            generators = [generator.get_state() for generator in generators_of(self.settings)]
            began = {"generators": generators, "random": global_states(), **seed_state(self.seed)}
        else:
            began = {name: state[name] for name in ("generators", "random")} | seed_state(saved_seed(state))
        with as_of(None if state is None else state["random"]):
            reading = self._sources_of(state) if self.settings.iterable else self._indices(state)
        return reading, began

    def _indices(self, state: Mapping[str, Any] | None) -> Indices:
        indices = Indices(
            self.settings,
            seed=self.seed,
            done=0 if state is None else state["batch"],
            ahead=frozenset(() if state is None else state["ahead"]),
            peek=state is not None,
            late=self._late,
        )
        self._keep(indices.seed)
        self._send()
        return indices

    def _sources_of(self, state: Mapping[str, Any] | None) -> Sources:
        settings = self.settings
        seed = EpochSeed(draw_seed(settings)) if self.seed is None else self.seed
        self._keep(seed)
        counts = [0] * settings.sources if state is None else list(state["counts"])
        self._send()
        links: list[Link]
        give_back: Callable[[], None] | None
        again: Callable[[int], Link] | None = None
        if self.choice is not None and self.choice.kind == "process":
            worker = self.shipment.stream
            assert worker is not None
            owned = self.processes.borrow_sources(settings.sources)
            give_back = partial(self.processes.give_back_sources, owned)
            links = [
                SourceLink(self.processes, process, worker, number, seed=seed, skip=counts[number])
                for number, process in enumerate(owned)
            ]
        else:
            give_back = None
            again = self._link
            links = [again(counts[0])]
        sources = Sources(
            links,
            settings.batch_size or 1,
            counts=counts,
            turn=0 if state is None else state["turn"],
            on_leave=give_back,
            again=again,
        )
        self._open.add(sources)
        return sources

    def _link(self, skip: int) -> Link:
        return ThreadLink(self.settings, self._serial, skip=skip, ahead=lambda: not self.here)

    def _keep(self, seed: EpochSeed) -> None:
        self.seed = replace(seed, repeat=seed.repeat + 1) if self.settings.persistent else None

    def _send(self) -> None:
        """Have processes, if there are any, get the dataset as it is now."""
        if self.choice is None or self.choice.kind != "process":
            return
        try:
            self.shipment.send()
        except ConfigError as error:
            if self.shipment.stream is None:
                raise
            self._without_processes(
                f"the dataset has changed and cannot be sent to processes any more ({error})"
            )

    def send_changes(self) -> None:
        """Have processes, if there are any, see what the trainer has changed."""
        if self.choice is not None and self.choice.kind == "process":
            self.shipment.send_changes()

    def _without_processes(self, reason: str) -> None:
        if self.settings.iterable:  # only processes can hold its iterators
            logger.warning("worker processes go on with the dataset as it was: %s", reason)
            self.shipment.send_again()
        else:
            kind: Kind = "here" if mentions(self.settings).random else "serial"
            if self.settings.inits_workers:
                reason = f"{reason}; `worker_init_fn` is not called any more"
            self._settle(Choice(kind=kind, reason=reason, warn=True))

    # ---- making ----------------------------------------------------------------------------------------------

    def fetcher(self, reading: Any) -> Fetcher:
        """What makes the batches of an epoch, once the choice is made."""
        if self.settings.iterable:
            sources: Fetcher = reading
            return sources
        assert self.choice is not None
        if self.choice.kind != "process":
            return MapFetcher(self.settings, self._serial if self.choice.kind == "serial" else None)
        return ProcessFetcher(
            self.processes, reading.seed, lambda item: where(STAGE.name, item, self.settings)
        )

    def decide(self, items: Iterator[Item], seed: EpochSeed, *, held: Callable[[], bool]) -> None:
        """As `FirstBatches.decide`."""
        decided = self._first_batches.decide(items, seed, held=held)
        if decided is not None:
            self._settle(*decided)

    def go_here(self, reason: str, *, warn: bool = True) -> None:
        """From now on batches are made in the trainer's own thread."""
        self._settle(Choice(kind="here", reason=reason, warn=warn))

    def took(self, wall_s: float, cpu_s: float) -> bool:
        """A batch was made in the trainer's thread; says whether batches are not made there any more, since they have
        turned out not to be as cheap as the first ones."""
        if self._cheap is None or (choice := self._cheap.took(wall_s, cpu_s)) is None:
            return False
        self._settle(choice)
        return True

    def make(self, item: Item, fetcher: Fetcher, seed: EpochSeed | None) -> bool:
        """Make an item's batch in the trainer's thread, as the DataLoader would: in its own or in a worker's.

        Returns:
            Whether that drew from the process's random generators.

        Args:
            fetcher: gets its samples.
            seed: of the epoch's workers; None for an iterable-style dataset.
        """
        stage = "fetch"
        settings = self.settings
        seeded = contextlib.nullcontext() if seed is None else like_a_worker(settings, seed, item.ordinal)
        with seeded:
            states = random_states() if self.watch.looks else None
            try:
                made = fetcher.fetch(item)
                stage = "collate"
                item.made = made if made.collated else collated(made, settings)
            except Exception as error:
                item.made = failed(item, error, where(stage, item, settings))
            return states is not None and random_states() != states

    def mend(self, made: Made, seed: EpochSeed) -> None:
        """Have a batch that failed in a worker process made here, where the code may find what the script has set since
        it imported its modules, or others'; as it was if it fails here too."""
        settings, error = self.settings, made.error and (made.error.__cause__ or made.error)
        choice = self.choice
        if choice is None or choice.kind != "process" or not self.auto or self.shipment.changes:
            return  # `worker_init_fn` has told a process what nobody knows here
        if not isinstance(error, Exception) or isinstance(error, WorkerLostError | LoaderError):
            return
        again = replace(made.item, made=None)
        with as_of(global_states()), like_a_worker(settings, seed, again.ordinal):
            if not settings.num_workers:
                seed_batch(seed.of_batches, again.ordinal)
            make_here(again, settings)
        if again.made.error is not None:
            again.made = None  # its traceback knows of it
            return
        logger.log(
            logging.DEBUG if self._mended else logging.WARNING,
            "a worker process could not make batch %d (%s), but the trainer's could: the code depends on what the "
            "script has set in modules; such batches are made in both",
            again.ordinal,
            in_a_line(error),
        )
        self._mended = True
        made.error, made.rows, made.data = None, again.made.rows, again.made.data
        if settings.pin:
            made.data = pinned(made.data, current_device())

    def objects(self, made: Made) -> str:
        """Why a batch that came from a thread has to be made in the trainer's own; nothing if it is as it should be."""
        if made.error is None or made.item.made is not None or not self.auto:
            return ""
        if self.choice is None or self.choice.kind not in ("thread", "serial"):
            return ""
        error = made.error.__cause__ or made.error
        # As SQLite's connections, event loops and signal handlers have it; no two raise the same.
        if "thread" not in str(error).lower():
            return ""
        return f"the code can only be used in the thread that made it ({in_a_line(error)})"

    def _settle(self, choice: Choice, cheap: Cheap | None = None) -> None:
        choice = choice if cheap is None else cheap.choice
        self.choice, self._cheap = choice, cheap
        self.watch.looks = self.auto and choice.kind in ("thread", "serial") and not self.settings.iterable
        kinds: dict[Kind, str] = {
            "thread": "threads",
            "serial": "one thread at a time",
            "process": "worker processes",
            "here": "the trainer's own thread",
        }
        level = logging.WARNING if choice.warn else logging.INFO
        logger.log(level, "batches are made in %s: %s", kinds[choice.kind], choice.reason)

    # ---- workers ---------------------------------------------------------------------------------------------

    def borrow_fleet(self) -> ThreadFleet:
        """Threads for one loop."""
        with contextlib.suppress(IndexError):  # a loop may end, or begin, in another thread
            return self._idle.pop()
        fleet = ThreadFleet(processes=self.processes, budget=self.budget)
        self._fleets.append(fleet)
        return fleet

    def give_back_fleet(self, fleet: ThreadFleet) -> None:
        """The loop is over."""
        self._idle.append(fleet)

    def close(self) -> None:
        """End all workers."""
        for sources in list(self._open):
            sources.leave()  # lest threads go on waiting for their turn
        for fleet in self._fleets:
            for name in fleet.close():
                logger.warning(
                    "%s did not end: a call in it takes long, or hangs; it ends with this process", name
                )
        self.processes.close()
        self.shipment.forget()
