"""Tunes the DataLoaders of a script that was not edited: what `intune run` does inside the job's process.

Only `DataLoader.__iter__` is replaced, once torch has been imported: the loaders stay what they are, also those of
subclasses, and one that cannot be tuned is read as ever. Worker processes of DataLoaders are left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.abc
import importlib.util
import json
import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "torch.utils.data.dataloader"

MOST_TOLD = 20
"""Loaders up to which each is told of when it is made: an evaluation may make one for every user."""

SHORT_S = 0.2
"""Seconds of a loader's life in which tuning brings nothing: to begin it takes a tenth of them, and a decision more."""

MOST_SHORT = 20
"""Loaders of a kind, one after another, that were so short: further ones are left as they are. An evaluation that makes
one for every user would spend nearly all of its time on beginning to tune."""

ATTRIBUTE = "_intune_tuned"
"""Of a DataLoader: the `Kept` that knows what tunes it."""


@dataclass(frozen=True, kw_only=True)
class Unedited:
    """How the loaders of a script are tuned; see `intune.tune`.

    Attributes:
        agent: name of the agent.
        cpus, memory: of each loader's budget.
        display: what is shown.
        log: folder; every loader writes to one of its own in it.
        knowledge: whether what was learnt is used and kept.
        workers: where the dataset's code runs.
    """

    agent: str = "dqn"
    cpus: int | None = None
    memory: str | None = None
    display: str = "quiet"
    log: str | None = None
    knowledge: bool = True
    workers: str = "auto"

    def to_text(self) -> str:
        """For an environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Unedited:
        """What `to_text` wrote; of anything else, the defaults."""
        try:
            values = json.loads(text)
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (ValueError, TypeError):
            return cls()


def watch_for_torch(text: str) -> None:
    """Replace `DataLoader.__iter__` as soon as torch's module is imported (now, if it was). Imports nothing itself."""
    if MODULE in sys.modules:
        patch(sys.modules[MODULE].DataLoader, Unedited.from_text(text))
    else:
        sys.meta_path.insert(0, _Finder(text))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module through the other finders, and patches it once it has been executed."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._text)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: Any, text: str) -> None:
        self._inner = inner
        self._text = text

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        patch(module.DataLoader, Unedited.from_text(self._text))

    def __getattr__(self, name: str) -> Any:  # get_source and the like, for tracebacks
        return getattr(self._inner, name)


def patch(dataloader: Any, settings: Unedited) -> Any:
    """Replace `dataloader.__iter__`; returns the original, with which to undo it."""
    original = dataloader.__iter__
    patched = _Patch(dataloader, settings)

    def __iter__(self: Any) -> Iterator[Any]:
        return patched.iterate(self)

    dataloader.__iter__ = __iter__
    atexit.register(patched.finish)
    return original


class Kept:
    """What a DataLoader keeps of its tuning. It stays behind where the loader is pickled or copied.

    In the loader itself and not in a table, which would keep one whose `collate_fn` or dataset knows it.

    Attributes:
        tuned: what tunes it; None where it cannot be.
        twin: what is tuned in its place: the tuner's thread knows that, and would never let the loader itself go.
    """

    def __init__(self, loader: Any, tuned: Any, twin: Any) -> None:
        self._owner = weakref.ref(loader)
        self.tuned = tuned
        self.twin = twin

    def of(self, loader: Any) -> bool:
        """Whether it is this one's: `copy.copy` takes all that it finds along."""
        return self._owner() is loader

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()  # who reads that may have no InTune


Kind = tuple[type, type, Any]
"""Of a loader: its class, its dataset's, and rows a batch."""


