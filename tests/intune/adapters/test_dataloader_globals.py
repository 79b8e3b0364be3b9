"""Options in the user's modules: which are sent, and how they are set."""

import sys
from argparse import Namespace
from types import ModuleType

import pytest

from intune.adapters.dataloader_globals import plain_globals, set_globals


@pytest.fixture
def module(tmp_path, monkeypatch):
    made = ModuleType("a_users_module")
    made.__file__ = str(tmp_path / "a_users_module.py")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_public_plain_values_of_the_users_own_modules_are_sent(module):
    module.SCALE, module.options, module.names = 5, Namespace(rate=0.1, sizes=[1, 2]), ["a"]
    module._opened, module.table, module.text = True, {"x": object()}, "x" * 20_000
    found = plain_globals()
    assert found["a_users_module"] == {"SCALE": 5, "options": module.options, "names": ["a"]}
    assert not {"torch", "numpy", "argparse", "intune.adapters", "__main__"} & found.keys()


def test_they_are_set_in_the_objects_that_others_refer_to(module):
    module.SCALE, module.options, module.names, module.unset = 1, Namespace(rate=1), ["a"], None
    options, names = module.options, module.names
    wanted = {"SCALE": 5, "options": Namespace(rate=2), "names": ["b"], "unset": "set"}
    set_globals({"a_users_module": wanted, "not_imported": {"x": 1}})
    assert (module.SCALE, module.unset, module.options, module.names) == (5, "set", options, names)
    assert (options.rate, names) == (2, ["b"])
    assert "not_imported" not in sys.modules
