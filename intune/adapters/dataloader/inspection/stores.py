"""Whether code keeps something for one sample where the next sample's would be, read from its functions.

``self.row = …; self._read(); self.row = None`` leaves nothing behind, so that batches made one after the other show
nothing of it; two threads at it mix their samples up. What is set once and for all, as a file that is opened or a
table that is made when it is first used, is no such thing: two threads at worst make it twice.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType, FunctionType

ENTRIES = frozenset(
    ("__getitem__", "__getitems__", "__call__", "__iter__", "__next__", "forward", "transform")
)
"""Methods that are called for every sample or batch, whoever calls them."""

_LEAVES = ("RETURN_VALUE", "RETURN_CONST", "RAISE", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")
"""Instructions after which it does not go on with the next."""

_ENDS = ("STORE_", "DELETE_", "RETURN", "RAISE", "RESUME", "POP_TOP")
"""Instructions that end a statement, as jumps do."""

_GLOBAL = "global "
"""In front of the name of a global variable, which is no attribute."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A place in a function that sets, or deletes, what others see too.

    Attributes:
        name: of the attribute or global variable.
        at: which instruction it is.
        resets: whether it deletes, or sets None.
        once: whether it only comes to it where that was not set.
        replaces: whether it only comes to it where that was another one.
        counts: whether it is made of what was there before.
    """

    name: str
    at: int
    resets: bool
    once: bool
    replaces: bool
    counts: bool


def mixes_up(
    methods: Iterable[Sequence[FunctionType]], functions: Sequence[FunctionType], bound: Iterable[str] = ()
) -> bool:
    """Whether any of the code keeps something for one sample only where all threads see it.

    Args:
        methods: of each class of which there is an object that all samples share.
        functions: of no class.
        bound: names of methods that are called beside those that the code calls, or that Python does.
    """
    kinds = [list(kind) for kind in methods]
    called = {name for function in functions for code in _codes(function.__code__) for name in code.co_names}
    called.update(bound)
    reached: list[list[FunctionType]] = [[] for _ in kinds]
    grows = True
    while grows:  # what is called by what was found to be called
        grows = False
        for kind, found in zip(kinds, reached, strict=True):
            for method in kind:
                if method not in found and (method.__name__ in ENTRIES or method.__name__ in called):
                    found.append(method)
                    called.update(name for code in _codes(method.__code__) for name in code.co_names)
                    grows = True
    return any(map(_mixes_up, [functions, *reached]))


def is_method(function: FunctionType) -> bool:
    """Whether a function was written in a class."""
    return "." in function.__qualname__.rpartition("<locals>.")[2]


def _mixes_up(functions: Iterable[FunctionType]) -> bool:
    """The same of the methods of one class, or of functions of none, that may all be called."""
    setting: dict[str, set[CodeType]] = {}
    resetting: dict[str, set[CodeType]] = {}
    for function in functions:
        entry = function.__name__ in ENTRIES
        for code in _codes(function.__code__):
            steps = list(dis.get_instructions(code))
            stores = list(_stores(code, steps, method=is_method(function)))
            if any(_is_for_one_sample(store, entry and code is function.__code__) for store in stores):
                return True
            if _one_after_the_other(stores, steps):
                return True
            for store in stores:
                if store.resets or not store.once:
                    (resetting if store.resets else setting).setdefault(store.name, set()).add(code)
    return any(name in setting and len(codes | setting[name]) > 1 for name, codes in resetting.items())


def _is_for_one_sample(store: Store, entry: bool) -> bool:
    """What is set by the way, and in a function that is called for every sample, is another one for each."""
    if store.replaces:
        return True
    return not store.once and (entry or (store.counts and store.name.startswith(_GLOBAL)))


def _one_after_the_other(stores: Sequence[Store], steps: Sequence[dis.Instruction]) -> bool:
    """Whether the same is set twice in one call, or set and set back."""
    for first in stores:
        others = [store for store in stores if store.name == first.name and store is not first]
        if first.resets or not others:
            continue
        after = _reachable(steps, first.at)
        if any(other.at in after and (other.resets or not (first.once or other.once)) for other in others):
            return True
    return False


def _stores(code: CodeType, steps: Sequence[dis.Instruction], *, method: bool) -> Iterator[Store]:
    """Those of one function to what it shares with other threads: itself, and what it knows from outside."""
    found = [
        (at, name)
        for at, step in enumerate(steps)
        if (name := _stored(step)) is not None
        and (step.opname.endswith("_GLOBAL") or _shared(code, steps, at, method))
    ]
    if not found:
        return
    comes_to = {0} | _reachable(steps, 0)
    guards = list(_guards(steps, found))
    for at, name in found:
        over = [guard for guard in guards if guard.covers(at, name)]
        yield Store(
            name=name,
            at=at,
            resets=steps[at].opname.startswith("DELETE") or _is_none(steps, at),
            # What only an exception leads to is how an attribute is made that is found not to be there.
            once=at not in comes_to or any(not guard.compares for guard in over),
            replaces=any(guard.compares for guard in over),
            counts=_is_counted(steps, at, name),
        )


def _stored(step: dis.Instruction) -> str | None:
    if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
        return str(step.argval)
    return f"{_GLOBAL}{step.argval}" if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") else None


def _owner(steps: Sequence[dis.Instruction], at: int) -> int:
    """The instruction that begins the object whose attribute is set."""
    at -= 1
    while at > 0 and steps[at].opname == "LOAD_ATTR":
        at -= 1
    return at


def _shared(code: CodeType, steps: Sequence[dis.Instruction], at: int, method: bool) -> bool:
    """Whether it is an attribute of the object a method belongs to, or of a global one; not of one made here."""
    step = steps[_owner(steps, at)]
    if "LOAD_FAST" in step.opname:  # some load two at a time
        variable = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
        return method and code.co_argcount > 0 and variable == code.co_varnames[0]
    return step.opname in ("LOAD_GLOBAL", "LOAD_DEREF")


def _is_none(steps: Sequence[dis.Instruction], at: int) -> bool:
    before = at - 1 if steps[at].opname == "STORE_GLOBAL" else _owner(steps, at) - 1
    return before >= 0 and steps[before].opname == "LOAD_CONST" and steps[before].argval is None


def _is_counted(steps: Sequence[dis.Instruction], at: int, name: str) -> bool:
    """Whether the value set is made of what was there before, whatever that was."""
    for step in reversed(steps[:at]):
        if _ends_statement(step):
            return False
        if step.opname == "LOAD_GLOBAL" and f"{_GLOBAL}{step.argval}" == name:
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class _Guard:
    """A test of something that is set where the test comes out one way.

    Attributes:
        stores: instructions that it decides on.
        names: of what they may set; None if any.
        compares: whether it asks which one it is, not whether there is any.
    """

    stores: range
    names: set[str] | None
    compares: bool

    def covers(self, at: int, name: str) -> bool:
        """Whether a store is subject to it."""
        return at in self.stores and (self.names is None or name in self.names)


def _guards(steps: Sequence[dis.Instruction], found: Sequence[tuple[int, str]]) -> Iterator[_Guard]:
    places = {step.offset: at for at, step in enumerate(steps)}
    for at, step in enumerate(steps):
        is_test = "JUMP" in step.opname and "IF_" in step.opname
        target = places.get(step.argval, -1) if is_test else -1
        if target <= at:
            continue
        names, compares = _tested(steps, at)
        if names & {name for place, name in found if at < place < target}:
            yield _Guard(stores=range(at, target), names=None, compares=compares)
        elif not compares and "FALSE" not in step.opname:  # self.table = self.table or made()
            end = next((n for n in range(target, len(steps)) if _ends_statement(steps[n])), target)
            yield _Guard(stores=range(end, end + 1), names=names, compares=False)


def _tested(steps: Sequence[dis.Instruction], at: int) -> tuple[set[str], bool]:
    """Names in the test that a jump is made by, and whether it compares with something that is no constant."""
    names: set[str] = set()
    compares = False
    for before, step in reversed(list(pairwise(steps[:at]))):
        if _ends_statement(step):
            break
        if step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")) or (
            step.opname == "LOAD_CONST" and isinstance(step.argval, str)  # as in hasattr(self, "table")
        ):
            names.add(str(step.argval))
        elif step.opname == "LOAD_GLOBAL":
            names.add(f"{_GLOBAL}{step.argval}")
        elif step.opname == "COMPARE_OP":
            compares |= before.opname not in ("LOAD_CONST", "LOAD_SMALL_INT")
    return names, compares


def _ends_statement(step: dis.Instruction) -> bool:
    return "JUMP" in step.opname or step.opname.startswith(_ENDS)


def _reachable(steps: Sequence[dis.Instruction], start: int) -> set[int]:
    """Instructions that may follow on one, but for those that an exception leads to."""
    places = {step.offset: at for at, step in enumerate(steps)}
    found: set[int] = set()
    waiting = [start]
    while waiting:
        step = steps[at := waiting.pop()]
        following = []
        if not step.opname.startswith(_LEAVES):
            following.append(at + 1)
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            following.append(places.get(step.argval, -1))
        for one in following:
            if 0 <= one < len(steps) and one not in found:
                found.add(one)
                waiting.append(one)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
