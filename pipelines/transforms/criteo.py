"""What is usually done to Criteo's click logs before a model sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.schema import Array, Block, Column
from intune.pipelines.transforms.base import Transform, as_patterns, choose, number, require_free
from intune.pipelines.transforms.cast import Cast
from intune.pipelines.transforms.clip import Clip
from intune.pipelines.transforms.compose import Compose, Step
from intune.pipelines.transforms.fill_missing import FillMissing
from intune.pipelines.transforms.hash import Hash
from intune.pipelines.transforms.log1p import Log1p
from intune.pipelines.transforms.stack import Stack
from intune.pipelines.transforms.vocabulary import Vocabulary

DENSE = tuple(f"I{number}" for number in range(1, 14))
"""Criteo's columns of numbers (counts, mostly)."""
SPARSE = tuple(f"C{number}" for number in range(1, 27))
"""Criteo's columns of categories."""


def criteo(
    *,
    size: int | Sequence[int] | None = None,
    vocabulary: Vocabulary | None = None,
    multi_hot: bool = False,
    log: bool = True,
    clip: float | None = None,
    seed: int = 0,
    salted: bool = False,
    dense: Sequence[str] = DENSE,
    sparse: Sequence[str] = SPARSE,
    label: str | None = "label",
) -> Compose:
    """From Criteo's columns to what `DLRM` takes; the others are left out.

    - ``dense``: float32, shape ``(rows, 13)``: missing and negative numbers → 0, clipped, then log(1 + x). Infinity and
      numbers beyond float32 are refused by their column's name (a `DataError`), unless they are clipped: a model would
      make NaN of them, and to call them missing would make the highest numbers the lowest.
    - ``sparse``: int64, shape ``(rows, 26)``: ids, strings (hexadecimal, as in the raw files) or integers, hashed into
      a table's rows or looked up in a vocabulary. With `multi_hot`, the columns ``C1`` … ``C26`` instead, each as it
      was, a list column or one id a row.
    - ``label``: float32, shape ``(rows,)``.

    Args:
        size: rows of the tables, one number for all or one for each feature: a missing string becomes row 0, which
            others share; a missing integer is what the loader filled in, an id like any other.
        vocabulary: with entries for each feature; give either this or `size`.
        multi_hot: whether to leave the categories apart, for list columns.
        log: whether to take logarithms.
        clip: largest number, before the logarithm; None for no limit.
        seed, salted: as of `Hash`.
        dense, sparse, label: the columns' names; without any in `dense` there is no matrix of this name; `label` None
            for data without.
    """
    if clip is not None and number("clip", clip) <= 0:
        raise ConfigError(f"`clip`={clip!r} must be above 0, or None for no limit")
    dense = as_patterns("dense", dense) if dense else ()
    sparse = as_patterns("sparse", sparse)
    into = None if multi_hot else "sparse"
    categories: Step
    if vocabulary is None and size is not None:
        categories = Hash(columns=sparse, size=size, seed=seed, salted=salted, into=into)
    elif vocabulary is not None and size is None:
        categories = replace(vocabulary, columns=sparse, into=into)
    else:
        raise ConfigError(
            "exactly one of `size` and `vocabulary` decides what becomes of the categories, but "
            f"{'neither is' if size is None else 'both are'} given; give the tables' rows or a vocabulary"
        )
    parts: list[tuple[str | tuple[str, ...], Step]] = [(sparse, categories)]
    if dense:
        parts.insert(0, (dense, _numbers(dense, log, clip)))
    if label is not None:
        parts.insert(0, (label, Cast(columns=label, dtype="float32")))
    return Compose(_Beside(parts=tuple(parts)))


def _numbers(dense: tuple[str, ...], log: bool, clip: float | None) -> _Finite:
    """What makes the matrix ``dense`` of these columns."""
    steps: list[Step] = []
    if clip is not None or not log:
        steps.append(Clip(columns=dense, min=0, max=clip))
    if log:
        steps.append(Log1p(columns=dense, fill_missing=True, dtype="float32", into="dense"))
    else:
        steps.append(FillMissing(columns=dense, value=0.0))
        steps.append(Stack(columns=dense, into="dense", dtype="float32"))
    return _Finite(columns=dense, numbers=Compose(*steps))


@dataclass(frozen=True, kw_only=True)
class _Beside(Transform):
    """What each part makes of columns of its own, so that one may be called as what is made of others.

    Attributes:
        parts: names or patterns, and what is made of these columns.
    """

    parts: tuple[tuple[str | tuple[str, ...], Step], ...]

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """What they make, side by side.

        Raises:
            SchemaError: two of them make a column of one name.
        """
        made: Block = {}
        for columns, step in self.parts:
            given = {name: block[name] for name in choose(block, columns, "criteo")}
            for name, column in step(given).items():
                require_free("criteo", name, made)
                made[name] = column
        return made


@dataclass(frozen=True, kw_only=True)
class _Finite(Transform):
    """What `numbers` makes of `columns`, the matrix ``dense``, whose numbers must be finite."""

    columns: tuple[str, ...]
    numbers: Compose

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with the matrix.

        Raises:
            DataError: a number is infinite, or too large for float32.
        """
        with np.errstate(over="ignore"):
            made = self.numbers(block)
        matrix = made["dense"]
        assert isinstance(matrix, np.ndarray)
        # Missing and negative numbers are 0 by now, and one look for the largest is the least that this can cost.
        if not np.isfinite(matrix.max(initial=0.0)):
            self._refuse(block, matrix)
        return made

    def _refuse(self, block: Mapping[str, Column], matrix: Array) -> None:
        columns = choose(block, self.columns, "criteo")
        # A column that is a matrix itself has several places in the other.
        names = [name for name in columns for _ in range(np.asarray(block[name]).size // len(matrix))]
        wrong = np.count_nonzero(~np.isfinite(matrix), axis=0)
        place = int(wrong.argmax())
        raise DataError(
            f"criteo: column `{names[place]}` holds infinity, or more than float32 can, in {wrong[place]:,} of "
            f"{len(matrix):,} rows; write finite numbers, or null where one is missing (in code, `clip` limits them)"
        )
