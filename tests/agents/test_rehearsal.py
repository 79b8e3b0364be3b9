"""What the network sees: finite and bounded whatever was measured; absent stages are nothing to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from intune.agents.candidates import NAMES, propose
from intune.agents.measures import without_absent
from intune.agents.memory import MemoryRecord
from intune.agents.rehearsal import JOB_WIDTH, PER_CANDIDATE, PER_STAGE, STAGE_WIDTH, Rehearsal, rehearsal
from intune.agents.twin import Twin
from intune.envs.measurement import STAGE_FIELDS, Measurement

Measured = Callable[..., Measurement]


def seen(history: list[Measurement]) -> Rehearsal:
    first = history[0]
    twin, record = Twin(len(first), first.stages), MemoryRecord(len(first), first.stages)
    before = None
    for measured in history:
        measured = without_absent(measured)
        twin.see(measured)
        record.see(measured)
        options = propose(twin, record, measured)
        made = rehearsal(twin, measured, before, options, np.zeros(len(first)))
        before = measured
    return made


def test_shapes(measurement: Measured) -> None:
    made = seen([measurement(jobs=4, stages=3)])
    assert made.stage.shape == (4, 3, STAGE_WIDTH)
    assert made.job.shape == (4, JOB_WIDTH)
    assert made.moves.shape == (4, len(NAMES), 3, PER_STAGE)
    assert made.options.shape == (4, len(NAMES), PER_CANDIDATE)
    assert made.allowed.shape == (4, len(NAMES))
    for name in ("stage", "job", "moves", "options"):
        assert getattr(made, name).dtype == np.float32


@pytest.mark.parametrize("rubbish", [0.0, 1e12, -5.0, np.nan])
def test_masked_stages_never_matter(measurement: Measured, rubbish: float) -> None:
    present = np.array([[True, True, False], [True, True, True]])
    history = [measurement(jobs=2, stages=3, present=present, busy=[[2.0, 1.0, 1.0]] * 2) for _ in range(2)]
    changed = [
        replace(
            each,
            **{
                name: np.where(present, getattr(each, name), rubbish)
                for name in STAGE_FIELDS
                if name != "slots"
            },
        )
        for each in history
    ]
    clean, dirty = seen(history), seen(changed)
    for field in fields(Rehearsal):
        np.testing.assert_array_equal(
            getattr(clean, field.name), getattr(dirty, field.name), err_msg=field.name
        )
    assert (clean.stage[0, 2] == 0).all()
    assert (clean.moves[0, :, 2] == 0).all()


def test_finite_and_bounded_for_any_measurement(measurement: Measured) -> None:
    rng = np.random.default_rng(0)
    jobs = 400
    odd = np.array([0.0, -1.0, 1e-9, 1.0, 1e9, np.nan, np.inf])

    def some(*shape: int) -> np.ndarray:
        return np.where(rng.random(shape) < 0.1, rng.choice(odd, shape), rng.lognormal(1, 2, shape))

    history = []
    for _ in range(4):
        values = {
            name: some(jobs, 3)
            for name in (
                "rate",
                "busy",
                "cpu",
                "starved",
                "blocked",
                "block_bytes",
                "queued_bytes",
                "queue_fill",
            )
        }
        values |= {
            name: some(jobs)
            for name in ("delivered", "step", "waiting", "cpus", "cpus_used", "memory_used", "memory_base",
                         "memory_queued", "memory_limit", "interval", "since_change", "clock", "bandwidth")
        }  # fmt: skip
        history.append(
            measurement(jobs=jobs, stages=3, slots=rng.integers(1, 20, (jobs, 3)),
                        pool=rng.choice([0.0, 0.0, 7.0], jobs), **values)
        )  # fmt: skip
    with np.errstate(all="ignore"):
        made = seen(history)
    for name in ("stage", "job", "moves", "options"):
        value = getattr(made, name)
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() <= 2.0, name
    assert made.allowed[:, 0].all()


def test_what_does_not_fit_is_not_allowed(measurement: Measured) -> None:
    roomy = seen([measurement(memory_limit=1e15)])
    assert roomy.allowed.all()
    tight = seen([measurement(memory_used=1e9, memory_limit=1.2e9)])
    assert not tight.allowed[0, NAMES.index("raise the slowest")]
    assert tight.allowed[0, 0]


def test_units_do_not_matter(measurement: Measured) -> None:
    """A job of rows a thousand times as large and dear looks the same: no feature has a unit."""
    small = measurement(busy=[[2.0, 1.0, 0.5]], step=1e-5)
    large = replace(
        small, rate=small.rate / 1000, delivered=small.delivered / 1000, step=small.step * 1000,
        memory_used=small.memory_used * 1000, memory_limit=small.memory_limit * 1000,
        block_bytes=small.block_bytes * 1000,
        memory_base=small.memory_base * 1000, memory_queued=small.memory_queued * 1000,
        queued_bytes=small.queued_bytes * 1000,
    )  # fmt: skip
    one, other = seen([small, small]), seen([large, large])
    for field in fields(Rehearsal):
        np.testing.assert_allclose(
            getattr(one, field.name), getattr(other, field.name), atol=1e-4, err_msg=field.name
        )


def test_order_of_stages_only_moves_the_features(measurement: Measured) -> None:
    """All but the stage's place and the queue before it, which are the order itself."""
    first = measurement(busy=[[2.0, 1.0, 0.5]], slots=[[2.0, 3.0, 4.0]])
    turned = measurement(busy=[[0.5, 2.0, 1.0]], slots=[[4.0, 2.0, 3.0]])
    one, other = seen([first]), seen([turned])
    order = [1, 2, 0]
    np.testing.assert_allclose(one.options, other.options, atol=1e-5)
    np.testing.assert_allclose(one.moves, other.moves[:, :, order], atol=1e-5)
    np.testing.assert_allclose(one.job, other.job, atol=1e-5)
