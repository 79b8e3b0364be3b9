"""tf.data's model of a pipeline and the two searches over it that AUTOTUNE makes. Pure.

After TensorFlow's ``core/framework/model.cc``. Every stage is an asynchronous one that makes an element from one
element of the stage before it. Times are seconds of one element; S stages from the source to the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats, Ints

NANOSECOND = 1e-9
"""The hill climb takes a step that makes an element up to this much slower, so steps without any effect too."""
LEAST = 1e-300
"""Seconds, in place of none at all."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search knows of N jobs.

    Attributes:
        present: ``[N, S]``.
        self_time: ``[N, S]`` seconds that one worker takes for an element.
        element_bytes: ``[N, S]`` bytes of an element in the stage's buffer.
        most: ``[N]`` parallelism that a stage may have.
        ram_budget: ``[N]`` bytes that buffers may hold.
        cpu_budget: ``[N]`` processors.
    """

    present: Bools
    self_time: Floats
    element_bytes: Floats
    most: Floats
    ram_budget: Floats
    cpu_budget: Floats

    def rows(self, rows: Any) -> Tuned:
        """The jobs at `rows`."""
        return Tuned(
            self.present[rows],
            self.self_time[rows],
            self.element_bytes[rows],
            self.most[rows],
            self.ram_budget[rows],
            self.cpu_budget[rows],
        )


def wait_time(producer: Floats, consumer: Floats, buffer: Floats) -> Floats:
    """Seconds that a consumer waits for an element: the probability that the buffer is empty, times `producer`.

    An M/M/1 queue of finite capacity. Arrays of one shape.

    Args:
        producer, consumer: seconds from one element to the next, if the other side were infinitely fast.
        buffer: elements that the buffer holds.
    """
    ratio = consumer / np.maximum(producer, LEAST)
    with np.errstate(over="ignore"):  # a ratio far above 1: the buffer is never empty
        power = ratio ** (buffer + 1.0)
    equal = power == 1.0
    empty = (1.0 - ratio) / np.where(equal, 1.0, 1.0 - power)
    return np.asarray(producer * np.where(equal, 1.0 / (buffer + 1.0), empty))


def output_time(self_time: Floats, parallelism: Floats, present: Bools) -> Floats:
    """Modelled seconds per element that the trainer gets: ``[..., S]`` to ``[...]``.

    A stage of n workers takes a share of 1 / n of its time: scaling is taken to be ideal. The trainer is taken to
    be infinitely fast, as AUTOTUNE does in its climb.
    """
    each = np.where(present, self_time / np.maximum(parallelism, 1.0), 0.0)
    # An absent stage passes on what it gets: it takes no time itself, and never lets an element wait.
    consumer = np.where(present, each[..., ::-1].cumsum(axis=-1)[..., ::-1], 0.0)
    out: Floats = each[..., 0]
    for i in range(1, each.shape[-1]):
        out = each[..., i] + wait_time(out, consumer[..., i], parallelism[..., i])
    return out


def hill_climb(tuned: Tuned, *, cpu_stop: bool) -> tuple[Floats, Bools]:
    """``[N, S]`` parallelism, and ``[N]`` whether it stands.

    From one worker a stage, the step that helps most is taken, again and again.

    Stops when every stage has its most, when the buffers exceed the RAM budget (the last step is then taken back; a
    round that exceeds it with one worker a stage is dropped), when no step is better than to lose a nanosecond, and,
    with `cpu_stop`, when elements come faster than all processors together can make them.
    """
    found = np.where(tuned.present, 1.0, 0.0)
    rows = np.arange(len(found))
    last = np.full(len(found), -1)
    part = tuned
    while len(rows):
        now = found[rows]
        time, best = _best_step(part, now)
        full_up = (now * part.element_bytes).sum(axis=1) > part.ram_budget
        stop = (best < 0) | full_up
        if cpu_stop:
            work = np.where(part.present, part.self_time, 0.0).sum(axis=1)
            stop |= time < work / part.cpu_budget
        back = rows[full_up & (last[rows] >= 0)]
        found[back, last[back]] -= 1.0
        if stop.any():
            rows, best = rows[~stop], best[~stop]
            part = tuned.rows(rows)
        found[rows, best] += 1.0
        last[rows] = best
    return found, np.asarray((found * tuned.element_bytes).sum(axis=1) <= tuned.ram_budget)


def _best_step(tuned: Tuned, now: Floats) -> tuple[Floats, Ints]:
    """``[N]`` the output time, and the stage of which one more worker lowers it most; -1 where no step is left."""
    width = now.shape[1]
    tried = now[:, None, :] + np.eye(width + 1, width, -1)  # none, and one more of each stage
    times = output_time(tuned.self_time[:, None, :], tried, tuned.present[:, None, :])
    gain = times[:, :1] - times[:, 1:]
    possible = tuned.present & (now < tuned.most[:, None]) & (gain > -NANOSECOND)
    best = np.where(possible, gain, -np.inf).argmax(axis=1)
    return times[:, 0], np.where(possible.any(axis=1), best, -1)


def stage_based(tuned: Tuned, target: Floats) -> tuple[Floats, Bools]:
    """``[N, S]`` parallelism with which every stage takes `target` seconds an element, and ``[N]`` whether it stands.

    One more worker goes to the slowest stage until it is as fast as the target or has its most. Where the buffers
    would exceed the RAM budget on the way, the whole round is dropped. In closed form: the climb ends at the level
    of the target, or at that of the dearest stage with its most workers, whichever comes first.
    """
    time = np.where(tuned.present, tuned.self_time, 0.0)
    level = np.maximum(target, time.max(axis=1) / tuned.most)
    needed = np.ceil(time / np.maximum(level, 1e-30)[:, None] - 1e-9)
    found = np.where(tuned.present, np.clip(needed, 1.0, tuned.most[:, None]), 0.0)
    return found, (found * tuned.element_bytes).sum(axis=1) <= tuned.ram_budget
