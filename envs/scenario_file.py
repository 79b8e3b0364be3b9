"""Reading a scenario file (TOML or JSON) into a `Spec`, with errors that name file, field, value and range."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from intune.envs import scenario_fields
from intune.envs.distributions import Distribution, is_number, parse
from intune.envs.scenario_checks import check_whole, limits_of, reach_of
from intune.envs.scenario_fields import Field
from intune.envs.scenario_spec import Spec, Stage, Tie, Value, Values, Variant
from intune.pipelines.errors import ConfigError, NotFoundError

_TOP = ("name", "description", "job", "nodes", "stage", "events", "variant", "uncertainty")


def read(path: Path) -> Spec:
    """The scenario in the file at `path`.

    Raises:
        NotFoundError: no such file.
        ConfigError: not TOML or JSON, or content that makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors may put a byte order mark first
    except FileNotFoundError:
        raise NotFoundError(
            f"{path}: no such scenario file; give the path of a .toml or .json file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}); give a .toml or .json file") from error
    if not text.strip():
        raise ConfigError(f"{path}: is empty; a scenario needs `[[stage]]` and `[[nodes]]` at least")
    try:
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: is not {kind} ({error}); correct it there") from error
    return parse_spec(tables, where=str(path), name=path.stem)


def parse_spec(tables: Any, *, where: str, name: str = "unnamed") -> Spec:
    """Plain tables as a checked `Spec`.

    Args:
        tables: as TOML or JSON gives them.
        where: the file, for messages.
        name: of a scenario that has none in its file.

    Raises:
        ConfigError: content that makes no sense.
    """
    reader = _Reader(where)
    top = reader.table(tables, "")
    reader.known(top, _TOP, "")
    stages = reader.stages(top.get("stage"))
    stage_names = [stage.name for stage in stages]
    events, random_events = reader.events(top.get("events", []))
    spec = Spec(
        name=reader.text(top.get("name", name), "name"),
        description=reader.text(top.get("description", ""), "description"),
        job=reader.values(top.get("job", {}), scenario_fields.JOB, "job"),
        nodes=reader.nodes(top.get("nodes")),
        stages=stages,
        events=events,
        random_events=random_events,
        variants=tuple(
            reader.variant(entry, at, stage_names)
            for at, entry in enumerate(reader.list_of(top.get("variant", []), "variant"))
        ),
        uncertainty=reader.uncertainty(top.get("uncertainty", {})),
    )
    check_whole(spec, reader.known, reader.fail)
    return spec


