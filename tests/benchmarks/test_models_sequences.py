from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import sequences
from benchmarks.models.seeds import ratio_over_sessions
from benchmarks.models.sequences import (
    METRICS,
    Contender,
    Result,
    bars,
    contenders,
    read,
    rows,
)
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from intune.workloads.training.fitting import FitOptions
from tests.intune.workloads.ratings_files import drawn, write_recbole


def result_of(name: str, ndcg: float, coverage: float = 0.5) -> Result:
    metrics = dict.fromkeys(METRICS, (ndcg, ndcg, ndcg)) | {"coverage@20": (coverage,) * 3}
    sessions = np.random.default_rng(0).random(200) * 2 * ndcg
    return Result(name=name, settings={}, tried=(ndcg,), metrics=metrics, sessions=sessions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sessions")
    found = read_movielens(write_recbole(base / "files", drawn(users=16, items=25, per_user=8)))
    options = RatingsOptions(split=SplitOptions(name="leave-one-out"))
    write_ratings(found, options, base / "data", kind="movielens")
    return base / "data"


def test_everybody_that_is_tuned_may_try_as_much() -> None:
    tuned = [contender for contender in contenders() if contender.model != "popularity"]
    assert {len(contender.candidates) for contender in tuned} == {2}
    by_name = {contender.name: contender for contender in tuned}
    assert by_name["BERT4Rec"].candidates == by_name["LLM2BERT4Rec"].candidates
    assert by_name["BERT4Rec"].fit == by_name["LLM2BERT4Rec"].fit


def test_a_ratio_lies_in_its_interval_and_pairs_share_their_noise() -> None:
    under = np.random.default_rng(1).random(300)
    ratio, low, high = ratio_over_sessions(under * 1.2, under)
    assert ratio == pytest.approx(1.2)
    assert low == pytest.approx(1.2)
    assert high == pytest.approx(1.2)
    ratio, low, high = ratio_over_sessions(np.random.default_rng(2).random(300), under)
    assert low < ratio < high


def test_bars_hold_and_fall() -> None:
    found = bars(
        [result_of("BERT4Rec", 0.10), result_of("LLM2BERT4Rec", 0.12), result_of("LLMSeqSim", 0.05, 0.9)]
    )
    assert [bar.holds for bar in found] == [True, True]
    assert found[0].value == pytest.approx(1.2)
    assert found[1].value == pytest.approx(1.8)
    short = bars(
        [result_of("BERT4Rec", 0.10), result_of("LLM2BERT4Rec", 0.11), result_of("LLMSeqSim", 0.05, 0.4)]
    )
    assert [bar.holds for bar in short] == [False, False]
    assert bars([result_of("popularity", 0.1)]) == []


def test_a_contender_is_tuned_and_judged_for_every_seed_and_read_back(folder: Path, tmp_path: Path) -> None:
    fit = FitOptions(metric="ndcg@20", epochs=1)
    candidates: tuple[dict[str, Any], ...] = tuple({"width": width, "length": 4} for width in (4, 8))
    result = sequences.measure(
        Contender(name="GRU", model="gru4rec", candidates=candidates, fit=fit), str(folder), [0, 1, 2]
    )
    assert result.settings == candidates[int(np.argmax(result.tried))]
    assert {len(values) for values in result.metrics.values()} == {3}
    assert np.mean(result.sessions) == pytest.approx(np.mean(result.metrics["ndcg@20"]))
    assert len(result.epochs) == len(result.rows_per_s) == 3
    popular = sequences.measure(
        Contender(name="popularity", model="popularity", candidates=({},), random=False),
        str(folder),
        [0, 1, 2],
    )
    assert {len(values) for values in popular.metrics.values()} == {1}
    sequences._write(tmp_path / "all.json", [result, popular], str(folder), 3)
    back = read(tmp_path / "all.json")
    assert [entry.name for entry in back] == ["GRU", "popularity"]
    assert rows(back)[0]["mean"] == rows([result])[0]["mean"]
    np.testing.assert_allclose(back[0].sessions, result.sessions, atol=1e-6)
