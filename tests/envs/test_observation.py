from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from intune.envs import spaces
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.observation import (
    JOB_FIELDS,
    PAPER_FIELDS,
    STAGE_FIELDS,
    bounds,
    job_features,
    paper_features,
    stage_features,
)
from intune.envs.simulator import Simulator
from tests.envs.generated import eventful_jobs, seeds, simulator_of

few = settings(max_examples=25)
PAGE = Path(__file__).parents[2] / "docs" / "observation.md"


def stage(measured: Measurement, name: str, before: Measurement | None = None) -> np.ndarray:
    return stage_features(measured, before)[..., list(STAGE_FIELDS).index(name)]


def job(
    measured: Measurement, name: str, before: Measurement | None = None, **more: np.ndarray
) -> np.ndarray:
    return job_features(measured, before, **more)[:, list(JOB_FIELDS).index(name)]


@few
@given(seeds)
def test_whatever_is_measured_features_are_finite_and_within_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    simulator = simulator_of(eventful_jobs(rng), rng)
    pair = [simulator.run() for _ in range(2)]
    for at, measured in enumerate(pair):
        values = {}
        for field in fields(Measurement):
            value = np.array(getattr(measured, field.name))
            if value.dtype != bool:
                broken = rng.random(value.shape)
                value[broken < 0.1] = np.nan
                value[(broken > 0.1) & (broken < 0.15)] = rng.choice([np.inf, -np.inf, -1.0, 0.0, 1e300])
            values[field.name] = value
        pair[at] = Measurement(**values)
    best = np.where(rng.random(len(pair[0])) < 0.2, np.nan, 1e3)
    with np.errstate(all="ignore"):
        for kind in ("features", "flat", "paper"):
            for before in (None, pair[0]):
                seen = spaces.observe(kind, pair[1], before, best)
                space = spaces.observation_space(kind, pair[1].stages)
                for row in range(len(pair[1])):
                    one = {k: v[row] for k, v in seen.items()} if isinstance(seen, dict) else seen[row]
                    assert one in space


def test_features_of_a_job_reckoned_by_hand() -> None:
    """Two stages of 1 ms work, 1 and 3 ms waiting; 2 and 3 slots: 1,000 and 750 rows/s; the trainer takes 500."""
    jobs = Jobs.of(
        stages=2, cpu=1e-3, wait=[[1e-3, 3e-3]], step=2e-3, cpus=8, row_bytes=10.0, block_rows=[[500.0, 1500.0]],
        memory=1e6, base_bytes=1e5, slot_bytes=1e4, interval=10.0,
    )  # fmt: skip
    simulator = Simulator(jobs)
    simulator.allocate([[2, 3]])
    for _ in range(9):
        measured = simulator.run()
    assert measured.delivered[0] == pytest.approx(500.0)
    expected = {
        "present": [1, 1],
        "slots": [1 / 8, np.log2(3) / 8],
        "slot_share": [2 / 32, 3 / 32],
        # 500 rows/s at 2 and 4 ms each are 1 and 2 slots at work.
        "busy": [0.5, 2 / 3],
        "cpu_share": [1 / 2, 1 / 4],
        "time_share": [1 / 3, 2 / 3],
        "cpu_time_share": [1 / 2, 1 / 2],
        "headroom": [np.log(2) / 4, np.log(1.5) / 4],
        "starved": [0, 0],
        "blocked": [0.5, 1 / 3],
        "input_fill": [1, 1],
        "output_fill": [1, 1],
        "block_memory": [5000 * 2 / 1e6, 15000 * 3 / 1e6],
        # A block a slot may wait.
        "queued_memory": [5000 * 2 / 1e6, 15000 * 3 / 1e6],
        "position": [0, 1],
        "changed": [0, 0],
    }
    assert list(expected) == list(STAGE_FIELDS)
    for name, values in expected.items():
        np.testing.assert_allclose(stage(measured, name)[0], values, atol=1e-6, err_msg=name)
    used = (1e5 + 5e4 + 5.5e4) / 1e6
    expected_job = {
        "stages": 2 / 8,
        "rate_to_best": 0.5,
        "rate_change": 0.0,
        "waiting": 0.0,
        "trainer_busy": 1.0,
        "free_cpus": 1 - 1 / 8,
        "free_memory": 1 - used,
        "queued_memory": 5.5e4 / 1e6,
        "slots": 5 / 32,
        "cpus": 3 / 8,
        "slots_per_cpu": np.log2(5 / 8) / 4,
        "clock": 1.0,
        "bandwidth": 0.0,
        "since_change": 9 / 10,
        "pooled": 0.0,
        "killed": 0.0,
    }
    assert list(expected_job) == list(JOB_FIELDS)
    for name, value in expected_job.items():
        found = job(measured, name, measured, best=np.array([1000.0]))[0]
        assert found == pytest.approx(value, abs=1e-6), name
    six = dict(zip(PAPER_FIELDS, paper_features(measured)[0].tolist(), strict=True))
    assert six == pytest.approx(
        {
            "latency": np.log10(2000) / 6,
            "free_cpus": 1 - 1 / 8,
            "free_memory": 1 - used,
            "model_latency": np.log10(2000) / 6,
            "bandwidth": 0.0,
            "clock": 1.0,
        },
        rel=1e-5,
    )


