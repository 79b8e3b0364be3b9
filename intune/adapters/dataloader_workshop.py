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

from intune.adapters.dataloader_caution import Verdict
from intune.adapters.dataloader_cheap import Cheap
from intune.adapters.dataloader_choice import (
    DRAWS,
    MOST_COPIED,
    Choice,
    Kind,
    choose,
    choose_after,
    choose_before,
    choose_unmixed,
    choose_unsendable,
    choose_unshared,
)
from intune.adapters.dataloader_glimpse import Glimpse, glimpse
from intune.adapters.dataloader_globals import gather
from intune.adapters.dataloader_indices import (
    Indices,
    Item,
    as_of,
    draw_seed,
    generators_of,
    global_states,
)
from intune.adapters.dataloader_late_draws import counts_late, draws_late
from intune.adapters.dataloader_mentions import mentions, unmade
from intune.adapters.dataloader_parcel import Parcel
from intune.adapters.dataloader_probe import random_states
from intune.adapters.dataloader_processes import (
    STAGE,
    Processes,
    ProcessFetcher,
    SourceLink,
)
from intune.adapters.dataloader_seed import EpochSeed, saved_seed, seed_state
from intune.adapters.dataloader_settings import LoaderSettings, current_device
from intune.adapters.dataloader_sources import Link, Sources, ThreadLink
from intune.adapters.dataloader_survey import Survey
from intune.adapters.dataloader_tasks import (
    Fetcher,
    Made,
    MapFetcher,
    Sizes,
    collated,
    failed,
    make_here,
    pinned,
    where,
)
from intune.adapters.dataloader_trial import Trial
from intune.adapters.dataloader_unopened import unopened
from intune.adapters.dataloader_watch import Watch
from intune.adapters.dataloader_worker import like_a_worker, seed_batch
from intune.adapters.pickled_size import structure_bytes
from intune.pipelines.budget import Budget, format_bytes
from intune.pipelines.errors import ConfigError, LoaderError, WorkerLostError
from intune.pipelines.executors.packing import pack
from intune.pipelines.executors.threads import ThreadFleet

logger = logging.getLogger("intune")


