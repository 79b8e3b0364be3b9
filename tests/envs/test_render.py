from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intune.envs import render
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.render_font import GLYPHS, draw_text
from intune.envs.simulated import SimulatedPipelineEnv
from intune.envs.simulator import Simulator


@pytest.fixture
def measured() -> Measurement:
    """Two of three stages of 1 and 2 ms, with 4 and 2 slots; the second is the bottleneck."""
    jobs = Jobs.of(
        stages=2,
        cpu=[[1e-3, 2e-3]],
        step=1e-9,
        cpus=8,
        memory=1e6,
        base_bytes=3e5,
        row_bytes=1.0,
        block_rows=1e3,
    )
    simulator = Simulator(jobs.widened(stages=3, nodes=1, events=0))
    simulator.allocate([[4, 2, 1]])
    for _ in range(9):
        found = simulator.run()
    return found


def test_the_text_says_rate_slots_queues_and_memory(measured: Measurement) -> None:
    lines = render.text(measured, [500.0, 1000.0]).splitlines()
    assert lines[0].startswith("1k rows/s")
    assert "CPUs 3.0/8" in lines[0]
    assert "memory 30%" in lines[0]
    # A quarter at work, the rest without room; the second all at work, what it makes is taken at once.
    assert lines[1] == " 1    4 slots [█████▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒] queue [▮▮▮▮▮▮▮▮]"
    assert lines[2] == " 2    2 slots [████████████████████] queue [        ]"
    assert lines[3] == "rate ▄█"
    assert len(lines) == 5


def test_the_line_of_rates_is_relative_to_the_highest_and_keeps_the_last() -> None:
    assert render.sparkline([0, 1, 2, 4, 8]) == " ▁▂▄█"
    assert render.sparkline([9, 9, 1, 2], width=2) == "▄█"
    assert render.sparkline([0.0, 0.0]) == "  "
    assert render.sparkline([]) == ""


def test_the_picture_shows_work_queues_and_memory(measured: Measurement) -> None:
    image = render.picture(measured, [1.0, 2.0])
    assert image.shape == (render.HEIGHT, render.WIDTH, 3)
    assert image.dtype == np.uint8

    def share(colour: tuple[int, int, int], x: slice, y: slice) -> float:
        part = image[y, x].reshape(-1, 3)
        return float((part == colour).all(axis=1).mean())

    box = slice(48, 198)
    pitch = (render.WIDTH - 96) // 2
    first, second = slice(16, 16 + pitch * 6 // 10), slice(16 + pitch, 16 + pitch + pitch * 6 // 10)
    assert share(render.WORK, first, box) == pytest.approx(0.25, abs=0.01)
    assert share(render.BLOCKED, first, box) == pytest.approx(0.75, abs=0.01)
    assert share(render.WORK, second, box) == pytest.approx(1.0, abs=0.01)
    memory = slice(render.WIDTH - 60, render.WIDTH - 24)
    assert share(render.WORK, memory, box) == pytest.approx(0.301, abs=0.01)
    # The rate over time: half as high at first.
    early, late = slice(20, 200), slice(400, 600)
    assert share(render.WORK, early, slice(250, 334)) == pytest.approx(0.5, abs=0.01)
    assert share(render.WORK, late, slice(250, 334)) == pytest.approx(1.0, abs=0.01)


def test_running_out_of_memory_is_seen(measured: Measurement) -> None:
    killed = replace(measured, killed=np.array([True]))
    assert "OUT OF MEMORY" in render.text(killed, [])
    assert (render.picture(killed, []) == render.WARN).all(axis=2).any()
    assert not (render.picture(measured, []) == render.WARN).all(axis=2).any()


def test_what_could_not_be_measured_draws_nothing_wrong(measured: Measurement) -> None:
    unknown = replace(
        measured,
        queue_fill=np.full((1, 3), np.nan),
        delivered=np.full(1, np.nan),
        memory_limit=np.full(1, np.inf),
        waiting=np.full(1, np.nan),
    )
    assert render.picture(unknown, [np.nan]).shape == (render.HEIGHT, render.WIDTH, 3)
    assert "0 rows/s" in render.text(unknown, [])


def test_letters_are_drawn_in_their_colour_and_cut_at_the_edge() -> None:
    canvas = np.zeros((10, 12, 3), dtype=np.uint8)
    draw_text(canvas, 0, 0, "l", (1, 2, 3), scale=2)
    assert (canvas.reshape(-1, 3) == (1, 2, 3)).all(axis=1).sum() == 7 * 4
    draw_text(canvas, 9, 8, "MM", (9, 9, 9), scale=3)
    assert canvas.shape == (10, 12, 3)
    assert all(
        len(rows.split()) == 5 and all(len(row) == 3 for row in rows.split()) for rows in GLYPHS.values()
    )


@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_environments_draw_in_the_mode_they_were_made_with(mode: str) -> None:
    env = SimulatedPipelineEnv("paper", render_mode=mode)
    env.reset(seed=0)
    before = env.render()
    env.step([3] * env.stages)
    after = env.render()
    assert isinstance(after, str) if mode == "ansi" else after.shape == (360, 640, 3)
    assert not np.array_equal(before, after)
    plain = SimulatedPipelineEnv("paper")
    plain.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert plain.render() is None
