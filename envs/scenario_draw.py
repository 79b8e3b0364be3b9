"""Drawing jobs from a checked `Spec`: everything is laid out once, a draw is then a few operations on arrays.

All numbers of a job are a column of one matrix: the stages' fields, the job's, the nodes', the events'. A variant is a
`_Columns` of its own; `derive.py` turns relative values into absolute ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from intune.envs import derive, scenario_fields
from intune.envs.distributions import Distribution, Sampler
from intune.envs.jobs import ABSENT_WAIT, JOB_FIELDS, NODE_FIELDS, STAGE_FIELDS, Jobs
from intune.envs.scenario_spec import Spec, Tie, Value, Values, Variant

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rngs: TypeAlias = Sequence[np.random.Generator]

_STAGE = tuple(scenario_fields.STAGE)
_JOB = tuple(scenario_fields.JOB)
_NODE = tuple(scenario_fields.NODE)
_EVENT = ("time", "cpus", "memory")

assert _STAGE[: len(STAGE_FIELDS)] == STAGE_FIELDS  # `Jobs` takes the first rows as they are
assert _JOB[: len(JOB_FIELDS)] == JOB_FIELDS


@dataclass(frozen=True, slots=True)
class Widths:
    """Templates of stages, nodes and events that a spec has, and the most stages of one job."""

    templates: int
    stages: int
    nodes: int
    events: int

    @classmethod
    def of(cls, spec: Spec) -> Widths:
        """The widths of `spec`."""
        jobs = [spec.job] + [{**spec.job, **variant.job} for variant in spec.variants]
        stages = max(_high(job.get("stages"), len(spec.stages)) for job in jobs)
        events = len(spec.events) or _high(spec.random_events.get("count"), 0)
        return cls(templates=len(spec.stages), stages=stages, nodes=len(spec.nodes), events=events)


class Drawer:
    """Draws the jobs of one spec."""

    def __init__(self, spec: Spec) -> None:
        self.widths = Widths.of(spec)
        self._optional = np.array([stage.optional for stage in spec.stages])
        self._listed = bool(spec.events)
        self._kinds = [_Columns(spec, self.widths, variant) for variant in spec.variants]
        self._kinds = self._kinds or [_Columns(spec, self.widths, None)]
        weights = np.array([variant.weight for variant in spec.variants] or [1.0])
        self._steps: Floats = np.cumsum(weights)[:-1] / weights.sum()

    def draw(self, rngs: Rngs, count: int) -> Jobs:
        """`count` jobs of each generator, one generator's after another's: the same as if drawn one by one."""
        matrix = self._matrix(rngs, count)
        wide, count = self.widths, matrix.shape[1]
        at = len(_STAGE) * wide.templates
        stage = matrix[:at].reshape(len(_STAGE), wide.templates, count)
        job = dict(zip(_JOB, matrix[at : at + len(_JOB)], strict=True))
        at += len(_JOB)
        node = matrix[at : at + len(_NODE) * wide.nodes].reshape(len(_NODE), wide.nodes, count)
        event = self._events(matrix[at + len(_NODE) * wide.nodes :])
        derive.add_per_block(dict(zip(_STAGE, stage, strict=True)), job)
        present = np.ones(stage.shape[1:], dtype=np.bool_)
        if self._optional.any():
            stage, present = self._choose(stage, job["stages"], rngs)
        nodes = _nodes(dict(zip(_NODE, node, strict=True)), job["nodes"])
        stages = dict(zip(_STAGE, stage, strict=True))
        derive.relate(stages, present, job, nodes, event)
        arrays = dict(zip(STAGE_FIELDS, _rows(stage[: len(STAGE_FIELDS)]), strict=True))
        arrays.update({name: np.array(job[name]) for name in JOB_FIELDS})
        arrays.update({name: _rows(nodes[name]) for name in NODE_FIELDS})
        arrays.update({f"event_{name}": _rows(event[name]) for name in _EVENT})
        return Jobs(present=np.ascontiguousarray(present.T), **arrays)

    def _matrix(self, rngs: Rngs, count: int) -> Floats:
        counts = [count] * len(rngs)
        if len(self._kinds) == 1:
            return self._kinds[0].draw(rngs, counts)
        which = np.searchsorted(self._steps, _uniform(rngs, 1, counts)[0], side="right")
        matrix = np.empty((self._kinds[0].height, len(which)))
        for at, kind in enumerate(self._kinds):
            mine = np.flatnonzero(which == at)
            matrix[:, mine] = kind.draw(rngs, np.bincount(mine // count, minlength=len(rngs)).tolist())
        return matrix

    def _choose(self, stage: Floats, wanted: Floats, rngs: Rngs) -> tuple[Floats, Bools]:
        """The stages that each job has, first and in order; zeros for the absent ones."""
        wide = self.widths
        order = _uniform(rngs, wide.templates, [stage.shape[2] // len(rngs)] * len(rngs))
        order[~self._optional] -= 1.0  # those that every job has come first
        taken = order.argsort(axis=0).argsort(axis=0) < wanted
        front = (~taken).argsort(axis=0, kind="stable")[: wide.stages]
        present = np.take_along_axis(taken, front, axis=0)
        stage = np.take_along_axis(stage, front[None], axis=1) * present
        stage[_STAGE.index("wait")][~present] = ABSENT_WAIT
        stage[_STAGE.index("most_slots")][~present] = 1.0
        return stage, present

    def _events(self, rows: Floats) -> dict[str, Floats]:
        """Times and sizes of every event, ``[E, N]``."""
        most = self.widths.events
        if self._listed or not most:
            time, cpus, memory = rows.reshape(len(_EVENT), most, rows.shape[1])
        else:
            count, first = rows[0], rows[1:2]
            gap, cpus, memory = rows[2:].reshape(len(_EVENT), most, rows.shape[1])
            gap[:1] = first
            time = np.cumsum(gap, axis=0)
            absent = np.arange(most)[:, None] >= count
            time[absent] = np.inf
            cpus, memory = np.where(absent, 1.0, cpus), np.where(absent, 1.0, memory)
        return {"time": time, "cpus": cpus, "memory": np.where(memory > 0, memory, cpus)}


class _Columns:
    """How one kind of job is drawn, as columns of numbers: constants, what is random, what is tied to another."""

    def __init__(self, spec: Spec, widths: Widths, variant: Variant | None) -> None:
        job = {**spec.job, **(variant.job if variant else {})}
        overrides = variant.stages if variant else {}
        stages = [{**stage.values, **overrides.get(stage.name, {})} for stage in spec.stages]
        values: list[Value] = []
        place: dict[str, int] = {}
        for name, field in scenario_fields.STAGE.items():
            for stage, given in zip(spec.stages, stages, strict=True):
                place[f"{stage.name}.{name}"] = len(values)
                values.append(given.get(name, Distribution.constant(field.default)))
        for name, field in scenario_fields.JOB.items():
            place[f"job.{name}"] = len(values)
            values.append(job.get(name, Distribution.constant(field.default)))
        for name, field in scenario_fields.NODE.items():
            values += [node.get(name, Distribution.constant(field.default)) for node in spec.nodes]
        values += _event_values(spec, widths.events)
        self.height = len(values)
        drawn = [one.times if isinstance(one, Tie) else one for one in values]
        self._fixed = np.array([[one.numbers[0] if one.kind == "constant" else 0.0] for one in drawn])
        self._random = np.array(
            [at for at, one in enumerate(drawn) if one.kind != "constant"], dtype=np.int64
        )
        self._sampler = Sampler([drawn[at] for at in self._random])
        ties = [(at, place[one.of]) for at, one in enumerate(values) if isinstance(one, Tie)]
        self._tied, self._to = np.array(ties, dtype=np.int64).reshape(-1, 2).T

    def draw(self, rngs: Rngs, counts: Sequence[int]) -> Floats:
        """``[height, sum of counts]``: so many columns of each generator."""
        matrix = np.repeat(self._fixed, sum(counts), axis=1)
        if self._random.size:
            matrix[self._random] = self._sampler.at(_uniform(rngs, len(self._random), counts))
        if self._tied.size:
            matrix[self._tied] *= matrix[self._to]
        return matrix


def _uniform(rngs: Rngs, height: int, counts: Sequence[int]) -> Floats:
    """Uniform numbers on [0, 1), ``[height, sum of counts]``."""
    parts = [rng.random((height, count)) for rng, count in zip(rngs, counts, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _event_values(spec: Spec, most: int) -> list[Value]:
    if spec.events or not most:
        fields = scenario_fields.EVENT
        return [
            event.get(name, Distribution.constant(fields[name].default))
            for name in _EVENT
            for event in spec.events
        ]
    given: Values = spec.random_events
    fields = scenario_fields.EVENTS

    def of(name: str) -> Value:
        return given.get(name, Distribution.constant(fields[name].default))

    return [of("count"), of("first"), *[of(name) for name in ("gap", "cpus", "memory") for _ in range(most)]]


def _nodes(node: dict[str, Floats], wanted: Floats) -> dict[str, Floats]:
    """CPUs, memory and network of every node, ``[M, N]``; zeros for absent ones."""
    memory = np.where(node["memory_per_cpu"] > 0, node["memory_per_cpu"] * node["cpus"], node["memory"])
    nodes = {"cpus": node["cpus"], "memory": memory, "nic": node["nic"]}
    absent = np.arange(len(memory))[:, None] >= np.where(wanted > 0, wanted, len(memory))
    if absent.any():
        nodes = {name: np.where(absent, 0.0, value) for name, value in nodes.items()}
    return nodes


def _rows(columns: Floats) -> Floats:
    """Jobs first: ``[…, N, S]`` of ``[…, S, N]``."""
    return np.ascontiguousarray(np.swapaxes(columns, -1, -2))


def _high(value: Value | None, default: int) -> int:
    return int(value.high) if isinstance(value, Distribution) else default
