"""Threads or processes for a DataLoader's code: measured on its first batches, and said in a sentence.

Threads share the dataset and hand batches over for nothing, but only one of them at a time runs Python code;
processes each hold a copy of the dataset and hand batches over through shared memory. So: threads where the code
waits or computes outside Python's lock, processes where it holds it, and one thread at a time where the dataset
cannot be copied nor be trusted to two threads. Where only the trainer's own thread gives the DataLoader's batches (as
of code that counts, or works in one buffer) they are made there, as the DataLoader without workers does; so are batches
that are made sooner than handed over (see `dataloader_cheap.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intune.adapters.dataloader_kept_back import keeps_back_open
from intune.adapters.dataloader_mentions import Mentions, mentions
from intune.adapters.dataloader_parcel import Parcel
from intune.adapters.dataloader_probe import WORTH_SENDING_S, Measurement
from intune.adapters.dataloader_settings import LoaderSettings
from intune.adapters.dataloader_survey import Survey
from intune.adapters.pickled_size import fingerprint, structure_bytes
from intune.pipelines.budget import Budget, format_bytes
from intune.pipelines.errors import ConfigError

SPEED_UP = 1.5
"""Of two threads over one: halfway between code that holds the lock (1) and code that does not (2). Seen on
two processors with some five busy processes beside: 1.2 to 1.4 and 1.7 to 2."""

MOST_COPIED = 64 << 20
"""Bytes of a dataset up to which it is pickled before anything is known, lest it open files meanwhile."""

Kind = Literal["thread", "serial", "process", "here"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where the user's code runs, and why.

    Attributes:
        kind: ``"thread"``, ``"serial"`` (one thread at a time), ``"process"``, or ``"here"`` (in the trainer's
            own thread, when it asks for a batch).
        reason: a sentence.
        parcel: what to send to processes, where it had to be packed before the code ran.
    """

    kind: Kind
    reason: str
    parcel: Parcel | None = None


DRAWS = (
    "the code draws from the process's random generators, which in threads it would share with the training"
)


def choose_before(
    settings: LoaderSettings, mentioned: Mentions | None = None, survey: Survey | None = None
) -> Choice | None:
    """What needs no measurement; None if it does.

    Args:
        mentioned: what the code may do; read from it by default.
        survey: what of it can be sent.

    Raises:
        ConfigError: `worker_init_fn` cannot be called, since it is made for processes and there can be none.
    """
    mentioned = mentions(settings) if mentioned is None else mentioned
    survey = Survey(settings) if survey is None else survey
    if settings.iterable and settings.num_workers:
        return Choice(
            kind="process",
            reason=f"each of the {settings.num_workers} iterators needs a process to know its number in",
        )
    if mentioned.generator and not settings.num_workers and not settings.iterable:
        return Choice(
            kind="here",
            reason="the code keeps a random generator, whose numbers depend on the order in which batches are made",
        )
    if mentioned.thread and not (settings.num_workers and settings.worker_init_fn is not None):
        return Choice(
            kind="here",
            reason="the code reads what only the trainer's thread has in a `threading.local`; workers='thread' says "
            "that every thread may make its own",
        )
    if settings.iterable and mentioned.random:
        return Choice(
            kind="here",
            reason=f"{DRAWS}; with num_workers=1 its iterator has generators of its own and reads ahead",
        )
    if settings.iterable:
        return Choice(kind="thread", reason="there is one iterator, over the dataset in this process")
    unsendable = choose_unsendable(settings, survey)
    if settings.worker_init_fn is not None and settings.num_workers:
        if unsendable is not None:
            what = "`dataset`" if survey.size is None else "`collate_fn` or `worker_init_fn`"
            raise ConfigError(
                f"`worker_init_fn` is made for processes, but {what} cannot be sent to one; keep locks, open files "
                "and connections out of it, or leave `worker_init_fn` out"
            )
        return Choice(kind="process", reason="`worker_init_fn` is made for processes")
    if unsendable is not None:
        if mentioned.random:
            return Choice(kind="here", reason=f"{DRAWS}, and it cannot be sent to a process")
        return None
    if mentioned.worker_info and settings.num_workers:
        return Choice(kind="process", reason="the code asks torch which worker it runs in")
    return None


def choose_unsendable(settings: LoaderSettings, survey: Survey | None = None) -> Choice | None:
    """Where code runs that cannot be sent to processes, if it changes nothing; None if it can be sent."""
    survey = Survey(settings) if survey is None else survey
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
    # Copies of their own are what the code has in a DataLoader with workers; without, there is one for all batches.
    copies = settings.num_workers > 0 and size * budget.cpus <= budget.memory
    return Choice(
        kind="process" if copies and measured.wall_s >= WORTH_SENDING_S else "here",
        reason="the code changes what the dataset or `collate_fn` keeps, a counter or a buffer, which threads would "
        "share; workers='thread' says that they may",
    )


def choose(measured: Measurement, size: int, budget: Budget) -> Choice:
    """What a measurement says.

    Args:
        size: bytes of the dataset, about.
    """
    wall_ms, waited = 1e3 * measured.wall_s, 1.0 - measured.active_s / max(measured.wall_s, 1e-9)
    if size * budget.cpus > budget.memory:
        return Choice(
            kind="thread",
            reason=f"{budget.cpus} copies of the dataset of {format_bytes(size)} are more than the budget's "
            f"{format_bytes(budget.memory)}",
        )
    if measured.random and measured.wall_s < WORTH_SENDING_S:
        reason = f"{DRAWS}, and a batch takes {wall_ms:.3g} ms, too little to be sent to a process for"
        return Choice(kind="here", reason=reason)
    if measured.random:
        return Choice(kind="process", reason=DRAWS)
    if budget.cpus == 1:
        return Choice(kind="thread", reason="there is one CPU, of which processes make no more")
    if measured.waits:
        return Choice(
            kind="thread", reason=f"a batch takes {wall_ms:.3g} ms, of which it waits {100 * waited:.0f} %"
        )
    if measured.wall_s < WORTH_SENDING_S:
        return Choice(
            kind="thread", reason=f"a batch takes {wall_ms:.3g} ms, too little to be sent to a process for"
        )
    if measured.speed_up is None:
        return Choice(kind="thread", reason="there were too few batches to tell more")
    holds = measured.speed_up < SPEED_UP
    return Choice(
        kind="process" if holds else "thread",
        reason=f"a batch takes {wall_ms:.3g} ms of computing and two threads are {measured.speed_up:.2f} times as "
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


def choose_after(settings: LoaderSettings, parcel: Parcel | None) -> Choice | None:
    """What the code did to the dataset decides, where it has opened files by now; None if it has not.

    Args:
        parcel: with the dataset as it was before.
    """
    dataset = settings.dataset
    # The first looks through what is too large for the second.
    if structure_bytes(dataset) is not None and fingerprint(dataset, refuse=keeps_back_open) is not None:
        return None
    opened = "the dataset has opened what cannot be shared by threads"
    if parcel is not None:
        return Choice(kind="process", reason=f"{opened}: every process opens its own", parcel=parcel)
    return Choice(
        kind="serial",
        reason=f"{opened}, so that only one thread at a time may use it; workers='thread' says that several may",
    )
