"""What a script decorates with Python's own decorators goes to another process."""

import functools
import pickle
import threading
from typing import NamedTuple

import pytest

from intune.adapters.dataloader.sending.pickled_size import fingerprint, structure_bytes
from intune.pipelines.executors.packing import by_value


@functools.lru_cache
def imported(x):
    return x


@functools.singledispatch
def by_type(x):
    return x


def remembering():
    """Refers to itself."""

    @functools.lru_cache(maxsize=7, typed=True)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    return fibonacci


def method():
    class Remembers:
        @functools.cache  # noqa: B019
        def value(self, x):
            return x + 45

    return Remembers().value


def of_the_class():
    class Remembers:
        @classmethod
        @functools.cache
        def value(cls, x):
            return x + 45

    return Remembers.value


def computed_once():
    class Computes:
        @functools.cached_property
        def value(self):
            return 45

    return lambda x: Computes().value + x


def dispatched():
    @functools.singledispatch
    def double(x):
        return 2 * x

    @double.register
    def _(x: list):
        return [double(one) for one in x]

    return lambda x: double([x])[0] - x + 45


def dispatched_method():
    class Doubles:
        @functools.singledispatchmethod
        def value(self, x):
            return 2 * x

        @value.register
        def _(self, x: int):
            return x + 45

    return Doubles().value


def a_threads_own():
    local = threading.local()
    local.kept = 45
    return lambda x: local.kept + x


def named():
    class Named(NamedTuple):
        x: int = 45

    return lambda x: Named().x + x


@pytest.mark.parametrize(
    "make",
    [method, of_the_class, computed_once, dispatched, dispatched_method, a_threads_own, named],
)
@pytest.mark.parametrize("shared", [False, True])
def test_it_does_the_same_there(make, shared):
    function = make()
    assert pickle.loads(by_value(function, shared=shared))(10) == function(10) == 55
    assert structure_bytes(function) > 0
    assert fingerprint(function) is not None


def test_a_function_with_a_cache_has_an_empty_one_of_the_same_size_there():
    function = remembering()
    assert function(10) == 55
    made = pickle.loads(by_value(function))
    assert made.cache_info().currsize == 0
    assert made.cache_parameters() == {"maxsize": 7, "typed": True}
    assert made(10) == 55
    before = fingerprint(function)
    function(20)
    assert fingerprint(function) == before


def test_what_can_be_imported_is():
    assert pickle.loads(by_value(imported)) is imported
    assert pickle.loads(by_value(by_type)) is by_type
