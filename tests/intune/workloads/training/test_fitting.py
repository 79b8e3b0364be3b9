from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from intune.errors import ConfigError, StorageError
from intune.pipelines import Pipeline
from intune.workloads.training.checkpoint import CheckpointStore, read_checkpoint
from intune.workloads.training.fitting import EarlyStopping, FitOptions, FitSummary, fit, seeded
from intune.workloads.training.trainer import Evaluation, Trainer


class Line(nn.Module):
    """A weight, and dropout, so that random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.5)

    def loss(self, batch: Any) -> Tensor:
        return ((self.dropout(self.weight * batch["x"]) - batch["y"]) ** 2).mean()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=64).astype(np.float32)
    path = tmp_path_factory.mktemp("line") / "line.parquet"
    pq.write_table(pa.table({"x": x, "y": 3 * x}), path, row_group_size=16)
    return path


def scripted(values: list[float]) -> Callable[[], dict[str, float]]:
    """An evaluation that gives these values, one after the other."""
    left: Iterator[float] = iter(values)
    return lambda: {"score": next(left)}


def run(
    data: Path,
    model: Line,
    evaluate: Callable[[], dict[str, float]],
    metrics: tuple[str, ...] | None = None,
    **options: Any,
) -> tuple[FitSummary, Line]:
    pipeline = Pipeline.from_parquet(data).shuffle(2, seed=1).batch(16)
    with pipeline.loader(executor="threads") as loader:
        summary = fit(
            model,
            torch.optim.SGD(model.parameters(), lr=0.05),
            loader,
            loss=model.loss,
            evaluate=evaluate,
            options=FitOptions(**{"metric": "score", **options}),
            metrics=metrics,
        )
    return summary, model


def test_training_ends_when_patience_does_and_the_best_parameters_are_kept(data: Path) -> None:
    model = Line()
    seen: list[float] = []

    def evaluate() -> dict[str, float]:
        seen.append(model.weight.detach().item())
        return {"score": [0.1, 0.5, 0.4, 0.3, 0.9][len(seen) - 1]}

    summary, model = run(data, model, evaluate, epochs=20, patience=2)
    assert summary.epochs == 4
    assert summary.best_epochs == 2
    assert summary.best is not None
    assert summary.best.metrics == {"score": 0.5}
    assert summary.history == ((1, 0.1), (2, 0.5), (3, 0.4), (4, 0.3))
    assert model.weight.detach().item() == seen[1] != seen[3]


def test_less_is_better_where_it_is_said(data: Path) -> None:
    summary, _ = run(data, Line(), scripted([0.5, 0.4, 0.6]), epochs=3, higher_is_better=False)
    assert summary.best_epochs == 2


def test_without_patience_all_epochs_are_trained(data: Path) -> None:
    summary, _ = run(data, Line(), scripted([0.5, 0.4, 0.3, 0.2]), epochs=4, patience=None)
    assert (summary.epochs, summary.best_epochs, summary.train.step) == (4, 1, 16)


def test_epochs_between_evaluations_are_passed_over(data: Path) -> None:
    summary, _ = run(data, Line(), scripted([0.5, 0.6]), epochs=4, evaluate_epochs=2)
    assert summary.history == ((2, 0.5), (4, 0.6))


def test_a_run_cut_anywhere_and_resumed_ends_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    def evaluate_of(model: Line) -> Callable[[], dict[str, float]]:
        # Rises, then falls again as the weight passes 2: the best lies in the middle.
        return lambda: {"score": -abs(model.weight.detach().item() - 2)}

    def train(folder: Path, resume: bool = False, **more: Any) -> tuple[FitSummary, Line]:
        model = Line()
        return run(
            data,
            model,
            evaluate_of(model),
            epochs=12,
            patience=3,
            checkpoints=folder,
            checkpoint_every=1,
            resume=resume,
            **more,
        )

    whole, model = train(tmp_path / "whole")
    for cut in (3, 4, 17):
        folder = tmp_path / f"cut-{cut}"
        train(folder, max_steps=cut)
        resumed, again = train(folder, resume=True)
        assert resumed.resumed_from is not None
        assert resumed.history == whole.history
        assert resumed.best == whole.best
        assert torch.equal(again.weight, model.weight)


def test_a_run_killed_between_the_last_step_of_an_epoch_and_its_evaluation_evaluates_on_resume(
    data: Path, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def killed() -> dict[str, float]:
        raise Killed

    with pytest.raises(Killed):
        run(data, Line(), killed, epochs=2, checkpoints=tmp_path / "c", checkpoint_every=4)
    summary, _ = run(data, Line(), scripted([0.1, 0.2]), epochs=2, checkpoints=tmp_path / "c", resume=True)
    assert summary.history == ((1, 0.1), (2, 0.2))


@pytest.mark.parametrize("every", [0, 3, 4])
def test_the_last_checkpoint_holds_the_parameters_that_training_ends_with(
    data: Path, tmp_path: Path, every: int
) -> None:
    """Of four steps an epoch: with 4, the last step is saved before its epoch is evaluated, too."""
    _, model = run(data, Line(), scripted([0.1, 0.2]), epochs=2, checkpoints=tmp_path, checkpoint_every=every)
    latest = CheckpointStore(directory=tmp_path).latest()
    assert latest is not None
    kept = read_checkpoint(latest)["monitor"]["best_model"]
    assert torch.equal(kept["weight"], model.weight)


def test_a_stopped_run_stays_stopped_when_resumed(data: Path, tmp_path: Path) -> None:
    options = {"epochs": 9, "patience": 1, "checkpoints": tmp_path / "c"}
    first, _ = run(data, Line(), scripted([0.5, 0.4]), **options)
    second, _ = run(data, Line(), scripted([0.9]), resume=True, **options)
    assert second.train.rows == 0
    assert second.history == first.history


def test_checkpoints_of_another_run_are_not_overwritten(data: Path, tmp_path: Path) -> None:
    run(data, Line(), scripted([0.5]), epochs=1, checkpoints=tmp_path / "c")
    with pytest.raises(ConfigError, match="holds those of another run"):
        run(data, Line(), scripted([0.5]), epochs=1, checkpoints=tmp_path / "c")


def test_the_monitor_survives_a_checkpoint() -> None:
    model = Line()
    before = EarlyStopping("score", patience=2)
    for epochs, value in enumerate([0.1, 0.3, 0.2], start=1):
        before.look(epochs, Evaluation(step=epochs, metrics={"score": value}), model)
        with torch.no_grad():
            model.weight += 1
    after = EarlyStopping("score", patience=2)
    after.load_state_dict(before.state_dict())
    assert (after.history, after.best, after.epochs) == (before.history, before.best, 3)
    assert float(after.best_model["weight"]) == 1.0
    assert not after.stopped
    after.look(4, Evaluation(step=4, metrics={"score": 0.2}), model)
    assert after.stopped


def test_a_metric_that_is_not_there_or_not_a_number_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="`metric`='ndcg' is not evaluated; there are score"):
        run(data, Line(), scripted([0.5]), metric="ndcg", epochs=1)
    with pytest.raises(ConfigError, match="score is NaN after epoch 1"):
        run(data, Line(), scripted([float("nan")]), epochs=1)


def test_a_monitor_needs_an_evaluation(data: Path) -> None:
    model = Line()
    with (
        Pipeline.from_parquet(data).batch(16).loader(executor="threads") as loader,
        pytest.raises(ConfigError, match="`monitor` needs `evaluate`"),
    ):
        Trainer(
            model,
            torch.optim.SGD(model.parameters()),
            loader,
            loss=model.loss,
            monitor=EarlyStopping("score"),
        )


def test_seeds_decide_dropout_and_leave_no_trace(data: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = [
        float(run(data, Line(), scripted([0.5]), epochs=1, seed=seed)[1].weight.detach())
        for seed in (1, 1, 2)
    ]
    assert weights[0] == weights[1] != weights[2]
    assert torch.equal(torch.rand(1), expected)
    with seeded(3):
        first = torch.rand(2)
    with seeded(3):
        assert torch.equal(torch.rand(2), first)


def test_loss_and_metrics_are_written_as_event_files(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(data, Line(), scripted([0.5, 0.6]), epochs=2, report_every=4, tensorboard=tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("valid/score")] == [
        (4, 0.5),
        (8, 0.6),
    ]
    assert [event.step for event in events.Scalars("loss/train")] == [4, 8]


def test_event_files_without_the_package_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"install intune\[tensorboard\]"):
        run(data, Line(), scripted([0.5]), epochs=1, tensorboard=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "`patience`=.* must be a whole number, 1 or more"),
        ({"evaluate_epochs": 0}, "`evaluate_epochs`=.* must be a whole number, 1 or more"),
        ({"epochs": 0}, "`epochs`=.* must be a whole number, 1 or more"),
        ({"seed": -1}, "`seed` must be from 0"),
        ({"resume": True}, "`resume` needs `checkpoints`"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitOptions(**options)


def test_the_best_parameters_are_in_the_checkpoint(data: Path, tmp_path: Path) -> None:
    summary, model = run(data, Line(), scripted([0.5, 0.4]), epochs=2, checkpoints=tmp_path / "c")
    assert summary.train.checkpoint is not None
    state = read_checkpoint(summary.train.checkpoint)
    assert torch.equal(state["monitor"]["best_model"]["weight"], model.weight.detach())
    assert not torch.equal(state["model"]["weight"], model.weight.detach())


def test_steps_that_end_with_an_epoch_keep_what_as_many_epochs_keep(data: Path) -> None:
    by_epochs, one = run(data, Line(), scripted([0.1, 0.9]), epochs=2)
    by_steps, other = run(data, Line(), scripted([0.1, 0.9]), epochs=20, max_steps=8)
    assert by_steps.history == by_epochs.history == ((1, 0.1), (2, 0.9))
    assert by_steps.best_epochs == by_steps.epochs == 2
    assert torch.equal(one.weight, other.weight)


def test_an_epoch_cut_short_is_compared_too(data: Path) -> None:
    summary, _ = run(data, Line(), scripted([0.1, 0.9]), epochs=20, max_steps=7)
    assert summary.history == ((1, 0.1), (2, 0.9))
    assert summary.best is not None
    assert (summary.best.step, summary.best_epochs) == (7, 2)


def test_the_end_is_looked_at_though_it_is_not_due_and_a_longer_run_knows_nothing_of_it(
    data: Path, tmp_path: Path
) -> None:
    options = {"evaluate_epochs": 2, "checkpoints": tmp_path / "c"}
    summary, _ = run(data, Line(), scripted([0.5, 0.9]), epochs=3, **options)
    assert summary.history == ((2, 0.5), (3, 0.9))
    assert summary.best_epochs == 3
    again, _ = run(data, Line(), scripted([0.9]), epochs=3, resume=True, **options)
    assert again.history == summary.history
    longer, _ = run(data, Line(), scripted([0.4]), epochs=4, resume=True, **options)
    assert longer.history == ((2, 0.5), (4, 0.4))
    assert longer.best_epochs == 2


@pytest.mark.parametrize("cut", [3, 4, 8])
def test_a_run_resumed_at_its_last_step_ends_as_it_did(data: Path, tmp_path: Path, cut: int) -> None:
    options = {"epochs": 9, "max_steps": cut, "checkpoints": tmp_path / "c"}
    model = Line()
    summary, _ = run(data, model, lambda: {"score": model.weight.detach().item()}, **options)
    again = Line()
    resumed, _ = run(data, again, lambda: {"score": again.weight.detach().item()}, resume=True, **options)
    assert resumed.history == summary.history
    assert resumed.train.rows == 0
    assert torch.equal(again.weight, model.weight)


def test_a_run_that_a_signal_ends_is_not_looked_at(data: Path) -> None:
    def evaluate() -> dict[str, float]:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return {"score": 0.5}

    calls = iter(range(9))
    summary, _ = run(data, Line(), evaluate, epochs=5)
    assert summary.train.stopped_by == signal.SIGTERM
    assert summary.history == ((1, 0.5),)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"metric": "recall"}, "chosen by the highest score, but now it would be by the highest recall"),
        ({"higher_is_better": False}, "the highest score, but now it would be by the lowest score"),
    ],
)
def test_a_checkpoint_whose_best_was_chosen_otherwise_is_refused(
    data: Path, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    def evaluate() -> dict[str, float]:
        return {"score": 0.5, "recall": 0.1}

    run(data, Line(), evaluate, epochs=1, checkpoints=tmp_path)
    with pytest.raises(ConfigError, match=message):
        run(data, Line(), evaluate, epochs=2, checkpoints=tmp_path, resume=True, **other)


def test_what_cannot_be_used_is_refused_before_a_step_is_taken(data: Path, tmp_path: Path) -> None:
    def never() -> dict[str, float]:
        raise AssertionError("trained and evaluated")

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"no checkpoints can be kept in .*file"):
        run(data, Line(), never, epochs=1, checkpoints=tmp_path / "file")
    with pytest.raises(StorageError, match=r"no checkpoints can be kept in .*file"):
        run(data, Line(), never, epochs=1, checkpoints=tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="`metric`='auc' is not evaluated; there are loss, score"):
        run(data, Line(), never, epochs=1, metric="auc", metrics=("score", "loss"))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_event_files_that_cannot_be_written_are_refused_before_a_step(
    data: Path, tmp_path: Path, place: str
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be a folder of event files"):
        run(data, Line(), scripted([]), epochs=1, tensorboard=tmp_path / place)
