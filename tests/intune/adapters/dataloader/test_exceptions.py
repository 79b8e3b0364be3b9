"""Exceptions of the user's code are what they were, all that they hold included, and say where they came from."""

import builtins
import copy
import pickle

import pytest
from torch.utils.data import DataLoader, Dataset

from intune.adapters.dataloader.tasks import raised
from intune.errors import StageError
from tests.intune.adapters.dataloader.common import wrap

ARGUMENTS = {
    "UnicodeDecodeError": ("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "UnicodeEncodeError": ("ascii", "é", 0, 1, "not in range"),
    "UnicodeTranslateError": ("é", 0, 1, "no"),
    "ExceptionGroup": ("several", [ValueError(1), KeyError(2)]),
    "BaseExceptionGroup": ("several", [ValueError(1), SystemExit(2)]),
}

AS_THEY_ARE = {"KeyboardInterrupt", "SystemExit", "GeneratorExit", "BaseExceptionGroup"}

EXCEPTIONS = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException) and name == kind.__name__
)


class Failing(Dataset):
    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.fail() if index == 9 else index


class Sealed(Exception):
    """Of which nothing can be derived."""

    def __init_subclass__(cls):
        raise TypeError


class Slotted(Exception):
    __slots__ = ("code",)


class Base(BaseException):
    pass


def caught(dataset, wrapped):
    """What came of a loop, exceptions among the batches."""
    loader = wrap(DataLoader(dataset, 4), workers="thread") if wrapped else DataLoader(dataset, 4)
    loop, found = iter(loader), []
    while len(found) < 9:
        try:
            found.append(next(loop).tolist())
        except StopIteration:
            break
        except BaseException as error:
            found.append(error)
    if wrapped:
        loader.close()
    return found


@pytest.mark.parametrize("name", [name for name in EXCEPTIONS if "Stop" not in name])
def test_every_exception_of_pythons_stays_of_its_type(name):
    error = getattr(builtins, name)(*ARGUMENTS.get(name, (2, "no such thing", "/a/path")))
    kind, name = type(error), type(error).__name__  # an OSError's depends on its number
    made = raised(error, "there")
    assert made is error if name in AS_THEY_ARE else isinstance(made, StageError)
    assert isinstance(made, kind)
    assert made.args == error.args
    assert name in AS_THEY_ARE or str(made) == f"there: {name}: {error}"
    for field in ("errno", "strerror", "filename", "start", "reason", "object", "exceptions", "name", "code"):
        assert getattr(made, field, None) == getattr(error, field, None)


def missing():
    open("/nonexistent/9.jpg")  # noqa: SIM115


def slotted():
    error = Slotted(7)
    error.code = "x"
    error.add_note("a note")
    raise error


def base():
    raise Base("b")


def sealed():
    raise Sealed(5)


def leave():
    raise SystemExit(3)


@pytest.mark.parametrize("fail", [missing, slotted, base, leave])
def test_it_comes_in_its_turn_with_all_that_it_holds(fail):
    plain, tuned = caught(Failing(fail), wrapped=False), caught(Failing(fail), wrapped=True)
    assert len(plain) == len(tuned) == 5
    for one, other in zip(plain, tuned, strict=True):
        if isinstance(one, list):
            assert one == other
            continue
        assert isinstance(other, type(one))
        assert type(other).__name__ == type(one).__name__
        assert other.args == one.args
        for field in ("errno", "filename", "code", "__notes__"):
            assert getattr(other, field, None) == getattr(one, field, None)


def test_what_cannot_be_derived_from_comes_as_it_is_and_notes_the_place():
    error = caught(Failing(sealed), wrapped=True)[2]
    assert type(error) is Sealed
    assert error.__notes__ == ["stage 'fetch', batch 2 (indices 8, 9, 10, 11)"]


def test_it_can_be_sent_to_another_process_as_the_users_own():
    error = caught(Failing(missing), wrapped=True)[2]
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(made) is FileNotFoundError
        assert made.filename == "/nonexistent/9.jpg"
