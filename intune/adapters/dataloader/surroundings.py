"""What code may find around it in the trainer's thread and would miss in another: gradients off, autocast, contexts."""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import overrides

_DEVICES = ("cpu", "cuda", "xpu")


class Surroundings:
    """Those of the calling thread as they are now, to run something under elsewhere.

    They are torch's modes, its default device and the accelerator in use, the context variables (`decimal`'s
    precision and NumPy's `errstate` among them).
    """

    __slots__ = ("_autocasts", "_context", "_device", "_grad", "_inference", "_modes")

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocasts = _autocasts()
        self._modes: list[Any] = list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def copy(self) -> Surroundings:
        """The same, for another thread."""
        made = copy.copy(self)
        made._context = self._context.copy()
        return made

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function under them. One thread at a time."""
        return self._context.run(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with ExitStack() as stack:
            for around in self._managers():
                stack.enter_context(around)
            return function(*arguments)

    def _managers(self) -> Iterator[AbstractContextManager[Any]]:
        if self._device is not None:
            yield torch.cuda.device(self._device)
        if self._inference:
            yield torch.inference_mode()
        if self._grad != torch.is_grad_enabled():
            yield torch.set_grad_enabled(self._grad)
        for device, dtype, cache in self._autocasts:
            yield torch.autocast(device, dtype=dtype, cache_enabled=cache)
        if self._modes:
            yield _pushed(self._modes)


def _autocasts() -> list[tuple[str, torch.dtype, bool]]:
    """Kinds of devices for which autocast is on, each with its type."""
    cache = torch.is_autocast_cache_enabled()
    return [
        (device, torch.get_autocast_dtype(device), cache)
        for device in _DEVICES
        if torch.is_autocast_enabled(device)
    ]


@contextmanager
def _pushed(modes: list[Any]) -> Iterator[None]:
    """Torch's function modes, as a default device is one. Not entered, since they are in use in the trainer's thread
    and remember what was before them."""
    before: list[Any] = list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]
    if len(before) == len(modes) and all(one is other for one, other in zip(before, modes, strict=True)):
        yield  # this is the trainer's thread
        return
    for mode in modes:
        overrides._push_mode(mode)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for _ in modes:
            overrides._pop_mode()  # type: ignore[no-untyped-call]
