"""A session in a notebook, with a real kernel: cells run again and interrupted, and nothing left behind."""

from __future__ import annotations

import os
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

BEGIN = """
import gc, signal, threading, torch, intune
from intune.control import Pace
from torch.utils.data import DataLoader, TensorDataset

def threads():
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("intune-") and not ("loader" in globals() and loader.tuning):
            thread.join(60)
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("intune-"))

def made(display="auto"):
    data = DataLoader(TensorDataset(torch.arange(2000)), batch_size=4)
    pace = Pace(first=0.001, shortest=0.001, longest=0.002, tasks=0)
    return intune.tune(data, workers="thread", agent="even", cpus=1, memory="64MiB", knowledge=False, pace=pace,
                       display=display)

def some(loader, act):
    for number, (batch,) in enumerate(loader):
        if number == 100:
            while not loader.decisions:
                threading.Event().wait(0.001)
            act()
            break

def total(loader):
    return sum(int(batch.sum()) for (batch,) in loader)

def interrupt():
    signal.raise_signal(signal.SIGINT)

def leave():
    pass
"""
AGAIN = "loader = made()\nsome(loader, leave)"
FAILS = "with made() as loader:\n    some(loader, lambda: 1 / 0)"
LIVE = "with made('live') as loader:\n    some(loader, leave)"
CELLS = [
    BEGIN,
    AGAIN,
    AGAIN,  # the cell is run again: the loader before is forgotten
    "print(threads())",
    "some(loader, interrupt)",
    "print(total(loader))",  # from the beginning, as any loader
    "loader.close(); print(threads())",
    FAILS,
    "print(threads())",
    LIVE,
    "print(threads())",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells, run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=170, kernel_name="python3", allow_errors=True)
    client.execute(
        cwd=os.getcwd(),
        env={
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "INTUNE": "",
            "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
        },
    )
    run: list[Any] = notebook.cells
    return run


def printed(cell: Any) -> str:
    return "".join(
        out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout"
    ).strip()


def shown(cell: Any) -> str:
    return "".join(out.data["text/plain"] for out in cell.outputs if out.output_type == "display_data")


def errors(cell: Any) -> list[str]:
    return [out.ename for out in cell.outputs if out.output_type == "error"]


def test_a_notebook_goes_on_after_all_that_is_done_to_it(cells: list[Any]) -> None:
    assert [errors(cell) for cell in cells] == [
        [], [], [], [], ["KeyboardInterrupt"], [], [], ["ZeroDivisionError"], [], [], [],
    ]  # fmt: skip
    assert printed(cells[5]) == str(sum(range(2000)))


def test_nothing_is_left_behind(cells: list[Any]) -> None:
    left = printed(cells[3])
    assert left.count("intune-tuner") == 1, "the loader before tunes on"
    assert [printed(cells[at]) for at in (6, 8, 10)] == ["[]", "[]", "[]"]


def test_decisions_are_lines_also_where_a_panel_cannot_be_drawn(cells: list[Any]) -> None:
    for cell in (cells[1], cells[9]):
        assert "rows/s" in shown(cell)
    said = [out.text for cell in cells for out in cell.outputs if out.get("name") == "stderr"]
    assert not said
