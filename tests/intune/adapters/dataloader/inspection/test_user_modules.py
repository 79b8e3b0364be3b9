"""Modules are the user's where nobody installed them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

import intune.pipelines
from intune.adapters.dataloader.inspection.user_modules import is_users


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module in it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    yield tmp_path / "mine"
    sys.modules.pop("a_module_of_mine", None)


def made(folder: Path) -> object:
    (folder / "a_module_of_mine.py").write_text("x = 1")
    importlib.invalidate_caches()
    return importlib.import_module("a_module_of_mine")


def test_a_module_beside_the_script_is_the_users(folder: Path) -> None:
    assert is_users(made(folder))


@pytest.mark.parametrize("entry", ["", "__an_import_hook's_name__"])
def test_nor_does_it_matter_that_the_current_folder_was_removed(
    folder: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = made(folder)
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    monkeypatch.syspath_prepend(entry)
    (folder / "gone").rmdir()
    assert is_users(module)


def test_what_pip_puts_into_a_folder_is_not(folder: Path) -> None:
    (folder / "a_module_of_mine-1.0.dist-info").mkdir()
    assert not is_users(made(folder))


def test_packages_of_another_python_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "opt" / "dist-packages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    assert not is_users(made(folder))
    sys.modules.pop("a_module_of_mine", None)


@pytest.mark.parametrize("module", [numpy, sys, pytest, intune.pipelines, None, "a text"])
def test_neither_is_what_comes_with_python_or_is_installed(module: object) -> None:
    assert not is_users(module)
