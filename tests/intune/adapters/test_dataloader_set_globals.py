"""What a script has set, set in another process: in the objects that others refer to, and also later."""

import importlib
import logging
import pickle
import sys
from argparse import Namespace
from types import ModuleType, SimpleNamespace

import pytest

from intune.adapters import dataloader_set_globals
from intune.adapters.dataloader_set_globals import set_globals


@pytest.fixture
def module(tmp_path, monkeypatch):
    made = ModuleType("a_users_module")
    made.__file__ = str(tmp_path / "a_users_module.py")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


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
        dataloader_set_globals._later.wanted = {}
        sys.modules.pop("a_module_for_later_still", None)
