from __future__ import annotations

import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from intune.errors import ConfigError, DataError, LoaderError, StorageError
from intune.pipelines import Budget, Loader, Pipeline
from intune.workloads.clicks.dcnv2 import DCNv2Config
from intune.workloads.clicks.dlrm import DLRM, DLRMConfig
from intune.workloads.clicks.job import ClickJob, ready
from intune.workloads.clicks.table_sizes import DEMO_TABLE_ROWS
from intune.workloads.clicks.tables import TableChoice
from intune.workloads.data.synthetic import SyntheticConfig, write_synthetic
from intune.workloads.training.checkpoint import CheckpointStore
from intune.workloads.training.trainer import TrainOptions, TrainSummary

ROWS, BATCH = 4000, 125
STEPS = ROWS // BATCH


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clicks") / "data"
    config = SyntheticConfig(rows=ROWS, test_rows=1000, files=2, row_group_rows=250, missing=1.0, scale=1e-4)
    write_synthetic(config, folder)
    return str(folder)


def job(data: str, **changes: Any) -> ClickJob:
    options = {"epochs": 1, "checkpoint_every": 10, **changes.pop("options", {})}
    settings = {
        "batch_size": BATCH,
        "embedding": TableChoice(rows=500),
        "shuffle": 3,
        "executor": "threads",
        "memory": "200MB",
    }
    return ClickJob(data=data, options=TrainOptions(**options), **{**settings, **changes})


def run(what: ClickJob) -> tuple[TrainSummary, list[torch.Tensor]]:
    with ready(what) as made:
        summary = made.trainer.fit()
        return summary, [value.detach().clone() for value in made.trainer.model.parameters()]


