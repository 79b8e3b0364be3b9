"""Trend forecasting from a folder to metrics: nothing is seen too early, bad data is refused, runs can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines import Loader
from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.schema import Ragged
from intune.workloads.data.market import MarketOptions, write_market
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from intune.workloads.data.tables import SeriesOptions
from intune.workloads.evaluation import SCORES_AT_ONCE
from intune.workloads.pairs.data import RatingData
from intune.workloads.sequences.stages import IGNORED
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.fitting import FitOptions
from intune.workloads.training.trainer import OnStep
from intune.workloads.trends import baselines as trend_baselines
from intune.workloads.trends import job as trend_job
from intune.workloads.trends.data import CutOptions, TrendData, find_trend_data
from intune.workloads.trends.job import TrendForecaster, in_blocks
from intune.workloads.trends.options import FORECASTERS, TrendFit, TrendOptions
from intune.workloads.trends.stages import NextItemsBefore, SeriesBefore
from tests.intune.workloads.ratings_files import drawn, write_recbole

LOSS = FitOptions(metric="loss", higher_is_better=False, epochs=2)
FIT = TrendFit(items=LOSS, trends=LOSS, feed=FeedOptions(executor="threads", cpus=1, memory="64MiB"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrendData:
    out = tmp_path_factory.mktemp("market") / "m"
    write_market(MarketOptions(users=30, items=24, audiences=3, steps=16, season=4), out)
    return find_trend_data(out)


def options(forecaster: str = "trendrec", **more: object) -> TrendOptions:
    shape = {"width": 4, "hidden": 4, "length": 8, "season": 4, "cutoffs": (5,), "batch_size": 8}
    return TrendOptions(**{"forecaster": forecaster, **shape, **more})  # type: ignore[arg-type]


def sessions(*lists: list[tuple[int, int]]) -> dict[str, Ragged]:
    offsets = np.cumsum([0, *(len(each) for each in lists)])
    flat = np.array([pair for each in lists for pair in each], dtype=np.int64).reshape(-1, 2)
    return {"items": Ragged(flat[:, 0], offsets), "timestamps": Ragged(flat[:, 1], offsets)}


def test_a_window_holds_nothing_of_the_moment_or_after() -> None:
    block = sessions([(0, 1), (1, 2), (2, 10), (3, 11)], [(3, 12)], [(2, 3)])
    made = NextItemsBefore(items=4, length=3, moment=10)(block)
    assert set(made) == {"sequence", "target"}
    np.testing.assert_array_equal(made["sequence"], [[0, 4, 4], [4, 4, 4], [4, 4, 4]])
    np.testing.assert_array_equal(made["target"], [[1, IGNORED, IGNORED], [IGNORED] * 3, [IGNORED] * 3])


def test_windows_of_long_sessions_are_runs_of_them() -> None:
    block = sessions([(item, item) for item in range(20)], [(item, item) for item in range(5, 20)])
    made = NextItemsBefore(items=20, length=4, moment=18, seed=3)(block)
    sequence, target = made["sequence"], made["target"]
    np.testing.assert_array_equal(sequence + 1, target)
    np.testing.assert_array_equal(np.diff(sequence, axis=1), 1)
    assert target.max() < 18


def test_time_that_goes_backwards_is_refused() -> None:
    stage = NextItemsBefore(items=4, length=3, moment=10)
    with pytest.raises(DataError, match="time goes backwards in session 1 of the batch, from 5 to 4"):
        stage(sessions([(0, 9)], [(1, 5), (2, 4)]))
    with pytest.raises(DataError, match="the item 4, but the catalogue has 4"):
        stage(sessions([(4, 1)]))


def test_series_are_cut_and_checked() -> None:
    series = Ragged(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 3, 6]))
    np.testing.assert_array_equal(SeriesBefore(steps=2)({"velocity": series})["velocity"], [[1, 2], [4, 5]])
    with pytest.raises(DataError, match="a series of 3 steps was found, but 4 are needed"):
        SeriesBefore(steps=4)({"velocity": series})
    with pytest.raises(DataError, match="a velocity of -1 was found"):
        SeriesBefore(steps=2)({"velocity": Ragged(np.array([1, -1]), np.array([0, 2]))})


def test_steps_are_cut_from_the_end(data: TrendData) -> None:
    # 16 steps, of which the last is not whole: 15, of which 3 and 2 are held out.
    assert (data.steps, data.valid_from, data.test_from) == (15, 10, 12)
    assert data.velocity.shape == (24, 15)
    np.testing.assert_array_equal(data.truth(range(12, 15))[0], data.velocity[:, 12] - data.velocity[:, 11])


def test_events_before_a_step_are_those_with_an_earlier_time(data: TrendData) -> None:
    user, item, time = data.events
    seen = time < data.moment(6)
    made = data.sessions_before(6, length=1000)
    counts = np.bincount(made[made < data.items], minlength=data.items)
    np.testing.assert_array_equal(counts, np.bincount(item[seen], minlength=data.items))
    np.testing.assert_array_equal(counts, data.velocity[:, :6].sum(axis=1))
    active = data.sessions_before(6, length=3, active=1)
    assert len(active) == len(np.unique(user[seen & (time >= data.moment(5))]))


def test_what_held_out_sessions_begin_with_are_events_too(tmp_path: Path) -> None:
    found = read_movielens(write_recbole(tmp_path / "files", drawn()))
    chosen = RatingsOptions(split=SplitOptions(name="session-time"), series=SeriesOptions(step_days=10))
    write_ratings(found, chosen, tmp_path / "data", kind="movielens")
    data = find_trend_data(tmp_path / "data")
    user, item, time = data.events
    assert len(item) == len(drawn())
    assert (np.diff(user) >= 0).all()
    counts = np.bincount(item[time < data.moment(data.steps)], minlength=data.items)
    np.testing.assert_array_equal(counts, data.velocity.sum(axis=1))


def test_next_items_asked_for_are_those_of_the_steps(data: TrendData) -> None:
    sequence, target = data.next_items(range(10, 12), length=1000)
    _, item, time = data.events
    inside = (time >= data.moment(10)) & (time < data.moment(12))
    asked = target[target != IGNORED]
    # A user's first event of all has nothing before it and is not asked for.
    assert 0 <= np.count_nonzero(inside) - len(asked) <= len(sequence)
    assert (np.bincount(asked, minlength=24) <= np.bincount(item[inside], minlength=24)).all()


@pytest.mark.parametrize("name", FORECASTERS)
def test_no_forecast_sees_its_own_step(data: TrendData, name: str) -> None:
    step = 12
    velocity = data.velocity.copy()
    velocity[:, step:] += 50
    user, item, time = data.events
    late = time >= data.moment(step)
    changed = replace(data)
    # What is cached is what the data set holds; here it is another one from `step` on.
    changed.__dict__["velocity"] = velocity
    changed.__dict__["events"] = (user, np.where(late, (item + 1) % data.items, item), time)
    before = TrendForecaster(data=data, options=options(name))
    after = TrendForecaster(data=changed, options=options(name))
    for each in (before, after):
        each.model.eval()
    steps = range(10, step + 3)
    first, second = before.forecast(steps), after.forecast(steps)
    np.testing.assert_allclose(first[:3], second[:3], rtol=1e-6)
    assert not np.allclose(first[3:], second[3:])


def test_held_out_steps_are_judged_block_by_block(data: TrendData, monkeypatch: pytest.MonkeyPatch) -> None:
    made = TrendForecaster(data=data, options=options())
    made.model.eval()
    steps = data.held_out("valid")
    whole = made.loss_of_items(), made.loss_of_trends(), made.forecast(steps)
    targets: list[int] = []
    series: list[int] = []
    loss = made.model.next_item.loss

    def watched(batch: Any) -> torch.Tensor:
        targets.append(int((batch["target"] != IGNORED).sum()))
        return loss(batch)

    monkeypatch.setattr(made.model.next_item, "loss", watched)
    made.model.forecaster.register_forward_pre_hook(lambda module, inputs: series.append(len(inputs[0])))
    # Ten targets' scores of 24 items, and one series or two of eleven or twelve steps.
    monkeypatch.setattr(trend_job, "SCORES_AT_ONCE", 240)
    assert made.loss_of_items() == pytest.approx(whole[0], rel=1e-5)
    assert made.loss_of_trends() == pytest.approx(whole[1], rel=1e-5)
    np.testing.assert_allclose(made.forecast(steps), whole[2], rtol=1e-4, atol=1e-5)
    # A session has eight targets at most, which may be in a block that is nearly full.
    assert max(targets) <= 10 + 8
    assert sum(targets) == np.count_nonzero(data.next_items(steps, length=8)[1] != IGNORED)
    assert max(series) <= 2
    assert sum(series) == 2 * data.items


def test_predicted_popularity_scores_no_more_sessions_at_once_than_a_block_holds(
    data: TrendData, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TrendForecaster(data=data, options=options("gru4rec"))
    made.model.eval()
    whole = made.forecast(range(10, 12))
    sessions: list[int] = []
    score = made.model.next_item.score

    def watched(states: torch.Tensor) -> torch.Tensor:
        sessions.append(len(states))
        return score(states)

    monkeypatch.setattr(made.model.next_item, "score", watched)
    monkeypatch.setattr(trend_baselines, "SCORES_AT_ONCE", 24 * 3)
    np.testing.assert_allclose(made.forecast(range(10, 12)), whole, rtol=1e-5)
    assert max(sessions) == 3


@given(st.lists(st.integers(0, 2 * SCORES_AT_ONCE), max_size=30))
def test_blocks_are_all_rows_in_order_and_hold_little_more_than_they_should(numbers: list[int]) -> None:
    made = list(in_blocks(np.array(numbers, dtype=np.int64)))
    assert [row for rows in made for row in range(rows.start, rows.stop)] == list(range(len(numbers)))
    for rows in made:
        held = numbers[rows]
        assert held
        assert sum(held) - max(held) <= SCORES_AT_ONCE


def test_windows_are_others_in_every_epoch_where_all_sessions_fit_one_batch(data: TrendData) -> None:
    made = TrendForecaster(data=data, options=options(item_batch_size=1000, length=4))
    with feeding(made.sessions, FIT.feed) as loader:
        assert len(loader) == 2
        first, second = ([batch["sequence"].clone() for batch in loader] for _ in range(2))
    assert not any(torch.equal(one, other) for one in first for other in second)


@pytest.mark.parametrize("name", ["trendrec", "deepar", "gru4rec", "markov"])
def test_a_run_repeats(data: TrendData, name: str) -> None:
    first, again = (TrendForecaster(data=data, options=options(name)).fit(FIT) for _ in range(2))
    assert first.test == again.test
    assert first.test.keys() == {"precision@5", "gain@5"}
    assert (first.items is not None, first.trends is not None) == (
        name in ("trendrec", "gru4rec"),
        name in ("trendrec", "deepar"),
    )


def test_training_lowers_the_loss(data: TrendData) -> None:
    made = TrendForecaster(data=data, options=options(learning_rate=0.02))
    before = made.loss_of_trends()
    made.fit_trends(replace(FIT, trends=replace(LOSS, epochs=15)))
    assert made.loss_of_trends() < before - 0.1


def test_a_frozen_embedding_stays(data: TrendData) -> None:
    made = TrendForecaster(data=data, options=options(tune_items=False))
    before = made.model.items.weight.clone()
    made.fit_trends(FIT)
    assert (made.model.items.weight == before).all()


def test_a_resumed_run_ends_as_one_that_was_not_broken_off(data: TrendData, tmp_path: Path) -> None:
    whole = TrendForecaster(data=data, options=options()).fit(FIT)
    kept = replace(LOSS, checkpoints=tmp_path)
    broken = replace(FIT, items=kept, trends=replace(kept, max_steps=3))
    TrendForecaster(data=data, options=options()).fit(broken)
    resumed = replace(kept, resume=True)
    again = TrendForecaster(data=data, options=options()).fit(replace(FIT, items=resumed, trends=resumed))
    assert again.test == whole.test
    assert again.trends is not None
    assert again.trends.resumed_from is not None


def test_acceleration_does_not_go_on_from_an_item_embedding_that_has_learnt_more_meanwhile(
    data: TrendData, tmp_path: Path
) -> None:
    short, kept = replace(LOSS, checkpoints=tmp_path, epochs=1), replace(LOSS, checkpoints=tmp_path)
    TrendForecaster(data=data, options=options()).fit(replace(FIT, items=short, trends=kept))
    resumed = replace(kept, resume=True)
    with pytest.raises(ConfigError, match="another configuration: item_embedding was"):
        TrendForecaster(data=data, options=options()).fit(replace(FIT, items=resumed, trends=resumed))


def test_a_data_set_of_too_few_steps_is_refused(tmp_path: Path) -> None:
    write_market(MarketOptions(users=30, items=24, audiences=3, steps=4, season=4), tmp_path / "m")
    with pytest.raises(
        DataError, match=r"3 whole steps, which leaves 1 to train on.* shorter `step_days`, or lower"
    ):
        find_trend_data(tmp_path / "m")


def test_a_data_set_of_one_user_is_refused(data: TrendData, tmp_path: Path) -> None:
    text = (data.ratings.folder / "dataset.json").read_text().replace('"users": 30', '"users": 1')
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="1 users and 24 items"):
        find_trend_data(tmp_path)


@pytest.mark.parametrize("name", ["trendrec", "gru4rec"])
def test_next_items_that_are_not_there_are_missed_before_anything_is_learnt(
    data: TrendData, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained")

    def only(kept: np.ndarray[Any, Any]) -> TrendForecaster:
        changed = replace(data)
        user, item, time = data.events
        changed.__dict__["events"] = (user[kept], item[kept], time[kept])
        made = TrendForecaster(data=changed, options=options(name))
        monkeypatch.setattr(made.model.next_item, "loss", never)
        return made

    time = data.events[2]
    early, late = time < data.moment(data.valid_from), time >= data.moment(data.test_from)
    with pytest.raises(DataError, match=r"in validation's 2 steps no user has .* another `valid_share`"):
        only(early | late).fit(FIT)


@pytest.mark.parametrize("name", ["trendrec", "gru4rec"])
def test_next_items_that_the_data_set_itself_holds_out_are_none_to_learn(
    data: TrendData, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of users with three interactions each, of which leave-one-out leaves one to train on."""
    _ = data.events
    whole = RatingData.table

    def one_each(self: RatingData, table: str, columns: list[str]) -> pa.Table:
        found = whole(self, table, columns)
        if table != "ratings/train":
            return found
        return found.take(pa.array(np.unique(np.asarray(found.column("user")), return_index=True)[1]))

    monkeypatch.setattr(RatingData, "table", one_each)
    made = TrendForecaster(data=data, options=options(name))
    monkeypatch.setattr(made.model.next_item, "loss", None)
    with pytest.raises(DataError, match="no user has 2 interactions to train on before validation's steps"):
        made.fit(FIT)


