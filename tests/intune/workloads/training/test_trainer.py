from __future__ import annotations

import functools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intune.errors import ConfigError, CorruptError, LoaderError
from intune.workloads.clicks.dlrm import DLRM, DLRMConfig
from intune.workloads.training.checkpoint import CheckpointStore, read_checkpoint
from intune.workloads.training.optim import Adagrad
from intune.workloads.training.trainer import Trainer, TrainOptions, TrainSummary

CONFIG = DLRMConfig(table_sizes=(7, 3, 11), embedding_dim=4, dense_features=5, bottom=(6, 4), top=(8, 1))
BATCHES = 12


class FakeLoader:
    """Batches out of (epoch, index) alone, with the state and the epochs of the real loader: a loop that was broken off
    is begun anew, unless a state is loaded."""

    def __init__(self, batches: int = BATCHES, before: Callable[[int, int], None] | None = None) -> None:
        self.epoch = 0
        self.batches = batches
        self.delivered: list[tuple[int, int]] = []
        self._batch = 0
        self._resume = 0
        self._before = before

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self._batch, self._resume = self._resume, 0
        while self._batch < self.batches:
            index, self._batch = self._batch, self._batch + 1
            if self._before is not None:
                self._before(self.epoch, index)
            self.delivered.append((self.epoch, index))
            yield self.make(self.epoch, index)
        self.epoch, self._batch = self.epoch + 1, 0

    @staticmethod
    def make(epoch: int, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((epoch, index))
        return {
            "dense": torch.from_numpy(rng.normal(size=(20, 5)).astype(np.float32)),
            "sparse": torch.from_numpy(rng.integers(0, CONFIG.table_sizes, size=(20, 3))),
            "label": torch.from_numpy(rng.integers(0, 2, size=20).astype(np.float32)),
        }

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self._batch, self._resume = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["batch"] > self.batches:
            raise LoaderError("a state of other data")
        self.epoch, self._batch = state["epoch"], state["batch"]
        if self._batch == self.batches:
            self.epoch, self._batch = self.epoch + 1, 0
        self._resume = self._batch

    def stats(self) -> str:
        return f"stats of {len(self.delivered)}"


def make_trainer(directory: Path | None, loader: FakeLoader | None = None, **options: Any) -> Trainer:
    """A trainer that draws random numbers in its loss, so that a resume must restore the generator too."""
    extra = {
        name: options.pop(name) for name in ("evaluate", "on_step", "config", "clock") if name in options
    }
    model = DLRM(CONFIG, seed=3)

    def loss(batch: Mapping[str, Any]) -> torch.Tensor:
        return model.loss({**batch, "dense": torch.nn.functional.dropout(batch["dense"], 0.5)})

    torch.manual_seed(11)
    return Trainer(
        model,
        Adagrad(model.parameters(), lr=0.05, rowwise=True),
        loader if loader is not None else FakeLoader(),
        loss=loss,
        store=None if directory is None else CheckpointStore(directory=directory, keep=2),
        options=TrainOptions(**{"epochs": 3, "checkpoint_every": 5, **options}),
        **extra,
    )


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.parameters()]


@functools.cache
def uninterrupted() -> list[torch.Tensor]:
    trainer = make_trainer(None)
    trainer.fit()
    return parameters(trainer)


def resume(trainer: Trainer, directory: Path) -> TrainSummary:
    latest = CheckpointStore(directory=directory).latest()
    if latest is not None:
        trainer.load_state_dict(read_checkpoint(latest))
    torch.manual_seed(99) if latest is None else None
    return trainer.fit()


