"""When a sampler draws random numbers or counts: what must not be read ahead, lest others have drawn meanwhile.

Most samplers make up their order when they begin, and can then be read as far ahead as anybody likes. One that draws
for every batch, as one that picks a domain or shuffles a buffer, has to be read when the DataLoader would read it: the
training draws from the same generators in between. Of torch's own it is known; of others it is read from their
functions.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from intune.adapters.dataloader.inspection.mentions import methods_of, names_of, steps_draw

_AT_ONCE = (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, list, tuple, range)
"""Samplers that draw, if at all, when the first sample is asked for."""

_DRAWN_AT_ONCE = 32
"""Samples for which torch's `RandomSampler` draws at a time with replacement."""


def draws_of(index_sampler: Any) -> Callable[[int], bool] | None:
    """Says of a read, by its number, whether the sampler may draw in it; None where that cannot be known.

    Subclasses may do anything, so that only torch's own classes are known.
    """
    batched = type(index_sampler) is BatchSampler
    sampler = index_sampler.sampler if batched else index_sampler
    size = int(index_sampler.batch_size) if batched else 1
    if type(sampler) in _AT_ONCE or (type(sampler) is RandomSampler and sampler.generator is None):
        return lambda read: read == 0
    if type(sampler) is not RandomSampler:
        return None
    period = _DRAWN_AT_ONCE if sampler.replacement else max(1, len(sampler.data_source))
    total = int(sampler.num_samples)

    def draws(read: int) -> bool:
        first, last = read * size, min((read + 1) * size - 1, total)
        return -(-first // period) * period <= last

    return draws


def length_of(index_sampler: Any) -> int | None:
    """Batches that a sampler says it gives; None if it does not say."""
    try:
        return len(index_sampler)
    except Exception:  # it may be the user's, and the DataLoader would not have asked
        return None


def draws_late(sampler: Any) -> bool:
    """Whether it may draw after its first batch from generators that others may draw from too."""
    with suppress(Exception):  # the user's classes may do anything when they are looked at
        return any(_draws(*part) for part in _late(sampler))
    return False


def counts_late(sampler: Any) -> bool:
    """Whether it may set an attribute after its first batch."""
    with suppress(Exception):
        return any(step.opname == "STORE_ATTR" for _, _, steps in _late(sampler) for step in steps)
    return False


def _draws(one: Any, function: FunctionType, steps: list[dis.Instruction]) -> bool:
    loaded, others = names_of(steps)
    begun = [function.__globals__.get(name) for name in loaded]
    begun += [getattr(one, "__dict__", {}).get(name) for name in others]
    return any(map(_draws_at_first, begun)) or steps_draw(steps, function, one)


def _late(sampler: Any) -> Iterator[tuple[Any, FunctionType, list[dis.Instruction]]]:
    """Of a sampler, those in it and the code beside them that they use: each, its functions, and what of them may run
    after the first batch."""
    waiting, seen = [sampler], dict[int, Any]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        functions = [one]
        if not isinstance(one, FunctionType):
            waiting += [
                value for value in getattr(one, "__dict__", {}).values() if isinstance(value, Sampler)
            ]
            functions = list(methods_of(one if isinstance(one, type) else type(one)))
        for function in functions:
            yield one, function, _after_the_first(function)
            waiting += _beside(function)


def _beside(function: FunctionType) -> list[Any]:
    """Functions and classes that it uses of the package that it was written in."""
    found: list[Any] = []
    with suppress(ValueError):  # what a cell refers to is not made yet
        used = inspect.getclosurevars(function)
        found += [*used.globals.values(), *used.nonlocals.values()]
    home = _package(function)
    return [one for one in found if isinstance(one, FunctionType | type) and _package(one) == home]


def _package(value: Any) -> str:
    return str(value.__module__).partition(".")[0]


def _after_the_first(function: FunctionType) -> list[dis.Instruction]:
    """Of a function that gives batches; nothing of others."""
    steps = list(dis.get_instructions(function.__code__))
    if function.__name__ == "__next__":
        return steps
    if not function.__code__.co_flags & inspect.CO_GENERATOR:
        return [step for code in _lazy(steps) for step in dis.get_instructions(code)]
    place = {step.offset: number for number, step in enumerate(steps)}
    yields = [number for number, step in enumerate(steps) if step.opname == "YIELD_VALUE"]
    begin = min(yields, default=len(steps))
    for number, step in enumerate(steps):
        target = place.get(step.argval, number) if "JUMP" in step.opname else number
        if any(target <= one < number for one in yields):
            begin = min(begin, target)  # of a loop
    return steps[begin:]


def _lazy(steps: list[dis.Instruction]) -> list[CodeType]:
    """What is made to run element by element: generators, and functions as for `map`."""
    inner = [step.argval for step in steps if isinstance(step.argval, CodeType)]
    return [code for code in inner if code.co_flags & inspect.CO_GENERATOR or code.co_name == "<lambda>"]


def _draws_at_first(value: Any) -> bool:
    """Whether it is a sampler, or a class of them, that may draw when it is begun."""
    if type(value) is BatchSampler:
        return _draws_at_first(value.sampler)
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, Sampler) and kind not in (Sampler, SequentialSampler, BatchSampler)
