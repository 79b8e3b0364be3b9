from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Ragged
from intune.workloads.sequences.draws import Cloze, DrawEnd, DrawNegatives, generator_of
from intune.workloads.sequences.stages import IGNORED, AppendTargets, MaskNext, ShiftTargets, Window

ITEMS = 9
sessions_strategy = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=12), min_size=1, max_size=8
)


def ragged(lists: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)])
    return Ragged(np.array([item for row in lists for item in row], dtype=np.int64), offsets)


@given(lists=sessions_strategy, length=st.integers(1, 14), side=st.sampled_from(["left", "right"]))
def test_a_window_is_the_end_of_each_session_and_padding(
    lists: list[list[int]], length: int, side: Any
) -> None:
    made = Window(length=length, items=ITEMS, side=side)({"items": ragged(lists)})["sequence"]
    for row, session in zip(np.asarray(made).tolist(), lists, strict=True):
        end = session[-length:]
        padding = [ITEMS] * (length - len(end))
        assert row == (padding + end if side == "left" else end + padding)


def test_a_window_of_a_slice_of_a_block_is_the_slice_of_the_window() -> None:
    # Offsets of a session column that does not begin with its first element.
    whole = ragged([[1, 2, 3], [4], [5, 6]])
    part = Ragged(whole.values[3:], whole.offsets[1:] - 3)
    window = Window(length=2, items=ITEMS)
    np.testing.assert_array_equal(
        window({"items": part})["sequence"], np.asarray(window({"items": whole})["sequence"])[1:]
    )


