"""What a script has set in the user's modules: what is sent, how it is set, and what is told of the rest."""

import importlib
import logging
import pickle
import sys
import threading
from argparse import Namespace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from intune.adapters.dataloader.inspection.mentions import unmade
from intune.adapters.dataloader.inspection.user_modules import is_users
from intune.adapters.dataloader.sending import pickled_values
from intune.adapters.dataloader.sending import user_globals as dataloader_globals
from intune.adapters.dataloader.sending.user_globals import gather, set_globals
from intune.adapters.dataloader.settings import read_settings
from tests.intune.adapters.dataloader.common import wrap

SOURCE = """
import enum
import torch
from torch.utils.data import Dataset, IterableDataset

class Config:
    scale = 1
    class Inner:
        shift = 0

class Color(enum.Enum):
    RED = 1

_vocabulary = None
_connection = None
registry = {}

def register(function):
    registry[function.__name__] = function
    return function

def load():
    global _vocabulary
    _vocabulary = {i: i + 0.5 for i in range(100)}

def connect(made):
    global _connection, _connected, connected_to
    _connection, _connected, connected_to = made, True, "there"

def value(i):
    return torch.tensor(_vocabulary[i] * Config.scale + Config.Inner.shift + registry["double"](i))

class Map(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return value(i)

class Reads(Map):
    def __getitem__(self, i):
        return torch.tensor(_connection is None)

class Connects(Map):
    def __getitem__(self, i):
        if _connection is None:
            connect(object())
        return torch.tensor(_connection is None)

class Stream(IterableDataset):
    def __iter__(self):
        from a_module_for_later import OPTIONS
        return iter([value(i) + OPTIONS["plus"] for i in range(8)])
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A user's module and another one, in files."""
    (tmp_path / "a_script_module.py").write_text(SOURCE)
    (tmp_path / "a_module_for_later.py").write_text("OPTIONS = {'plus': 0}")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("a_script_module")
    later = importlib.import_module("a_module_for_later")
    for name in ("a_script_module", "a_module_for_later"):
        monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))
    yield SimpleNamespace(module=module, later=later)
    dataloader_globals._later.wanted = {}


@pytest.fixture
def module(tmp_path, monkeypatch):
    made = ModuleType("a_users_module")
    made.__file__ = str(tmp_path / "a_users_module.py")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def sent(name):
    return {place: pickle.loads(pickled) for place, pickled in gather().values.get(name, {}).items()}


def begin(number):
    pass


@pytest.mark.parametrize("kind", ["Map", "Stream"])
def test_worker_processes_have_what_a_script_set_in_its_modules(script, kind):
    module = script.module
    module.load()
    module.Config.scale, module.Config.Inner.shift, script.later.OPTIONS["plus"] = 10, 3, 0.25

    @module.register
    def double(i):
        return 2 * i

    dataset = getattr(module, kind)()
    more = 0.25 if kind == "Stream" else 0
    with wrap(DataLoader(dataset, 4, num_workers=1, worker_init_fn=begin)) as loader:
        for scale in (10, 20):
            module.Config.scale = scale
            assert torch.cat(list(loader)).tolist() == [
                (i + 0.5) * scale + 3 + 2 * i + more for i in range(8)
            ]
        assert loader.workshop.choice.kind == "process"


def test_data_of_the_users_own_modules_is_sent_and_code_is_not(module):
    module.SCALE, module.options, module._names = 5, Namespace(rate=0.1, sizes=[1, 2]), ["a"]
    module.table, module.text, module.shape = np.arange(3), "x" * 20_000, SimpleNamespace(rows=(1, 2))
    module.function, module.kind, module.lock = np.mean, Namespace, threading.Lock()
    found = sent("a_users_module")
    assert found.pop("table").tolist() == [0, 1, 2]
    assert found == {
        "SCALE": 5,
        "options": module.options,
        "_names": ["a"],
        "text": module.text,
        "shape": module.shape,
    }
    assert not {"torch", "numpy", "argparse", "intune.pipelines.budget", "__main__"} & gather().values.keys()
    assert not is_users(dataloader_globals)


def test_code_in_place_of_other_code_is_sent_by_its_name(script, module):
    def local(i):
        return i

    source = script.module
    module.value, module.Config, module.other = source.connect, source.Config, local
    source.register, source.Config.method, source.Stream.__iter__ = source.load, source.value, source.value
    assert sent("a_users_module") == {"value": source.connect, "Config": source.Config}
    found = sent("a_script_module")
    assert (found["register"], found["Config.method"]) == (source.load, source.value)
    assert found["Stream.__iter__"] == source.value
    assert not {"load", "Map", "Map.__getitem__"} & found.keys()
    assert len(gather().values["a_users_module"]["value"]) < 100


def test_attributes_of_classes_are_sent_where_they_are_data(script):
    found = sent("a_script_module")
    assert found["Config.scale"] == 1
    assert found["Config.Inner.shift"] == 0
    assert not [name for name in found if name.startswith(("Color", "Map", "Config.Inner.__"))]


@pytest.fixture
def alone(module, monkeypatch):
    """There is no other module of the user's."""
    monkeypatch.setattr(dataloader_globals, "is_users", lambda other: other is module)
    return module


def test_what_cannot_be_sent_is_named_and_so_is_what_is_too_large(alone, monkeypatch):
    module = alone
    monkeypatch.setattr(dataloader_globals, "MOST_SENT", 1 << 16)
    module.file, module.small = open(__file__), [{}]  # noqa: SIM115
    module.array, module.numbers = np.zeros(1 << 20), list(range(1 << 18))
    module.loader, module.generator = DataLoader([1]), (i for i in "ab")
    module.file.close()
    left = {name.partition(".")[2]: why for name, why in gather().left.items() if "a_users_module" in name}
    assert left.keys() == {"file", "array", "numbers", "loader", "generator"}
    assert "cannot be pickled" in left["file"]
    assert left["array"] == left["numbers"] == "too large for the 64.0 KiB that are left for it"
    assert sent("a_users_module") == {"small": [{}]}


