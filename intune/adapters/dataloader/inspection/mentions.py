"""What a dataset's code mentions, read from its functions without running them.

The first batches tell what the code did with them, not what it may do with others: an augmentation of rare
samples draws random numbers nowhere near the start. Code that is not Python's is not seen.
"""

from __future__ import annotations

import dis
import inspect
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from intune.adapters.dataloader.inspection.stores import is_method, mixes_up
from intune.adapters.dataloader.inspection.user_modules import SCRIPTS, is_users
from intune.adapters.dataloader.settings import LoaderSettings

MOST = 2_000
"""Functions and objects looked at: a dataset may refer to half the world."""

MOST_ITEMS = 32
"""Of a list or dictionary among the dataset's attributes."""

# fmt: off
DRAWS = frozenset((
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli",
    "multinomial", "poisson", "binomial", "rrelu", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_alpha_dropout", "gumbel_softmax",
))
"""Functions of torch that draw from its global generator, if they are given no other."""

DRAWS_IN_PLACE = frozenset((
    "random_", "uniform_", "normal_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_",
))
"""The same of tensors."""
# fmt: on

_SHARED = (random.random.__self__, np.random.random.__self__)  # type: ignore[attr-defined]

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)

_BEFORE = ("__init__", "__new__", "__setstate__", "__getstate__", "__reduce__", "reset_parameters")
"""Methods that run before any batch is made."""

_PASSED_OVER = (
    "torch.utils.data",
    "torch.nn.modules.module",
    "torch._",
    "collections",
    "typing",
    "abc",
    "enum",
)
"""Modules of code that every dataset has, or that only hands on."""


_NOTHING = {"random": False, "generator": False, "worker_info": False, "thread": False}


@dataclass(frozen=True, kw_only=True)
class Mentions:
    """What may happen when batches are made.

    Attributes:
        random: draws from the process's own random generators.
        generator: draws from one that the code keeps for itself, whose numbers depend on the order of the batches.
        worker_info: asks torch which worker it runs in.
        thread: reads plain values that the calling thread has in a `threading.local`, and no other thread.
        mixes_up: keeps something for one sample where that of another thread would be.
    """

    random: bool = False
    generator: bool = False
    worker_info: bool = False
    thread: bool = False
    mixes_up: bool = False


class _Users:
    """The user's own code among what was looked at.

    Attributes:
        kinds: classes of which there is an object.
        functions: of no class.
        bound: names of methods that are to be called.
    """

    def __init__(self) -> None:
        self.kinds: list[type] = []
        self.functions: list[FunctionType] = []
        self.bound: set[str] = set()

    def note(self, value: Any) -> None:
        """Something was looked at."""
        if isinstance(value, MethodType):
            self.bound.add(value.__func__.__name__)
        elif isinstance(value, FunctionType):
            if not is_method(value) and _is_users(value.__module__):
                self.functions.append(value)
        elif not isinstance(value, type) and not _is_plain(value) and type(value) not in self.kinds:
            self.kinds.append(type(value))

    def mixes_up(self) -> bool:
        """As in `Mentions`."""
        methods = [[one for one in methods_of(kind) if _is_users(one.__module__)] for kind in self.kinds]
        return mixes_up([found for found in methods if found], self.functions, self.bound)


def mentions(settings: LoaderSettings) -> Mentions:
    """What the code of a dataset and its collate function mentions, and that of what they refer to."""
    found = dict(_NOTHING)
    users = _Users()
    for value in _reached([settings.dataset, settings.collate_fn], lambda value: _look(value, found)):
        if all(found.values()):
            break
        with suppress(Exception):  # the user's classes may do anything when they are looked at
            users.note(value)
    return Mentions(**found, mixes_up=users.mixes_up())


def unmade(settings: LoaderSettings, names: Iterable[str]) -> list[str]:
    """Those of some global variables and attributes of classes that the code gets from elsewhere: it reads them and
    does not make them itself.

    Args:
        names: as ``module.name`` or ``module.Class.name``.
    """
    read: set[str] = set()
    made: set[str] = set()
    begin = [settings.dataset, settings.collate_fn, settings.worker_init_fn]
    for value in _reached(begin, lambda value: _look(value, dict(_NOTHING))):
        if isinstance(value, FunctionType) and not _passed_over(value.__module__):
            read.update(_read(value))
            made.update(_stored(value.__code__, value.__module__))
    found = []
    for name in names:
        owner, _, last = name.rpartition(".")
        # Of whose class an attribute is is not known.
        known = {name} if owner in sys.modules else {f".{last}"}
        if known & read and not {name, f".{last}"} & made:
            found.append(name)
    return found


def steps_draw(steps: Sequence[dis.Instruction], function: FunctionType, owner: Any) -> bool:
    """Whether some instructions of a method of `owner`'s may draw from random generators that outlive it."""
    found = dict(_NOTHING)
    loaded, others = names_of(steps)
    free = {step.argval for step in steps if step.opname == "LOAD_DEREF"}
    cells = [cell for name, cell in _cells(function) if name in free]
    begin = [*_look_at_names(function, loaded, others, cells, found)]
    begin += (inspect.getattr_static(owner, name, None) for name in others)
    for _ in _reached(begin, lambda value: () if isinstance(value, Dataset) else _look(value, found)):
        if found["random"] or found["generator"]:
            return True
    return found["random"] or found["generator"]