class _Patch:
    def __init__(self, dataloader: Any, settings: Unedited) -> None:
        self._class = dataloader
        self._original = dataloader.__iter__
        self._settings = settings
        self._tuned: list[tuple[str, weakref.ref[Any], weakref.finalize[Any, Any]]] = []
        self._count = 0
        self._short: Counter[Kind] = Counter()
        self._pid = os.getpid()

    def iterate(self, loader: Any) -> Iterator[Any]:
        """Begin an epoch of `loader`, tuned if that can be."""
        if os.getpid() != self._pid or _is_worker():  # a fork, as DataLoaders' workers mostly are
            begun: Iterator[Any] = self._original(loader)
            return begun
        kept = loader.__dict__.get(ATTRIBUTE)
        if not (isinstance(kept, Kept) and kept.of(loader)):
            kept = loader.__dict__[ATTRIBUTE] = self._keep(loader)
        if kept.tuned is not None:
            from intune.pipelines.errors import IntuneError

            kept.twin.__dict__.update(_arguments(loader))  # some may have been changed since
            try:
                return iter(kept.tuned)
            except IntuneError as error:  # it was changed to something that cannot be tuned
                say(f"a loader is read as ever from now on: {_reason(error)}")
                kept.tuned = None
        begun = self._original(loader)
        return begun

    def _keep(self, loader: Any) -> Kept:
        kind = (type(loader), type(loader.dataset), loader.batch_size)
        if self._short[kind] >= MOST_SHORT:
            return Kept(loader, None, None)
        self._count += 1
        name = f"DataLoader {self._count} ({type(loader.dataset).__name__})"
        twin = self._twin(loader)
        try:
            tuned = self._make(twin, name, kind)
        except Exception as error:  # whatever it is, the job goes on as it would without tuning
            self._tell(f"{name} is left as it is: {_reason(error)}")
            tuned = None
        return Kept(loader, tuned, twin)

    def _make(self, twin: Any, name: str, kind: Kind) -> Any:
        from intune.tuning import tune

        settings = self._settings
        tuned = tune(
            twin,
            agent=settings.agent,
            cpus=settings.cpus,
            memory=settings.memory,
            display=settings.display,  # type: ignore[arg-type]
            log=self._folder(),
            knowledge=settings.knowledge,
            workers=settings.workers,
        )
        if tuned.controller is None:
            return None
        self._tell(f"{name} is tuned by {settings.agent}")
        # One that is made for a single loop is gone with it; what tuning came to is said then.
        weakref.finalize(tuned, self._note_life, name, kind, time.monotonic()).atexit = False
        over = weakref.finalize(tuned, _over, name, tuned.controller, always=self._count <= MOST_TOLD)
        over.atexit = False
        self._tuned = [one for one in self._tuned if one[1]() is not None]
        self._tuned.append((name, weakref.ref(tuned), over))
        return tuned

    def _note_life(self, name: str, kind: Kind, began: float) -> None:
        """A loader is gone."""
        self._short[kind] = self._short[kind] + 1 if time.monotonic() - began < SHORT_S else 0
        if self._short[kind] == MOST_SHORT:
            say(
                f"{MOST_SHORT} loaders like {name} were over within {SHORT_S:g} s each, in which tuning brings "
                "nothing; further ones are left as they are"
            )

    def _tell(self, text: str) -> None:
        """Say what becomes of the loader that was made last."""
        if self._count <= MOST_TOLD:
            say(text)
        elif self._count == MOST_TOLD + 1:
            say("more loaders are made; from now on they are told of where something was decided")

    def _twin(self, loader: Any) -> Any:
        """The same once more; the DataLoader under a subclass whose own `__iter__` asks for the batches (and may do
        more to them)."""
        own = type(loader).__iter__ is not self._class.__iter__
        twin = object.__new__(self._class if own else type(loader))
        twin.__dict__.update(_arguments(loader))
        return twin

    def _folder(self) -> str | None:
        if self._settings.log is None:
            return None
        rank = os.environ.get("RANK")
        name = f"loader-{self._count}" if rank is None else f"rank-{rank}-loader-{self._count}"
        return os.path.join(self._settings.log, name)

    def finish(self) -> None:
        """Say what tuning came to, and end it."""
        if os.getpid() != self._pid:
            return
        for name, reference, over in self._tuned:
            tuned = reference()
            if tuned is not None:
                over.detach()
                summary = tuned.summary()
                with contextlib.suppress(Exception):
                    tuned.close()
                say(f"{name}: {summary}")
        self._tuned.clear()


def _is_worker() -> bool:
    """Whether this is a DataLoader's worker process, torch's or one of ours."""
    from torch.utils.data import get_worker_info

    from intune.pipelines.executors.worker_number import worker_number

    return get_worker_info() is not None or worker_number() is not None


def _arguments(loader: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(loader).items() if name != ATTRIBUTE}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    ours = type(error).__module__.startswith("intune.")
    return text if ours else f"{type(error).__name__}: {text}"


def _over(name: str, controller: Any, *, always: bool) -> None:
    from intune.control import describe

    if always or controller.rounds or controller.failure is not None:
        say(f"{name}: {describe(controller)}")


def say(text: str) -> None:
    """A line on standard error; a closed one is no error, and standard output is the script's."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"intune run: {text}\n")
        sys.stderr.flush()