def assert_same_bits(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_every_batch_of_every_epoch_is_trained_on_once() -> None:
    loader = FakeLoader()
    summary = make_trainer(None, loader).fit()
    assert loader.delivered == [(epoch, index) for epoch in range(3) for index in range(BATCHES)]
    assert summary.step == 3 * BATCHES
    assert summary.rows == 3 * BATCHES * 20
    assert summary.stopped_by is None
    assert summary.checkpoint is None


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    loader = FakeLoader()
    loader.make = lambda epoch, index: FakeLoader.make(0, 0)  # type: ignore[method-assign]
    trainer = make_trainer(None, loader, epochs=20, on_step=lambda step, loss, stats: losses.append(loss))
    trainer.fit()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("stop_after", [1, 5, 11, 12, 13, 35, 36])
def test_stopped_and_resumed_training_ends_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    make_trainer(tmp_path, max_steps=stop_after).fit()
    loader = FakeLoader()
    trainer = make_trainer(tmp_path, loader)
    torch.manual_seed(99)
    summary = resume(trainer, tmp_path)
    assert summary.step == 3 * BATCHES
    assert len(loader.delivered) == 3 * BATCHES - stop_after
    assert_same_bits(parameters(trainer), uninterrupted())


@pytest.mark.parametrize("kill_at", [0, 4, 5, 17, 30])
def test_killed_and_resumed_training_ends_with_the_same_bits(tmp_path: Path, kill_at: int) -> None:
    """SIGKILL in a forked child while it waits for a batch; whatever was saved last must be enough."""

    def die(epoch: int, index: int) -> None:
        if epoch * BATCHES + index == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            make_trainer(tmp_path, FakeLoader(before=die)).fit()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    trainer = make_trainer(tmp_path)
    latest = CheckpointStore(directory=tmp_path).latest()
    assert (latest is None) is (kill_at < 5)
    if latest is not None:
        trainer.load_state_dict(read_checkpoint(latest))
        assert trainer.step == kill_at // 5 * 5
    trainer.fit()
    assert_same_bits(parameters(trainer), uninterrupted())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_training_finishes_the_step_and_saves(tmp_path: Path, number: int) -> None:
    trainer = make_trainer(tmp_path, checkpoint_every=0)
    loss = trainer._loss

    def loss_and_signal(batch: Mapping[str, Any]) -> torch.Tensor:
        if trainer.step == 6:
            os.kill(os.getpid(), number)
        return loss(batch)

    trainer._loss = loss_and_signal
    around = signal.signal(number, signal.default_int_handler)  # under `nohup` SIGHUP is ignored
    try:
        summary = trainer.fit()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, around)
    assert summary.stopped_by == number
    assert summary.step == 7
    assert summary.checkpoint == tmp_path / "step-000000000007.pt"
    resumed = make_trainer(tmp_path)
    resume(resumed, tmp_path)
    assert_same_bits(parameters(resumed), uninterrupted())


@pytest.mark.parametrize("at", [0, 6, BATCHES])
def test_a_signal_while_waiting_for_data_loses_no_batch(tmp_path: Path, at: int) -> None:
    def interrupt(epoch: int, index: int) -> None:
        # The loader has counted the batch as handed over already, but the trainer never gets it.
        if epoch * BATCHES + index == at:
            os.kill(os.getpid(), signal.SIGINT)

    summary = make_trainer(tmp_path, FakeLoader(before=interrupt), checkpoint_every=0).fit()
    assert summary.stopped_by == signal.SIGINT
    assert summary.step == at
    resumed = make_trainer(tmp_path)
    resume(resumed, tmp_path)
    assert_same_bits(parameters(resumed), uninterrupted())


def test_a_signal_during_an_evaluation_breaks_it_off_and_saves(tmp_path: Path) -> None:
    def evaluate() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on after the signal")

    trainer = make_trainer(tmp_path, evaluate=evaluate, evaluate_every=4)
    summary = trainer.fit()
    assert summary.stopped_by == signal.SIGINT
    assert summary.checkpoint == tmp_path / "step-000000000004.pt"
    assert summary.evaluations == ()
    assert trainer.model.training


def test_called_again_after_a_signal_training_goes_on_after_the_last_step() -> None:
    loader = FakeLoader()
    trainer = make_trainer(None, loader, report_every=1, on_step=interrupt_at(5, 17))
    summaries = [trainer.fit() for _ in range(3)]
    assert [summary.step for summary in summaries] == [5, 17, 36]
    assert [summary.rows for summary in summaries] == [100, 240, 380]
    assert loader.delivered == [(epoch, index) for epoch in range(3) for index in range(BATCHES)]
    assert_same_bits(parameters(trainer), uninterrupted())


