"""Threads or processes for a DataLoader's code: measured on its first batches, and said in a sentence.

Threads share the dataset and hand batches over for nothing, but only one of them at a time runs Python code;
processes each hold a copy of the dataset and hand batches over through shared memory. So: threads where the code
waits or computes outside Python's lock, processes where it holds it, and one thread at a time where the dataset
cannot be copied nor be trusted to two threads. Where only the trainer's own thread gives the DataLoader's batches (as
of code that counts, or works in one buffer) they are made there, as the DataLoader without workers does; so are batches
that are made sooner than handed over (see `inspection/cheap.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from intune.adapters.dataloader.inspection.mentions import Mentions, mentions
from intune.adapters.dataloader.inspection.probe import WORTH_SENDING_S, Measurement
from intune.adapters.dataloader.sending.pickled_size import fingerprint, structure_bytes
from intune.adapters.dataloader.sending.sendable import Survey, keeps_back_open
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.budget import Budget, format_bytes
from intune.pipelines.errors import ConfigError

SPEED_UP = 1.5
"""Of two threads over one: halfway between code that holds the lock (1) and code that does not (2). Seen on
two processors with some five busy processes beside: 1.2 to 1.4 and 1.7 to 2."""

Kind = Literal["thread", "serial", "process", "here"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where the user's code runs, and why.

    Attributes:
        kind: ``"thread"``, ``"serial"`` (one thread at a time), ``"process"``, or ``"here"`` (in the trainer's
            own thread, when it asks for a batch).
        reason: a sentence.
        warn: whether that is to be warned of.
        otherwise: where it runs if processes cannot be trusted with it.
    """

    kind: Kind
    reason: str
    warn: bool = False
    otherwise: Kind = "thread"


DRAWS = (
    "the code draws from the process's random generators, which in threads it would share with the training"
)
_UNSENDABLE_DRAWS = Choice(kind="here", reason=f"{DRAWS}, and it cannot be sent to a process")
_OWN_THREAD = Choice(
    kind="here",
    reason="the code reads what only the trainer's thread has in a `threading.local`; workers='thread' says that every "
    "thread may make its own",
)


def choose_asked(workers: str, settings: LoaderSettings, survey: Survey) -> Choice | None:
    """What the user or the DataLoader's own arguments decide; None where it is to be measured.

    Args:
        workers: as of `TunableDataLoader`.
        survey: what of the DataLoader can be sent.

    Raises:
        ConfigError: what is asked for cannot be.
    """
    if workers == "auto":
        return choose_before(settings, survey)
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
    if settings.inits_workers:
        raise ConfigError(
            "`workers`='thread', but `worker_init_fn` is made for processes; use 'process', or leave it out"
        )
    return Choice(kind="thread", reason=reason)


def choose_before(settings: LoaderSettings, survey: Survey) -> Choice | None:
    """What needs no measurement; None if it does.

    Raises:
        ConfigError: `worker_init_fn` cannot be called, since it is made for processes and there can be none.
    """
    if settings.iterable:
        return _choose_for_iterators(settings)
    mentioned = mentions(settings)
    if mentioned.generator and not settings.num_workers:
        return Choice(
            kind="here",
            reason="the code keeps a random generator, whose numbers depend on the order in which batches are made",
        )
    if mentioned.thread and not settings.inits_workers:
        return _OWN_THREAD
    unsendable = choose_unsendable(survey)
    if settings.inits_workers:
        if unsendable is not None:
            what = "`dataset`" if survey.size is None else "`collate_fn` or `worker_init_fn`"
            raise ConfigError(
                f"`worker_init_fn` is made for processes, but {what} cannot be sent to one; keep locks, open files "
                "and connections out of it, or leave `worker_init_fn` out"
            )
        return Choice(kind="process", reason="`worker_init_fn` is made for processes")
    if unsendable is not None:
        return _UNSENDABLE_DRAWS if mentioned.random else None
    if mentioned.worker_info and settings.num_workers:
        return Choice(kind="process", reason="the code asks torch which worker it runs in")
    return None


def _choose_for_iterators(settings: LoaderSettings) -> Choice:
    if settings.num_workers:
        return Choice(
            kind="process",
            reason=f"each of the {settings.num_workers} iterators needs a process to know its number in",
        )
    mentioned = mentions(settings)
    if mentioned.thread:
        return _OWN_THREAD
    if mentioned.random:
        return Choice(
            kind="here",
            reason=f"{DRAWS}; with num_workers=1 its iterator has generators of its own and reads ahead",
        )
    return Choice(kind="thread", reason="there is one iterator, over the dataset in this process")


