"""What must hold between the parts of a scenario file: ties, counts, values said in two ways, uncertain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from intune.envs import scenario_fields
from intune.envs.distributions import Distribution
from intune.envs.scenario_fields import Field
from intune.envs.scenario_spec import Spec, Tie, Value, Values
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
    _only_there(spec, fail)
    for kind in _kinds(spec):
        _ties(kind, names, known, fail)
        _times(kind, [stage.name for stage in spec.stages], fail)
    _one_of_each(spec, jobs, fail)
    _counts(spec, jobs, fail)


def limits_of(field: Field) -> str:
    """The range of a field and its unit, for messages."""
    limits = f"{field.low:g} to {field.high:g}" if field.high < inf else f"{field.low:g} or more"
    return f"{limits} ({field.unit})"


def reach_of(low: float, high: float) -> str:
    """What a value may be, for messages."""
    return f"={low:g}" if low == high else f" is from {low:g} to {high:g}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """The values of one kind of job.

    Attributes:
        values: those given, by place and field: ``"load.cpu"``.
        own: those of them that the variant gives.
        variant: where it stands; empty for the file without its variants.
    """

    values: Values
    own: Values
    variant: str

    def value(self, place: str) -> Value:
        """The value, or what it is if not given."""
        return self.values.get(place, Distribution.constant(_field(place).default))

    def reach(self, place: str) -> tuple[float, float, bool]:
        """The least and the greatest it may be, and whether whole; of ties to what is not tied itself."""
        value = self.value(place)
        if isinstance(value, Distribution):
            return value.low, value.high, value.whole
        target = self.value(value.of)
        assert isinstance(target, Distribution)
        return value.times.product(target)

    def path(self, place: str) -> str:
        """Where the value stands in the file."""
        if place not in self.own:
            return place
        return f"{self.variant}.{'' if _of_job(place) else 'stage.'}{place}"

    def called(self, place: str) -> str:
        """The value's name in messages."""
        inside = f" in `{self.variant}`" if self.variant and place not in self.own else ""
        return f"`{self.path(place)}`{inside}"


def _kinds(spec: Spec) -> list[_Kind]:
    """The file without its variants, then with each of them."""
    base = _placed([("job", spec.job), *((stage.name, stage.values) for stage in spec.stages)])
    kinds = [_Kind(base, {}, "")]
    for at, variant in enumerate(spec.variants):
        own = _placed([("job", variant.job), *variant.stages.items()])
        kinds.append(_Kind({**base, **own}, own, f"variant[{at}]"))
    return kinds


def _placed(tables: Iterable[tuple[str, Values]]) -> dict[str, Value]:
    return {f"{place}.{field}": value for place, table in tables for field, value in table.items()}


def _of_job(place: str) -> bool:
    return place.rpartition(".")[0] == "job"


def _field(place: str) -> Field:
    return (scenario_fields.JOB if _of_job(place) else scenario_fields.STAGE)[place.rpartition(".")[2]]


def _only_there(spec: Spec, fail: Fail) -> None:
    for table in (*spec.nodes, *spec.events, spec.random_events):
        if any(isinstance(one, Tie) for one in table.values()):
            raise fail("`of` can be used in `[job]` and `[[stage]]` only; give a distribution")


def _ties(kind: _Kind, names: list[str], known: Known, fail: Fail) -> None:
    ties = [(at, value.of) for at, value in kind.values.items() if isinstance(value, Tie)]
    for at, of in ties:
        known([of], names, f"{kind.path(at)}.of")
        if isinstance(kind.value(of), Tie):
            raise fail(f"{kind.called(at)} is tied to `{of}`, which is tied itself; tie it to another")
        field = _field(at)
        low, high, whole = kind.reach(at)
        said = f"{kind.called(at)}{reach_of(low, high)}, as `times` x `{of}`, but must be"
        if not (low >= field.low and high <= field.high):
            raise fail(f"{said} {limits_of(field)}")
        if field.whole and not whole:
            raise fail(f"{said} whole numbers, {limits_of(field)}")


def _times(kind: _Kind, stages: list[str], fail: Fail) -> None:
    inside = f" in `{kind.variant}`" if kind.variant else ""
    for name in stages:
        if not any(kind.reach(f"{name}.{field}")[0] > 0.0 for field in ("cpu", "wait", "wait_per_block")):
            raise fail(f"`{name}`{inside} takes no time; give `cpu` or `wait` above 0 (s/row)")


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
