"""`Columns`: the jobs of a simulator, every job one column of a few tables, so that others quickly take its place."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import Jobs
from intune.envs.prepared import Prepared, prepare

_JOBS = tuple(field.name for field in fields(Jobs))
_PREPARED = tuple(field.name for field in fields(Prepared) if field.name not in ("jobs", "parts"))

Arrays = dict[str, Any]


class Columns:
    """N jobs and what is computed of them once.

    Their arrays are views of tables in which they lie stage by stage: sums over stages are then many times faster.

    Args:
        jobs: Copied.

    Attributes:
        jobs: the same.
        prepared: see `prepare`.
    """

    def __init__(self, jobs: Jobs) -> None:
        views, of_jobs = _tables({name: getattr(jobs, name) for name in _JOBS})
        self.jobs = Jobs(**views)
        prepared = prepare(self.jobs)
        views, computed = _tables({name: getattr(prepared, name) for name in _PREPARED})
        self.prepared: Prepared = replace(prepared, **views)
        self._all = of_jobs + computed

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies of views are views no more: tables are made again, lest `put` writes where nothing is read.
        return type(self), (self.jobs,)

    def put(self, rows: Any, other: Columns, chosen: Any = slice(None)) -> None:
        """Overwrite the jobs at `rows` by those of `other` at `chosen`, which are of the same widths."""
        for mine, new in zip(self._all, other._all, strict=True):
            mine[:, rows] = new[:, chosen]
        parts = self.prepared.parts | other.prepared.parts
        if parts != self.prepared.parts:
            self.prepared = replace(self.prepared, parts=parts)


def _tables(arrays: Arrays) -> tuple[Arrays, list[NDArray[Any]]]:
    """Views of the arrays, ``[N]`` or ``[N, K]``, and the tables ``[…, N]`` that they are of: one of every type."""
    views: Arrays = {}
    tables = []
    for kind in (np.dtype(np.float64), np.dtype(np.bool_)):
        mine = {
            name: value for name, value in arrays.items() if (value.dtype == np.bool_) == (kind == np.bool_)
        }
        widths = {name: value.shape[1] if value.ndim == 2 else 1 for name, value in mine.items()}
        count = len(next(iter(arrays.values())))
        table = np.empty((sum(widths.values()), count), dtype=kind)
        at = 0
        for name, value in mine.items():
            part = table[at : at + widths[name]]
            part[:] = value.T
            views[name] = part.T if value.ndim == 2 else part[0]
            at += widths[name]
        tables.append(table)
    return views, tables