def test_changes_are_seen_against_the_interval_before() -> None:
    simulator = Simulator(Jobs.of(stages=2, cpu=1e-3, step=1e-9, cpus=64))
    before = simulator.run()
    simulator.allocate([[4, 2]])
    after = simulator.run()
    np.testing.assert_allclose(stage(after, "changed", before), [[2 / 4, 1 / 4]])
    assert job(after, "rate_change", before)[0] == pytest.approx(np.log(2), abs=1e-6)
    assert not stage(after, "changed").any()


def test_a_bottleneck_has_no_headroom_and_absent_stages_are_all_zeros() -> None:
    simulator = Simulator(Jobs.of(stages=[3, 1], jobs=2, cpu=[[1e-3, 4e-3, 1e-3]], step=1e-9, cpus=64))
    for _ in range(60):
        measured = simulator.run()
    headroom = stage(measured, "headroom")
    assert headroom[0, 1] == pytest.approx(0.0, abs=1e-5)
    assert headroom[0, 0] == pytest.approx(np.log(4) / 4, abs=1e-4)
    assert not stage_features(measured)[1, 1:].any()


def test_what_could_not_be_measured_is_stated_values() -> None:
    measured = Simulator(Jobs.of(stages=2)).run()
    assert job(measured, "clock")[0] == 1.0
    assert job(measured, "bandwidth")[0] == 0.0
    missing = replace(measured, waiting=np.full(1, np.nan), starved=np.full((1, 2), np.nan))
    assert job(missing, "waiting")[0] == 0.0
    assert not stage(missing, "starved").any()


def test_many_jobs_are_seen_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    simulator = simulator_of(eventful_jobs(rng), rng)
    before, after = simulator.run(), simulator.run()
    best = np.full(len(after), 1e4)
    for row in range(len(after)):
        one = slice(row, row + 1)
        np.testing.assert_array_equal(
            stage_features(after, before)[one], stage_features(after.take(one), before.take(one))
        )
        np.testing.assert_array_equal(
            job_features(after, before, best)[one], job_features(after.take(one), before.take(one), best[one])
        )


def test_observations_are_rows_in_memory() -> None:
    measured = Simulator(Jobs.of(stages=4, jobs=9)).run()
    for features in (stage_features(measured), job_features(measured), paper_features(measured)):
        assert features.flags.c_contiguous
        assert features.dtype == np.float32


def test_bounds_are_those_of_the_fields_that_can_be_negative() -> None:
    stage_low, job_low = bounds()
    assert [name for name, low in zip(STAGE_FIELDS, stage_low, strict=True) if low < 0] == ["changed"]
    assert [name for name, low in zip(JOB_FIELDS, job_low, strict=True) if low < 0] == [
        "rate_change",
        "slots_per_cpu",
    ]


@pytest.mark.parametrize(
    ("heading", "described"),
    [("Stage", STAGE_FIELDS), ("Job", JOB_FIELDS), ("After the paper", PAPER_FIELDS)],
)
def test_the_page_on_observations_describes_every_field(heading: str, described: dict[str, str]) -> None:
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rows = next(part for part in section if part.startswith(heading + "\n")).splitlines()
    found = [
        (cells[1].strip(" `"), cells[2].strip())
        for cells in (row.split("|") for row in rows if row.startswith("| `"))
    ]
    assert found == list(described.items())
