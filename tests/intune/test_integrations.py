"""Tuned loaders in the frameworks that people train with; each test needs its own, and is skipped without."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import intune
from intune.control import Pace
from intune.pipelines import Budget, Pipeline
from intune.unedited import ATTRIBUTE, Unedited, patch
from tests.intune.tuned import tuner_threads, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS: dict[str, Any] = {
    "agent": "even", "cpus": 2, "memory": "64MiB", "pace": Pace(shortest=0.01, longest=0.02, tasks=0),
    "knowledge": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    wait_until(lambda: not tuner_threads())


def data(rows: int = 80) -> TensorDataset:
    return TensorDataset(torch.arange(rows, dtype=torch.float32).reshape(-1, 1))


def sampled(epoch: int | None = None) -> DataLoader[Any]:
    sampler: DistributedSampler[Any] = DistributedSampler(data(), num_replicas=2, rank=1, seed=5)
    if epoch is not None:
        sampler.set_epoch(epoch)
    return DataLoader(data(), batch_size=8, sampler=sampler)


@pytest.fixture
def parquet(tmp_path: Path) -> Pipeline:
    pq.write_table(
        pa.table({"x": np.arange(80, dtype=np.float32)}), tmp_path / "x.parquet", row_group_size=10
    )
    return Pipeline.from_parquet(str(tmp_path / "x.parquet")).shuffle(row_groups=2, seed=1).batch(8).to("cpu")


# ---- Lightning -----------------------------------------------------------------------------------------------


def _lightning_module() -> Any:
    lightning = pytest.importorskip("lightning")

    class Recorder(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)
            self.seen: list[list[list[float]]] = []

        def on_train_epoch_start(self) -> None:
            self.seen.append([])

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            values = batch["x"].reshape(-1, 1) if isinstance(batch, dict) else batch[0]
            self.seen[-1].append(values.flatten().tolist())
            loss: torch.Tensor = self.linear(values).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-6)

    return Recorder()


def _fit(loader: Any, **options: Any) -> tuple[Any, Any]:
    import lightning

    module = _lightning_module()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=loader)
    return module, trainer


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightning_reads_every_batch_and_tells_the_sampler_the_epoch() -> None:
    pytest.importorskip("lightning")
    with intune.tune(sampled(), workers="thread", **OPTIONS) as tuned:
        module, trainer = _fit(tuned, max_epochs=2)
        assert trainer.num_training_batches == len(tuned) == 5
    for epoch, seen in enumerate(module.seen):
        assert seen == [batch[0].flatten().tolist() for batch in sampled(epoch)]


@pytest.mark.filterwarnings("ignore")
def test_lightning_keeps_the_place_in_its_checkpoints(parquet: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    with intune.tune(parquet, executor="threads", **OPTIONS) as tuned:
        expected = [batch["x"].tolist() for batch in tuned]
        tuned.set_epoch(0)
        module, trainer = _fit(tuned, max_steps=4)
        assert module.seen == [expected[:4]]
        trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)
    (state,) = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    with intune.tune(parquet, executor="threads", **OPTIONS) as again:
        again.load_state_dict(state)
        assert [batch["x"].tolist() for batch in again] == expected[4:]


# ---- Accelerate ----------------------------------------------------------------------------------------------


def test_accelerate_passes_a_tuned_loader_on() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    with intune.tune(sampled(), workers="thread", **OPTIONS) as tuned:
        prepared = accelerator.prepare(tuned)
        assert prepared is tuned
        for epoch in (0, 3):
            prepared.set_epoch(epoch)
            assert [b[0].tolist() for b in prepared] == [b[0].tolist() for b in sampled(epoch)]


def test_accelerates_own_loaders_are_tuned_by_intune_run() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    original = patch(
        DataLoader, Unedited(agent="even", cpus=2, memory="64MiB", knowledge=False, workers="thread")
    )
    try:
        prepared = accelerator.prepare(DataLoader(data(), batch_size=8))
        assert [batch[0].tolist() for batch in prepared] == [
            x.reshape(-1, 1).tolist() for x in torch.arange(80.0).split(8)
        ]
        tuned = getattr(prepared, ATTRIBUTE).tuned
        assert tuned.controller is not None
        tuned.close()
    finally:
        DataLoader.__iter__ = original  # type: ignore[method-assign]


# ---- the examples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain_pytorch", "s3"])
def test_examples_run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if name == "s3":
        pytest.importorskip("moto.server")
    _quiet(monkeypatch, tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert ("80,000 rows" if name == "s3" else "epoch 1: loss 0.") in out


def test_the_dataloader_example_runs_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _quiet(monkeypatch, tmp_path)
    made = runpy.run_path(str(EXAMPLES / "dataloader.py"), run_name="example")
    monkeypatch.setattr(made["Slow"], "__len__", lambda _: 1000)
    made["main"]()
    times = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    assert len(times) == 3
    assert times[2] < times[0]


def test_two_examples_at_once_make_the_sample_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["example"])
    sample = runpy.run_path(str(EXAMPLES / "sample.py"))["sample"]
    write = pq.write_table
    asked = []

    def written_and_overtaken(*args: Any, **options: Any) -> None:
        write(*args, **options)
        asked.append(args)
        if len(asked) == 1:
            sample(files=2, rows=40)  # of the other process, which is faster

    monkeypatch.setattr(pq, "write_table", written_and_overtaken)
    folder = Path(sample(files=2, rows=40))
    assert sorted(path.name for path in folder.iterdir()) == ["0.parquet", "1.parquet"]


class Blocks:
    """A dataset of Ray Data, as its adapter uses one."""

    def map_batches(self, function: Any, **options: Any) -> Blocks:
        return self

    def iter_batches(self, **options: Any) -> Iterator[dict[str, Any]]:
        for _ in range(3):
            yield {"x": np.ones(2), "busy map": np.ones(2), "cpu map": np.ones(2)}


def test_an_adapter_whose_loop_is_left_early_counts_no_time_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_data = Mock()
    monkeypatch.setitem(sys.modules, "ray.data", ray_data)
    monkeypatch.setitem(sys.modules, "ray", Mock(data=ray_data))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    adapter = runpy.run_path(str(EXAMPLES / "ray_data.py"))["RayDataAdapter"](
        [Blocks], {"map": dict}, Budget(cpus=1, memory=1 << 30)
    )
    clock = Mock(return_value=0.0)
    for method in (type(adapter).__iter__, type(adapter).running):
        monkeypatch.setitem(method.__globals__, "time", SimpleNamespace(monotonic=clock))
    batches = iter(adapter)
    next(batches)
    clock.return_value = 1.0
    batches.close()
    clock.return_value = 100.0
    assert adapter.stats().elapsed_s == 1.0


def ran(calls: dict[str, str], folder: Path) -> str:
    """What examples say, one after another in a process of their own; of each, how its `main` is called."""
    # Under a name that no worker can import, as `__main__`: functions then travel by value.
    code = "import runpy\n" + "".join(
        f"runpy.run_path({str(EXAMPLES / f'{name}.py')!r}, run_name='example')['main']({call})\n"
        for name, call in calls.items()
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=170,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{os.getcwd()}", "INTUNE_CACHE": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.skipif(not all(map(find_spec, ("pandas", "ray"))), reason="needs pandas and ray")
def test_examples_on_ray_run(tmp_path: Path) -> None:
    said = ran({"ray_train": "", "ray_data": "rounds=2"}, tmp_path)
    assert "worker 0: 80,000 rows" in said
    assert "48,000 rows; " in said


@pytest.mark.skipif(
    find_spec("pyspark") is None or shutil.which("java") is None, reason="needs pyspark and Java"
)
def test_the_example_on_spark_runs(tmp_path: Path) -> None:
    assert "2,000 rows; " in ran({"spark": "partitions=20"}, tmp_path)


def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["example"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
