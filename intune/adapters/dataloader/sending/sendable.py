"""What of a DataLoader can be sent to processes, how large it is, and what it has opened that cannot."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from torch.utils.data import Dataset

from intune.adapters.dataloader.inspection.user_modules import SCRIPTS, is_users
from intune.adapters.dataloader.sending.pickled_size import structure_bytes
from intune.adapters.dataloader.settings import LoaderSettings
from intune.pipelines.errors import ConfigError


class Survey:
    """Of a DataLoader as it is when it is first asked.

    Args:
        whole: look through long lists too, of which a sample else tells.
    """

    def __init__(self, settings: LoaderSettings, *, whole: bool = False) -> None:
        self._settings = settings
        self._whole = whole

    @cached_property
    def size(self) -> int | None:
        """Bytes of the dataset, about; None if it cannot be sent."""
        return structure_bytes(self._settings.dataset, whole=self._whole)

    @cached_property
    def code(self) -> bool:
        """Whether `collate_fn` and `worker_init_fn` can be sent."""
        return structure_bytes((self._settings.collate_fn, self._settings.worker_init_fn)) is not None

    @property
    def sendable(self) -> bool:
        """Whether all of it can be sent."""
        return self.size is not None and self.code


def keeps_back_open(value: Any) -> bool:
    """Whether an object keeps an open file, a connection or the like back when it is pickled.

    Asked of the user's classes and datasets only: those of libraries keep back what they may make again, as caches.
    """
    kind: Any = type(value)
    if kind.__getstate__ is object.__getstate__:
        return False
    users = kind.__module__ in SCRIPTS or is_users(sys.modules.get(kind.__module__))
    if not (users or isinstance(value, Dataset)):
        return False
    kept = getattr(value, "__dict__", {})
    sent = value.__getstate__()
    sent = sent if isinstance(sent, dict) else {}
    return any(
        structure_bytes(one) is None
        for name, one in kept.items()
        if name not in sent or sent[name] is not one
    )


def unopened(now: Any, before: Any) -> Any:
    """`now` with whatever of it cannot be pickled as it was in `before`, the same object before it was used.

    Neither is changed. What has no counterpart in `before` is left out.
    """
    return _unopened(now, before, {})


def _unopened(now: Any, before: Any, known: dict[int, Any]) -> Any:
    if id(now) in known:
        return known[id(now)]
    if structure_bytes(now) is not None:
        return now
    made = before
    if type(now) is not type(before):
        pass
    elif type(now) in (list, tuple) and len(now) == len(before):
        made = type(now)(_unopened(one, other, known) for one, other in zip(now, before, strict=True))
    elif type(now) is dict:
        made = _of_attributes(now, before, known)
    elif hasattr(now, "__dict__") and (empty := _empty(type(now))) is not None:
        made = known[id(now)] = empty  # it may refer to itself
        made.__dict__.update(_of_attributes(vars(now), vars(before), known))
    known[id(now)] = made
    return made


def _empty(kind: type) -> Any:
    """An object without attributes; None where they are not all there is to one, as to a dictionary's or a list's."""
    if any(vars(base).get("__slots__") for base in kind.__mro__):
        return None
    try:
        return object.__new__(kind)
    except TypeError:
        return None


def _of_attributes(now: dict[Any, Any], before: dict[Any, Any], known: dict[int, Any]) -> dict[Any, Any]:
    return {
        name: _unopened(value, before.get(name), known)
        for name, value in now.items()
        if name in before or structure_bytes(value) is not None
    }


def refusal(error: Exception, settings: LoaderSettings) -> ConfigError:
    """What to raise where pickling raised `error`."""
    remedy = "keep locks, open files and connections out of them, and out of the variables of the script that they use"
    if "through inheritance" in str(error):  # as multiprocessing says of all that it shares
        remedy = (
            "in place of `multiprocessing.Value` or `Array` keep a tensor in shared memory, as "
            "`torch.tensor(0).share_memory_()` makes it"
        )
    # Several iterators, and `worker_init_fn`, are refused to threads.
    if not (settings.inits_workers or (settings.iterable and settings.num_workers)):
        remedy = f"{remedy}, or use workers='thread'"
    return ConfigError(
        "`dataset`, `collate_fn` or `worker_init_fn` cannot be sent to a process "
        f"({type(error).__name__}: {error}); {remedy}"
    )
