"""What may go wrong around a job that is tuned, with real processes: the job does not notice."""

from __future__ import annotations

import ctypes
import gc
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import intune
from intune.agents.guard import Guard
from intune.agents.referee import Referee
from intune.agents.registry import make
from intune.control import Pace
from intune.decisions import DecisionLog
from tests.intune.tuned import Clock, controller, rounds, wait_until

QUICK = Pace(first=0.001, shortest=0.001, longest=0.002, tasks=0)

SCRIPT = """
import sys, threading
import psutil, torch
import intune
from intune.control import Pace
from torch.utils.data import DataLoader, TensorDataset

def tuned(display):
    data = DataLoader(TensorDataset(torch.arange(1600)), batch_size=4)
    pace = Pace(first=0.01, shortest=0.01, longest=0.1, tasks=0)
    return intune.tune(data, agent="even", cpus=1, memory="64MiB", knowledge=sys.argv[1], pace=pace,
                       log=f"{sys.argv[1]}/{display}", workers="thread", display=display)

if __name__ == "__main__":
    with tuned("auto") as panel, tuned("lines") as lines:
        total = 0
        for number, ((batch,), (other,)) in enumerate(zip(panel, lines)):
            total += int(batch.sum()) + int(other.sum())
            if number in (100, 300):
                for loader in (panel, lines):
                    seen = loader.controller.rounds
                    while loader.tuning and loader.controller.rounds < seen + 3:
                        threading.Event().wait(0.001)
                if number == 100:
                    print("going", flush=True)
                    sys.stdin.readline()  # until the terminal is gone
        assert panel.tuning and lines.tuning, (panel.failure, lines.failure)
        process = psutil.Process()
        for one in [process, *process.children(recursive=True)]:
            assert not [c for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert total == 2 * sum(range(1600))
    print("fine")
"""


def test_a_terminal_that_is_closed_ends_nothing_and_nothing_listens(tmp_path: Path) -> None:
    """Neither a loader with a panel nor one with lines."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    closed = threading.Event()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "INTUNE": "", "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        drain = threading.Thread(target=_drain, args=(ours, closed), daemon=True)
        drain.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "going\n"
        finally:
            closed.set()
            drain.join(20)
            os.close(ours)
        out, _ = process.communicate("on\n", timeout=170)
    assert (process.returncode, out) == (0, "fine\n")
    for display in ("auto", "lines"):
        assert len((tmp_path / "run" / display / "decisions.jsonl").read_text().splitlines()) > 4


def _drain(terminal: int, closed: threading.Event) -> None:
    os.set_blocking(terminal, False)
    while not closed.wait(0.005):
        try:
            os.read(terminal, 65536)
        except OSError:
            continue


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # it may be killed as it opens one
def test_a_control_thread_that_is_killed_takes_nothing_with_it(caplog: pytest.LogCaptureFixture) -> None:
    data = DataLoader(TensorDataset(torch.arange(4000)), batch_size=4)
    with intune.tune(
        data, agent="even", cpus=1, memory="64MiB", knowledge=False, workers="thread", pace=QUICK
    ) as tuned:
        total = 0
        for number, (batch,) in enumerate(tuned):
            total += int(batch.sum())
            if number == 100:
                wait_until(lambda: len(tuned.decisions) > 2)
                (thread,) = [one for one in threading.enumerate() if one.name == "intune-tuner"]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
                )
                wait_until(lambda: not tuned.tuning)
                slots = tuned.stats().allocation
        assert total == sum(range(4000))
        assert tuned.stats().allocation == slots
        assert isinstance(tuned.failure, SystemExit)
        assert sum(int(batch.sum()) for (batch,) in tuned) == sum(range(4000))
    assert caplog.text.count("tuning stopped (SystemExit") == len(caplog.records) == 1


def test_hours_of_an_agent_that_learns_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once what is kept and remembered is full, more intervals add nothing: memory, threads, files and the log are
    bounded."""
    monkeypatch.setattr("intune.control.KEPT", 32)
    monkeypatch.setattr("intune.agents.online.CAPACITY", 32)
    clock = Clock()
    most = 16 << 10
    log = DecisionLog(tmp_path / "decisions.jsonl", header={"agent": "dqn"}, most_bytes=most)
    agent = Guard(Referee(make("dqn", learning=True)))
    one, _ = controller(agent, clock, watch=[log.add], interval=10.0)
    process = psutil.Process()

    def state() -> tuple[int, int, int, int]:
        gc.collect()
        return process.num_fds(), threading.active_count(), len(gc.get_objects()), process.memory_info().rss

    rounds(one, clock, 44, seconds=10.0)
    before, known = state(), len(str(agent.knowledge()))
    rounds(one, clock, 60, seconds=10.0)
    after = state()
    assert after[:2] == before[:2]
    assert after[2] < before[2] + 45  # one object a round would be 60
    assert after[3] < before[3] + (16 << 20)
    assert (one.rounds, len(one.entries)) == (104, 32)
    assert len(str(agent.knowledge())) < known + 500
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["decisions.jsonl", "decisions.jsonl.1"]
    assert all(file.stat().st_size < most + 8192 for file in files)
    log.close()