class _Reader:
    """Checks the parts of one file; `where` stands before every message."""

    def __init__(self, where: str) -> None:
        self._where = where

    def fail(self, text: str) -> ConfigError:
        return ConfigError(f"{self._where}: {text}")

    def table(self, value: Any, at: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fail(f"`{at or 'the file'}`={_short(value)} must be a table of names and values")
        return value

    def list_of(self, value: Any, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(f"`{at}`={_short(value)} must be a list of tables, each under `[[{at}]]`")
        return value

    def text(self, value: Any, at: str) -> str:
        if not isinstance(value, str) or (at != "description" and not value.strip()):
            raise self.fail(f"`{at}`={value!r} must be a text that is not empty")
        return value

    def known(self, table: Iterable[str], names: Iterable[str], at: str) -> None:
        allowed = list(names)
        for name in table:
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, n=1)
                hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(allowed)}"
                raise self.fail(f"unknown field `{_path(at, name)}`; {hint}")

    def values(
        self, table: Any, fields: Mapping[str, Field], at: str, *, others: tuple[str, ...] = ()
    ) -> Values:
        table = self.table(table, at)
        self.known(table, (*others, *fields), at)
        return {
            name: self.value(value, fields[name], _path(at, name))
            for name, value in table.items()
            if name not in others
        }

    def value(self, value: Any, field: Field, at: str) -> Value:
        if isinstance(value, Mapping) and ("of" in value or "times" in value):
            self.known(value, ("of", "times"), at)
            of = self.text(value.get("of"), f"{at}.of")
            times = self.value(value.get("times", 1.0), Field(0.0, math.inf, 1.0, "times", ""), f"{at}.times")
            if isinstance(times, Tie):
                raise self.fail(f"`{at}.times` must not be tied itself; give a number or a distribution")
            return Tie(of, times)
        limits = limits_of(field)
        try:
            drawn = parse(value)
        except ConfigError as error:
            raise self.fail(f"`{at}`: {error}, {limits}") from None
        if drawn.low < field.low or drawn.high > field.high:
            raise self.fail(f"`{at}`{reach_of(drawn.low, drawn.high)}, but must be {limits}")
        if field.whole and not drawn.whole:
            raise self.fail(f"`{at}`={value!r} must be whole numbers, {limits}")
        return drawn

    def stages(self, value: Any) -> tuple[Stage, ...]:
        if not value:
            raise self.fail("`stage` is missing; a job needs one `[[stage]]` at least")
        stages: list[Stage] = []
        for at, entry in enumerate(self.list_of(value, "stage")):
            place = f"stage[{at}]"
            table = self.table(entry, place)
            name = self.text(table.get("name"), f"{place}.name")
            if name in [stage.name for stage in stages] or name == "job":
                raise self.fail(f"`{place}.name`={name!r} is taken; give every stage a name of its own")
            optional = table.get("optional", False)
            if not isinstance(optional, bool):
                raise self.fail(f"`{place}.optional`={optional!r} must be true or false")
            values = self.values(table, scenario_fields.STAGE, name, others=("name", "optional"))
            stages.append(Stage(name=name, optional=optional, values=values))
        return tuple(stages)

    def nodes(self, value: Any) -> tuple[Values, ...]:
        if not value:
            raise self.fail("`nodes` is missing; a job needs one `[[nodes]]` at least")
        nodes = []
        for at, entry in enumerate(self.list_of(value, "nodes")):
            node = self.values(entry, scenario_fields.NODE, f"nodes[{at}]")
            if "cpus" not in node:
                raise self.fail(f"`nodes[{at}].cpus` is missing; give 1 or more")
            if "memory" in node and "memory_per_cpu" in node:
                raise self.fail(f"`nodes[{at}]` has both `memory` and `memory_per_cpu`; give one of them")
            nodes.append(node)
        return tuple(nodes)

    def events(self, value: Any) -> tuple[tuple[Values, ...], Values]:
        if isinstance(value, Mapping):
            table = self.values(value, scenario_fields.EVENTS, "events")
            self._random_events(table)
            return (), table
        listed = tuple(
            self.values(entry, scenario_fields.EVENT, f"events[{at}]")
            for at, entry in enumerate(self.list_of(value, "events"))
        )
        before = 0.0
        for at, event in enumerate(listed):
            time = event.get("time")
            if not isinstance(time, Distribution):
                raise self.fail(f"`events[{at}].time` must be a number or a distribution; give seconds")
            if time.low < before:
                raise self.fail(
                    f"`events[{at}].time`={time.low:g} may come before the one above it; give {before:g} or more"
                )
            before = time.high
        return listed, {}

    def _random_events(self, table: Values) -> None:
        count = table.get("count")
        if not isinstance(count, Distribution):
            raise self.fail(
                "`events.count` must be a number or a distribution of 0 or more; or list `[[events]]`"
            )
        for name, least in (("first", 1), ("gap", 2)):
            if count.high >= least and name not in table:
                raise self.fail(f"`events.{name}` is missing; give seconds, 0 or more")

    def variant(self, entry: Any, at: int, stages: list[str]) -> Variant:
        place = f"variant[{at}]"
        table = self.table(entry, place)
        self.known(table, ("name", "weight", "job", "stage"), place)
        weight = table.get("weight", 1.0)
        if not is_number(weight) or not 0.0 < weight < math.inf:
            raise self.fail(f"`{place}.weight`={weight!r} must be a number above 0")
        overrides = self.table(table.get("stage", {}), f"{place}.stage")
        self.known(overrides, stages, f"{place}.stage")
        return Variant(
            name=self.text(table.get("name", place), f"{place}.name"),
            weight=float(weight),
            job=self.values(table.get("job", {}), scenario_fields.JOB, f"{place}.job"),
            stages={
                name: self.values(values, scenario_fields.STAGE, f"{place}.stage.{name}")
                for name, values in overrides.items()
            },
        )

    def uncertainty(self, value: Any) -> Mapping[str, float]:
        table = self.table(value, "uncertainty")
        for name, deviation in table.items():
            if not is_number(deviation) or not 0.0 <= deviation < math.inf:
                raise self.fail(
                    f'`uncertainty."{name}"`={deviation!r} must be 0 or more (relative standard deviation)'
                )
        return {name: float(deviation) for name, deviation in table.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _path(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