def _reached(values: Iterable[Any], look: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Some things, and those that `look` finds that they refer to, each once; the nearest first."""
    waiting = deque(values)
    seen: dict[int, Any] = {}
    while waiting and len(seen) < MOST:
        value = waiting.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        with suppress(Exception):  # the user's classes may do anything when they are looked at
            waiting.extend(look(value))


def _look(value: Any, found: dict[str, bool]) -> Iterator[Any]:
    """Note what one thing tells, and give what it refers to."""
    if isinstance(value, FunctionType):
        if not _passed_over(value.__module__):
            yield from _look_at_code(value, found)
    elif isinstance(value, BuiltinFunctionType | MethodType) and _is_shared(value.__self__):
        found["random"] = True
    elif isinstance(value, BuiltinFunctionType):
        found["random"] |= value.__name__ in DRAWS and _of_torch(value)
        yield value.__self__
    elif isinstance(value, MethodType):
        yield value.__func__
        yield value.__self__
    elif isinstance(value, _GENERATORS):
        found["generator"] |= not _is_shared(value)
    elif isinstance(value, threading.local):
        # A connection there is every thread's own; an option is not.
        found["thread"] |= bool(vars(value)) and all(map(_is_plain, vars(value).values()))
    elif isinstance(value, type):
        yield from methods_of(value)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from list(value)[:MOST_ITEMS]
    elif isinstance(value, dict):
        yield from list(value.values())[:MOST_ITEMS]
    elif not _is_plain(value):
        if isinstance(value, partial):
            yield from (value.func, value.args, value.keywords)
        yield type(value)
        with suppress(TypeError):  # it has no attributes; asking itself for them might have it do anything
            yield list(vars(value).values())


def methods_of(kind: type) -> Iterator[Any]:
    """The functions of a class that may run when a batch is made."""
    for base in kind.__mro__:
        if base.__module__ == "builtins" or _passed_over(base.__module__):
            continue
        for name, member in vars(base).items():
            if name in _BEFORE:
                continue
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            elif isinstance(member, property):
                member = member.fget
            if isinstance(member, FunctionType):
                yield member


def _look_at_code(function: FunctionType, found: dict[str, bool]) -> Iterator[Any]:
    loaded, others = _names_in(function.__code__)
    yield from _look_at_names(function, loaded, others, [cell for _, cell in _cells(function)], found)


@lru_cache(maxsize=1 << 14)
def _names_in(code: CodeType) -> tuple[set[str], set[str]]:
    """As `names_of`. The same code is looked at before the first batches and after them, and for every loader; that of
    pandas or of a tokenizer takes half a second of a processor each time."""
    return names_of(dis.get_instructions(code))


def _cells(function: FunctionType) -> Iterator[tuple[str, CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _look_at_names(
    function: FunctionType,
    loaded: set[str],
    others: set[str],
    cells: Iterable[CellType],
    found: dict[str, bool],
) -> Iterator[Any]:
    found["worker_info"] |= "get_worker_info" in loaded | others
    found["random"] |= bool(others & DRAWS_IN_PLACE)
    values = [function.__globals__[name] for name in loaded if name in function.__globals__]
    values += [sys.modules[name] for name in loaded if name in sys.modules]  # imported by the function itself
    for cell in cells:
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    for value in values:
        module = value.__name__ if isinstance(value, ModuleType) else ""
        if module in ("random", "numpy.random"):
            found["random"] = True
        elif module == "numpy":
            found["random"] |= "random" in others
        elif module.split(".")[0] == "torch":
            found["random"] |= bool(others & DRAWS)
        elif isinstance(value, FunctionType) and value.__name__ in DRAWS:
            found["random"] |= _of_torch(value)
        elif module:
            kept = (vars(value).get(name) for name in others)
            yield from (one for one in kept if callable(one) or isinstance(one, threading.local))
        else:
            yield value


def _is_shared(generator: Any) -> bool:
    return any(generator is shared for shared in _SHARED)


def names_of(steps: Iterable[dis.Instruction]) -> tuple[set[str], set[str]]:
    """Names that instructions, and functions made by them, load or import; and names of attributes."""
    loaded: set[str] = set()
    others: set[str] = set()
    for step in steps:
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            loaded.add(str(step.argval))
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")):
            others.add(str(step.argval))
        elif isinstance(step.argval, CodeType):
            inside = names_of(dis.get_instructions(step.argval))
            loaded |= inside[0]
            others |= inside[1]
    return loaded, others


def _read(function: FunctionType) -> Iterator[str]:
    """Global variables that a function, and those in it, read, as ``module.name``, and attributes, as ``.name``."""
    loaded, others = _names_in(function.__code__)
    yield from (f"{function.__module__}.{name}" for name in loaded)
    yield from (f".{name}" for name in others)
    for name in loaded:
        value = function.__globals__.get(name, sys.modules.get(name))
        if isinstance(value, ModuleType):
            yield from (f"{value.__name__}.{other}" for other in others)


def _stored(code: CodeType, module: str) -> Iterator[str]:
    """The same of those that it sets."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "STORE_ATTR"):
            yield f"{module if step.opname == 'STORE_GLOBAL' else ''}.{step.argval}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _stored(constant, module)


def _of_torch(value: Any) -> bool:
    owner = getattr(value, "__module__", None) or type(getattr(value, "__self__", None)).__module__
    return str(owner).split(".")[0] == "torch"


def _passed_over(module: str | None) -> bool:
    name = module or ""
    return name.startswith(_PASSED_OVER) or name.split(".")[0] in sys.stdlib_module_names or name == "torch"


def _is_users(module: str | None) -> bool:
    """Whether it is the name of the script, or of a module that is installed nowhere."""
    return module in SCRIPTS or is_users(sys.modules.get(module or ""))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(
        value,
        str | bytes | bytearray | int | float | complex | np.ndarray | np.generic | torch.Tensor | ModuleType
        | CodeType,
    )  # fmt: skip
