"""`Spec`: what a scenario file says, checked; and back to plain tables. Reading is `scenario_file.py`, drawing
`scenario_draw.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from intune.envs.distributions import Distribution


@dataclass(frozen=True, slots=True)
class Tie:
    """A value stated as a multiple of another one of the same job.

    Attributes:
        of: the other, ``"load.block_rows"`` or ``"job.step"``; it must not be tied itself.
        times: the multiple.
    """

    of: str
    times: Distribution

    def plain(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"of": self.of, "times": self.times.plain()}


Value: TypeAlias = Distribution | Tie
Values: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One ``[[stage]]``."""

    name: str
    optional: bool = False
    values: Values


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ``[[variant]]``: a kind of job, as likely as its share of all weights, and what is different about it."""

    name: str
    weight: float
    job: Values
    stages: Mapping[str, Values]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A scenario file.

    Attributes:
        name, description: for people.
        job: of ``[job]``.
        nodes, stages, variants: in the order of the file.
        events: one table for each of ``[[events]]``.
        random_events: of ``[events]``; empty if there is none.
        uncertainty: relative standard deviation of fitted values, by names such as ``"load.cpu"``.
    """

    name: str
    description: str = ""
    job: Values = field(default_factory=dict)
    nodes: tuple[Values, ...] = ()
    stages: tuple[Stage, ...] = ()
    events: tuple[Values, ...] = ()
    random_events: Values = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    uncertainty: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Tables, lists and numbers as they stand in a file."""
        tables: dict[str, Any] = {"name": self.name, "description": self.description}
        tables["job"] = _plain(self.job)
        tables["nodes"] = [_plain(node) for node in self.nodes]
        tables["stage"] = [
            {"name": stage.name, **({"optional": True} if stage.optional else {}), **_plain(stage.values)}
            for stage in self.stages
        ]
        if self.events:
            tables["events"] = [_plain(event) for event in self.events]
        elif self.random_events:
            tables["events"] = _plain(self.random_events)
        if self.variants:
            tables["variant"] = [_plain_variant(variant) for variant in self.variants]
        if self.uncertainty:
            tables["uncertainty"] = dict(self.uncertainty)
        return {key: value for key, value in tables.items() if value not in ({}, [])}


def _plain(values: Values) -> dict[str, Any]:
    return {name: value.plain() for name, value in values.items()}


def _plain_variant(variant: Variant) -> dict[str, Any]:
    table: dict[str, Any] = {"name": variant.name, "weight": variant.weight}
    if variant.job:
        table["job"] = _plain(variant.job)
    if variant.stages:
        table["stage"] = {name: _plain(values) for name, values in variant.stages.items()}
    return table
