"""What the DQN sees of every candidate: the job's features, and what the twin expects of the candidate. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.agents.candidates import NAMES, Candidates
from intune.agents.twin import Twin
from intune.envs import observation
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement

PER_STAGE = 4
"""Of a candidate: change of slots, spare capacity, doubt, slots against those of all."""

PER_CANDIDATE = 9
"""Of a candidate: see `rehearsal`."""

OPTIONS = len(NAMES)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """N jobs with K candidates each, as float32.

    Attributes:
        stage: ``[N, S, F]`` features of the stages as they are, see `observation.STAGE_FIELDS`.
        job: ``[N, J]`` features of the job, see `observation.JOB_FIELDS`, and three of the twin's.
        moves: ``[N, K, S, PER_STAGE]`` what each candidate changes at each stage.
        options: ``[N, K, PER_CANDIDATE]`` what each promises and takes.
        present: ``[N, S]``.
        allowed: ``[N, K]`` whether the candidate fits into memory at worst; the first ("keep") always counts.
    """

    stage: NDArray[np.float32]
    job: NDArray[np.float32]
    moves: NDArray[np.float32]
    options: NDArray[np.float32]
    present: NDArray[np.bool_]
    allowed: NDArray[np.bool_]

    def take(self, rows: Any) -> Rehearsal:
        """The jobs at `rows`."""
        return Rehearsal(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


JOB_WIDTH = len(observation.JOB_FIELDS) + 3
STAGE_WIDTH = len(observation.STAGE_FIELDS)


def rehearsal(
    twin: Twin, measured: Measurement, before: Measurement | None, options: Candidates, age: Floats
) -> Rehearsal:
    """Features of every candidate.

    Args:
        twin: beliefs about the jobs.
        measured, before: the last interval and the one before it.
        options: the candidates.
        age: ``[N]`` decisions made for each job so far.
    """
    present = measured.present
    target = np.maximum(options.together, 1e-12)
    now = np.maximum(options.slots[:, :1, :], 1.0)
    given = np.maximum(options.slots, 1.0)
    ceiling = twin.ceiling(measured)
    capacity = twin.capacity(given)
    moves = np.zeros((*options.slots.shape, PER_STAGE), dtype=np.float32)
    moves[..., 0] = np.log2(given / now) / 4.0
    moves[..., 1] = np.log(np.maximum(capacity / target[:, None, None], 1e-6)) / 2.0
    moves[..., 2] = twin.deviation(given)
    moves[..., 3] = given / np.maximum(measured.slot_limit, 1.0)[:, None, None]
    shape = options.rate.shape
    limit = np.maximum(measured.memory_limit, 1.0)
    out = np.zeros((*shape, PER_CANDIDATE), dtype=np.float32)
    delivered = np.maximum(measured.delivered, 1e-12)
    used = np.where(options.pool > 0, options.pool, (options.slots * present[:, None, :]).sum(axis=2))
    out[..., 0] = np.log(np.maximum(options.rate / target[:, None], 1e-6))
    out[..., 1] = np.log(np.maximum(options.rate / delivered[:, None], 1e-6))
    out[..., 2] = options.memory / limit[:, None]
    out[..., 3] = options.doubt
    out[..., 4] = used / np.maximum(measured.slot_limit, 1.0)[:, None]
    out[..., 5] = options.pool > 0
    out[..., 6] = np.log2(np.maximum(used, 1.0) / np.maximum(measured.cpus, 1.0)[:, None]) / 4.0
    out[..., 7] = (
        np.abs(moves[..., 0] * present[:, None, :]).sum(axis=2) / np.maximum(measured.counts, 1)[:, None]
    )
    out[..., 8] = options.slowest >= present.shape[1]
    _tidy(moves)
    _tidy(out)
    moves *= present[:, None, :, None]
    job = np.zeros((len(measured), JOB_WIDTH), dtype=np.float32)
    job[:, :-3] = observation.job_features(measured, before, twin.best)
    job[:, -3] = np.log(delivered / target)
    job[:, -2] = np.log(np.maximum(target / np.maximum(ceiling, 1e-12), 1e-6))
    job[:, -1] = np.minimum(age / 10.0, 1.0)
    _tidy(job)
    allowed = options.memory <= measured.memory_limit[:, None]
    allowed[:, 0] = True
    return Rehearsal(
        stage=observation.stage_features(measured, before),
        job=job,
        moves=moves,
        options=out,
        present=present,
        allowed=allowed,
    )


def _tidy(values: Any) -> None:
    np.nan_to_num(values, copy=False, nan=0.0, posinf=2.0, neginf=-2.0)
    np.clip(values, -2.0, 2.0, out=values)
