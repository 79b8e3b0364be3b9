"""Live jobs: keeping on until time is over, what follows from the runs, and the functions users run."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import contender, live, live_jobs, live_plot, live_report, user_code
from benchmarks.contender import keep_on


def a_run(rate: float, seconds: float = 10.0, **more: Any) -> dict[str, Any]:
    marks = [(second, second * rate) for second in np.arange(0.0, seconds + 1).tolist()]
    return {
        "rows": rate * seconds,
        "seconds": seconds,
        "first_batch_s": 0.5,
        "marks": marks,
        "peak_bytes": 1 << 28,
        **more,
    }


def batches(count: int, rows: int = 10) -> list[dict[str, Any]]:
    return [{"label": np.zeros(rows)} for _ in range(count)]


def test_a_live_run_takes_whole_epochs_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(contender.time, "perf_counter", clock)
    found = keep_on(lambda: batches(4), 0.0, seconds=10.0)
    assert (found["batches"], found["rows"], found["epoch_rows"]) == (10, 100, [40, 40])
    assert found["seconds"] == 10.0
    assert found["first_batch_s"] == 1.0
    assert found["marks"][0] == (0.0, 0)
    assert found["marks"][-1] == (10.0, 100)


def test_a_loader_that_delivers_nothing_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(RuntimeError, match="no batch"):
        keep_on(lambda: [], 0.0, seconds=1.0)


def test_the_last_third_leaves_the_start_out() -> None:
    run = {"rows": 60, "seconds": 9.0, "marks": [(0.0, 0), (3.0, 0), (6.0, 0), (9.0, 60)]}
    assert live_report.rate(run) == pytest.approx(60 / 9)
    assert live_report.last_third(run) == pytest.approx(20.0)
    assert math.isnan(live_report.rate({"error": "killed"}))
    assert live_report.intervals(run) == [(3.0, 0.0), (6.0, 0.0), (9.0, 20.0)]


def test_decisions_count_until_an_interval_delivers_enough() -> None:
    run = {
        "decisions": [
            {"time": 1.0, "delivered": 50.0, "decided": {"load": 2}},
            {"time": 2.0, "delivered": 80.0, "decided": None},
            {"time": 3.0, "delivered": 80.0, "decided": {"load": 3}},
            {"time": 4.0, "delivered": 96.0, "decided": None},
        ]
    }
    assert live_report.settled(run, 100.0) == (4.0, 2)
    assert live_report.settled(run, 40.0) == (1.0, 0)
    assert live_report.settled(run, 200.0) is None


def document() -> dict[str, Any]:
    ours = {"decisions": [{"time": 2.0, "delivered": 100.0, "decided": None}]}
    return {
        "runs": {
            "S3 150 ms": {
                "ours, dqn": a_run(100.0, **ours),
                "ours, untuned": a_run(50.0),
                "tf.data AUTOTUNE": a_run(25.0),
            },
            "trainer-bound": {
                "ours, dqn": a_run(98.0, slots=1, held_peak=30),
                "ours, untuned": a_run(100.0, slots=2, held_peak=100),
                "tf.data AUTOTUNE": a_run(98.0),
                "Grain, best": {"error": "killed"},
            },
        },
        "sweeps": {"S3 150 ms": [[{"shared": 16}, 102.0], [{"shared": 2}, 50.0]]},
    }


def test_bars_follow_from_the_runs() -> None:
    found = {bar.name: bar for bar in live_report.bars(document())}

    def value(name: str) -> float:
        measured = found[name].measured
        assert measured is not None
        return measured.median

    assert value("geometric mean: ours / tf.data AUTOTUNE") == pytest.approx(2.0)
    assert value("S3 150 ms: ours / tf.data AUTOTUNE") == pytest.approx(4.0)
    assert value("worst job: ours / untuned default") == pytest.approx(0.98)
    assert value("worst job: ours / best of all others") == pytest.approx(0.98)
    assert value("trainer-bound: slots, ours / ours, untuned") == pytest.approx(0.5)
    assert value("trainer-bound: memory of blocks, ours / ours, untuned") == pytest.approx(0.3)
    assert value("worst job: seconds to 95 % of the best allocation") == pytest.approx(2.0)
    assert found["worst job: ours / untuned default"].passed
    assert not found["geometric mean: ours / tf.data AUTOTUNE"].passed


def test_what_was_not_run_is_not_measured() -> None:
    assert [bar.measured for bar in live_report.bars({"runs": {}})] == [None] * 5


def test_a_rival_whose_best_setting_is_slow_to_start_is_not_judged_by_a_shorter_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(contender: Any, job: Any, files: Any, *, seconds: float, batch: int) -> dict[str, Any]:
        workers = contender.config["workers"]
        if workers == 4:
            return {"error": "killed"}
        rows = max(0.0, seconds - 0.6 * workers) * (1.0 + workers)
        return {"rows": rows, "seconds": seconds}

    monkeypatch.setattr(live, "run", run)
    found = live._best_of(live.Options(seconds=15.0), live_jobs.JOBS[0], live_jobs.entrant("dataloader"), [])
    assert found["config"]["workers"] == 8
    assert found["rows"] == pytest.approx(9 * (15.0 - 4.8))
    assert [each["config"]["workers"] for each in found["tried"]] == [8, 2, 0, 4]


def test_time_is_shared_out_among_the_runs_within_bounds() -> None:
    runs = 3 * len(live_jobs.JOBS)
    assert live.Options().each_s() == pytest.approx(540 / runs - live.BESIDE_S)
    assert live.Options(only=("local",)).each_s() == live.LONGEST_S
    assert live.Options(contenders=("all",)).each_s() == live.SHORTEST_S
    assert live.Options(seconds=3.0).each_s() == 3.0
    with pytest.raises(SystemExit, match="knows"):
        live.Options(contenders=("nobody",))
    with pytest.raises(SystemExit, match="chooses none"):
        live.Options(only=("nothing",))


@pytest.mark.parametrize("name", ["heavy", "python", "hungry", "locked"])
def test_user_code_works_row_by_row_and_keeps_types(name: str) -> None:
    generator = np.random.default_rng(0)
    columns = {
        "label": np.zeros(64, dtype=np.float32),
        "I1": generator.random(64).astype(np.float32),
        "C1": generator.integers(0, 2**40, 64),
    }
    function = user_code.FUNCTIONS[name]
    whole = function(columns)
    parts = [
        function({key: value[at : at + 16] for key, value in columns.items()}) for at in range(0, 64, 16)
    ]
    for key, value in whole.items():
        assert value.dtype == columns[key].dtype
        np.testing.assert_allclose(value, np.concatenate([part[key] for part in parts]), rtol=1e-6)


def test_drawn_code_changes_nothing_that_memory_or_waiting_would_show_in() -> None:
    columns = {"label": np.ones(8, dtype=np.float32), "C1": np.arange(8), "C2": np.arange(8)}
    one = user_code.drawn(columns, temporary=1 << 20, spread=0.3)
    np.testing.assert_array_equal(one["label"], columns["label"])


def test_rates_are_drawn_over_whole_windows() -> None:
    points = [(0.5, 10.0), (1.0, 30.0), (1.5, 20.0), (2.5, 50.0)]
    assert live_plot.windows(points) == [(1.0, 20.0), (2.5, pytest.approx(40.0))]


def test_the_picture_is_drawn_where_some_runs_failed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    where = {"cores_usable": 2, "cpu": "a processor", "date": "2026-01-01T00:00"}
    live_plot.draw({**document(), "environment": where}, tmp_path / "live.png")
    assert (tmp_path / "live.png").stat().st_size > 10_000


def test_without_moto_it_says_so_before_the_first_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no data are written there
    monkeypatch.setattr(live.s3_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs moto: pip install 'intune"):
        live.main(live.Options())
    assert not list(tmp_path.iterdir())