def assert_same_bits(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class Killed(BaseException):
    """What nobody catches, as nobody catches SIGKILL (which `test_trainer` and `test_checkpoint` send)."""


def test_one_pass_trains_on_every_full_batch_and_scores_the_held_out_rows(data: str) -> None:
    with ready(job(data)) as made:
        assert made.steps == STEPS
        summary = made.trainer.fit()
    assert (summary.step, summary.rows) == (STEPS, ROWS)
    (evaluation,) = summary.evaluations
    assert evaluation.metrics["rows"] == 1000
    assert made.data.best_auc is not None
    assert 0.6 < evaluation.metrics["auc"] < made.data.best_auc + 0.02
    assert evaluation.metrics["normalised_entropy"] < 1


def test_lists_of_ids_are_trained_on(tmp_path: Path) -> None:
    config = SyntheticConfig(rows=500, test_rows=100, row_group_rows=250, multi_hot=True, scale=1e-4)
    write_synthetic(config, tmp_path / "data")
    summary, _ = run(job(str(tmp_path / "data"), shuffle=0))
    assert summary.step == 4
    assert summary.evaluations[0].metrics["rows"] == 100


def test_text_ids_are_trained_on(tmp_path: Path) -> None:
    config = SyntheticConfig(rows=500, test_rows=100, row_group_rows=250, strings=True, scale=1e-4)
    write_synthetic(config, tmp_path / "data")
    summary, _ = run(job(str(tmp_path / "data"), optimizer="sgd", learning_rate=0.1))
    assert summary.step == 4


def test_the_same_seed_gives_the_same_model_whatever_the_slots(data: str) -> None:
    _, first = run(job(data, seed=3))
    _, again = run(job(data, seed=3, slots={"load": 3, "transform": 1}, cpus=1))
    _, other = run(job(data, seed=4))
    assert_same_bits(first, again)
    assert not torch.equal(first[0], other[0])


def test_a_run_killed_in_the_second_epoch_goes_on_to_the_same_bits(data: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"options": {"epochs": 2, "checkpoint_every": 7}, "resume": True}
    _, expected = run(job(data, options={"epochs": 2}))

    def die(step: int, *_: Any) -> None:
        if step == 40:
            raise Killed

    with ready(job(data, checkpoints=tmp_path, **settings)) as made:
        made.trainer.on_step = die
        with pytest.raises(Killed):
            made.trainer.fit()
    with ready(job(data, checkpoints=tmp_path, **settings)) as made:
        assert made.resumed_from == tmp_path / "step-000000000035.pt"
        summary = made.trainer.fit()
        found = [value.detach().clone() for value in made.trainer.model.parameters()]
    assert summary.step == 2 * STEPS
    assert summary.rows == (2 * STEPS - 35) * BATCH
    assert_same_bits(found, expected)


def test_an_interrupted_run_goes_on_to_the_same_bits(data: str, tmp_path: Path) -> None:
    _, expected = run(job(data))
    with ready(job(data, checkpoints=tmp_path)) as made:
        made.trainer.on_step = lambda step, *_: os.kill(os.getpid(), signal.SIGINT) if step == 20 else None
        summary = made.trainer.fit()
    assert (summary.stopped_by, summary.step) == (signal.SIGINT, 20)
    resumed, found = run(job(data, checkpoints=tmp_path, resume=True))
    assert resumed.rows == (STEPS - 20) * BATCH
    assert_same_bits(found, expected)


def test_resuming_with_no_checkpoint_yet_begins_anew(data: str, tmp_path: Path) -> None:
    with ready(job(data, checkpoints=tmp_path / "new", resume=True)) as made:
        assert made.resumed_from is None


def test_another_runs_checkpoints_are_not_written_over(data: str, tmp_path: Path) -> None:
    CheckpointStore(directory=tmp_path).save(7, {})
    with pytest.raises(ConfigError, match=r"holds those of another run, up to step-000000000007\.pt; go on"):
        run(job(data, checkpoints=tmp_path))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"batch_size": 100}, ConfigError, "recipe was .*'batch_size': 125"),
        ({"learning_rate": 0.5}, ConfigError, "recipe was"),
        ({"seed": 5}, ConfigError, "seed was 0 and is 5"),
        ({"shuffle": 2}, LoaderError, "shuffle"),
    ],
)
def test_a_resume_with_other_settings_is_refused(
    data: str, tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    run(job(data, checkpoints=tmp_path, options={"max_steps": 1}))
    with pytest.raises(error, match=words):
        run(job(data, checkpoints=tmp_path, resume=True, **change))


def test_tables_follow_the_data_and_the_preset(data: str) -> None:
    with ready(job(data, embedding=TableChoice())) as made:
        assert made.data.cardinalities is not None
        assert len(made.config.table_sizes) == 26
        assert max(made.config.table_sizes) <= DEMO_TABLE_ROWS
        assert made.config.recipe.optimizer == "rowwise-adagrad"
        model = made.trainer.model
        assert isinstance(model, DLRM)
        assert len(model.embeddings.weight) == sum(made.config.table_sizes)


def test_the_presets_recipe_is_taken_where_nothing_else_is_said(data: str) -> None:
    with ready(job(data, preset="kaggle", batch_size=None)) as made:
        assert made.config.recipe == DLRMConfig.kaggle().recipe
        assert made.config.bottom == (512, 256, 64, 16)
    with ready(job(data, learning_rate=0.3, optimizer="adagrad")) as made:
        groups = made.trainer.optimizer.param_groups
        assert [group["lr"] for group in groups] == [0.3, 0.3]
        assert not groups[0]["rowwise"]


def test_rows_that_do_not_fill_a_batch_are_one_and_a_line_says_so(
    data: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="intune"):
        summary, _ = run(job(data, batch_size=ROWS + 1, options={"epochs": 2}))
    assert (summary.step, summary.rows) == (2, 2 * ROWS)
    (message,) = caplog.messages
    assert message == "all 4000 rows are one batch, since they do not fill `batch_size`=4001"
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="intune"):
        assert run(job(data, batch_size=ROWS))[0].step == 1
        assert run(job(data, batch_size=ROWS - 1))[0].rows == ROWS - 1
    assert not caplog.messages


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "tiny"}, "`preset`='tiny'"),
        ({"seed": -1}, "`seed`"),
        ({"shuffle": -1}, "`shuffle`"),
        ({"resume": True}, "`resume` needs `checkpoints`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job("data", **changes)


def test_every_pass_over_the_data_is_within_the_budget(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[Budget] = []
    original = Pipeline.loader

    def watched(self: Pipeline, **options: Any) -> Loader:
        made = original(self, **options)
        budgets.append(made.budget)
        return made

    monkeypatch.setattr(Pipeline, "loader", watched)
    with ready(job(data, embedding=TableChoice(kind="full"), cpus=1, memory="150MB")):
        pass
    # The ids, the held-out rows, evaluation and training.
    assert len(budgets) == 4
    assert {budget.cpus for budget in budgets} == {1}
    assert max(budget.memory for budget in budgets) <= 150_000_000


def test_no_thread_and_no_file_is_left_behind(data: str, tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    run(job(data, options={"max_steps": 3}, checkpoints=tmp_path))
    assert {thread.name for thread in threading.enumerate()} <= before
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000003.pt"]


@pytest.mark.parametrize(
    ("model", "embedding"),
    [
        ("dcnv2", TableChoice(parameters=20_000)),
        ("dlrm", TableChoice(kind="unified", rows=1000)),
        ("dcnv2", TableChoice(kind="full")),
    ],
)
def test_both_models_learn_with_every_kind_of_table(data: str, model: Any, embedding: TableChoice) -> None:
    with ready(job(data, model=model, embedding=embedding)) as made:
        weight = made.trainer.model.get_parameter("embeddings.weight")
        assert weight.numel() == made.config.embedding_parameters
        summary = made.trainer.fit()
    assert summary.evaluations[0].metrics["auc"] > 0.6


@pytest.fixture(scope="module")
def lists_of_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lists") / "data"
    config = SyntheticConfig(
        rows=400, test_rows=200, row_group_rows=200, multi_hot=True, strings=True, scale=1e-4
    )
    write_synthetic(config, folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["unified", "full"])
def test_lists_of_ids_and_text_work_with_every_kind_of_table(lists_of_text: str, kind: Any) -> None:
    summary, _ = run(job(lists_of_text, model="dcnv2", shuffle=0, embedding=TableChoice(kind=kind)))
    assert summary.step == 3
    assert summary.evaluations[0].metrics["rows"] == 200


def test_dcnv2_with_falling_rates_goes_on_to_the_same_bits(data: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "dcnv2", "embedding": TableChoice(kind="unified", rows=1000)}
    _, expected = run(job(data, **settings))
    run(job(data, checkpoints=tmp_path, options={"max_steps": 20}, **settings))
    resumed, found = run(job(data, checkpoints=tmp_path, resume=True, **settings))
    assert resumed.rows == (STEPS - 20) * BATCH
    assert_same_bits(found, expected)


def test_a_run_with_falling_rates_cannot_be_made_longer(data: str, tmp_path: Path) -> None:
    run(job(data, schedule="linear", checkpoints=tmp_path, options={"max_steps": 1}))
    with pytest.raises(ConfigError, match="steps was 32 and is 64"):
        run(job(data, schedule="linear", checkpoints=tmp_path, resume=True, options={"epochs": 2}))


def test_what_is_said_of_the_cross_layers_is_taken(data: str) -> None:
    with ready(job(data, model="dcnv2", structure="parallel", cross_layers=1, rank=0)) as made:
        config = made.config
    assert isinstance(config, DCNv2Config)
    assert (config.structure, config.cross_layers, config.rank) == ("parallel", 1, None)


@pytest.mark.parametrize(("embedding_dim", "rank"), [(8, None), (31, None), (32, 32)])
def test_a_presets_rank_gives_way_to_full_matrices_where_the_input_is_no_wider(
    tmp_path: Path, embedding_dim: int, rank: int | None
) -> None:
    settings: dict[str, Any] = {"model": "dcnv2", "embedding_dim": embedding_dim, "batch_size": 20}
    folder = shop(tmp_path / "d", [0, 1] * 50, [1, 0, 1])
    with ready(job(folder, embedding=TableChoice(kind="full"), **settings)) as made:
        config = made.config
    assert isinstance(config, DCNv2Config)
    # One dense input beside the embedding of one feature.
    assert (config.width, config.rank) == (embedding_dim + 1, rank)
    words = rf"`rank` must be from 1 to the input's width, {embedding_dim + 1}, .* \(0 on the command line\)"
    with pytest.raises(ConfigError, match=words), ready(job(folder, rank=40, **settings)):
        pass


def test_a_preset_that_keeps_every_row_trains_on_the_last_ones_too(data: str) -> None:
    with ready(job(data, model="dcnv2", preset="mlp", batch_size=1500)) as made:
        assert made.steps == 3
        assert isinstance(made.trainer.optimizer, torch.optim.Adam)
        assert made.trainer.fit().rows == ROWS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "mf"}, "`model`='mf' is unknown; use dlrm, dcnv2"),
        ({"rank": 3, "cross_layers": 2}, "`cross_layers`, `rank` belong to DCN-V2"),
        ({"model": "dcnv2", "preset": "kaggle"}, "`preset`='kaggle' is unknown; dcnv2 has demo, mlperf, mlp"),
    ],
)
def test_options_of_another_model_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job("data", **changes)


