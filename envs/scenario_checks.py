"""What must hold between the parts of a scenario file: ties, counts, values said in two ways, uncertain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from intune.envs import scenario_fields
from intune.envs.distributions import Distribution
from intune.envs.scenario_spec import Spec, Tie, Values
from intune.pipelines.errors import ConfigError

Fail = Callable[[str], ConfigError]
Known = Callable[[Iterable[str], Iterable[str], str], None]


def check_whole(spec: Spec, known: Known, fail: Fail) -> None:
    """Check a spec whose parts are each in order.

    Args:
        spec: what was read.
        known: raises if one of its first names is not among the second; the third says where they stand.
        fail: makes the error of a message.

    Raises:
        ConfigError: parts that contradict each other.
    """
    jobs = [spec.job] + [{**spec.job, **variant.job} for variant in spec.variants]
    places = ["job", *(stage.name for stage in spec.stages)]
    names = [
        f"{place}.{field}"
        for place in places
        for field in (scenario_fields.JOB if place == "job" else scenario_fields.STAGE)
    ]
    known(spec.uncertainty, names, "uncertainty")
    _ties(spec, names, known, fail)
    _one_of_each(spec, jobs, fail)
    _counts(spec, jobs, fail)


def _ties(spec: Spec, names: list[str], known: Known, fail: Fail) -> None:
    tables = [("job", spec.job), *((stage.name, stage.values) for stage in spec.stages)]
    for variant in spec.variants:
        tables += [("job", variant.job), *variant.stages.items()]
    ties = {
        f"{place}.{field}": one
        for place, table in tables
        for field, one in table.items()
        if isinstance(one, Tie)
    }
    for at, tie in ties.items():
        known([tie.of], names, f"{at}.of")
        if tie.of in ties:
            raise fail(f"`{at}` is tied to `{tie.of}`, which is tied itself; tie it to another")
    for table in (*spec.nodes, *spec.events, spec.random_events):
        if any(isinstance(one, Tie) for one in table.values()):
            raise fail("`of` can be used in `[job]` and `[[stage]]` only; give a distribution")


def _one_of_each(spec: Spec, jobs: list[Values], fail: Fail) -> None:
    given = [{*job, *(f"nodes.{name}" for node in spec.nodes for name in node)} for job in jobs]
    for first, second in scenario_fields.EITHER:
        if any(first in names and second in names for names in given):
            raise fail(f"`{first}` and `{second}` are both given, but say the same; give one of them")


def _counts(spec: Spec, jobs: list[Values], fail: Fail) -> None:
    required = sum(not stage.optional for stage in spec.stages)
    limits = {"stages": (max(required, 1), len(spec.stages)), "nodes": (1, len(spec.nodes))}
    for job in jobs:
        if required < len(spec.stages) and "stages" not in job:
            raise fail(
                f"`job.stages` is missing; with optional stages give {max(required, 1)} to {len(spec.stages)}"
            )
        for name, (least, most) in limits.items():
            count = job.get(name, Distribution.constant(least))
            if isinstance(count, Tie):
                raise fail(
                    f"`job.{name}` must not be tied; give a number or a distribution of {least} to {most}"
                )
            if count.low < least or count.high > most:
                reach = f"is from {count.low:g} to {count.high:g}"
                raise fail(f"`job.{name}` {reach}, but the tables in this file allow {least} to {most}")
