"""What tuning looks like: lines, a panel, and a terminal that is gone."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from intune.pipelines import Allocation
from intune.tuning_display import TuningDisplay, line, panel, spark
from tests.intune.tuned import an_entry


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_says_rate_waiting_memory_slots_and_why() -> None:
    text = line(an_entry(time=12.0, reason="transform is the slowest"))
    for part in (
        "12.0 s",
        "rows/s",
        "waiting",
        "7.45 GiB",
        "[load=3 batch=1 transform=4]",
        "transform is the slowest",
    ):
        assert part in text


def test_elsewhere_than_on_a_terminal_changes_are_lines() -> None:
    stream = io.StringIO()
    display = TuningDisplay(stream=stream)
    display(an_entry())
    for _ in range(6):
        display(an_entry(decided=None, reason="keep: [all] is well"))
    display.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2  # the change, and one of six that changed nothing
    assert "keep: [all] is well" in lines[1]  # no markup is read into it
    assert "\x1b" not in stream.getvalue()


def test_lines_go_on_however_long_the_job_takes() -> None:
    stream = io.StringIO()
    display = TuningDisplay(stream=stream)
    entry = an_entry(decided=None, reason="keep: all is well")
    for _ in range(600):
        display(entry)
    display.close()
    assert len(stream.getvalue().splitlines()) == 100


def test_a_panel_shows_stages_reasons_and_memory() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    past = deque([an_entry(time=float(t), reason=f"reason {t}", decided=None) for t in range(8)])
    console.print(panel(past[-1], past))
    text = console.export_text()
    for part in ("load", "batch", "transform", "waiting for data", "memory", "CPUs", "reason 7", "reason 3"):
        assert part in text
    assert "reason 2" not in text  # only the last five


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_on_a_narrow_terminal_columns_are_left_out_and_none_is_cut(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    entry = an_entry(stages=("load", "batch", "map[features]"))
    console.print(panel(entry, deque([entry])))
    lines = console.export_text().splitlines()
    (row,) = (line.strip("│ ").split() for line in lines if "map[features]" in line)
    assert row[1] == f"{entry.measured.slots[0, 2]:.0f}"
    assert ("occupancy" in " ".join(lines)) == (width > 80)
    assert "…" not in " ".join(lines)
    assert "rows/s" in lines[1]
    assert "waiting for data" in lines[1]


def test_a_panel_of_a_pool_and_of_nothing_measured() -> None:
    entry = an_entry(allocation=Allocation.shared(4), decided=None)
    blank = {name: np.full((1, 3), np.nan) for name in ("busy", "rate", "starved", "blocked", "queue_fill")}
    unknown = replace(entry.measured, pool=np.array([4.0]), slots=np.full((1, 3), 4.0), **blank,
                      delivered=np.array([np.nan]), waiting=np.array([np.nan]), memory_used=np.array([np.nan]),
                      cpus_used=np.array([np.nan]))  # fmt: skip
    entry = replace(entry, measured=unknown)
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(panel(entry, deque([entry])))
    assert "of 4" in console.export_text()
    assert "shared=4" in line(entry)


def test_a_terminal_shows_the_panel_and_keeps_the_last_frame() -> None:
    stream = Terminal()
    streams = sys.stdout, sys.stderr
    display = TuningDisplay(stream=stream)
    display(an_entry())
    display(an_entry(reason="the second"))
    display.close()
    display.close()
    assert "the second" in stream.getvalue()
    assert (sys.stdout, sys.stderr) == streams


def test_of_two_loaders_on_a_terminal_one_has_the_panel_and_the_other_lines_above_it() -> None:
    stream = Terminal()
    streams = sys.stdout, sys.stderr
    first, second = TuningDisplay(stream=stream), TuningDisplay(stream=stream)
    first(an_entry(reason="of the first"))
    second(an_entry(reason="of the second"))
    shown = stream.getvalue()
    assert line(an_entry(reason="of the second")) + "\n" in shown
    assert "of the first" in shown.rpartition("of the second")[2]  # the panel, drawn again below
    first.close()  # before the other one
    second(an_entry(reason="still there"))
    second.close()
    assert stream.getvalue().endswith(line(an_entry(reason="still there")) + "\n")
    assert (sys.stdout, sys.stderr) == streams
    third = TuningDisplay(stream=stream)
    third(an_entry(reason="of the third"))
    third.close()
    assert "╭" in stream.getvalue().rpartition("still there")[2]


def test_what_a_job_prints_and_logs_goes_above_the_panel_and_a_bar_of_its_own_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler()  # made before the panel, as by `logging.basicConfig`
    logger = logging.getLogger("a.job")
    logger.addHandler(handler)
    try:
        display = TuningDisplay()
        display(an_entry())
        seen = len(terminal.getvalue())
        logger.warning("step 20")
        text = terminal.getvalue()[seen:]
        assert text.index("step 20") < text.index("occupancy")  # drawn again below
        sys.stderr.write("\r 50%")
        assert (sys.stderr, handler.stream) == (terminal, terminal)
        seen = len(terminal.getvalue())
        display(an_entry(reason="[load] is the slowest"))
        assert "[load] is the slowest" in terminal.getvalue()[seen:]
        assert "occupancy" not in terminal.getvalue()[seen:]
        display.close()
    finally:
        logger.removeHandler(handler)


def test_beside_a_bar_of_tqdm_lines_go_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, aside = Terminal(), Mock(return_value=nullcontext())
    bars = SimpleNamespace(_instances={"a bar"}, external_write_mode=aside)
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bars))
    display = TuningDisplay(stream=terminal)
    display(an_entry())
    display.close()
    aside.assert_called_once_with(terminal)
    assert terminal.getvalue().startswith("intune ")


@pytest.mark.parametrize("under", [False, True])
def test_a_bar_of_rich_and_lines_share_a_terminal(under: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = TuningDisplay()
    if under:  # a panel that is there already ends
        display(an_entry())
    with Progress(console=Console(stderr=True), auto_refresh=False) as bar:
        bar.add_task("epoch 0")
        bar.refresh()
        seen = len(terminal.getvalue())
        display(an_entry(reason="[load] is the slowest"))
        text = terminal.getvalue()[seen:]
        assert text.index("[load] is the slowest") < text.index("epoch 0")  # drawn again below
        assert "occupancy" not in text
    display.close()
    sys.stderr.write("after")
    assert terminal.getvalue().endswith("after")


def test_of_two_loaders_on_standard_error_one_has_the_panel_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    first, second = TuningDisplay(), TuningDisplay()
    first(an_entry())
    second(an_entry())
    assert terminal.getvalue().count("╰") == 2  # the same panel, below the other's line
    print("\r50%", end="")  # while it is replaced, `print` has but a borrowed reference to the stream
    first.close()
    second.close()
    assert (sys.stdout, sys.stderr) == (terminal, terminal)


def test_a_terminal_that_cannot_go_back_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    display = TuningDisplay(stream=stream)
    display(an_entry())
    assert stream.getvalue() == line(an_entry()) + "\n"


def test_a_closed_terminal_is_silent_and_gives_the_streams_back() -> None:
    stream = Terminal()
    streams = sys.stdout, sys.stderr
    display = TuningDisplay(mode="live", stream=stream)
    display(an_entry())
    stream.close()
    display(an_entry())
    display(an_entry())
    display.close()
    assert (sys.stdout, sys.stderr) == streams


def test_tuning_and_what_the_job_prints_go_on_when_nobody_reads_the_lines_any_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    display = TuningDisplay(stream=stream)
    monkeypatch.setattr(stream, "write", Mock(side_effect=BrokenPipeError))
    display(an_entry(decided=Allocation.shared(3)))
    os.write(1, b"what the job prints")
    assert capfd.readouterr().out == "what the job prints"


def test_quiet_is_quiet() -> None:
    stream = Terminal()
    display = TuningDisplay(mode="quiet", stream=stream)
    display(an_entry())
    display.close()
    assert stream.getvalue() == ""


def test_a_sparkline_goes_from_nothing_to_the_largest() -> None:
    assert spark([0.0, 5.0, 10.0]) == "▁▅█"
    assert spark([]) == spark([0.0]) == ""
    assert len(spark([1.0] * 100, width=32)) == 32