def test_a_metric_that_is_not_evaluated_is_refused_before_anything_is_learnt(
    data: TrendData, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TrendForecaster(data=data, options=options())
    monkeypatch.setattr(made.model.next_item, "loss", None)
    with pytest.raises(ConfigError, match="`metric`='recall@5' is not evaluated; there are gain@5, loss"):
        made.fit(replace(FIT, trends=replace(LOSS, metric="recall@5")))
    with pytest.raises(ConfigError, match="`metric`='gain@5' is not evaluated; there are loss"):
        made.fit(replace(FIT, items=replace(LOSS, metric="gain@5")))


@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda"])
def test_a_device_that_cannot_be_used_is_refused(
    data: TrendData, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"`device`='{device}'"):
        TrendForecaster(data=data, options=options(device=device))


def test_a_checkpoint_may_be_judged_at_other_places(data: TrendData, tmp_path: Path) -> None:
    kept = replace(LOSS, checkpoints=tmp_path)
    TrendForecaster(data=data, options=options("deepar")).fit(replace(FIT, trends=kept))
    other = TrendForecaster(data=data, options=options("deepar", cutoffs=(3,)))
    assert other.fit(replace(FIT, trends=replace(kept, resume=True))).test.keys() == {"precision@3", "gain@3"}


def test_each_training_is_shown_with_the_steps_to_come(data: TrendData) -> None:
    seen: list[tuple[str, int]] = []
    steps: list[int] = []

    @contextmanager
    def watch(name: str, loader: Loader, most: int) -> Iterator[OnStep]:
        seen.append((name, most))
        yield lambda step, loss, stats: steps.append(step)

    fitting = replace(
        FIT, items=replace(LOSS, max_steps=1, report_every=1), trends=replace(LOSS, report_every=1)
    )
    TrendForecaster(data=data, options=options()).fit(fitting, watch=watch)
    assert seen == [("next items", 1), ("acceleration", 6)]
    assert steps == [1, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("cutoffs", [(5, 25), (0,), ()])
def test_more_places_than_items_are_refused_before_anything_is_learnt(
    data: TrendData, cutoffs: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="the data has 24 items"):
        TrendForecaster(data=data, options=options(cutoffs=cutoffs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forecaster": "arima"}, "`forecaster`='arima' is unknown"),
        ({"weight": 0.0}, "`weight` must be above 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0"),
        ({"seed": 1 << 64}, "`seed` must be from 0"),
        ({"batch_size": 0}, "`batch_size`=.* must be a whole number, 1 or more"),
        ({"hidden": 0}, "`hidden`=.* must be a whole number, 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrendOptions(**change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`test_share` must be above 0"):
        CutOptions(test_share=0.0)
