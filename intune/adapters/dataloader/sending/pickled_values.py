"""Single values pickled for another process: none that is too large, and long lists only where they have changed."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Collection
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader

from intune.adapters.dataloader.inspection.user_modules import SCRIPTS
from intune.adapters.dataloader.sending.long_lists import LONG, PLAIN, KeptItems, kept_items
from intune.adapters.dataloader.sending.pickled_size import structure_bytes
from intune.pipelines.executors.packing import by_value

LONGEST = 10_000
"""Of a text, or of a list or dictionary, up to which it is pickled without being measured first."""

_NOTHING: tuple[KeptItems, bytes] = (KeptItems(None, ()), b"")
_known: dict[int, tuple[KeptItems, bytes]] = {}


class LeftError(Exception):
    """Something is not sent; its text says why."""


def pickled_value(value: Any, room: int) -> bytes:
    """A value pickled; its code by name where it has one.

    Args:
        room: bytes that it may take, about.

    Raises:
        LeftError: it takes more, or cannot be pickled.
    """
    if _is_plain(value) or (isinstance(value, FunctionType | type) and value.__module__ not in SCRIPTS):
        return pickle.dumps(value, protocol=5)
    kept, pickled = _known.get(id(value), _NOTHING)
    if kept.still(value):
        return pickled
    size = structure_bytes(value, most=room, refuse=_stays)
    if size is not None and size > room:
        from intune.pipelines.budget import format_bytes  # brings along what worker processes do without

        raise LeftError(f"too large for the {format_bytes(room)} that are left for it")
    try:
        if size is None:
            raise TypeError(f"{type(value).__name__} cannot be pickled, or holds what cannot be")
        return remember(value, by_value(value, shared=True))
    except Exception as error:  # pickling runs the code of whatever it refers to
        raise LeftError(f"{type(error).__name__}: {error}") from error


def remember(value: Any, pickled: bytes) -> bytes:
    """Have a vocabulary pickled once only, in this process, as long as it stays as it is."""
    kind = type(value)
    if kind in (list, tuple, dict, set, frozenset) and len(value) >= LONG:
        kept = kept_items(value)
        if kept is not None:
            _known[id(value)] = kept, pickled
    return pickled


def _stays(value: Any) -> bool:
    """What would take an accelerator's memory in every process, or loads data itself."""
    if isinstance(value, torch.Tensor):
        return value.device.type not in ("cpu", "meta")
    return isinstance(value, DataLoader)


def _is_plain(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if kind in PLAIN:
        return not isinstance(value, str | bytes) or len(value) <= LONGEST
    if depth > 3:
        return False
    if kind in (argparse.Namespace, SimpleNamespace):
        return _is_plain(vars(value), depth)
    if kind in (list, tuple, dict) and len(value) <= LONGEST:
        parts = [*value.keys(), *value.values()] if kind is dict else value
        return all(_is_plain(part, depth + 1) for part in parts)
    return False


def forget_all_but(ids: Collection[int]) -> None:
    """Let go of the lists that were pickled, but those with these ids."""
    for gone in _known.keys() - ids:
        del _known[gone]