def test_called_again_after_the_callback_failed_training_goes_on_after_the_last_step() -> None:
    loader = FakeLoader()

    def fail(step: int, loss: float, stats: Any) -> None:
        trainer.on_step = None
        raise ValueError

    trainer = make_trainer(None, loader, report_every=7, on_step=fail)
    with pytest.raises(ValueError):
        trainer.fit()
    assert trainer.fit().step == 36
    assert loader.delivered == [(epoch, index) for epoch in range(3) for index in range(BATCHES)]


def test_called_again_after_its_end_it_only_evaluates() -> None:
    trainer = make_trainer(None, evaluate=lambda: {"auc": 0.5})
    trainer.fit()
    summary = trainer.fit()
    assert (summary.step, summary.rows, len(summary.evaluations)) == (36, 0, 1)
    assert math.isnan(summary.loss)


def interrupt_at(*steps: int) -> Callable[[int, float, Any], None]:
    return lambda step, loss, stats: signal.raise_signal(signal.SIGINT) if step in steps else None


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    loss = trainer._loss

    def twice(batch: Mapping[str, Any]) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return loss(batch)

    trainer._loss = twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_trainer_in_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[Any] = []
    trainer = make_trainer(None, on_step=lambda *_: found.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    thread.join()
    assert found
    assert all(handler is before for handler in found)


def test_resuming_a_finished_run_only_evaluates(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    loader = FakeLoader()
    trainer = make_trainer(tmp_path, loader, evaluate=lambda: {"auc": 0.5})
    summary = resume(trainer, tmp_path)
    assert loader.delivered == []
    assert summary.rows == 0
    assert [(entry.step, entry.metrics) for entry in summary.evaluations] == [(36, {"auc": 0.5})]
    assert math.isnan(summary.loss)


def test_resuming_at_the_last_step_allowed_takes_none(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=15).fit()
    loader = FakeLoader()
    assert resume(make_trainer(tmp_path, loader, max_steps=15), tmp_path).step == 15
    assert loader.delivered == []


def test_evaluations_happen_when_due_in_evaluation_mode_and_once_at_the_end() -> None:
    modes: list[bool] = []
    trainer = make_trainer(None, epochs=1, evaluate_every=4)
    trainer.evaluate = lambda: {"training": float(modes.append(trainer.model.training) or 0)}
    summary = trainer.fit()
    assert [entry.step for entry in summary.evaluations] == [4, 8, 12]
    assert modes == [False] * 3


def test_the_callback_gets_the_mean_loss_since_the_last_call_and_the_loaders_stats() -> None:
    every: list[tuple[int, float, Any]] = []
    make_trainer(None, epochs=1, report_every=1, on_step=lambda *given: every.append(given)).fit()
    some: list[tuple[int, float, Any]] = []
    make_trainer(None, epochs=1, report_every=5, on_step=lambda *given: some.append(given)).fit()
    assert [step for step, _, _ in every] == list(range(1, 13))
    assert [step for step, _, _ in some] == [5, 10, 12]
    losses = [loss for _, loss, _ in every]
    expected = [np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])]
    assert [loss for _, loss, _ in some] == pytest.approx(expected, rel=1e-6)
    assert [stats for _, _, stats in some] == ["stats of 5", "stats of 10", "stats of 12"]


def test_time_is_told_apart() -> None:
    """The clock ticks only where the test says so: 10 s for the first batch, 2 s for others, 3 s a step."""
    now = [0.0]

    def wait(epoch: int, index: int) -> None:
        now[0] += 2.0 if epoch + index else 10.0

    def evaluate() -> dict[str, float]:
        now[0] += 7.0
        return {}

    trainer = make_trainer(None, FakeLoader(before=wait), epochs=1, clock=lambda: now[0], evaluate=evaluate)
    loss = trainer._loss

    def timed_loss(batch: Mapping[str, Any]) -> torch.Tensor:
        now[0] += 3.0
        return loss(batch)

    trainer._loss = timed_loss
    summary = trainer.fit()
    assert summary.first_batch_s == 10.0
    assert summary.wait_s == 2.0 * 11
    assert summary.step_s == 3.0 * 12
    assert summary.evaluate_s == 7.0
    assert summary.seconds == 10 + 22 + 36 + 7
    assert summary.wait_share == pytest.approx(22 / 58)
    assert summary.rows_per_s == pytest.approx(240 / 58)


