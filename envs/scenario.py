"""`Scenario`: a named family of jobs and clusters to draw from, read from a TOML or JSON file.

The families that come with the package are the files in `scenarios/`; `docs/scenarios.md` explains the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from intune.envs import scenario_fields, toml
from intune.envs.distributions import CUT
from intune.envs.jobs import EVENT_FIELDS, JOB_FIELDS, NODE_FIELDS, STAGE_FIELDS, Jobs
from intune.envs.prepared import TINY
from intune.envs.scenario_draw import Drawer
from intune.envs.scenario_file import parse_spec, read
from intune.envs.scenario_spec import Spec
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError, NotFoundError

BUILT_IN = Path(__file__).parent / "scenarios"


class Scenario:
    """A family of jobs. Make one with `load`, `parse` or `from_jobs`; it does not change afterwards."""

    def __init__(self, spec: Spec, *, where: str) -> None:
        """Lay out the draws of a checked `spec`.

        Raises:
            ConfigError: jobs drawn from it make no sense; `where` and the field are named.
        """
        self.spec = spec
        self._drawer = Drawer(spec)
        try:
            jobs = self.draw(np.random.default_rng(0), 64)
            jobs.check()
            _check_memory(jobs, self.stage_names)
        except ConfigError as error:
            raise ConfigError(f"{where}: jobs drawn from it make no sense: {error}") from None

    @classmethod
    def load(cls, source: str | Path) -> Scenario:
        """A built-in scenario by its name, or one from the path of a .toml or .json file.

        Raises:
            NotFoundError: neither a built-in name nor a file.
            ConfigError: a file that makes no sense; file, field, value and range are named.
        """
        text = str(source)
        if text in cls.names():
            path = BUILT_IN / f"{text}.toml"
            return cls(read(path), where=text)
        path = Path(source)
        if path.suffix not in (".toml", ".json"):
            known = ", ".join(cls.names())
            raise NotFoundError(
                f"`{text}` is no scenario; give one of {known}, or the path of a .toml or .json file"
            )
        return cls(read(path), where=text)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the built-in scenarios."""
        return tuple(sorted(path.stem for path in BUILT_IN.glob("*.toml")))

    @classmethod
    def parse(cls, tables: Mapping[str, Any], *, where: str = "scenario") -> Scenario:
        """A scenario from plain tables as a file has them.

        Raises:
            ConfigError: content that makes no sense.
        """
        return cls(parse_spec(tables, where=where), where=where)

    @classmethod
    def from_jobs(
        cls,
        jobs: Jobs,
        *,
        name: str,
        stage_names: Sequence[str],
        row: int = 0,
        description: str = "",
        uncertainty: Mapping[str, float] | None = None,
    ) -> Scenario:
        """The scenario in which every job is the one at `row` of `jobs`.

        Args:
            jobs: for example, fitted ones.
            name: of the scenario.
            stage_names: of the stages that the job has.
            row: which job.
            description: for people.
            uncertainty: relative standard deviation of values, by names such as ``"load.cpu"`` and ``"job.noise"``.

        Raises:
            ConfigError: not as many names as stages, or an uncertainty of an unknown value.
        """
        one = jobs.take(slice(row, row + 1))
        if len(one) != 1:
            raise ConfigError(f"`row`={row} must be 0 to {len(jobs) - 1}")
        tables = {"name": name, "description": description, **_tables(one, stage_names)}
        return cls.parse({**tables, "uncertainty": dict(uncertainty or {})}, where=name)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.name

    @property
    def description(self) -> str:
        """What kind of jobs these are."""
        return self.spec.description

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Of the columns of a stage's fields. Where stages are optional, a column holds whatever stage is at that
        place, so it is named for the place: ``"stage 1"``.
        """
        if any(stage.optional for stage in self.spec.stages):
            return tuple(f"stage {at + 1}" for at in range(self.max_stages))
        return tuple(stage.name for stage in self.spec.stages)[: self.max_stages]

    @property
    def max_stages(self) -> int:
        """Stages of a job at most: the width of `draw`'s arrays."""
        return self._drawer.widths.stages

    @property
    def max_nodes(self) -> int:
        """Nodes of a job at most."""
        return self._drawer.widths.nodes

    @property
    def max_events(self) -> int:
        """Resizes of a job at most."""
        return self._drawer.widths.events

    def draw(self, rng: np.random.Generator, count: int) -> Jobs:
        """`count` jobs, always as wide as the widest of the family.

        Raises:
            ConfigError: `count` below 1.
        """
        return self.draw_each([rng], count)

    def draw_each(self, rngs: Sequence[np.random.Generator], count: int) -> Jobs:
        """`count` jobs of each of `rngs`, one generator's after another's; cheaper than one `draw` for each.

        Raises:
            ConfigError: `count` below 1.
        """
        if count < 1:
            raise ConfigError(f"`count`={count} must be 1 or more")
        return self._drawer.draw(rngs, count)

    def uncertain(self) -> Scenario:
        """The scenario whose jobs vary by `[uncertainty]`: constants become log-normal around themselves.

        What is known only roughly should be trained on as a range (domain randomisation).
        """
        tables = self.spec.plain()
        places = {"job": tables.setdefault("job", {}), **{stage["name"]: stage for stage in tables["stage"]}}
        for key, deviation in tables.pop("uncertainty", {}).items():
            place, field = key.rsplit(".", 1)
            value = places[place].get(field)
            limits = (scenario_fields.JOB if place == "job" else scenario_fields.STAGE)[field]
            if isinstance(value, float) and 0 < value < math.inf and deviation > 0 and not limits.whole:
                places[place][field] = _around(value, deviation, limits)
        return Scenario.parse(tables, where=self.name)

    def to_toml(self) -> str:
        """The text of a file from which `load` makes the same scenario."""
        return toml.dumps(self.spec.plain())

    def save(self, path: str | Path) -> None:
        """Write `to_toml` to a file.

        Raises:
            ConfigError: a path that does not end in .toml.
        """
        path = Path(path)
        if path.suffix != ".toml":
            raise ConfigError(f"`path`={str(path)!r} must end in .toml")
        path.write_text(self.to_toml(), encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.to_toml())

    def __repr__(self) -> str:
        return f"Scenario({self.name!r}, stages={self.max_stages}, nodes={self.max_nodes}, events={self.max_events})"


