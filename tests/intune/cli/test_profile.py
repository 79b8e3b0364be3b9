"""`intune profile` as a user calls it, and what it decides to measure."""

import errno
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.cli.main import main
from intune.envs.calibrate_model import predict
from intune.envs.jobs import Jobs
from intune.envs.probe_plan import first_allocations, more_allocations
from intune.envs.scenario import Scenario
from intune.errors import ConfigError, NotFoundError
from intune.pipelines import Allocation, Budget, Loader, Pipeline
from intune.pipelines.budget import Usable
from intune.profiling import Profile, ProfileConfig, find_transform, make_pipeline, run_profile

MODULE = """
import time

def slow(columns):
    time.sleep(0.002)
    return columns

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder: data, and a module with the transform."""
    table = pa.table({"x": np.arange(60_000), "y": np.ones(60_000, np.float32)})
    (tmp_path / "data").mkdir()
    (tmp_path / "a.toml").mkdir()
    pq.write_table(table, tmp_path / "data" / "a.parquet", row_group_size=2_000)
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_pipeline_is_measured_and_becomes_a_scenario_and_a_full_disk_leaves_what_was_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Profile] = []

    def once(config: ProfileConfig, progress: Any) -> Profile:
        if not measured:
            measured.append(run_profile(config, progress))
        return measured[0]

    def full(scenario: Scenario, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("intune.profiling.run_profile", once)
    monkeypatch.chdir(folder)
    words = ["profile", "data", "--transform", "mine:slow", "--batch-size", "1000", "--seconds", "1.5"]
    assert main([*words, "--out", "job.toml"]) == 0
    told = capsys.readouterr().out
    assert "job.toml: fitted in" in told
    assert "Measured, and fitted" in told
    scenario = Scenario.load(folder / "job.toml")
    assert scenario.name == "job"
    assert scenario.stage_names == ("load", "batch", "transform", "transfer")
    job = scenario.draw(np.random.default_rng(0), 1)
    assert (job.cpu > 0).all()
    assert job.base_bytes[0] > 5e7
    assert scenario.spec.uncertainty["transform.wait"] > 0
    assert main([*words, "--out", "job.toml"]) == 2
    assert "job.toml' is there already" in capsys.readouterr().err
    monkeypatch.setattr(Scenario, "save", full)
    assert main([*words, "--out", "other.toml"]) == 2
    shown = capsys.readouterr()
    assert "Measured, and fitted" in shown.out
    assert "error: [Errno 28] No space left on device: 'other.toml'" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--out", "job.toml"], "missing"),
        (["data", "--out", "job.json"], "must end in .toml"),
        (["data", "--out", "no/job.toml"], "no folder 'no'"),
        (["data", "--out", "a.toml", "--force", "--transform", "none"], "is a folder; give a file in it"),
        (["data", "--out", "job.toml", "--name", ""], "`name`=''"),
        (["data", "--out", "job.toml", "--seconds", "0"], "`seconds`=0.0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["profile", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("intune: error: ")
    assert message in told
    assert told.count("\n") == 1
    assert not (folder / "job.toml").exists()


def test_a_transform_is_a_preset_nothing_or_the_users_function(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert find_transform("none") is None
    assert callable(find_transform("criteo"))
    found = find_transform("mine:slow")
    assert found is not None
    assert found({"x": 1}) == {"x": 1}
    for name in ("mine", "mine:", "mine:absent", "absent:slow", "mine:number"):
        with pytest.raises(ConfigError, match="transform"):
            find_transform(name)


def test_a_script_that_ends_the_program_when_imported_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "script.py").write_text("raise SystemExit(2)")
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="script ends the program; put what it does as a script under"):
        find_transform("script:f")


def test_data_with_nulls_among_integers_can_be_measured(folder: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([1, None, 3])}), folder / "nulls.parquet")
    pipeline = make_pipeline(
        ProfileConfig(data=str(folder / "nulls.parquet"), transform="none", batch_size=3)
    )
    with pipeline.loader() as loader:
        assert next(iter(loader))["x"].tolist() == [1, 0, 3]


def test_the_preset_of_criteos_columns_is_for_these_only(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="`data` has no `label`; give 'none' to have none, or module:function"
    ):
        make_pipeline(ProfileConfig(data=str(folder / "data")))


def test_small_data_is_read_several_times_over_in_one_epoch(folder: Path) -> None:
    pipeline = make_pipeline(ProfileConfig(data=str(folder / "data"), transform="none", shuffle=4))
    assert len(pipeline.load.source.paths) == 64
    assert pipeline.stage_names == ("load", "shuffle", "batch", "transfer")
    with pytest.raises(NotFoundError, match="nothing"):
        make_pipeline(ProfileConfig(data=str(folder / "nothing"), transform="none"))


def test_what_costs_is_tried_with_more_slots_and_what_waits_with_many() -> None:
    stages = ("load", "batch", "transform")
    first = first_allocations(stages, 2)
    assert first[1:] == [Allocation.shared(1), Allocation.shared(2)]
    job = Jobs.of(
        stages=3, cpu=[[0.3e-6, 0.001e-6, 0.5e-6]], wait=[[3e-6, 0, 0]], step=1e-9, cpus=2.0, slot_bytes=1e6
    )
    slots = np.array([[1.0] * 3, [1.0] * 3, [2.0] * 3])
    measured = predict(job, slots, np.array([0.0, 1.0, 2.0]))
    parts = [measured.take(slice(at, at + 1)) for at in range(3)]
    more = more_allocations(parts, stages, 2)
    assert len(more) == len(set(more)) <= 9
    assert not set(more) & set(first)
    slots_of = [each.as_dict() for each in more if not each.is_shared]
    assert {"load": 12, "batch": 1, "transform": 1} in slots_of  # six slots a CPU: it waits
    assert {"load": 1, "batch": 1, "transform": 4} in slots_of
    assert all(each["batch"] == 1 for each in slots_of)  # costs next to nothing
    only = [replace(each, busy=each.busy * np.array([[0.0, 0.0, 1.0]])) for each in parts]
    assert more_allocations(only, stages, 2)


@pytest.mark.parametrize(("executor", "cpus"), [("ray", 7), ("threads", 3)])
def test_what_is_measured_on_ray_may_use_the_cluster(
    executor: Any, cpus: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = []

    class Made(Exception):
        pass

    def detect(**options: Any) -> Usable:
        return Usable(cpus=7 if attached else 3, memory=8 << 30, memory_left=8 << 30)

    def loader(pipeline: Pipeline, *, budget: Budget, **options: Any) -> Loader:
        raise Made(budget.cpus)

    monkeypatch.setattr("intune.pipelines.executors.ray_cluster.attach", lambda: attached.append(True))
    monkeypatch.setattr(Usable, "detect", detect)
    monkeypatch.setattr(Pipeline, "loader", loader)
    config = ProfileConfig(data=str(folder / "data"), transform="none", executor=executor)
    with pytest.raises(Made, match=f"^{cpus}$"):
        run_profile(config, lambda rows, share: None)
