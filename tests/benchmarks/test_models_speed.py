"""The comparison with RecBole, which itself is not run: what is written for it, counted and concluded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.models import speed
from benchmarks.models.speed import _Clock, _Enough, cases, child, summarise, write_interactions
from intune.workloads.pairs.data import RatingData
from intune.workloads.pairs.recommender import PairOptions
from intune.workloads.sequences.bert4rec import BERT4RecConfig


def data(folder: Path) -> RatingData:
    for number, split in enumerate(("train", "valid", "test")):
        path = folder / "ratings" / split
        path.mkdir(parents=True)
        columns = {"user": [number, 5], "item": [7, number], "timestamp": [10 + number, 20]}
        pq.write_table(pa.table(columns), path / "0.parquet")
    return RatingData(folder=folder, users=6, items=8)


def test_recbole_is_given_every_interaction_once(tmp_path: Path) -> None:
    write_interactions(data(tmp_path / "data"), tmp_path / "whole", parts=False)
    lines = (tmp_path / "whole" / "ml" / "ml.inter").read_text().splitlines()
    assert lines[0] == "user_id:token\titem_id:token\ttimestamp:float"
    assert lines[1:] == ["0\t7\t10", "5\t0\t20", "1\t7\t11", "5\t1\t20", "2\t7\t12", "5\t2\t20"]
    assert [path.name for path in (tmp_path / "whole" / "ml").iterdir()] == ["ml.inter"]


def test_recbole_is_given_the_same_parts(tmp_path: Path) -> None:
    write_interactions(data(tmp_path / "data"), tmp_path / "parts", parts=True)
    found = {path.name: path.read_text().splitlines()[1:] for path in (tmp_path / "parts" / "ml").iterdir()}
    assert found == {
        "ml.train.inter": ["0\t7\t10", "5\t0\t20"],
        "ml.valid.inter": ["1\t7\t11", "5\t1\t20"],
        "ml.test.inter": ["2\t7\t12", "5\t2\t20"],
    }


def test_rows_of_the_warm_up_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    clock = _Clock(seconds=10)
    clock.take(5)  # warm-up lasts 2 s
    now = 102.5
    clock.take(7)
    now = 112.0
    clock.take(3)
    assert (clock.rows, clock.steps, clock.began) == (10, 2, 102.5)
    now = 112.6
    with pytest.raises(_Enough):
        clock.take(1)
    assert clock.rows == 10


def test_the_ratio_is_that_of_paired_rounds() -> None:
    ours = [{"rows_per_cpu_s": rate, "rows_per_s": 1.0, "parameters": 3} for rate in (200.0, 160.0)]
    theirs = [{"rows_per_cpu_s": 100.0, "rows_per_s": 90.0, "parameters": 4}] * 2
    result = summarise("BPR-MF", ours, theirs)
    assert result.ratio == pytest.approx(1.8)
    assert result.half_width == pytest.approx(12.706 * 0.2, rel=1e-3)  # deviation 0.2 √2, over √2
    assert (result.ours_wall, result.recbole_wall) == ((1.0, 1.0), (90.0, 90.0))
    assert result.holds
    assert not summarise("BPR-MF", theirs, theirs).holds


def test_shapes_and_batches_are_the_same_for_both() -> None:
    found = cases()
    for name, depth in (("BPR-MF", None), ("LightGCN", 3)):
        options = PairOptions(batch_size=found[name].batch, **found[name].ours)
        assert options.dim == 64  # RecBole's default
        assert options.batch_size == found[name].settings["train_batch_size"]
        assert options.depth == depth == found[name].settings.get("n_layers")
    bert = BERT4RecConfig(items=10, **found["BERT4Rec"].ours)
    assert (bert.width, bert.layers, bert.heads, bert.block.feed_forward) == (64, 2, 2, 256)
    assert (bert.dropout, bert.mask_share) == (0.2, 0.2)
    assert bert.length == found["BERT4Rec"].settings["MAX_ITEM_LIST_LENGTH"]
    assert bert.batch_size == found["BERT4Rec"].settings["train_batch_size"]


def test_a_child_has_one_core_and_its_last_line_is_read() -> None:
    core = min(os.sched_getaffinity(0))
    program = "import json, os; print('chatter'); print(json.dumps(sorted(os.sched_getaffinity(0))))"
    assert child([sys.executable, "-c", program], core) == [core]  # type: ignore[comparison-overlap]


def test_what_a_child_says_on_failing_is_passed_on() -> None:
    with pytest.raises(SystemExit, match="it broke"):
        child([sys.executable, "-c", "raise RuntimeError('it broke')"], min(os.sched_getaffinity(0)))


def test_settings_survive_the_command_line() -> None:
    for case in cases().values():
        assert json.loads(json.dumps(dict(case.settings))) == case.settings