@pytest.mark.parametrize(
    ("sessions", "message"),
    [([[1], []], "session 1 of `items` is empty"), ([[1, 9]], "the item 9"), ([[-1]], "the item -1")],
)
def test_a_window_refuses_empty_sessions_and_unknown_items(sessions: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Window(length=2, items=ITEMS)({"items": ragged(sessions)})


def test_columns_that_are_no_sessions_are_refused() -> None:
    window = Window(length=2, items=ITEMS)
    with pytest.raises(SchemaError, match="no column `items`"):
        window({"item": np.zeros(2)})
    with pytest.raises(SchemaError, match="list columns"):
        window({"items": np.zeros(2, dtype=np.int64)})
    with pytest.raises(SchemaError, match="whole numbers"):
        window({"items": Ragged(np.zeros(2), np.array([0, 2]))})
    with pytest.raises(SchemaError, match="matrix of item ids"):
        ShiftTargets(items=ITEMS)({"items": np.zeros(2)})


@given(lists=sessions_strategy, length=st.integers(1, 5), seed=st.integers(0, 3))
def test_a_drawn_session_begins_like_the_whole_and_holds_a_window(
    lists: list[list[int]], length: int, seed: int
) -> None:
    drawn = DrawEnd(length=length, seed=seed)({"items": ragged(lists)})["drawn"]
    assert isinstance(drawn, Ragged)
    for row, session in enumerate(lists):
        made = drawn.values[drawn.offsets[row] : drawn.offsets[row + 1]].tolist()
        assert made == session[: len(made)]
        assert len(made) >= min(length, len(session))


def test_every_window_is_drawn_equally_often() -> None:
    sessions = ragged([[0, 1, 2, 3, 4]] * 4000)
    lengths = DrawEnd(length=3)({"items": sessions})["drawn"].lengths  # type: ignore[union-attr]
    counts = np.bincount(lengths, minlength=6)
    assert counts[:3].sum() == 0
    np.testing.assert_allclose(counts[3:] / 4000, 1 / 3, atol=0.03)


@given(lists=sessions_strategy, share=st.floats(0.05, 1.0), seed=st.integers(0, 5))
def test_masked_items_are_the_targets_and_every_session_has_one(
    lists: list[list[int]], share: float, seed: int
) -> None:
    sequence = np.asarray(Window(length=8, items=ITEMS)({"items": ragged(lists)})["sequence"])
    made = Cloze(items=ITEMS, mask_share=share, seed=seed)({"sequence": sequence})
    masked, target = np.asarray(made["sequence"]), np.asarray(made["target"])
    hidden = masked == ITEMS + 1
    assert (hidden == (target != IGNORED)).all()
    np.testing.assert_array_equal(np.where(hidden, target, masked), sequence)
    assert hidden.any(axis=1).all()
    assert not hidden[sequence == ITEMS].any(), "padding is never masked"


def test_items_are_masked_as_often_as_asked_wherever_they_stand() -> None:
    rng = np.random.default_rng(0)
    sequence = rng.integers(0, ITEMS, (4000, 20))
    target = np.asarray(Cloze(items=ITEMS, mask_share=0.3)({"sequence": sequence})["target"])
    np.testing.assert_allclose((target != IGNORED).mean(axis=0), 0.3, atol=0.03)
    assert (target != IGNORED).mean() == pytest.approx(0.3, abs=0.006)


def test_a_spared_session_has_its_last_item_masked_on_either_side() -> None:
    sequence = np.array([[ITEMS, ITEMS, 1, 2], [3, 4, ITEMS, ITEMS]])
    target = np.asarray(Cloze(items=ITEMS, mask_share=1e-9)({"sequence": sequence})["target"])
    assert target.tolist() == [[IGNORED, IGNORED, IGNORED, 2], [IGNORED, 4, IGNORED, IGNORED]]


def test_what_is_drawn_depends_on_the_seed_and_on_the_batch_in_its_order() -> None:
    sequence = np.random.default_rng(0).integers(0, ITEMS, (50, 20))

    def draw(rows: Any, seed: int = 0) -> Any:
        return (
            np.asarray(Cloze(items=ITEMS, mask_share=0.5, seed=seed)({"sequence": rows})["target"]) == IGNORED
        )

    assert (draw(sequence) == draw(sequence.copy())).all()
    assert (draw(sequence) != draw(sequence, seed=1)).any()
    other_order = np.random.default_rng(1).permutation(50)
    assert (draw(sequence[other_order]) != draw(sequence)[other_order]).any()
    assert not Cloze(items=ITEMS, mask_share=0.5).rowwise
    assert not DrawEnd(length=2).rowwise
    assert not DrawNegatives(items=2).rowwise


def test_the_generator_of_a_batch_sees_every_place() -> None:
    content = np.zeros((3, 4), dtype=np.int64)
    states = {generator_of(0, content).integers(2**62)}
    for place in np.ndindex(*content.shape):
        changed = content.copy()
        changed[place] = 1
        states.add(generator_of(0, changed).integers(2**62))
    assert len(states) == content.size + 1


def test_to_ask_for_the_next_item_the_mask_is_appended() -> None:
    sequence = np.array([[ITEMS, 1, 2], [3, 4, 5]])
    made = MaskNext(items=ITEMS)({"sequence": sequence})["sequence"]
    assert np.asarray(made).tolist() == [[1, 2, ITEMS + 1], [4, 5, ITEMS + 1]]
    assert sequence.tolist() == [[ITEMS, 1, 2], [3, 4, 5]], "the input is not changed"


@given(lists=sessions_strategy, side=st.sampled_from(["left", "right"]))
def test_the_target_of_each_position_is_the_item_after_it(lists: list[list[int]], side: Any) -> None:
    lists = [*lists, [0, 1]]
    block = Window(length=7, items=ITEMS, side=side)({"items": ragged(lists)})
    made = ShiftTargets(items=ITEMS)(block)
    sequence, target = np.asarray(made["sequence"]), np.asarray(made["target"])
    for row, session in enumerate(lists):
        end = session[-7:]
        pairs = [list(pair) for pair in pairwise(end)]
        known = target[row] != IGNORED
        assert np.stack([sequence[row][known], target[row][known]], axis=1).tolist() == pairs
        assert (sequence[row][~known] == ITEMS).all()


def test_a_batch_without_any_next_item_has_no_target() -> None:
    made = ShiftTargets(items=ITEMS)(Window(length=3, items=ITEMS)({"items": ragged([[1], [2]])}))
    assert (np.asarray(made["target"]) == IGNORED).all()
    assert (np.asarray(made["sequence"]) == ITEMS).all()


def test_negatives_are_no_items_of_the_session_and_uniform_among_the_others() -> None:
    lists = [[0, 1, 2, 3, 4, 5]] * 3000
    block = Window(length=4, items=ITEMS)({"items": ragged(lists)})
    negative = np.asarray(DrawNegatives(items=ITEMS)(ShiftTargets(items=ITEMS)(block))["negative"])
    assert negative.shape == (3000, 3)
    counts = np.bincount(negative.ravel(), minlength=ITEMS)
    assert counts[:6].sum() == 0
    np.testing.assert_allclose(counts[6:] / negative.size, 1 / 3, atol=0.03)


@given(lists=sessions_strategy)
def test_negatives_are_never_items_of_the_session(lists: list[list[int]]) -> None:
    lists = [*lists, [0, 8]]
    block = ShiftTargets(items=ITEMS)(Window(length=6, items=ITEMS)({"items": ragged(lists)}))
    negative = np.asarray(DrawNegatives(items=ITEMS)(block)["negative"])
    target = np.asarray(block["target"])
    assert ((negative >= 0) & (negative < ITEMS)).all()
    for row, session in enumerate(lists):
        if len(set(session)) < ITEMS:
            assert not set(negative[row][target[row] != IGNORED]) & set(session)


def test_a_session_of_the_whole_catalogue_does_not_hang_the_draw() -> None:
    block = Window(length=3, items=2)({"items": ragged([[0, 1, 0]])})
    negative = np.asarray(DrawNegatives(items=2)(ShiftTargets(items=2)(block))["negative"])
    assert set(negative.ravel()) <= {0, 1}


def test_targets_are_appended_to_their_sessions() -> None:
    made = AppendTargets()({"items": ragged([[1, 2], [3]]), "targets": ragged([[4], [5, 6]])})["drawn"]
    assert isinstance(made, Ragged)
    assert made.values.tolist() == [1, 2, 4, 3, 5, 6]
    assert made.offsets.tolist() == [0, 3, 6]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(length=0, items=ITEMS),
        lambda: Window(length=1, items=ITEMS, side="up"),  # type: ignore[arg-type]
        lambda: Cloze(items=ITEMS, mask_share=0.0),
        lambda: Cloze(items=ITEMS, mask_share=1.1),
        lambda: DrawEnd(length=0),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_stages_can_be_sent_to_another_process() -> None:
    for stage in (Window(length=3, items=ITEMS), Cloze(items=ITEMS, mask_share=0.5), DrawEnd(length=3)):
        assert pickle.loads(pickle.dumps(stage)) == stage
