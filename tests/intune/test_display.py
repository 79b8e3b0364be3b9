"""What a running job shows."""

import io
import os
import sys
from unittest.mock import Mock

import pytest
from rich.console import Console

from intune.display import Display, View, can_draw, line, panel
from intune.pipelines import Allocation, PipelineStats, StageStats


def stats(seconds: float, *, shared: bool = False, **changes: int) -> PipelineStats:
    """`seconds` into a job that trains 60,000 rows a second and waits 30 % of the time."""
    names = ("load", "batch", "transform")
    stages = tuple(
        StageStats(
            name=name,
            slots=2,
            running=1,
            tasks=int(seconds),
            rows=int(seconds * 60_000),
            busy_s=seconds,
            cpu_s=seconds * 0.75,
            slot_s=seconds * (1 if shared else 2),
            queue=3,
        )
        for name in names
    )
    allocation = Allocation.shared(2) if shared else Allocation.per_stage(dict.fromkeys(names, 2))
    values = {"redone": 0, "workers_lost": 0, "skipped": 0} | changes
    return PipelineStats(
        stages=stages,
        elapsed_s=seconds,
        epoch=0,
        batch=int(seconds * 10),
        batches=int(seconds * 10),
        rows=int(seconds * 60_000),
        step_s=0.7 * seconds,
        wait_s=0.3 * seconds,
        memory_held=80 << 20,
        memory_peak=90 << 20,
        memory_limit=200 << 20,
        memory_resident=1 << 30,
        allocation=allocation,
        **values,
    )


def view(**options) -> View:
    now, before = stats(5, **options), stats(3)
    return View(done=50, total=400, loss=0.5123, now=now.since(before), whole=now)


def drawn(renderable) -> str:

    out = io.StringIO()
    Console(file=out, width=120).print(renderable)
    return out.getvalue()


def test_a_line_tells_rate_loss_waiting_memory_slots_and_occupancy():
    text = line(view())
    assert "step 50/400" in text
    assert "loss 0.5123" in text
    assert "60k rows/s" in text
    assert "waiting 30%" in text
    assert "80.0 MiB of 200 MiB" in text
    assert "transform 2 at 50%" in text


def test_a_frame_tells_the_same_and_more():
    text = drawn(panel(view(), "DLRM"))
    for part in (
        "50 of 400, 0:35 to go",
        "0.5123",
        "60k rows/s",
        "30%",
        "peak 90.0 MiB",
        "1.00 GiB resident",
    ):
        assert part in text
    assert sum(name in text for name in ("load", "batch", "transform")) == 3


def test_losses_and_skips_are_noted():
    text = drawn(panel(view(workers_lost=2, redone=7, skipped=3), "DLRM"))
    assert "2 worker(s) died, 7 block(s) made again; 3 skipped" in text


def test_slots_of_a_shared_pool_are_shown_as_such():
    assert "[pool of 2: load 50%" in line(view(shared=True))  # of the pool's time


@pytest.mark.parametrize(("kind", "drawn"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_nothing_is_drawn_where_nothing_can_be_redrawn(kind, drawn, monkeypatch):
    monkeypatch.setenv("TERM", kind)
    out = io.StringIO()
    out.isatty = lambda: True
    clock = [0.0]
    with Display(100, stream=out, clock=lambda: clock[0]) as display:
        clock[0] = 6.0
        display.on_step(1, 0.5, stats(6))
        assert ("\x1b" in out.getvalue()) is drawn
        assert "60k" in out.getvalue()


@pytest.mark.parametrize(("encoding", "drawn"), [("utf-8", True), ("latin-1", False)])
def test_nothing_is_drawn_where_there_are_no_signs_for_it(encoding, drawn, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    out.isatty = lambda: True
    assert can_draw(Console(file=out)) is drawn


@pytest.mark.parametrize("width", [40, 120])
def test_on_a_narrow_terminal_no_figure_of_a_stage_is_cut(width):
    out = io.StringIO()
    Console(file=out, width=width).print(panel(view(), "DLRM"))
    (row,) = (line.strip("│ ").split() for line in out.getvalue().splitlines() if "transform" in line)
    assert row[:3] == ["transform", "2", "1.0"]
    assert ("occupancy" in out.getvalue()) == (width > 80)


@pytest.mark.parametrize(("mode", "lines"), [("lines", 3), ("quiet", 0)])
def test_lines_come_every_few_seconds_and_at_the_end(mode, lines):
    clock, out = [0.0], io.StringIO()
    with Display(100, mode=mode, stream=out, clock=lambda: clock[0]) as display:
        for step in range(1, 101):
            clock[0] += 0.07
            display.on_step(step, 0.5, stats(clock[0]))
    assert len(out.getvalue().splitlines()) == lines


def test_a_display_reads_what_it_shows_only_when_it_shows_it():
    clock, reads = [0.0], []

    def read():
        reads.append(clock[0])
        return stats(clock[0])

    with Display(100, mode="lines", stream=io.StringIO(), read=read, clock=lambda: clock[0]) as display:
        for step in range(1, 101):
            clock[0] += 0.07
            display.on_step(step, 0.5, stats(clock[0]))
    assert len(reads) == 3


@pytest.mark.parametrize("colours", ["", "1"])
def test_auto_draws_no_frames_into_a_file(colours, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", colours)
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    with Display(1, stream=out) as display:
        display.on_step(1, 0.5, stats(1))
    assert "\x1b" not in out.getvalue()
    assert "step 1/1" in out.getvalue()


def test_a_live_frame_is_drawn_on_a_terminal():
    out = io.StringIO()
    out.isatty = lambda: True
    with Display(1, stream=out, mode="live") as display:
        display.on_step(1, 0.5, stats(1))
    assert "rows/s" in out.getvalue()


@pytest.mark.parametrize("mode", ["lines", "live"])
@pytest.mark.parametrize("error", [BrokenPipeError, OSError(28, "No space left on device"), ValueError])
def test_a_training_goes_on_where_nothing_can_be_shown_any_more(mode, error, monkeypatch, capfd):
    out = io.StringIO()
    streams = sys.stdout, sys.stderr
    with Display(2, mode=mode, stream=out, clock=lambda: 0.0) as display:
        monkeypatch.setattr(out, "write", Mock(side_effect=error))
        display.on_step(2, 0.5, stats(1))
        out.write.reset_mock()
        display.on_step(2, 0.5, stats(1))
        out.write.assert_not_called()
    assert (sys.stdout, sys.stderr) == streams
    os.write(1, b"what the job prints")
    assert capfd.readouterr().out == "what the job prints"


def test_with_standard_error_closed_nothing_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    with Display(1) as display:
        display.on_step(1, 0.5, stats(1))
    assert capsys.readouterr().out == ""
