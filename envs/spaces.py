"""Gymnasium spaces of observations and actions, and the way between them and arrays, for every environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from intune.envs.actions import KEEP, MOVES
from intune.envs.jobs import Bools, Floats
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
from intune.envs.settings import ActionKind, ObservationKind
from intune.pipelines.errors import ConfigError

MOST_SLOTS = 4096
"""Upper end of absolute actions: more slots than the largest machine has is the same as as many as it has."""

Observation = dict[str, NDArray[Any]] | NDArray[np.float32]


def observation_space(kind: ObservationKind, stages: int) -> spaces.Space[Any]:
    """What an environment returns for one job.

    Args:
        kind: ``features``: a dict of ``stages`` ``[S, len(STAGE_FIELDS)]``, ``job`` ``[len(JOB_FIELDS)]`` and
            ``mask`` ``[S]`` (1 where the job has the stage); ``flat``: the first two in one vector;
            ``paper``: six numbers.
        stages: S.
    """
    if kind == "paper":
        return spaces.Box(-1.0, 1.0, (len(PAPER_FIELDS),), np.float32)
    stage_low, job_low = bounds()
    if kind == "flat":
        low = np.concatenate([np.tile(stage_low, stages), job_low])
        return spaces.Box(low, np.ones_like(low), dtype=np.float32)
    lows = np.tile(stage_low, (stages, 1))
    return spaces.Dict(
        {
            "stages": spaces.Box(lows, np.ones_like(lows), dtype=np.float32),
            "job": spaces.Box(job_low, np.ones_like(job_low), dtype=np.float32),
            "mask": spaces.MultiBinary(stages),
        }
    )


def action_space(kind: ActionKind, stages: int, *, pool: bool = False) -> spaces.Space[Any]:
    """What an environment takes for one job.

    Args:
        kind: ``moves``: an index into `actions.MOVES` for every stage; ``absolute``: slots of every stage.
        stages: S.
        pool: with ``absolute``, one more number: slots of a shared pool.
    """
    if kind == "moves":
        return spaces.MultiDiscrete([len(MOVES)] * stages)
    return spaces.Box(0.0, float(MOST_SLOTS), (stages + pool,), np.float32)


def empty_observation(kind: ObservationKind, count: int, stages: int) -> Observation:
    """Arrays for the observations of `count` jobs, not filled."""
    if kind == "paper":
        return np.empty((count, len(PAPER_FIELDS)), dtype=np.float32)
    if kind == "flat":
        return np.empty((count, stages * STAGE_WIDTH + JOB_WIDTH), dtype=np.float32)
    return {
        "stages": np.empty((count, stages, STAGE_WIDTH), dtype=np.float32),
        "job": np.empty((count, JOB_WIDTH), dtype=np.float32),
        "mask": np.empty((count, stages), dtype=np.int8),
    }


def observe(
    kind: ObservationKind,
    now: Measurement,
    before: Measurement | None,
    best: Floats | None,
    *,
    out: Observation | None = None,
) -> Observation:
    """Observations of N jobs.

    Args:
        kind: see `observation_space`.
        now, before, best: see `observation.stage_features` and `job_features`.
        out: where to write them, of that kind; None for new arrays.
    """
    made = empty_observation(kind, len(now), now.stages) if out is None else out
    if isinstance(made, dict):
        stage_features(now, before, out=made["stages"])
        job_features(now, before, best, out=made["job"])
        made["mask"][:] = now.present
    elif kind == "paper":
        paper_features(now, out=made)
    else:
        width = now.stages * STAGE_WIDTH
        stage_features(now, before, out=made[:, :width].reshape(len(now), now.stages, STAGE_WIDTH))
        job_features(now, before, best, out=made[:, width:])
    return made


def wanted_slots(
    kind: ActionKind, actions: Any, slots: Floats, *, pool: bool = False
) -> tuple[Floats, Floats | None]:
    """The slots that `actions` of N jobs ask for, before they are cut to what is feasible: ``[N, S]``, and the pool.

    Args:
        kind: see `action_space`.
        actions: ``[N, S]``, or ``[N, S + 1]`` with a pool.
        slots: ``[N, S]`` in force.
        pool: whether the last number of an absolute action is the size of a shared pool.

    Raises:
        ConfigError: a wrong shape, NaN, or a move that there is not; the job and the stage are named.
    """
    given = np.asarray(actions)
    shape = (slots.shape[0], slots.shape[1] + (kind == "absolute" and pool))
    if given.shape != shape:
        raise ConfigError(
            f"`action` has shape {given.shape}, but {shape} is needed: a number for every stage"
        )
    given = checked_actions(kind, given)
    if kind == "moves":
        # Stage by stage in memory, as slots are.
        return slots + _MOVES.take(given.T).T, None
    given = np.clip(given.astype(np.float64, order="F"), 0.0, MOST_SLOTS)
    return (given[:, :-1], given[:, -1]) if pool else (given, None)


def checked_actions(kind: ActionKind, given: NDArray[Any]) -> NDArray[Any]:
    """`given`, ``[N, …]``, if it has nothing in it but actions; moves as whole numbers.

    Raises:
        ConfigError: NaN, or a move that there is not; the job and the stage are named.
    """
    if kind == "moves":
        if given.dtype.kind not in "iu":
            given = _whole_moves(given)
        if given.size and not (given.min() >= 0 and given.max() < len(MOVES)):
            job, stage = np.argwhere((given < 0) | (given >= len(MOVES)))[0]
            raise ConfigError(
                f"`action`={given[job, stage]} for stage {stage} of job {job} must be from 0 to {len(MOVES) - 1}, "
                f"the index of one of the moves {MOVES}"
            )
        return given
    if given.dtype.kind not in "iuf":
        raise ConfigError(f"`action` has type {given.dtype}, but numbers are needed")
    if given.dtype.kind == "f" and np.isnan(given).any():
        job, stage = np.argwhere(np.isnan(given))[0]
        raise ConfigError(
            f"`action` is NaN for stage {stage} of job {job}; give a number of slots, 0 or more"
        )
    return given


def action_masks(present: Bools, slots: Floats, limit: Any) -> Bools:
    """Which moves would be made in full if they were the only ones: ``[N, S, len(MOVES)]``.

    A stage keeps one slot at least, all together no more than `limit`: where more are in force, as after the machine
    has shrunk, a move that leaves too many is not made in full either, since slots are taken back. Keeping is always
    among the moves, lest there be none; absent stages can only keep.

    Args:
        present, slots: ``[N, S]``.
        limit: ``[N]``.
    """
    after = slots[:, :, None] + _MOVES
    total = (slots * present).sum(axis=1)[:, None] + _MOVES
    mask = (after >= 1.0) & (total <= np.asarray(limit)[:, None])[:, None, :]
    mask &= present[:, :, None]
    mask[:, :, KEEP] = True
    return np.asarray(mask)


def _whole_moves(given: NDArray[Any]) -> NDArray[np.int64]:
    if given.dtype.kind != "f" or not (given == np.rint(given)).all() or not np.isfinite(given).all():
        raise ConfigError(f"`action`={given.tolist()} must be whole numbers from 0 to {len(MOVES) - 1}")
    return given.astype(np.int64)


_MOVES: NDArray[np.float64] = np.array(MOVES, dtype=np.float64)
STAGE_WIDTH, JOB_WIDTH = len(STAGE_FIELDS), len(JOB_FIELDS)
