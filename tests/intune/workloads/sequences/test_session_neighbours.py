"""V-SKNN against its definition, pair by pair; popularity against counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.errors import ConfigError, DataError
from intune.pipelines.schema import Ragged, slice_block
from intune.workloads.evaluation import NOTHING, top_k
from intune.workloads.sequences.popularity import Popularity
from intune.workloads.sequences.vsknn import VSKNN, VSKNNConfig

ITEMS = 8
NEVER = -np.inf
some_sessions = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=12)


def batch_of(lists: list[list[int]], times: list[int] | None = None) -> dict[str, Any]:
    """Sessions that end at `times`, by default one after another."""
    offsets = torch.tensor(np.cumsum([0, *map(len, lists)]))
    ends = list(range(len(lists))) if times is None else times
    stamps = [end for row, end in zip(lists, ends, strict=True) for _ in row]
    return {
        "items": Ragged(torch.tensor([item for row in lists for item in row]), offsets),
        "timestamps": Ragged(torch.tensor(stamps), offsets),
    }


def definition(config: VSKNNConfig, training: list[list[int]], session: list[int]) -> list[float]:
    """Ludewig & Jannach 2018, section 3: by loops over all pairs."""
    session = session[-config.length :]
    weight = {
        item: (j + 1) / len(session) if config.decay == "linear" else 1.0 for j, item in enumerate(session)
    }
    step = {item: len(session) - j for j, item in enumerate(session)}
    found = [
        (sum(weight[item] for item in set(other) & set(session)) / len(weight), time)
        for time, other in enumerate(training)
        if set(other) & set(session)
    ]
    recent = sorted(found, key=lambda entry: -entry[1])[: config.sample]
    nearest = sorted(recent, key=lambda entry: (-round(entry[0], 9), -entry[1]))[: config.neighbours]
    scores = [0.0] * config.items
    for similarity, time in nearest:
        steps = min(step[item] for item in set(training[time]) & set(session))
        for item in set(training[time]):
            scores[item] += similarity * (1 / steps if config.score_decay == "reciprocal" else 1.0)
    return [score or NEVER for score in scores]


@settings(max_examples=60)
@given(
    training=some_sessions,
    asked=some_sessions,
    neighbours=st.integers(1, 5),
    sample=st.integers(1, 8),
    decay=st.sampled_from(["linear", "none"]),
    score_decay=st.sampled_from(["reciprocal", "none"]),
)
def test_vsknn_scores_as_its_definition(
    training: list[list[int]],
    asked: list[list[int]],
    neighbours: int,
    sample: int,
    decay: Any,
    score_decay: Any,
) -> None:
    config = VSKNNConfig(
        items=ITEMS, neighbours=neighbours, sample=sample, length=4, decay=decay, score_decay=score_decay
    )
    model = VSKNN(config)
    model.fit([batch_of(training)])
    expected = [definition(config, training, session) for session in asked]
    np.testing.assert_allclose(model.scores(batch_of(asked)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_of_equally_similar_sessions_the_more_recent_is_heard() -> None:
    # Of seven items the first and the fourth weigh together what the fifth does, though 1/49 + 4/49 < 5/49 in floats.
    model = VSKNN(VSKNNConfig(items=ITEMS, neighbours=1))
    model.fit([batch_of([[4, 7], [0, 3]])])
    scores = model.scores(batch_of([[0, 1, 2, 3, 4, 5, 6]]))
    assert torch.isfinite(scores[0]).nonzero()[:, 0].tolist() == [0, 3]


def test_vsknn_by_hand() -> None:
    model = VSKNN(VSKNNConfig(items=ITEMS))
    model.fit([batch_of([[0, 1, 2], [1, 3], [4, 5]])])
    # The session 0, 1: weights 1/2 and 1. The first shares both (1.5/2, last common one step from the end), the
    # second shares 1 (1/2, likewise), the third nothing.
    scores = model.scores(batch_of([[0, 1]]))[0].tolist()
    assert scores == pytest.approx([0.75, 1.25, 0.75, 0.5, *[NEVER] * 4])


def test_vsknn_orders_sessions_by_time_however_they_come() -> None:
    lists, times = [[0, 1], [0, 2], [0, 3]], [30, 10, 20]
    model = VSKNN(VSKNNConfig(items=ITEMS, sample=2))
    whole = batch_of(lists, times)
    arrays = {name: Ragged(column.values.numpy(), column.offsets.numpy()) for name, column in whole.items()}
    model.fit([slice_block(arrays, 0, 1), slice_block(arrays, 1, 3)])
    # Of the three that share item 0, the two most recent are those that end at 20 and 30.
    assert model.scores(batch_of([[0]]))[0].tolist() == pytest.approx([2, 1, NEVER, 1, *[NEVER] * 4])


def test_vsknn_recommends_nothing_that_no_neighbour_holds() -> None:
    model = VSKNN(VSKNNConfig(items=ITEMS))
    model.fit([batch_of([[0, 1], [0], [5]])])
    ranked = top_k(model.scores(batch_of([[7], [0]])), 3)
    assert ranked.tolist() == [[NOTHING] * 3, [0, 1, NOTHING]]


def test_vsknn_refuses_what_it_cannot_learn_from() -> None:
    model = VSKNN(VSKNNConfig(items=ITEMS))
    with pytest.raises(DataError, match="there are none"):
        model.fit([])
    with pytest.raises(DataError, match="item 8"):
        model.fit([batch_of([[8]])])
    broken = batch_of([[1, 2], [3]])
    broken["timestamps"] = batch_of([[1], [2, 3]])["timestamps"]
    with pytest.raises(DataError, match="timestamp"):
        model.fit([broken])
    with pytest.raises(DataError, match="at least one item"):
        model.fit([batch_of([[1], []])])
    with pytest.raises(ConfigError, match="neighbours"):
        VSKNNConfig(items=1, neighbours=0)
    with pytest.raises(ConfigError, match="decay"):
        VSKNNConfig(items=1, decay="log")  # type: ignore[arg-type]


@given(lists=some_sessions)
def test_popularity_counts(lists: list[list[int]]) -> None:
    model = Popularity(items=ITEMS)
    batch = batch_of(lists)
    model.fit([batch, batch])
    flat = [item for row in lists for item in row]
    expected = [2 * flat.count(item) for item in range(ITEMS)]
    assert model.scores(batch).tolist() == [expected] * len(lists)


def test_popularity_refuses_unknown_items() -> None:
    with pytest.raises(DataError, match="item 9"):
        Popularity(items=3).fit([batch_of([[9]])])
