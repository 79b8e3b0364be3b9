"""V-SKNN, vector-multiplication session-based nearest neighbours (Ludewig & Jannach 2018, arXiv 1803.09587, section 3).

Items of a session that came late weigh more, both in finding its neighbours among training's sessions and in
scoring the neighbours' items. Nothing is trained; sessions are kept in two compressed tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.schema import Array, Ragged, concat_columns, take_column
from intune.pipelines.whole import at_least
from intune.workloads.pairs.distinct import distinct
from intune.workloads.sequences.popularity import require_items
from intune.workloads.sequences.stages import Window


@dataclass(frozen=True, kw_only=True)
class VSKNNConfig:
    """How neighbours are found and weighed.

    Attributes:
        items: number n of items of the catalogue.
        neighbours: the most similar sessions that are kept, k.
        sample: of the sessions that share an item, so many of the most recent ones are compared, m.
        length: items of a session that are looked at; older ones are left out.
        decay: weight of the j-th of a session's l items in finding neighbours: ``"linear"`` j/l, or ``"none"`` 1.
        score_decay: weight of a neighbour whose most recent common item is the session's i-th from its end:
            ``"reciprocal"`` 1/i, or ``"none"`` 1.
    """

    items: int
    neighbours: int = 100
    sample: int = 1000
    length: int = 20
    decay: Literal["linear", "none"] = "linear"
    score_decay: Literal["reciprocal", "none"] = "reciprocal"

    def __post_init__(self) -> None:
        for name in ("items", "neighbours", "sample", "length"):
            at_least(name, getattr(self, name), 1)
        if self.decay not in ("linear", "none"):
            raise ConfigError(f"`decay`={self.decay!r} is unknown; use 'linear' or 'none'")
        if self.score_decay not in ("reciprocal", "none"):
            raise ConfigError(f"`score_decay`={self.score_decay!r} is unknown; use 'reciprocal' or 'none'")


class VSKNN:
    """Nearest sessions of a `VSKNNConfig`.

    For a session s with items s₁ … s_l, weight w(i) = j/l where s_j is the last occurrence of item i, a training
    session n has similarity Σ w(i) over its distinct items i that s holds, divided by the number of distinct items of
    s. Item i scores Σ similarity(n) · 1/(steps from the end of s to the most recent item that n holds) over the
    neighbours n that hold it; an item that none of them holds is not recommended.
    """

    def __init__(self, config: VSKNNConfig) -> None:
        self.config = config
        self._sessions = Ragged(np.zeros(0, np.int64), np.zeros(1, np.int64))
        self._holders = self._sessions

    def fit(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Keep the sessions of all batches, in the order of their last ``timestamps``; ``items`` is a `Ragged` as well.

        Raises:
            DataError: there are no sessions, or an id that is not one of the catalogue's.
        """
        parts: list[Ragged] = []
        ends: list[Array] = []
        for batch in batches:
            parts.append(Ragged(np.asarray(batch["items"].values), np.asarray(batch["items"].offsets)))
            ends.append(_last_times(batch["timestamps"], parts[-1]))
        if not parts:
            raise DataError("V-SKNN needs training sessions, but there are none; check the training files")
        sessions = take_column(concat_columns(parts), np.argsort(np.concatenate(ends), kind="stable"))
        require_items(sessions.values, self.config.items)
        rows = np.repeat(np.arange(len(sessions)), sessions.lengths)
        # Distinct pairs, sorted by session and then item.
        pairs = distinct(rows * self.config.items + sessions.values)
        rows, items = pairs // self.config.items, pairs % self.config.items
        self._sessions = Ragged(items, _offsets(rows, len(sessions)))
        # A stable sort keeps each item's sessions in order of time.
        order = np.argsort(items, kind="stable")
        self._holders = Ragged(rows[order], _offsets(items, self.config.items))

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of all items, shape ``(rows, items)``, for the sessions ``items`` of a batch; −∞ where no neighbour
        holds an item."""
        sessions = batch["items"]
        offsets, values = np.asarray(sessions.offsets), np.asarray(sessions.values)
        made = np.zeros((len(sessions), self.config.items), dtype=np.float32)
        for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
            made[row] = self._score(values[start:stop][-self.config.length :])
        # Scores that are all 0 would be ranked by nothing but how items are numbered, which often is by popularity.
        made[made == 0] = -np.inf
        return torch.from_numpy(made)

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes; the window checks the sessions."""
        return pipeline.map(Window(length=1, items=self.config.items), name="window")

    def _score(self, session: Array) -> Array:
        config, count = self.config, len(session)
        # Whole numbers, so that equal similarities are equal whatever is added up.
        weights = np.arange(1, count + 1) if config.decay == "linear" else np.ones(count, dtype=np.int64)
        steps = np.arange(count, 0, -1)
        # The last occurrence of each item, oldest first.
        _, first = np.unique(session[::-1], return_index=True)
        places = np.sort(count - 1 - first)
        held = [self._holding(session[place]) for place in places]
        similarity = np.zeros(len(self._sessions), dtype=np.int64)
        nearest = np.zeros(len(self._sessions))
        for place, holders in zip(places, held, strict=True):
            similarity[holders] += weights[place]
            nearest[holders] = 1.0 / steps[place]  # overwritten by later items, which are nearer to the end
        candidates = np.flatnonzero(similarity)[-config.sample :]
        # Of equally similar ones the more recent: candidates are in order of time, and the sort is stable.
        order = np.argsort(-similarity[candidates][::-1], kind="stable")[: config.neighbours]
        chosen = candidates[::-1][order]
        strength = similarity[chosen] / (len(places) * (count if config.decay == "linear" else 1))
        if config.score_decay == "reciprocal":
            strength = strength * nearest[chosen]
        return self._sum_over_items(chosen, strength)

    def _holding(self, item: int) -> Array:
        offsets = self._holders.offsets
        holders: Array = self._holders.values[offsets[item] : offsets[item + 1]]
        return holders

    def _sum_over_items(self, sessions: Array, strength: Array) -> Array:
        offsets = self._sessions.offsets
        lengths = offsets[sessions + 1] - offsets[sessions]
        ends = np.cumsum(lengths)
        inside = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        items = self._sessions.values[np.repeat(offsets[sessions], lengths) + inside]
        return np.bincount(items, weights=np.repeat(strength, lengths), minlength=self.config.items)


def _last_times(times: Any, sessions: Ragged) -> Array:
    offsets, values = np.asarray(times.offsets), np.asarray(times.values)
    if not np.array_equal(offsets, sessions.offsets) or (np.diff(offsets) < 1).any():
        raise DataError(
            "each session needs a timestamp for each of its items, and at least one item; make the data set again "
            "with `intune data`"
        )
    last: Array = values[offsets[1:] - 1]
    return last


def _offsets(owners: Array, count: int) -> Array:
    """Offsets of `count` lists, of the lists that elements belong to."""
    offsets = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return offsets