@pytest.mark.parametrize("model", ["dlrm", "dcnv2"])
@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_the_pipelines_words(
    data: str, tmp_path: Path, model: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda:99")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=f"`device`='{device}'"):
        run(job(data, model=model, device=device, checkpoints=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_folder_for_checkpoints_that_cannot_be_is_refused_before_training(
    data: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder, resume in ((file, False), (file, True), (file / "within", False)):
        with (
            pytest.raises(
                StorageError, match=r"no checkpoints can be kept in .*file.*; choose another folder"
            ),
            ready(job(data, checkpoints=folder, resume=resume)),
        ):
            pass
    assert file.read_text() == "mine"


def shop(folder: Path, train: list[Any], test: list[Any]) -> str:
    """Click logs whose label is called `bought`."""
    for split, labels in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        columns = {"bought": labels, "price": np.arange(len(labels)) / 7, "item": np.arange(len(labels)) % 9}
        pq.write_table(pa.table(columns), folder / split / "0.parquet")
    columns = {"label": "bought", "dense": ["price"], "categorical": ["item"]}
    described = {"schema_version": 1, "columns": columns, "cardinalities": {"item": 9}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return str(folder)


@pytest.mark.parametrize("model", ["dlrm", "dcnv2"])
def test_a_label_of_another_name_is_trained_on_and_scored(tmp_path: Path, model: Any) -> None:
    settings = {"model": model, "batch_size": 20, **({} if model == "dlrm" else {"rank": 0})}
    summary, _ = run(job(shop(tmp_path / "d", [0, 1] * 50, [1, 0, 1]), **settings))
    assert summary.rows == 100
    assert summary.evaluations[0].metrics["positives"] == 2


def test_labels_that_are_no_clicks_end_training(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"train/0\.parquet, .*column `bought` holds 2 in 1 of 20 rows"),
        ready(job(shop(tmp_path / "d", [0, 1] * 40 + [2] + [0] * 19, [1, 0, 1]), batch_size=20)) as made,
    ):
        made.trainer.fit()


@pytest.mark.parametrize("label", [2, None, 0.5])
def test_held_out_labels_that_are_no_clicks_are_found_before_training(tmp_path: Path, label: Any) -> None:
    with (
        pytest.raises(DataError, match=r"test/0\.parquet, .*column `bought` holds .* in 1 of 3 rows"),
        ready(job(shop(tmp_path / "d", [0, 1] * 50, [1, 0, label]), batch_size=20)),
    ):
        pytest.fail("nothing was found")


@pytest.mark.parametrize("embedding", ["hashed", "unified", "full"])
def test_held_out_features_that_no_model_takes_are_found_before_training(
    tmp_path: Path, embedding: Any
) -> None:
    folder = shop(tmp_path / "d", [0, 1] * 50, [1, 0, 1])
    columns = {"bought": [1, 0, 1], "price": [1.0, np.inf, 2.0], "item": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "d" / "test" / "0.parquet")
    with (
        pytest.raises(DataError, match=r"test/0\.parquet, .*column `price` holds infinity"),
        ready(job(folder, batch_size=20, embedding=TableChoice(kind=embedding))),
    ):
        pytest.fail("nothing was found")


def test_a_run_writes_its_loss_and_its_evaluations_to_event_files(data: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings: dict[str, Any] = {"tensorboard": tmp_path, "options": {"max_steps": 20, "evaluate_every": 15}}
    with ready(job(data, **settings)) as made:
        summary = made.trainer.fit()
    events = EventAccumulator(str(tmp_path)).Reload()  # type: ignore[no-untyped-call]
    assert [point.step for point in events.Scalars("loss/train")] == [10, 20]
    found = {point.step: point.value for point in events.Scalars("test/auc")}
    assert found == pytest.approx({each.step: each.metrics["auc"] for each in summary.evaluations})
    assert found.keys() == {15, 20}


def test_tables_larger_than_all_memory_are_refused(data: str) -> None:
    huge = TableChoice(kind="unified", rows=10**12)
    with (
        pytest.raises(
            ConfigError, match=r"tables take 29\.1 TiB, but this job may hold .*; choose another `preset`"
        ),
        ready(job(data, embedding=huge)),
    ):
        pass