def choose_measured(
    settings: LoaderSettings,
    measured: Measurement,
    mentioned: Mentions,
    *,
    unsendable: Choice | None,
    kept: bool,
    size: int | None,
    budget: Budget,
) -> Choice:
    """What the first batches say of where the next ones are to be made.

    Args:
        measured: of them.
        mentioned: what the code may do with others.
        unsendable: as of `choose_unsendable`, before any of the code ran.
        kept: whether the dataset was kept as it was then.
        size: its bytes, about; None if it cannot be sent.
    """
    if unsendable is not None and measured.random:
        return _UNSENDABLE_DRAWS
    opened = None if unsendable else choose_opened(settings, kept=kept)
    unshared = choose_unshared(settings, measured, size or 0, budget)
    choice = unsendable or opened or unshared or choose(measured, size or 0, budget)
    threads = choice.kind == "thread" or (choice.kind == "process" and not settings.num_workers)
    if unshared is not None and threads:
        choice = replace(unshared, kind="here")
    if mentioned.mixes_up:
        choice = choose_unmixed(choice, measured, None if unsendable else size, budget)
    if choice.kind == "thread" and measured.random and not settings.num_workers:
        choice = Choice(kind="here", reason=f"{DRAWS}; {choice.reason}")
    otherwise: Kind = "thread" if opened is None and not mentioned.mixes_up else "serial"
    return replace(choice, otherwise="here" if measured.random or measured.changes else otherwise)


def choose_unsendable(survey: Survey) -> Choice | None:
    """Where code runs that cannot be sent to processes, if it changes nothing; None if it can be sent."""
    if survey.size is None:
        return Choice(
            kind="serial",
            reason="the dataset holds, or its code in the script refers to, what cannot be copied (an open file, a "
            "connection or a lock), so that only one thread at a time may use it; workers='thread' says that several "
            "may",
        )
    if not survey.code:
        return Choice(kind="thread", reason="`collate_fn` or `worker_init_fn` cannot be sent to a process")
    return None


def choose_unshared(
    settings: LoaderSettings, measured: Measurement, size: int, budget: Budget
) -> Choice | None:
    """Where code runs that changes what it keeps; None if it does not.

    Args:
        size: bytes of the dataset, about.
    """
    if not measured.changes:
        return None
    # In a DataLoader with workers the code has copies of its own, as they were when the epoch began, however cheap its
    # batches are; without, there is one for all of them.
    copies = settings.num_workers > 0 and size * budget.cpus <= budget.memory
    return Choice(
        kind="process" if copies else "here",
        reason="the code changes what the dataset or `collate_fn` keeps, a counter or a buffer, which threads would "
        "share; workers='thread' says that they may",
    )


def choose(measured: Measurement, size: int, budget: Budget) -> Choice:
    """What a measurement says.

    Args:
        size: bytes of the dataset, about.
    """
    took = f"a batch takes {1e3 * measured.wall_s:.3g} ms"
    short, too_short = measured.wall_s < WORTH_SENDING_S, f"{took}, too little to be sent to a process for"
    if size * budget.cpus > budget.memory:
        return Choice(
            kind="thread",
            reason=f"{budget.cpus} copies of the dataset of {format_bytes(size)} are more than the budget's "
            f"{format_bytes(budget.memory)}",
        )
    if measured.random and short:
        return Choice(kind="here", reason=f"{DRAWS}, and {too_short}")
    if measured.random:
        return Choice(kind="process", reason=DRAWS)
    if budget.cpus == 1:
        return Choice(kind="thread", reason="there is one CPU, of which processes make no more")
    if measured.waits:
        waited = 1.0 - measured.active_s / max(measured.wall_s, 1e-9)
        return Choice(kind="thread", reason=f"{took}, of which it waits {100 * waited:.0f} %")
    if short:
        return Choice(kind="thread", reason=too_short)
    if measured.speed_up is None:
        return Choice(kind="thread", reason="there were too few batches to tell more")
    holds = measured.speed_up < SPEED_UP
    return Choice(
        kind="process" if holds else "thread",
        reason=f"{took} of computing and two threads are {measured.speed_up:.2f} times as "
        f"fast as one, so the code {'holds' if holds else 'lets go of'} Python's lock",
    )


def choose_unmixed(choice: Choice, measured: Measurement, size: int | None, budget: Budget) -> Choice:
    """A choice for code that keeps something for one sample where all threads see it: that choice, unless it is
    threads.

    Args:
        size: bytes of what is to be sent to processes, about; None if it cannot be.
    """
    if choice.kind != "thread":
        return choice
    copies = size is not None and size * budget.cpus <= budget.memory
    return Choice(
        kind="process" if copies and measured.wall_s >= WORTH_SENDING_S else "serial",
        reason="the code keeps something for one sample in an attribute or a global variable, where threads would mix "
        "the samples up; workers='thread' says that they may share it",
    )


def choose_opened(settings: LoaderSettings, *, kept: bool) -> Choice | None:
    """What the code did to the dataset decides, where it has opened files by now; None if it has not.

    Args:
        kept: whether there is the dataset as it was before.
    """
    dataset = settings.dataset
    # The first looks through what is too large for the second.
    if structure_bytes(dataset) is not None and fingerprint(dataset, refuse=keeps_back_open) is not None:
        return None
    opened = "the dataset has opened what cannot be shared by threads"
    if kept:
        return Choice(kind="process", reason=f"{opened}: every process opens its own")
    return Choice(
        kind="serial",
        reason=f"{opened}, so that only one thread at a time may use it; workers='thread' says that several may",
    )
