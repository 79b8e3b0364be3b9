"""Distributions that a scenario file may name, and drawing many of them at once.

A value in a file is a number, or a table with one of the keys of `KINDS`. What a distribution is for is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from intune.pipelines.errors import ConfigError

Kind = Literal["constant", "uniform", "loguniform", "integers", "normal", "log_normal", "choice"]

KINDS: dict[str, str] = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "integers": "[low, high], both included",
    "normal": "[mean, standard deviation], cut at 3 standard deviations",
    "log_normal": "[median, standard deviation of the logarithm], cut at 3 of them",
    "choice": "[a, b, …], with `weights` beside it if they are not equally likely",
}

CUT = 3.0
"""Standard deviations at which normal draws are cut: the extremes are then known, and none is negative by chance."""

_Z = np.linspace(-CUT, CUT, 4001)
_PHI = np.array([0.5 * math.erfc(-z / math.sqrt(2.0)) for z in _Z])


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One number at random.

    Attributes:
        kind: which of `KINDS`, or ``constant``.
        numbers: the numbers it takes, in the order that `KINDS` states; a constant's one number.
        weights: of a choice, one for each number, of any sum.
    """

    kind: Kind
    numbers: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: a wrong number of numbers, NaN, a reversed range, weights that make no sense.
        """
        given = f"`{self.kind}`={list(self.numbers)}"
        if self.kind == "constant" and len(self.numbers) == 1 and math.isnan(self.numbers[0]):
            raise ConfigError("NaN is no value; give a number")
        if any(math.isnan(number) for number in self.numbers):
            raise ConfigError(f"{given} has NaN in it; give numbers")
        if self.kind == "choice":
            self._check_choice(given)
            return
        needed = 1 if self.kind == "constant" else 2
        if len(self.numbers) != needed:
            raise ConfigError(f"{given} needs {needed} numbers: {KINDS.get(self.kind, '[value]')}")
        if self.kind == "constant":
            return
        if not all(math.isfinite(number) for number in self.numbers):
            raise ConfigError(f"{given} must be finite; only constants and choices may be inf")
        first, second = self.numbers
        if self.kind in ("uniform", "loguniform", "integers") and first > second:
            raise ConfigError(f"{given} is reversed; give the low end first")
        if self.kind in ("loguniform", "log_normal") and first <= 0:
            raise ConfigError(f"{given} must begin with a number above 0")
        most = 100.0 if self.kind == "log_normal" else math.inf  # e^300 is the end of floating-point numbers
        if self.kind in ("normal", "log_normal") and not 0 <= second <= most:
            raise ConfigError(
                f"{given} must have a standard deviation of 0 or more, of a logarithm up to 100"
            )
        if self.kind == "integers" and not (first.is_integer() and second.is_integer()):
            raise ConfigError(f"{given} must be whole numbers")

    def _check_choice(self, given: str) -> None:
        if not self.numbers:
            raise ConfigError("`choice`=[] must have one number at least")
        if self.weights and len(self.weights) != len(self.numbers):
            raise ConfigError(f"{given} has {len(self.numbers)} numbers, but {len(self.weights)} `weights`")
        if any(not (math.isfinite(weight) and weight >= 0) for weight in self.weights):
            raise ConfigError(f"`weights`={list(self.weights)} must be 0 or more each")
        if self.weights and sum(self.weights) <= 0:
            raise ConfigError(f"`weights`={list(self.weights)} must not all be 0")

    @classmethod
    def constant(cls, value: float) -> Distribution:
        """Always `value`."""
        return cls(kind="constant", numbers=(float(value),))

    @property
    def low(self) -> float:
        """The least number it can give."""
        return self._ends()[0]

    @property
    def high(self) -> float:
        """The greatest number it can give."""
        return self._ends()[1]

    @property
    def whole(self) -> bool:
        """Whether it gives whole numbers only."""
        if self.kind == "integers":
            return True
        return self.kind in ("constant", "choice") and all(number.is_integer() for number in self.numbers)

    def product(self, other: Distribution) -> tuple[float, float, bool]:
        """The least and the greatest product of a number of each, NaN for both where 0 may meet inf; whether whole."""
        ends = [mine * theirs for mine in self._ends() for theirs in other._ends()]
        if any(math.isnan(end) for end in ends):
            return math.nan, math.nan, False
        whole = self.whole and other.whole
        if not whole and {self.kind, other.kind} <= {"constant", "choice"}:
            whole = all((mine * theirs).is_integer() for mine in self.numbers for theirs in other.numbers)
        return min(ends), max(ends), whole

    def _ends(self) -> tuple[float, float]:
        if self.kind in ("constant", "choice"):
            return min(self.numbers), max(self.numbers)
        first, second = self.numbers
        if self.kind == "normal":
            return first - CUT * second, first + CUT * second
        if self.kind == "log_normal":
            return first * math.exp(-CUT * second), first * math.exp(CUT * second)
        return first, second

    def times(self, factor: float) -> Distribution:
        """The distribution of `factor` times the number; `factor` is above 0."""
        scaled = tuple(number * factor for number in self.numbers)
        if self.kind == "log_normal":
            scaled = (self.numbers[0] * factor, self.numbers[1])
        return Distribution(kind=self.kind, numbers=scaled, weights=self.weights)

    def plain(self) -> float | dict[str, list[float]]:
        """As it stands in a file; `parse` reads it back."""
        if self.kind == "constant":
            return self.numbers[0]
        table = {str(self.kind): list(self.numbers)}
        if self.weights:
            table["weights"] = list(self.weights)
        return table


def is_number(value: Any) -> bool:
    """Whether it is a number (no boolean) that a floating-point number can hold; NaN and inf are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1023