def test_a_loss_that_is_not_a_number_ends_training_and_is_not_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, report_every=100)
    loss = trainer._loss
    trainer._loss = lambda batch: loss(batch) * (float("nan") if trainer.step == 7 else 1.0)
    with pytest.raises(ConfigError, match="loss is nan after step 10; lower `learning_rate`"):
        trainer.fit()
    latest = CheckpointStore(directory=tmp_path).latest()
    assert latest is not None
    assert read_checkpoint(latest)["step"] == 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_a_finite_loss_has_made_no_numbers_are_not_saved(
    tmp_path: Path, value: float
) -> None:
    def spoil(step: int, loss: float, stats: Any) -> None:
        if step == 6:
            with torch.no_grad():
                trainer.model.top[0].weight[1, 2] = value

    trainer = make_trainer(tmp_path, report_every=1, checkpoint_every=2, on_step=spoil)
    with pytest.raises(ConfigError, match=r"`top\.0\.weight` is not finite after step 6"):
        trainer.fit()
    latest = CheckpointStore(directory=tmp_path).latest()
    assert latest is not None
    assert read_checkpoint(latest)["step"] == 4


def test_a_checkpoint_of_another_configuration_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1, config={"batch_size": 20, "sizes": (1, 2), "seed": 1}).fit()
    same = make_trainer(tmp_path, config={"batch_size": 20, "sizes": [1, 2], "seed": 1})
    resume(same, tmp_path)
    other = make_trainer(tmp_path, config={"batch_size": 30, "sizes": (1, 2), "rate": 0.5, "seed": 1})
    with pytest.raises(
        ConfigError, match=r"batch_size was 20 and is 30; rate was None and is 0\.5; use the same"
    ):
        resume(other, tmp_path)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint_for_another_model_is_refused(part: str) -> None:
    state = make_trainer(None, epochs=1).state_dict()
    if part == "model":
        state["model"] = {name: value[:-1] for name, value in state["model"].items()}
    else:
        state["optimizer"]["param_groups"].append(state["optimizer"]["param_groups"][0])
    with pytest.raises(ConfigError, match="the checkpoint does not fit this model") as caught:
        make_trainer(None).load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_other_data_are_told_from_another_model() -> None:
    state = make_trainer(None, FakeLoader(batches=20)).state_dict()
    state["loader"] = {"epoch": 0, "batch": 15}
    state["model"] = {}
    with pytest.raises(LoaderError, match="other data"):
        make_trainer(None).load_state_dict(state)


def test_devices_that_the_model_is_not_on_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a CUDA device was asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, touched)
    trainer = make_trainer(None)
    state = trainer.state_dict()
    assert state["random"]["cuda"] == []
    # Saved where there were GPUs.
    state["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 8
    trainer.load_state_dict(state)


def test_random_states_are_those_of_the_models_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, devices = make_trainer(None), [torch.device("cuda:1")]
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(trainer, "_cuda_devices", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append((int(state), device)))
    state = trainer.state_dict()
    devices[0] = torch.device("cuda:0")
    trainer.load_state_dict(state)
    assert asked == [(1, torch.device("cuda:0"))]


def test_what_is_not_a_trainers_state_is_refused() -> None:
    trainer = make_trainer(None)
    with pytest.raises(CorruptError, match="has no config, loader, optimizer, random, step"):
        trainer.load_state_dict({"model": {}, "format": 1})
    with pytest.raises(CorruptError, match="format 99"):
        trainer.load_state_dict({**trainer.state_dict(), "format": 99})


def test_a_state_of_other_data_is_refused_by_the_loader(tmp_path: Path) -> None:
    make_trainer(tmp_path, FakeLoader(batches=20), max_steps=15).fit()
    with pytest.raises(LoaderError, match="other data"):
        resume(make_trainer(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"max_steps": 0}, {"report_every": 0}, {"evaluate_every": -1}, {"checkpoint_every": -1}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(options))}`"):
        TrainOptions(**options)  # type: ignore[arg-type]
