"""The loader that feeds a workload: the same batches with a tuner and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.knowledge import Knowledge
from intune.pipelines import Allocation, Budget, Pipeline
from intune.pipelines.errors import ConfigError
from intune.tuning import Tuned
from intune.workloads.training.feeding import FeedOptions, feeding

BUDGET = Budget(cpus=2, memory=1 << 28)


def test_batches_are_the_same_whoever_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTUNE_CACHE", str(tmp_path / "cache"))
    pq.write_table(pa.table({"x": np.arange(1000)}), tmp_path / "a.parquet", row_group_size=100)
    pipeline = Pipeline.from_parquet(str(tmp_path / "a.parquet")).shuffle(row_groups=4, seed=1).batch(64)
    seen = []
    for agent in (None, "planner"):
        with feeding(pipeline, FeedOptions(executor="threads", agent=agent), BUDGET) as loader:
            assert isinstance(loader, Tuned) == (agent is not None)
            assert len(loader) == 16
            seen.append(np.concatenate([batch["x"].numpy() for batch in loader]))
    np.testing.assert_array_equal(*seen)


def test_slots_that_were_asked_for_go_before_what_an_earlier_run_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTUNE_CACHE", str(tmp_path / "cache"))
    pq.write_table(pa.table({"x": np.arange(1000)}), tmp_path / "a.parquet", row_group_size=100)
    pipeline = Pipeline.from_parquet(str(tmp_path / "a.parquet")).batch(64)
    options = FeedOptions(executor="threads", agent="even")
    asked = {"load": 4, "batch": 2}
    monkeypatch.setattr(
        "intune.tuning.recall",
        lambda *_: Knowledge(allocation=Allocation.per_stage({"load": 1, "batch": 1}), rate=1.0, memory=0),
    )
    with feeding(pipeline, replace(options, slots=asked), BUDGET) as loader:
        assert loader.allocation.as_dict() == asked
    with feeding(pipeline, options, BUDGET) as loader:
        assert loader.allocation.as_dict() == {"load": 1, "batch": 1}


def test_an_agent_that_there_is_not_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.arange(10)}), tmp_path / "a.parquet")
    pipeline = Pipeline.from_parquet(str(tmp_path / "a.parquet")).batch(5)
    options = FeedOptions(executor="threads", agent="planer")
    with pytest.raises(ConfigError, match="planer"), feeding(pipeline, options):
        pass