def test_a_vocabulary_is_pickled_again_only_where_it_has_changed(alone, monkeypatch):
    module = alone
    pickled = []
    by_value = pickled_values.by_value
    monkeypatch.setattr(pickled_values, "by_value", lambda value, **_: pickled.append(1) or by_value(value))
    module.words = {str(i): i for i in range(20_000)}
    for change in (lambda: None, lambda: module.words.update({"5": 5.0}), lambda: module.words.pop("7")):
        change()
        pickled.clear()
        assert [type(value) for value in sent("a_users_module")["words"].values()] == [
            type(value) for value in module.words.values()
        ]
        assert pickled
        pickled.clear()
        before = gather().values
        assert not pickled
    set_globals(before)
    del module.words
    gather()
    assert not pickled_values._known


def test_a_stand_in_for_what_is_not_there_is_passed_over(alone):
    class StandsIn:
        @property
        def __class__(self):
            raise RuntimeError("outside of a request")

    alone.request, alone.SCALE = StandsIn(), 1
    assert sent("a_users_module") == {"SCALE": 1}


def test_what_tells_of_something_that_stays_behind_stays_too(script):
    script.module.connect(threading.Thread)
    assert {"_connected", "connected_to"} <= sent("a_script_module").keys()
    script.module.connect(i for i in "ab")
    assert sent("a_script_module").keys() >= {"connected_to", "Config.scale"}
    assert "_connected" not in sent("a_script_module")
    script.module.Config.file, script.module.Config._opened = (i for i in "ab"), True
    assert "Config._opened" not in sent("a_script_module")
    assert "Config.scale" in sent("a_script_module")


def test_code_that_reads_what_stays_behind_is_warned_of_once(script, caplog):
    script.module.connect(i for i in "ab")
    dataset = script.module.Reads()
    plain = DataLoader(dataset, 4, num_workers=1, worker_init_fn=begin)
    with caplog.at_level(logging.WARNING, "intune"), wrap(plain) as loader:
        for _ in range(2):
            assert torch.cat(list(loader)).all()
    (record,) = caplog.records
    assert (
        "`a_script_module._connection` cannot be sent to worker processes (TypeError" in record.getMessage()
    )
    names = ["a_script_module._connection", "a_script_module.other"]
    assert unmade(read_settings(DataLoader(dataset)), names) == names[:1]
    assert unmade(read_settings(DataLoader(script.module.Connects())), names) == []
    of_classes = ["a_script_module.Config.scale", "a_script_module.Config.other"]
    assert unmade(read_settings(DataLoader(script.module.Map())), of_classes) == of_classes[:1]


# ---- how it is set -----------------------------------------------------------------------------------------


def len_of(module):
    return len(vars(module))


class Kept:
    def __init__(self, value):
        self.value = value


class OnlyOne:
    made = None

    def __new__(cls):
        cls.made = cls.made or super().__new__(cls)
        return cls.made


class Fails:
    def __reduce__(self):
        return int, ("no number",)


def test_values_are_set_in_the_objects_that_others_refer_to(module):
    module.SCALE, module.options, module.names, module.unset = 1, Namespace(rate=1), ["a"], None
    module.kept, module.shape, module.numbers, module.code = Kept(1), SimpleNamespace(rows=1), {1}, len
    module.other, module.only = {"a": 1}, OnlyOne()
    before = {name: vars(module)[name] for name in ("options", "names", "kept", "shape", "numbers", "other")}
    wanted = {
        "SCALE": 5,
        "options": Namespace(rate=2),
        "names": ["b"],
        "unset": "set",
        "kept": Kept(2),
        "shape": SimpleNamespace(rows=2),
        "numbers": {2},
        "code": len_of,
        "other": ["another", "kind"],
        "only": OnlyOne(),
    }
    pickled = {name: pickle.dumps(value) for name, value in wanted.items()}
    set_globals({"a_users_module": pickled, "not_imported": {"x": pickle.dumps(1)}})
    assert (module.SCALE, module.unset, module.code, module.other) == (
        5,
        "set",
        len_of,
        ["another", "kind"],
    )
    del before["other"]
    assert all(vars(module)[name] is value for name, value in before.items())
    assert (module.options.rate, module.names, module.kept.value) == (2, ["b"], 2)
    assert (module.shape.rows, module.numbers) == (2, {2})
    assert "not_imported" not in sys.modules


def test_what_cannot_be_made_again_is_told_and_the_others_are_set(module, caplog):
    module.SCALE, module.bad = 1, None
    wanted = {"bad": pickle.dumps(Fails()), "SCALE": pickle.dumps(2)}
    with caplog.at_level(logging.WARNING, "intune"):
        set_globals({"a_users_module": wanted})
    assert (module.SCALE, module.bad) == (2, None)
    assert "`a_users_module.bad` cannot be made again in a worker process" in caplog.text


def test_a_module_that_is_imported_later_gets_them_then(tmp_path, monkeypatch):
    (tmp_path / "a_module_for_later_still.py").write_text("OPTIONS = {'plus': 0}")
    monkeypatch.syspath_prepend(str(tmp_path))
    set_globals({"a_module_for_later_still": {"OPTIONS": pickle.dumps({"plus": 7})}})
    try:
        assert "a_module_for_later_still" not in sys.modules
        assert importlib.import_module("a_module_for_later_still").OPTIONS == {"plus": 7}
    finally:
        dataloader_globals._later.wanted = {}
        sys.modules.pop("a_module_for_later_still", None)
