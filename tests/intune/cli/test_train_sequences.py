from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from intune.cli.commands.sequences import COMMANDS
from intune.cli.main import main
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from tests.intune.workloads.ratings_files import drawn, write_recbole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sessions")
    found = read_movielens(write_recbole(base / "files", drawn(users=16, items=25, per_user=8)))
    options = RatingsOptions(split=SplitOptions(name="leave-one-out"))
    write_ratings(found, options, base / "data", kind="movielens")
    return base / "data"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert f"intune {name} --data" in shown
    assert "--seed" in shown


@pytest.mark.parametrize(
    "options",
    [
        ["train", "popularity"],
        ["train", "vsknn", "--neighbours", "3"],
        ["train", "bert4rec", "--width", "8", "--epochs", "2", "--evaluate-epochs", "1"],
        ["train", "sasrec", "--width", "8", "--loss", "softmax", "--epochs", "1", "--evaluate-epochs", "1"],
        ["train", "gru4rec", "--width", "8", "--epochs", "1", "--evaluate-epochs", "1", "--batch-size", "4"],
    ],
)
def test_a_model_is_trained_and_judged(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main([*options, "--data", str(folder), "--quiet", "--executor", "threads", "--memory", "64MiB"]) == 0
    )
    shown = capsys.readouterr().out
    assert re.search(r"test: \d+ sessions", shown)
    assert re.search(r"@20: NDCG 0\.\d{4}, hit rate \d\.\d{4}, MRR 0\.\d{4}, coverage \d", shown)
    if "--epochs" in options:
        assert "kept the model of epoch" in shown
        assert "waited for data" in shown


def test_models_that_read_text_take_embeddings_from_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(25, 10)))
    common = ["--data", str(folder), "--embeddings", str(tmp_path / "e.npy"), "--quiet"]
    assert main(["train", "llm-seq-sim", "--strategy", "share", "--similarity", "euclidean", *common]) == 0
    short = ["--width", "8", "--epochs", "1", "--evaluate-epochs", "1", "--spread", "0.1"]
    assert main(["train", "llm2bert4rec", *short, *common]) == 0
    assert capsys.readouterr().out.count("@20: NDCG") == 2


def test_a_run_goes_on_from_its_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "train",
        "gru4rec",
        "--data",
        str(folder),
        "--width",
        "8",
        "--quiet",
        "--checkpoints",
        str(tmp_path),
    ]
    assert main([*common, "--epochs", "2", "--evaluate-epochs", "1"]) == 0
    assert main([*common, "--epochs", "3", "--evaluate-epochs", "1", "--resume"]) == 0
    assert "went on from" in capsys.readouterr().out


def test_an_option_that_a_command_would_not_read_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "llm-seq-prompt", "--data", str(folder), "--embeddings", "no-such.npy"])
    assert left.value.code == 2
    assert "--embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--agent", "planner"], ["--slots", "load=2"], ["--executor", "threads"]])
def test_where_nothing_is_trained_there_are_no_options_of_training(
    folder: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "llm-seq-sim", "--data", str(folder), *option])
    assert left.value.code == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bert4rec", "sasrec", "gru4rec", "llm2bert4rec", "llm-seq-prompt"])
def test_help_says_what_no_shuffling_does_to_draws(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", name, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the same windows, masks and negatives in every epoch" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "bert4rec", "--width", "0"], "`width`"),
        (["train", "gru4rec", "--device", "foo"], "`device`='foo' is unknown"),
        (["train", "gru4rec", "--seed", str(1 << 64)], "`seed` must be from 0"),
        (["train", "llm-seq-prompt"], "install intune[text]\n"),
        (["train", "llm-seq-sim", "--embeddings", "no-such.npy"], "no embeddings at no-such.npy"),
        (["train", "llm-seq-prompt", "--text-model", "no-such-folder/none/at/all"], "no-such-folder"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An unreachable model must be refused as such whether or not the extra is installed, and without a network.
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    assert main([*options, "--data", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("intune: error: ")
    assert message in shown
    assert shown.count("\n") == 1
