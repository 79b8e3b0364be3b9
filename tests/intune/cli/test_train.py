from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import tyro

from intune.cli import train
from intune.cli.click_runs import summarise
from intune.cli.train import PeakMemory, how_to_resume
from intune.cli.train_click import dlrm
from intune.cli.train_options import parse_slots
from intune.errors import ConfigError
from intune.pipelines import Allocation, PipelineStats
from intune.workloads.data.synthetic import SyntheticConfig, write_synthetic
from intune.workloads.training.checkpoint import CheckpointStore
from intune.workloads.training.trainer import Evaluation, TrainSummary

STATS = PipelineStats(
    stages=(),
    elapsed_s=10.0,
    epoch=1,
    batch=0,
    batches=100,
    rows=100_000,
    step_s=8.0,
    wait_s=2.0,
    memory_held=0,
    memory_peak=300 << 20,
    memory_limit=1 << 30,
    memory_resident=900 << 20,
    allocation=Allocation.shared(2),
)
METRICS = {"auc": 0.79, "rows": 50_000, "positives": 12_000, "log_loss": 0.455, "normalised_entropy": 0.81}
SUMMARY = TrainSummary(
    step=100,
    rows=100_000,
    seconds=11.5,
    loss=0.46,
    wait_s=2.0,
    step_s=8.0,
    first_batch_s=0.25,
    evaluate_s=1.0,
    checkpoint_s=0.1,
    peak_resident=700 << 20,
    evaluations=(Evaluation(step=100, metrics=METRICS),),
    checkpoint=None,
    stopped_by=None,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clicks") / "data"
    write_synthetic(SyntheticConfig(rows=2000, test_rows=500, row_group_rows=500, scale=1e-4), folder)
    return str(folder)


def call(*words: str) -> None:
    tyro.cli(
        dlrm,
        args=[*words, "--table-rows", "500"],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def test_the_display_leaves_room_for_event_files(data: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for words in (["--quiet"], []):
        folder = str(tmp_path / f"events{len(words)}")
        call("--data", data, "--executor", "threads", "--batch-size", "200", "--tensorboard", folder, *words)
        events = EventAccumulator(folder).Reload()  # type: ignore[no-untyped-call]
        assert [point.step for point in events.Scalars("loss/train")] == [10]


def test_a_run_ends_with_a_summary_on_stdout(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    call("--data", data, "--executor", "threads", "--batch-size", "200", "--slots", "load=2,transform=1")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("2,000 rows in ")
    assert "step 10:" in lines[0]
    assert lines[1].startswith("waited for data ")
    assert lines[2].startswith("peak memory ")
    assert lines[3].startswith("held-out AUC 0.")
    assert "on 500 rows" in lines[3]
    assert "below the best that the data allows, 0." in lines[3]
    assert "step 10/10" in err


def test_quiet_shows_no_progress(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    call("--data", data, "--executor", "threads", "--batch-size", "200", "--quiet", "--torch-threads", "1")
    assert capsys.readouterr().err == ""


def test_ctrl_c_saves_and_leaves_with_130_and_one_line(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", data, "--executor", "threads", "--batch-size", "20", "--quiet"]
    words += ["--checkpoints", str(tmp_path), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(train.PeakMemory, "on_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as left:
            call(*words)
    assert left.value.code == 130
    out, err = capsys.readouterr()
    assert out == ""
    path = tmp_path / "step-000000000010.pt"
    assert err == (
        f"intune: stopped by SIGINT after step 10; saved {path}: the same command with --resume goes on from there\n"
    )
    assert CheckpointStore(directory=tmp_path).latest() == path
    call(*words)
    out, err = capsys.readouterr()
    assert err == f"intune: going on from {path}\n"
    assert "1,800 rows in " in out
    assert "step 100" in out


def test_being_stopped_without_a_folder_says_that_nothing_was_saved() -> None:
    stopped = dataclasses.replace(SUMMARY, stopped_by=signal.SIGTERM)
    assert how_to_resume(stopped) == (
        "intune: stopped by SIGTERM after step 100; nothing was saved, since no --checkpoints folder was given"
    )


def test_summary_has_speed_waiting_memory_and_the_best_auc() -> None:
    text = summarise(SUMMARY, PeakMemory(lambda: STATS), best_auc=0.8)
    assert text.splitlines() == [
        "100,000 rows in 11.5 s, step 100: 10,000 rows/s while training, loss 0.4600",
        "waited for data 20.0% of the time; first batch after 0.25 s",
        "peak memory 300 MiB in blocks, 1.00 GiB allowed; 900 MiB resident",
        "held-out AUC 0.7900 on 50,000 rows, 0.0100 below the best that the data allows, 0.8000; "
        "log loss 0.4550, normalised entropy 0.8100",
    ]


def test_summary_says_what_is_not_known_or_not_there() -> None:
    smaller = dataclasses.replace(STATS, memory_resident=0)
    alone = summarise(SUMMARY, PeakMemory(lambda: smaller), best_auc=None)
    assert "below the best" not in alone
    assert "700 MiB resident" in alone  # this process's own peak is more than the samples saw
    nothing = dataclasses.replace(
        SUMMARY, rows=0, evaluations=(), checkpoint=Path("runs/step-000000000100.pt")
    )
    text = summarise(nothing, PeakMemory(lambda: STATS), best_auc=None)
    assert "step 100: nothing was left to train" in text
    assert "no rows held out" in text
    assert "saved runs/step-000000000100.pt" in text


@pytest.mark.parametrize(("positives", "label"), [(0, 0), (50_000, 1)])
def test_held_out_rows_of_one_label_have_no_auc_and_that_is_said(positives: int, label: int) -> None:
    metrics = {**METRICS, "auc": float("nan"), "normalised_entropy": float("nan"), "positives": positives}
    alike = dataclasses.replace(SUMMARY, evaluations=(Evaluation(step=100, metrics=metrics),))
    last = summarise(alike, PeakMemory(lambda: STATS), best_auc=0.8).splitlines()[-1]
    assert last == (
        "log loss 0.4550 on 50,000 held-out rows; no AUC, which compares rows of both labels, and all of these have "
        f"{label}: hold out others"
    )


def test_the_most_resident_memory_is_remembered() -> None:
    sizes = iter([5, 9, 7])
    memory = PeakMemory(lambda: dataclasses.replace(STATS, memory_resident=next(sizes)))
    assert [memory.read().memory_resident for _ in range(3)] == [5, 9, 7]
    assert memory.bytes == 9


def test_memory_is_read_now_and_then_where_nothing_is_shown() -> None:
    reads = []
    memory = PeakMemory(lambda: reads.append(1) or STATS)
    for step in range(PeakMemory.EVERY + 1):
        memory.on_step(step, 0.5, STATS)
    assert len(reads) == 2


def test_slots_are_read_as_stage_and_number() -> None:
    assert parse_slots("load=2, transform = 1") == {"load": 2, "transform": 1}


@pytest.mark.parametrize(
    "text", ["", "load", "load=", "=2", "load=two", "load=1,load=2", "load=1,", "load=-1"]
)
def test_slots_written_in_another_way_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"`slots` has .*write each stage once, as in load=2,transform=1"):
        parse_slots(text)


def test_zero_torch_threads_make_no_sense(data: str) -> None:
    with pytest.raises(ConfigError, match="`torch_threads`=0 must be a whole number, 1 or more"):
        call("--data", data, "--torch-threads", "0")


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        call("--help")
    assert left.value.code == 0
    out = capsys.readouterr().out
    options = (
        "data",
        "executor",
        "preset",
        "slots",
        "memory",
        "checkpoints",
        "resume",
        "evaluate-every",
        "quiet",
    )
    assert all(f"--{option}" in out for option in options)
