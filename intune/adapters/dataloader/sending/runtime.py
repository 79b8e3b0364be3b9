"""What the trainer's process has set for all code in it, sent to worker processes along with the dataset.

The DataLoader's workers are forks of the trainer's process and so have it anyway; a fresh interpreter does not.
"""

from __future__ import annotations

import contextlib
import csv
import decimal
import locale
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from intune.adapters.dataloader.sending.user_globals import Globals, gather, set_globals
from intune.pipelines.executors.import_path import import_path
from intune.pipelines.executors.surroundings import OWN


def _decimal_context() -> decimal.Context:
    """Without what computations so far have come across."""
    context = decimal.getcontext().copy()
    context.clear_flags()
    return context


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


_OPTIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "digits": (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    "csv": (csv.field_size_limit, csv.field_size_limit),
    "socket": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "decimal": (_decimal_context, decimal.setcontext),
    "locale": (partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    "numpy": (np.geterr, lambda handling: np.seterr(**handling)),
}
"""Of Python's own modules and of NumPy: how each is read, and how it is set."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Of the process, and of the thread that began the epoch.

    Attributes:
        folder: the current one; None where it is gone.
        environment: all variables.
        path: where modules are found.
        filters: of warnings.
        dtype, device: what torch makes tensors as by default.
        grad: whether operations are recorded for gradients.
        globals: data of the user's own modules; see `sending/user_globals.py`.
        deterministic: whether torch must use deterministic algorithms, and whether it only warns.
        options: of `_OPTIONS`, by name.
    """

    folder: str | None
    environment: dict[str, str]
    path: list[str]
    filters: list[Any]
    dtype: torch.dtype
    device: str
    grad: bool
    globals: Globals
    deterministic: tuple[bool, bool]
    options: dict[str, Any]

    @classmethod
    def now(cls) -> Runtime:
        """As it is."""
        folder = None
        with contextlib.suppress(OSError):
            folder = os.getcwd()
        return cls(
            folder=folder,
            environment=dict(os.environ),
            path=import_path(),
            filters=[entry for entry in warnings.filters if _travels(entry)],
            dtype=torch.get_default_dtype(),
            device=str(torch.get_default_device()),
            grad=torch.is_grad_enabled(),
            globals=gather().values,
            deterministic=_deterministic(),
            options={name: read() for name, (read, _) in _OPTIONS.items()},
        )

    def apply(self) -> None:
        """Have this process be like it, as far as the user's modules need not be imported."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(self.folder)
        for name in os.environ.keys() - self.environment.keys() - OWN.keys():
            del os.environ[name]
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if sys.path != self.path:
            sys.path[:] = self.path
        torch.set_default_dtype(self.dtype)
        if str(torch.get_default_device()) != self.device:
            torch.set_default_device(self.device)
        torch.set_grad_enabled(self.grad)
        if self.deterministic != _deterministic():  # saying it imports torch's compiler, which takes seconds
            enabled, warn_only = self.deterministic
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        for name, value in self.options.items():
            with contextlib.suppress(locale.Error):
                _OPTIONS[name][1](value)

    def apply_to_modules(self) -> None:
        """Have its globals and, lest importing is warned of, its filters of warnings."""
        set_globals(self.globals)
        if list(warnings.filters) != self.filters:
            warnings.resetwarnings()
            warnings.filters[:] = self.filters  # type: ignore[index]


def _travels(entry: Any) -> bool:
    """Whether a filter of warnings can be sent: its category may be a class of the script's own."""
    try:
        pickle.dumps(entry)
    except Exception:
        return False
    return getattr(entry[2], "__module__", "") != "__main__"