def parse(value: Any) -> Distribution:
    """A number or a table such as ``{"uniform": [1, 2]}`` as a distribution.

    Raises:
        ConfigError: neither of them, an unknown kind, or numbers that make no sense.
    """
    if not is_number(value) and not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} must be a number or a distribution such as {{uniform = [1, 2]}}")
    if not isinstance(value, Mapping):
        return Distribution.constant(float(value))
    kinds = [key for key in value if key != "weights"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ConfigError(f"{dict(value)!r} must have one of the keys {', '.join(KINDS)}")
    kind = kinds[0]
    if "weights" in value and kind != "choice":
        raise ConfigError(f"{dict(value)!r} has `weights`, which only `choice` takes")
    numbers = _numbers(kind, value[kind])
    weights = _numbers("weights", value.get("weights", []))
    return Distribution(kind=kind, numbers=numbers, weights=weights)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    good = isinstance(value, Sequence) and not isinstance(value, str)
    if not good or not all(is_number(one) for one in value):
        raise ConfigError(f"`{name}`={value!r} must be a list of numbers")
    return tuple(float(one) for one in value)


class Sampler:
    """Draws many distributions at once, by inverting their distribution functions.

    Every distribution takes exactly one uniform number a draw, so that one of them does not shift the others.
    """

    def __init__(self, distributions: Sequence[Distribution]) -> None:
        self._count = len(distributions)
        kinds = np.array([one.kind for one in distributions], dtype=object)
        self._start = np.zeros((self._count, 1))
        self._span = np.zeros((self._count, 1))
        for row, one in enumerate(distributions):
            self._start[row], self._span[row] = _line(one)
        self._exp = np.flatnonzero((kinds == "loguniform") | (kinds == "log_normal"))
        self._floor = np.flatnonzero(kinds == "integers")
        self._normal = np.flatnonzero((kinds == "normal") | (kinds == "log_normal"))
        self._choices = [
            (row, np.array(one.numbers), _steps(one))
            for row, one in enumerate(distributions)
            if one.kind == "choice"
        ]

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """`count` draws of each distribution, ``[distributions, count]``."""
        return self.at(rng.random((self._count, count)))

    def at(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """The quantiles at `uniform` (in [0, 1), ``[distributions, count]``)."""
        given = uniform
        if self._normal.size:
            given = uniform.copy()
            inside = _PHI[0] + uniform[self._normal] * (_PHI[-1] - _PHI[0])
            given[self._normal] = np.interp(inside, _PHI, _Z)
        drawn: NDArray[np.float64] = self._start + given * self._span
        if self._exp.size:
            drawn[self._exp] = np.exp(drawn[self._exp])
        if self._floor.size:
            drawn[self._floor] = np.floor(drawn[self._floor])
        for row, numbers, steps in self._choices:
            drawn[row] = numbers[np.searchsorted(steps, uniform[row], side="right")]
        return drawn


def _line(one: Distribution) -> tuple[float, float]:
    """Start and slope of the straight line that comes before `exp` and `floor`."""
    if one.kind == "choice":
        return 0.0, 0.0
    if one.kind == "constant":
        return one.numbers[0], 0.0
    first, second = one.numbers
    if one.kind == "uniform":
        return first, second - first
    if one.kind == "integers":
        return first, second - first + 1.0
    if one.kind == "loguniform":
        return math.log(first), math.log(second) - math.log(first)
    if one.kind == "log_normal":
        return math.log(first), second
    return first, second


def _steps(one: Distribution) -> NDArray[np.float64]:
    """Where the cumulated weights of a choice step from one number to the next: as many less one."""
    weights = np.array(one.weights or (1.0,) * len(one.numbers))
    steps: NDArray[np.float64] = np.cumsum(weights)[:-1] / weights.sum()
    return steps