class Workshop:
    """Workers of one loader. It knows nothing of the loader, which can so be freed while threads go on.

    Args:
        settings: of the DataLoader.
        budget: what may be used.
        workers: ``"thread"``, ``"process"`` or ``"auto"``.

    Attributes:
        choice: where the user's code runs; None until the first batches have told.
        sized: whether a batch has been seen, and so how large one is.
        seed: of the next epoch, where workers persist and have been given one.
        auto: whether all that was left to it.
        verdict: whether batches may be read ahead, as the loops find out.
        deciding: held while the choice is made.
    """

    def __init__(self, settings: LoaderSettings, budget: Budget, workers: str) -> None:
        self.settings = settings
        self.budget = budget
        self._survey = Survey(settings)
        self.choice = _asked_for(workers, settings, self._survey)
        # An iterator makes one batch at a time, so that few can be under way before one is seen.
        self.sized = settings.iterable
        self.sizes = Sizes()
        self.processes = Processes()
        self.seed: EpochSeed | None = None
        self.watch = Watch()
        self.auto = workers == "auto"
        self.verdict = Verdict()
        self.deciding = threading.RLock()
        self._cheap: Cheap | None = None
        self._serial = threading.Lock()
        self._fleets: list[ThreadFleet] = []
        self._idle: list[ThreadFleet] = []
        # Whether the code changes a worker's copy of the dataset, or what goes with it.
        self._changes = settings.worker_init_fn is not None and settings.num_workers > 0
        self._worker: bytes | None = None
        self._parcel: Parcel | None = None
        self._first: Parcel | None = None  # as it was before any of the code ran
        self._prepared: tuple[Choice | None, Parcel | None] | None = None
        self._sent: Glimpse | None = None
        self._mended = False
        self._told = False  # whether something may be missing in processes
        self._open: weakref.WeakSet[Sources] = weakref.WeakSet()
        if self.choice is not None:
            self._settle(self.choice, cheap=Cheap.until_known(self.choice) if self.auto else None)

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
            assert self._worker is not None
            owned = self.processes.borrow_sources(settings.sources)
            give_back = partial(self.processes.give_back_sources, owned)
            links = [
                SourceLink(self.processes, process, self._worker, number, seed=seed, skip=counts[number])
                for number, process in enumerate(owned)
            ]
        else:
            give_back = None
            again = self._link
            links = [again(counts[0])]
        sources = Sources(
            links,
            settings.batch_size if settings.batched else 1,
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
        """Have processes get the dataset as it is now: in another epoch, the DataLoader's workers would be new."""
        if self.choice is None or self.choice.kind != "process":
            return
        if self._worker is None or not self.settings.persistent:
            try:
                parcel = self._packed()
            except ConfigError as error:
                if self._worker is None:
                    raise
                self._without_processes(
                    f"the dataset has changed and cannot be sent to processes any more ({error})"
                )
                return
            self._worker = parcel.again if self._changes or self.settings.iterable else parcel.stream
            if not self._told:
                self._told = True
                self._tell(parcel)
        self.processes.pool.replace(STAGE.name, self._worker, anew=self._changes)
        self._sent = self._look()

    def _look(self) -> Glimpse | None:
        """What the trainer may change while an epoch is under way; None where the DataLoader's workers would not see
        that."""
        if self.settings.num_workers or self.settings.iterable:
            return None
        return glimpse(self.settings.dataset, self.settings.collate_fn)

    def send_changes(self) -> None:
        """Have processes get the dataset once more where the trainer has changed it: the DataLoader without workers
        makes its next batch of it as it is then."""
        if self.choice is None or self.choice.kind != "process" or (now := self._look()) == self._sent:
            return
        self._sent = now
        try:
            self._worker = self._packed().stream
        except ConfigError as error:
            logger.warning(
                "worker processes go on with the dataset as it was until the next epoch: %s", error
            )
        else:
            self.processes.pool.replace(STAGE.name, self._worker)

    def _packed(self) -> Parcel:
        """The dataset as it is now. What was opened in this process meanwhile cannot be sent; processes have that as
        it was before.

        Raises:
            ConfigError: it cannot be sent.
        """
        settings = self.settings
        size = structure_bytes(settings.dataset)
        if size is None and self._first is not None:
            settings = replace(settings, dataset=unopened(settings.dataset, self._first.dataset))
        self._parcel = Parcel.of(settings, self._parcel)
        if size is not None and size <= MOST_COPIED and self._first is None:
            self._first = self._parcel
        return self._parcel

    def _forget(self) -> None:
        """Let go of what is kept for processes: there are none any more."""
        self._first = self._parcel = self._worker = None
        self.processes.pool.replace(STAGE.name, b"")

    def _tell(self, parcel: Parcel) -> None:
        """Warn of what worker processes take or lack, where there is no choice but them."""
        processes = self.settings.sources if self.settings.iterable else self.budget.cpus
        if (size := parcel.bytes_for(processes)) > self.budget.memory:
            logger.warning(
                "copies of the dataset for %d worker processes take about %s, more than the budget's %s; raise "
                "`memory=`, have fewer of them, or keep its data in arrays, which they share",
                processes,
                format_bytes(size),
                format_bytes(self.budget.memory),
            )
        left = gather().left
        for name in unmade(self.settings, left):
            logger.warning(
                "`%s` cannot be sent to worker processes (%s), which have it as importing the module makes it; make it "
                "there, in `worker_init_fn` or where it is first used, or keep it in the dataset",
                name,
                left[name],
            )

    def _without_processes(self, reason: str) -> None:
        if self.settings.iterable:  # only processes can hold its iterators
            logger.warning("worker processes go on with the dataset as it was: %s", reason)
            if self._parcel is not None:
                self._worker = self._parcel.again
        else:
            kind: Kind = "here" if mentions(self.settings).random else "serial"
            if self.settings.worker_init_fn is not None and self.settings.num_workers:
                reason = f"{reason}; `worker_init_fn` is not called any more"
            self._settle(Choice(kind=kind, reason=reason), warn=True)

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

    def decide(
        self, items: Iterator[Item], seed: EpochSeed, *, held: Callable[[], bool] = lambda: False
    ) -> None:
        """Choose between threads and processes, making the first batches in this thread.

        Args:
            items: to be made.
            seed: of the epoch's workers.
            held: says after that whether they were too few to choose; then it is done at a later batch.
        """
        settings = self.settings
        begun, prepared = self._prepared is not None, self._prepared or self._prepare()
        unsendable, parcel = prepared
        size = self._survey.size
        mentioned = mentions(settings)
        trial = Trial(settings, seed, alone=mentioned.mixes_up)
        measured = trial.measure(items)
        self._prepared = prepared if held() else None
        if self._prepared is not None:
            return
        measured = replace(measured, random=measured.random or mentioned.random)
        unshared = choose_unshared(settings, measured, size or 0, self.budget)
        self._changes |= unshared is not None
        choice = unsendable or choose_after(settings, parcel)
        if choice is None:
            choice = unshared or choose(measured, size or 0, self.budget)
        elif unsendable is not None and measured.random:
            choice = Choice(kind="here", reason=f"{DRAWS}, and it cannot be sent to a process")
        elif unshared is not None and (
            choice.kind == "thread" or (choice.kind == "process" and not settings.num_workers)
        ):
            choice = replace(unshared, kind="here")
        if mentioned.mixes_up:
            choice = choose_unmixed(choice, measured, None if unsendable else size, self.budget)
        in_threads: Kind = "thread" if choice.parcel is None and not mentioned.mixes_up else "serial"
        if measured.random or unshared is not None:
            in_threads = "here"
        if choice.kind == "process" and trial.made and (problem := _unsendable(trial.made[0])):
            choice = Choice(
                kind=in_threads, reason=f"a batch cannot be sent from a process to another: {problem}"
            )
        warn = False
        if choice.kind == "process":
            try:
                self._worker = (parcel or self._packed()).stream
            except ConfigError as error:
                choice = Choice(kind="here" if in_threads == "here" else "serial", reason=str(error))
        if choice.kind == "process":
            assert self._worker is not None
            self.processes.pool.replace(STAGE.name, self._worker)
            self._sent = None if begun else self._look()
            objection = trial.objection(
                lambda request: self.processes(STAGE, request), random=measured.random
            )
            if objection:
                self.processes.pool.end_idle()
                choice, warn = Choice(kind=in_threads, reason=objection), True
            self._told = True  # by a comparison
        if choice.kind != "process":
            self._forget()
        if choice.kind == "thread" and measured.random and not settings.num_workers:
            choice = Choice(kind="here", reason=f"{DRAWS}; {choice.reason}")
        if choice.kind in ("thread", "serial") and trial.reuses:
            choice = Choice(kind="here", reason="the dataset or `collate_fn` gives out the same memory again")
        self._settle(choice, warn=warn, cheap=None if settings.num_workers else Cheap.of(choice, measured))

    def _prepare(self) -> tuple[Choice | None, Parcel | None]:
        """Before any of the code runs: where it has to if it cannot be sent, and what is to be sent."""
        settings = self.settings
        if self._survey.size is None or self._survey.size <= MOST_COPIED:
            self._survey = Survey(settings)  # it may have been changed since the loader was made
        size = self._survey.size
        unsendable = choose_unsendable(settings, self._survey)
        if unsendable is None and size is not None and size <= MOST_COPIED:
            try:
                self._first = self._parcel = Parcel.of(settings)
            except ConfigError:  # a sample of a long list did not tell
                self._survey = Survey(settings, whole=True)
                unsendable = choose_unsendable(settings, self._survey)
        return unsendable, self._first

    def go_here(self, reason: str, *, warn: bool = True) -> None:
        """From now on batches are made in the trainer's own thread."""
        self._settle(Choice(kind="here", reason=reason), warn=warn)

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
        if choice is None or choice.kind != "process" or not self.auto or self._changes:
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
        text = " ".join(str(error).split())[:200]
        logger.log(
            logging.DEBUG if self._mended else logging.WARNING,
            "a worker process could not make batch %d (%s: %s), but the trainer's could: the code depends on what the "
            "script has set in modules; such batches are made in both",
            again.ordinal,
            type(error).__name__,
            text,
        )
        self._mended = True
        made.error, made.rows, made.data = None, again.made.rows, again.made.data
        if settings.pin:
            made.data = pinned(made.data, current_device())

    def objects(self, made: Made) -> str:
        """Why a batch that came from a thread has to be made in the trainer's own; nothing if it is as it should be."""
        choice = self.choice
        if (
            not self.auto
            or choice is None
            or choice.kind not in ("thread", "serial")
            or made.item.made is not None
        ):
            return ""
        if made.error is not None:
            error = made.error.__cause__ or made.error
            # As SQLite's connections, event loops and signal handlers have it; no two raise the same.
            if "thread" in str(error).lower():
                text = " ".join(str(error).split())[:200]
                return (
                    f"the code can only be used in the thread that made it ({type(error).__name__}: {text})"
                )
        return ""

    def _settle(self, choice: Choice, *, warn: bool = False, cheap: Cheap | None = None) -> None:
        if choice.kind == "process" and self._worker is None and not self._survey.sendable:
            Parcel.of(self.settings)  # raises, and says what is wrong
        choice = choice if cheap is None else cheap.choice
        self.choice, self._cheap = choice, cheap
        self.watch.looks = self.auto and choice.kind in ("thread", "serial") and not self.settings.iterable
        kinds: dict[Kind, str] = {
            "thread": "threads",
            "serial": "one thread at a time",
            "process": "worker processes",
            "here": "the trainer's own thread",
        }
        level = logging.WARNING if warn else logging.INFO
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
        self._forget()


def _unsendable(value: Any) -> str:
    """Why a batch cannot go from a process to another; nothing if it can."""
    try:
        pack(value)
    except Exception as error:  # the classes of what is in it may do anything
        return f"{type(error).__name__}: {error}"
    return ""


def _asked_for(workers: str, settings: LoaderSettings, survey: Survey) -> Choice | None:
    """What the user or the DataLoader's own arguments decide; None where it is to be measured.

    Raises:
        ConfigError: what is asked for cannot be.
    """
    if workers == "auto":
        return choose_before(settings, survey=survey)
    reason = f"workers={workers!r} was asked for"
    if workers == "process":
        return Choice(kind="process", reason=reason)
    if workers != "thread":
        raise ConfigError(f"`workers`={workers!r} is unknown; use 'auto', 'thread' or 'process'")
    if settings.iterable and settings.num_workers:
        raise ConfigError(
            f"`workers`='thread', but each of the {settings.num_workers} iterators of this iterable-style dataset "
            "needs a process to know its number in; use 'process', or num_workers=0 for one iterator"
        )
    if settings.worker_init_fn is not None and settings.num_workers:
        raise ConfigError(
            "`workers`='thread', but `worker_init_fn` is made for processes; use 'process', or leave it out"
        )
    return Choice(kind="thread", reason=reason)