def _tables(job: Jobs, stage_names: Sequence[str]) -> dict[str, Any]:
    """The tables of a file in which every value is that of the one job in `job`."""
    count = int(job.present[0].sum())
    if len(stage_names) != count:
        raise ConfigError(f"`stage_names` has {len(stage_names)} names, but the job has {count} stages")
    known = {field.name: getattr(job, field.name)[0] for field in fields(job)}
    nodes = [
        {name: float(known[name][at]) for name in NODE_FIELDS}
        for at in range(len(known["cpus"]))
        if known["cpus"][at] > 0
    ]
    events = [
        {name.removeprefix("event_"): float(known[name][at]) for name in EVENT_FIELDS}
        for at in range(len(known["event_time"]))
        if np.isfinite(known["event_time"][at])
    ]
    stages = [
        {"name": name, **{field: float(known[field][at]) for field in STAGE_FIELDS}}
        for at, name in enumerate(stage_names)
    ]
    return {
        "job": {name: float(known[name]) for name in JOB_FIELDS},
        "nodes": nodes,
        "stage": stages,
        "events": events,
    }


def _check_memory(jobs: Jobs, stage_names: Sequence[str]) -> None:
    """Look whether some job lives through its first interval with one slot a stage, without chance.

    Raises:
        ConfigError: none does, so no episode could begin; the one nearest to it is described.
    """
    with np.errstate(all="ignore"):  # files may give values whose products overflow
        simulator = Simulator(jobs, steps=1)
        killed = simulator.run().killed
    if not killed.all():
        return
    flow = simulator.flow
    assert flow is not None
    filled = np.where(jobs.cpus > 0, flow.memory / np.maximum(flow.memory_limit, TINY), 0.0)
    job = int(filled.max(axis=1).argmin())
    node = int(filled[job].argmax())
    slots = ", ".join(
        f"{name} {size:g}"
        for name, size, there in zip(stage_names, jobs.slot_bytes[job], jobs.present[job], strict=True)
        if there
    )
    raise ConfigError(
        f"`memory`={jobs.memory[job, node]:g} bytes of `nodes[{node}]` never holds one slot a stage, for which it "
        f"needs {flow.memory[job, node]:g} at least (`base_bytes` {jobs.base_bytes[job]:g}; a slot of each stage: "
        f"{slots}; and rows in queues); give more, in bytes (1 GiB is {2**30:,}), or `job.memory_floor`"
    )


def _around(value: float, deviation: float, limits: scenario_fields.Field) -> dict[str, list[float]]:
    """Log-normal around `value`, no wider than `limits` allow."""
    spread = math.sqrt(math.log1p(deviation**2))
    if limits.high < math.inf:
        spread = min(spread, math.log(limits.high / value) / CUT)
    if limits.low > 0:
        spread = min(spread, math.log(value / limits.low) / CUT)
    return {"log_normal": [value, spread * (1.0 - 1e-9)]}
